"""Where a registry may send imgfs: its token servers, redirects and upload locations.

This is the protection against server-side request forgery. The realm of a challenge (distribution's
`spec/auth/token.md`) is named by the registry, or by an attacker in its place, and is sent secrets. The
specification does not bind it to the registry's host, and large registries have theirs on another (Docker
Hub's is auth.docker.io), so another host must do. Refused is what only an attacker does, who is after secrets
or after servers that only this machine can reach:

- plain HTTP, if the registry itself is reached over TLS;
- a fragment, and all that one parser of URLs reads otherwise than the next (`urls`);
- an address of this machine or of its link (clouds keep their instances' secrets at 169.254.169.254), and a
  private one, from a registry that is no such neighbour itself.

The registry's own host is always allowed. A name is judged by the address that is connected to, at that
moment (`check_address`), since the answer of DNS can change between two queries; a proxy resolves names
itself. A private address is allowed for a registry that has one, too, as in the networks of companies, and
over TLS for a name in the registry's own domain (split-horizon DNS): only the owner of the name has its
certificate. A redirect of a token server is followed within its own host only (`within_host`), one of the
registry out of this machine's reach and never out of TLS (`led_to`, `upload_target`).
"""

from __future__ import annotations

import ipaddress
import socket

from imgfs.errors import RegistryError, Unauthorized
from imgfs.registry.urls import Url, UrlError, parse_url, redact, resolve_url, shown

_PUBLIC, _PRIVATE, _MACHINE, _NOWHERE = "public", "private", "machine", "nowhere"
_OWN_AFFAIR = "which is this machine's own affair"


def check_realm(realm: str, *, registry: str, secure: bool, number: str | None = None) -> str:
    """Return the URL of a token server that may be sent credentials.

    Raises Unauthorized, saying why, for another.

    `registry` is the host of the registry that names it, "" if that does not matter; `secure` says that it is
    reached over TLS, `number` at which address, if that is known.
    """
    try:
        url = parse_url(realm)
    except UrlError as error:
        raise _no_server(realm, str(error)) from error
    if "#" in realm:
        raise _no_server(realm, "with a fragment")
    if secure and not url.is_secure:
        raise Unauthorized(f"the registry's token server {shown(realm)} does not use TLS")
    host = url.host
    own = _kind(number or registry)
    if registry and not _may_name(registry, own, host, _kind(host), secure=secure):
        raise _refused(registry, host, host)
    return realm


def check_address(host: str, address: str, *, registry: str, secure: bool, number: str | None) -> None:
    """Raise Unauthorized if a token server, `host`, may not be one at this `address`, a number.

    The rest is as for `check_realm`.
    """
    kind, own = _kind(address), _kind(number or registry)
    at_home = kind == _PRIVATE and secure and bool(_domains(host) & _domains(registry))
    if not at_home and not _may_name(registry, own, host, kind, secure=secure):
        raise _refused(registry, host, address)


def is_of_this_machine(host: str) -> bool:
    """Return True if a host, by name or number, is this machine, or an address without global meaning."""
    return _kind(host) in (_MACHINE, _NOWHERE)


def _no_server(realm: str, why: str) -> Unauthorized:
    return Unauthorized(f"the registry names no token server (realm {shown(realm)}, a URL {why})")


def _refused(registry: str, host: str, address: str) -> Unauthorized:
    where = host if address == host else f"{host}, {address}"
    return Unauthorized(
        f"the registry {registry} names a token server at {where}, which is {_MEANINGS[_kind(address)]}: "
        "no credentials are sent there"
    )


_MEANINGS = {
    _PRIVATE: "a private address",
    _MACHINE: "this machine",
    _NOWHERE: "an address without a global meaning",
}


def _may_name(registry: str, own: str, host: str, kind: str, *, secure: bool) -> bool:
    """Return True if a registry of the kind `own` may have its token server at `host`, of the kind `kind`."""
    if kind == _PUBLIC or host == registry.lower():
        return True
    if kind == _PRIVATE:  # a registry that the user reaches without TLS is a private one by any name
        return own != _PUBLIC or not secure
    return kind == own == _MACHINE


def _domains(host: str) -> set[str]:
    """Return a name and its parent domain, without top-level domains; nothing for a number."""
    name = host.lower().rstrip(".")
    domains = set() if _address(name) else {name, name.partition(".")[2]}
    return {domain for domain in domains if "." in domain}


