"""Lists that come in pages, each of which says where the next one is (distribution-spec; RFC 8288)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping

from imgfs.errors import RegistryError, Unavailable
from imgfs.registry.redirects import redirected
from imgfs.registry.session import Answer, Session
from imgfs.registry.urls import origin, redact

MAX_PAGE = 4 << 20  # bytes
_MAX_PAGES = 20
_LINK = re.compile(r"<([^>]*)>([^<]*)")  # one of perhaps several (RFC 8288, 3)
_NEXT = re.compile(r';\s*rel\s*=\s*"?[^";]*\bnext\b', re.IGNORECASE)


def pages(session: Session, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
    """The answers for `url` and the pages after it: at most 20 of 4 MiB, each once, all of one host.

    The last of them is asked for within the time that one document has. Raises RegistryError, InvalidImage
    for a page that is longer.
    """
    page: str | None = url
    seen: set[str] = set()
    ends = time.monotonic() + session.timeouts.deadline
    while page and page not in seen and len(seen) < _MAX_PAGES:
        if time.monotonic() >= ends:
            raise Unavailable(f"{redact(url)}: its pages take too long", url=redact(url))
        seen.add(page)
        answer = session.ask("GET", page, headers, limit=MAX_PAGE)
        yield answer
        page = _next_page(page, answer.headers)


def _next_page(url: str, headers: Mapping[str, str]) -> str | None:
    """Where `Link: <url>; rel="next"` points to, if it is on the same host."""
    links = _LINK.findall(headers.get("Link", ""))
    target = next((target for target, parameters in links if _NEXT.search(parameters)), None)
    if target is None:
        return None
    try:
        following = redirected(url, target)
    except RegistryError:
        return None
    return following if origin(following) == origin(url) else None
