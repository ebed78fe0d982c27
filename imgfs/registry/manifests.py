"""The manifests of one repository, its tags, and lists in pages (distribution-spec).

Manifests are fetched by tag or digest, pushed and deleted ("Pulling manifests" and on), tags are listed
("Listing Tags"). Each page of a list says where the next one is (RFC 8288).
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from imgfs.errors import InvalidImage, NotFound, RegistryError, Unavailable
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import INDEX_TYPES, MANIFEST_TYPES, refuse_schema_1_type
from imgfs.oci.kind import is_artifact_tag
from imgfs.registry.endpoint import MAX_MANIFEST
from imgfs.registry.errors import delete_refusal, push_refusal
from imgfs.registry.retry import Busy
from imgfs.registry.session import Answer, HttpSession
from imgfs.registry.ssrf import redirected
from imgfs.registry.upload import check_stored
from imgfs.registry.urls import origin, redact

_KEPT = 4  # manifests at hand
_ACCEPT = {"Accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))}
_FEW_TAGS = 10  # tags that a message lists in full
_ENOUGH = 1000  # tags that are fetched for a message
MAX_PAGE = 4 << 20  # bytes
NO_REPOSITORY = "no such repository"  # said wherever its tags are missed
_MAX_PAGES = 20
_LINK = re.compile(r"<([^<>]*)>([^<]*)")  # one of perhaps several (RFC 8288, 3)
_RELATION = re.compile(r";\s*rel\s*=([^;]*)", re.IGNORECASE)
_NEXT = re.compile(r"\bnext\b", re.IGNORECASE)


class Fetched(NamedTuple):
    """A manifest or index as it came; `etag` names this state of a tag, "" if the registry does not say."""

    descriptor: Descriptor
    body: bytes
    etag: str = ""


class Manifests:
    """The manifests of `name`, `registry/repository`. Safe in threads.

    `pushing` and `deleting` are the scopes that a token needs for it.
    """

    def __init__(self, session: HttpSession, name: str, *, pushing: str, deleting: str) -> None:
        self._session = session
        self._name = name
        self._pushing = pushing
        self._deleting = deleting
        self._known: dict[Digest, Fetched] = {}  # the latest
        self._lock = threading.Lock()

    def head(self, name: str | Digest) -> Descriptor:
        """Return what a tag or digest names now, by HEAD.

        By GET if the answer to that is an error or does not tell.

        HEAD is a hint: registries and what stands before them answer it with 404, 401 or 403 where GET is
        answered well, and with another length: its length is never held against what GET brings.
        """
        try:
            headers = self._session.ask("HEAD", self._url(name), _ACCEPT).headers
        except Unavailable as error:
            if error.status is None or isinstance(error, Busy):
                raise
            return self.fetch(name).descriptor
        except RegistryError:
            return self.fetch(name).descriptor
        digest = name if isinstance(name, Digest) else _digest_in(headers)
        media_type, length = media_type_in(headers), headers.get("Content-Length", "")
        if digest is None or not length.isdecimal() or media_type not in (*INDEX_TYPES, *MANIFEST_TYPES):
            return self.fetch(name).descriptor
        return Descriptor(media_type, digest, int(length[:18]), size_is_hint=True)

    def fetch(self, name: str | Digest) -> Fetched:
        """Return a manifest or index, at most 4 MiB; raises IntegrityError if the bytes are not the digest's.

        One that has come already is not asked for again by its digest.
        """
        with self._lock:
            known = self._known.get(name) if isinstance(name, Digest) else None
        return known or self._keep(self._fetch(name))

    def _fetch(self, name: str | Digest) -> Fetched:
        def promised(answer: Answer) -> Digest:
            return name if isinstance(name, Digest) else _digest_in(answer.headers) or Digest.of(answer.body)

        def check(answer: Answer) -> None:
            refuse_schema_1_type(media_type_in(answer.headers))
            promised(answer).verify(answer.body, f"digest of the manifest {self._name} {name}")

        answer = self._session.ask("GET", self._url(name), _ACCEPT, limit=MAX_MANIFEST, check=check)
        _, headers, body = answer
        descriptor = Descriptor(media_type_in(headers), promised(answer), len(body))
        return Fetched(descriptor, body, headers.get("ETag", "").strip())

    def _keep(self, fetched: Fetched) -> Fetched:
        with self._lock:
            self._known.pop(fetched.descriptor.digest, None)
            self._known[fetched.descriptor.digest] = fetched
            while len(self._known) > _KEPT:
                del self._known[next(iter(self._known))]
        return fetched

    def push(
        self,
        name: str | Digest,
        media_type: str,
        body: bytes,
        conditions: Mapping[str, str] | None = None,
    ) -> Mapping[str, str]:
        """Put a manifest or index under a tag or its digest: the answer's headers ("Pushing Manifests").

        `conditions` are headers such as If-Match: a registry that minds them may refuse with 412.
        """
        headers = {"Content-Type": media_type, **(conditions or {})}
        try:
            answer = self._session.ask("PUT", self._url(name), headers, body=body, scope=self._pushing)
        except RegistryError as error:
            raise push_refusal(error, self._name) from error
        check_stored(answer.headers, Digest.of(body))
        return answer.headers

    def delete(self, digest: Digest) -> None:
        """Delete a manifest, if it is there ("Deleting Manifests"); raises RegistryError."""
        with self._lock:
            self._known.pop(digest, None)
        try:
            self._session.ask("DELETE", self._url(digest), {}, scope=self._deleting)
        except NotFound:
            return
        except RegistryError as error:
            raise delete_refusal(error, self._name) from error

    def _url(self, name: str | Digest) -> str:
        return self._session.at(f"manifests/{name}")


def media_type_in(headers: Mapping[str, str]) -> str:
    """Return the media type of a body, without its parameters."""
    return headers.get("Content-Type", "").partition(";")[0].strip()


def _digest_in(headers: Mapping[str, str]) -> Digest | None:
    try:
        return Digest.parse(headers.get("Docker-Content-Digest"))
    except InvalidImage:
        return None


def list_tags(session: HttpSession, limit: int) -> list[str]:
    """Up to `limit` tags of the session's repository, in the registry's order."""
    found: list[str] = []
    for answer in pages(session, session.at("tags/list", n=str(limit)), {}):
        found += _tags_in(answer.body)
        if len(found) >= limit:
            break
    return found[:limit]


def existing_tags(session: HttpSession) -> str:
    """Return the tags of a repository, or why they are not known, for a message."""
    try:
        return describe_tags(list_tags(session, _ENOUGH))
    except NotFound:
        return NO_REPOSITORY
    except (RegistryError, InvalidImage):
        return "the registry does not list its tags"


def describe_tags(tags: list[str]) -> str:
    """Say for a message which tags there are: all if they are few, else how many and some.

    Tags of signatures and of lists of referrers are left out: they name no image.
    """
    if not tags:
        return "there are none"
    tags = [tag for tag in tags if not is_artifact_tag(tag)]
    if not tags:
        return "there are none of images"
    if len(tags) <= _FEW_TAGS:
        return f"there are: {', '.join(tags)}"
    return f"there are {len(tags)}, such as {', '.join(tags[:_FEW_TAGS])}"


def _tags_in(body: bytes) -> list[str]:
    try:
        tags = json.loads(body.decode())["tags"] or []
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise InvalidImage("the registry's list of tags is not in JSON") from error
    return (
        [tag for tag in tags if isinstance(tag, str) and tag.isprintable()] if isinstance(tags, list) else []
    )


def pages(
    session: HttpSession,
    url: str,
    headers: Mapping[str, str],
    *,
    scope: str = "",
    most: int = _MAX_PAGES,
    refusals: int | None = None,
) -> Iterator[Answer]:
    """Yield the answers for `url` and the pages after it: `most` of 4 MiB at most, each once, of one host.

    The last of them is asked for within the time that one document has. `scope` is what a token must allow
    beside what the registry asks for; `refusals` as for `HttpSession.ask`. Raises RegistryError, InvalidImage
    for a page that is longer.
    """
    page: str | None = url
    seen: set[str] = set()
    ends = time.monotonic() + session.timeouts.deadline
    while page and page not in seen and len(seen) < most:
        if time.monotonic() >= ends:
            raise Unavailable(f"{redact(url)}: its pages take too long", url=redact(url))
        seen.add(page)
        answer = session.ask("GET", page, headers, limit=MAX_PAGE, scope=scope, refusals=refusals)
        yield answer
        page = _next_page(page, answer.headers)


def has_next(headers: Mapping[str, str]) -> bool:
    """Return True if a page says that there is another one."""
    return _linked_next(headers) is not None


def _next_page(url: str, headers: Mapping[str, str]) -> str | None:
    """Return where `Link: <url>; rel="next"` points to, if it is on the same host."""
    target = _linked_next(headers)
    if target is None:
        return None
    try:
        following = redirected(url, target)
    except RegistryError:
        return None
    return following if origin(following) == origin(url) else None


def _linked_next(headers: Mapping[str, str]) -> str | None:
    """Return what a header links to as the next page; None if it links to none."""
    for target, parameters in _LINK.findall(headers.get("Link", "")):
        values = (text.lstrip().removeprefix('"').partition('"')[0] for text in _RELATION.findall(parameters))
        if any(map(_NEXT.search, values)):
            return str(target)
    return None
