"""Where one answer may lead: URLs on the web, and those that no registry of the world would lead to."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

from imgfs.errors import RegistryError
from imgfs.registry.realm import is_of_this_machine
from imgfs.registry.refusal import redact

_OWN_AFFAIR = "which is this machine's own affair"


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: what Authorization is bound to. Raises ValueError for what is no URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def redirected(url: str, location: str) -> str:
    """Where `location`, said by `url`, is; raises RegistryError if that is no place on the web."""
    try:
        target = urljoin(url, location)
        scheme, host, _ = origin(target)
    except ValueError:
        scheme, host = "", None
    if scheme not in ("http", "https") or not host:
        raise RegistryError(f"{redact(url)}: redirected to {location[:100]!r}", url=redact(url))
    return target


def led_to(url: str, location: str, *, verify: bool) -> str:
    """Where a redirect leads; raises RegistryError if no registry of the world would lead there.

    That is out of TLS, unless nobody is to `verify` who answers, or from elsewhere to this machine or its
    link, where secrets may lie about.
    """
    target = redirected(url, location)
    here, there = urlsplit(url), urlsplit(target)
    if (here.scheme, there.scheme) == ("https", "http") and verify:
        why = "which is not TLS"
    elif is_of_this_machine(there.hostname or "") and not is_of_this_machine(here.hostname or ""):
        why = _OWN_AFFAIR
    else:
        return target
    raise RegistryError(f"{redact(url)}: redirected to {redact(target)}, {why}", url=redact(url))


def check_target(host: str, address: str, *, registry: str, number: str | None) -> None:
    """Raise RegistryError if nobody is to be led to a `host` that turns out to be at this `address`.

    `number` is the one that the `registry` itself was reached at, None if a proxy did that.
    """
    if is_of_this_machine(address) and not is_of_this_machine(number or registry):
        raise RegistryError(f"{registry} leads to {host}, {address}, {_OWN_AFFAIR}")
