"""Lists that come in pages, each of which says where the next one is (distribution-spec; RFC 8288)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from imgfs.errors import RegistryError
from imgfs.registry.redirects import redirected
from imgfs.registry.session import Answer, Session
from imgfs.registry.urls import origin

MAX_PAGE = 4 << 20  # bytes
_MAX_PAGES = 20


def pages(session: Session, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
    """The answers for `url` and the pages after it: at most 20 of 4 MiB, each once, all of one host.

    Raises RegistryError, InvalidImage for a page that is longer.
    """
    page: str | None = url
    seen: set[str] = set()
    while page and page not in seen and len(seen) < _MAX_PAGES:
        seen.add(page)
        answer = session.ask("GET", page, headers, limit=MAX_PAGE)
        yield answer
        page = _next_page(page, answer.headers)


def _next_page(url: str, headers: Mapping[str, str]) -> str | None:
    """Where `Link: <url>; rel="next"` points to, if it is on the same host."""
    target, _, parameters = headers.get("Link", "").strip().partition(">")
    if not target.startswith("<") or "next" not in parameters:
        return None
    try:
        following = redirected(url, target[1:])
    except RegistryError:
        return None
    return following if origin(following) == origin(url) else None
