"""Which token servers and hosts a registry may name: protection against server-side request forgery.

The realm of a challenge (distribution's `spec/auth/token.md`) is named by the registry, or by an attacker in
its place, and is sent secrets. The specification does not bind it to the registry's host, and large
registries have theirs on another (Docker Hub's is auth.docker.io), so another host must do. Refused is what
only an attacker does, who is after secrets or after servers that only this machine can reach:

- plain HTTP, if the registry itself is reached over TLS;
- a fragment, and all that one parser of URLs reads otherwise than the next (`urls`);
- an address of this machine or of its link (clouds keep their instances' secrets at 169.254.169.254), and a
  private one, from a registry that is no such neighbour itself.

The registry's own host is always allowed. A name is judged by the address that is connected to, at that
moment (`check_address`), since the answer of DNS can change between two queries; a proxy resolves names
itself. A private address is allowed for a registry that has one, too, as in the networks of companies, and
over TLS for a name in the registry's own domain (split-horizon DNS): only the owner of the name has its
certificate. A redirect of a token server is followed within its own host only.
"""

from __future__ import annotations

import ipaddress
import socket

from imgfs.errors import Unauthorized
from imgfs.registry.urls import UrlError, parse_url, shown

_PUBLIC, _PRIVATE, _MACHINE, _NOWHERE = "public", "private", "machine", "nowhere"


def check_realm(realm: str, *, registry: str, secure: bool, number: str | None = None) -> str:
    """The URL of a token server that may be sent credentials; raises Unauthorized, saying why, for another.

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
    if address is None or address.is_global:
        return _PUBLIC
    if address.is_loopback:
        return _MACHINE
    return _NOWHERE if _is_nowhere(address) else _PRIVATE


def _is_nowhere(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_link_local or address.is_unspecified or address.is_multicast or address.is_reserved


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `name` is, in any spelling that resolvers take: `127.1` and `0x7f000001` are some."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(name))
        except (OSError, UnicodeError):
            return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
