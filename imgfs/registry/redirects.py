"""Where a redirect or a Location may lead."""

from __future__ import annotations

from dataclasses import replace

from imgfs.errors import RegistryError
from imgfs.registry.ssrf import is_of_this_machine
from imgfs.registry.urls import Url, UrlError, parse_url, redact, resolve_url, shown

_OWN_AFFAIR = "which is this machine's own affair"


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
        return str(replace(here, target=there.target))
    return led_to(url, location, verify=verify)


def _target(url: str, location: str) -> tuple[Url, Url]:
    here = parse_url(url)
    try:
        return here, resolve_url(
            here, location.strip(" \t")
        )  # white space beside it is none of it (RFC 9110, 5.5)
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
