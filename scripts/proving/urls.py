"""URLs of servers by chance: the host that is judged is the one that is connected to, by every parser."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from urllib3.util import parse_url as parse_otherwise

from imgfs.errors import RegistryError
from imgfs.registry.adapter import Adapter
from imgfs.registry.urls import Url, UrlError, parse_url, resolve_url

if TYPE_CHECKING:
    from scripts.proving.cases import Case

_BASE = parse_url("https://registry.test/v2/app/blobs/x?a=b")
_SEEDS = (
    "https://cdn.test/a%2fb?sig=%2b%7e|x#y",
    "http://evil.test@registry.test:80/x",
    "http://127.0.0.1:5000/x",
    "http://[::ffff:127.0.0.1]:5000/x",
    "http://0x7f.1/latest",
    "//2130706433/x",
    "/v2/app/blobs/uploads/1?state=a@b",
    "../tags/list?last=x",
)
_SIGNS = (
    *"@@::///\\\\?#%[].-_ \t\r\n\0aA0178xX\x7f\x80\xe4\u2044\uff0e",
    "%40",
    "%2f",
    "%00",
    "//",
    "[::1]",
    "..",
)
_PORTS = {"http": 80, "https": 443}


def url(case: Case) -> str:
    """Read a URL: it is refused, or every parser sees where it leads as imgfs does."""
    text = case.chance.choice(_SEEDS)
    for _ in range(case.chance.randrange(4)):
        at = case.chance.randrange(len(text) + 1)
        text = text[:at] + case.chance.choice(_SIGNS) + text[at + case.chance.randrange(3) :]
    case.damage("URL", lambda body, _: body, text.encode())
    try:
        found = resolve_url(_BASE, text)
    except UrlError:
        return "refused"
    _compare(found)
    return _dialled(found)


def _compare(found: Url) -> None:
    if parse_url(str(found)) != found:
        raise AssertionError(f"{found}: read again it is another URL")
    for parse in (urlsplit, parse_otherwise):
        other = parse(str(found))
        seen = (other.hostname or "").strip("[]"), other.port or _PORTS[found.scheme]
        if seen != (found.host, found.port):
            raise AssertionError(f"{found}: {found.host} is judged, and elsewhere {seen} is read")


def _dialled(found: Url) -> str:
    """See where a connection would go, as far as that needs no looking up."""
    try:
        number = ipaddress.ip_address(found.host)
    except ValueError:
        return "parsed"
    asked: list[object] = []

    def check_address(host: str, address: str) -> None:
        asked.append((host, ipaddress.ip_address(address)))
        raise RegistryError("no further")

    connected: list[tuple[str, str]] = []
    adapter = Adapter(
        None, 1, check_address=check_address, on_connect=lambda *address: connected.append(address)
    )
    with suppress(RegistryError):
        adapter.send("GET", found._replace(scheme="http"), {}, None, proxy="", timeouts=(1.0, 1.0))
    if asked != [(found.host, number)]:
        raise AssertionError(f"{found}: {found.host} is judged, {asked} would be connected to")
    return "taken"
