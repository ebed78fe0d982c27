"""Where one answer may lead: URLs on the web, and those that no registry of the world would lead to."""

from __future__ import annotations

from dataclasses import replace

from imgfs.errors import RegistryError
from imgfs.registry.ssrf import is_of_this_machine
from imgfs.registry.urls import Url, UrlError, parse_url, redact, resolve_url, shown

_OWN_AFFAIR = "which is this machine's own affair"


def redirected(url: str, location: str) -> str:
    """Where `location`, said by `url`, is; raises RegistryError if that is no place on the web."""
    return str(_target(url, location)[1])


def led_to(url: str, location: str, *, verify: bool) -> str:
    """Where a server leads to; raises RegistryError if no registry of the world would lead there.

    That is out of TLS, unless nobody is to `verify` who answers, or from elsewhere to this machine or its
    link, where secrets may lie about.
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
    """Where a server leads to if that is itself: the same origin, or the same host by TLS; else "".

    What was sent to it, a password, may be sent there as well. Raises RegistryError for what is no URL.
    """
    if not location:
        return ""
    here, there = _target(url, location)
    is_itself = there.origin == here.origin or (
        there.host == here.host and (here.port, there.port) == (80, 443) and there.is_secure
    )
    return str(there) if is_itself else ""


def check_target(host: str, address: str, *, registry: str, number: str | None) -> None:
    """Raise RegistryError if nobody is to be led to a `host` that turns out to be at this `address`.

    `number` is the one that the `registry` itself was reached at, None if a proxy did that.
    """
    if is_of_this_machine(address) and not is_of_this_machine(number or registry):
        raise RegistryError(f"{registry} leads to {host}, {address}, {_OWN_AFFAIR}")