def _kind(host: str) -> str:
    """Return the kind of a host by its name or number."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, 6.3
        return _MACHINE
    address = _address(name)
    if address is None:
        return _PUBLIC
    if address.is_multicast:
        return _NOWHERE
    if (
        isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    ):  # RFC 3879: no longer, but routed
        return _PRIVATE
    if address.is_global:
        return _PUBLIC
    if address.is_loopback:
        return _MACHINE
    return _NOWHERE if _is_nowhere(address) else _PRIVATE


def _is_nowhere(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_link_local or address.is_unspecified or address.is_reserved


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that `name` is, in any spelling of resolvers, such as `127.1` and `0x7f000001`."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(name))
        except (OSError, UnicodeError):
            return None
    if isinstance(address, ipaddress.IPv6Address):
        inner = _inner(address)
        if inner and (address.ipv4_mapped or not inner.is_global):
            return inner
    return address


_LAST_32 = tuple(  # of these, the last 32 bits are an IPv4 address that a host or router may send to
    map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96", "::ffff:0:0:0/96", "::/96"))
)  # RFC 4291, 2.5.5.2; RFC 6052, 2.1 (NAT64); RFC 2765, 2.1 (SIIT); RFC 4291, 2.5.5.1


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that is embedded in one of IPv6, None if there is none."""
    if address.is_loopback or address.is_unspecified:
        return None
    if any(address in network for network in _LAST_32):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour or (address.teredo[1] if address.teredo else None)


def redirected(url: str, location: str) -> str:
    """Resolve `location` against `url`; raises RegistryError unless it is an http or https URL."""
    return str(_target(url, location)[1])


def led_to(url: str, location: str, *, verify: bool) -> str:
    """Return where a redirect leads; raises RegistryError if it must not be followed.

    Refused is the way out of TLS if certificates are to be verified (`verify`), and from another machine to
    this one or its link-local addresses, where clouds keep secrets.
    """
    here, there = _target(url, location)
    if here.is_secure and not there.is_secure and verify:
        why = "which is not TLS"
    elif is_of_this_machine(there.host) and not is_of_this_machine(here.host):
        why = _OWN_AFFAIR
    else:
        return str(there)
    raise RegistryError(f"{redact(url)}: redirected to {redact(str(there))}, {why}", url=redact(url))


def upload_target(url: str, location: str, *, verify: bool) -> str:
    """Return where the `Location` of an upload leads; raises RegistryError as `led_to` does.

    A registry behind a proxy that ends TLS names itself by http:// and its own host, often without its port,
    unless it is told otherwise (distribution, "X-Forwarded-Proto"). docker and buildah follow that out of
    TLS, containerd too, without Authorization; here it means the origin that was asked: https, same port.
    """
    here, there = _target(url, location)
    is_itself = here.is_secure and not there.is_secure and there.host == here.host
    if is_itself and there.port in (80, here.port):
        return str(here._replace(target=there.target))
    return led_to(url, location, verify=verify)


def _target(url: str, location: str) -> tuple[Url, Url]:
    here = parse_url(url)
    try:
        return here, resolve_url(
            here, location.strip(" \t")
        )  # white space beside it is no part of it (RFC 9110, 5.5)
    except UrlError as error:
        text = f"{redact(url)}: redirected to {shown(location)}, a URL {error}"
        raise RegistryError(text, url=redact(url)) from error


def within_host(url: str, location: str) -> str:
    """Return where a redirect leads if that is the same origin, or the same host by TLS; else "".

    A password that was sent to `url` may be sent there as well. Raises RegistryError for a malformed URL.
    """
    if not location:
        return ""
    here, there = _target(url, location)
    is_itself = there.origin == here.origin or (
        there.host == here.host and (here.port, there.port) == (80, 443) and there.is_secure
    )
    return str(there) if is_itself else ""


def check_target(host: str, address: str, *, registry: str, number: str | None) -> None:
    """Raise RegistryError if no redirect may lead to a `host` whose `address` is this.

    `number` is the address of the `registry` itself, None if a proxy resolved it.
    """
    if is_of_this_machine(address) and not is_of_this_machine(number or registry):
        raise RegistryError(f"{registry} leads to {host}, {address}, {_OWN_AFFAIR}")
