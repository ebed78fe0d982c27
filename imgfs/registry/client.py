"""One repository of one registry: its manifests, blobs and tags (OCI distribution-spec, "Pull" and "Push").

What comes out is what a digest promised, or an error: documents are checked here; of blobs the length is, and
the digest of a range is for its reader to check. What goes in is checked on its way. Safe in threads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlencode

from imgfs.errors import (
    IntegrityError,
    InvalidImage,
    NotFound,
    RegistryError,
    Unauthorized,
    Unavailable,
)
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import INDEX_TYPES, MANIFEST_TYPES
from imgfs.oci.reference import DOCKER_HUB
from imgfs.registry.body import CheckedBlob
from imgfs.registry.credentials import Credentials
from imgfs.registry.ranges import Piece, cut_out, gather, range_header, window_of
from imgfs.registry.refusal import push_refusal, redact
from imgfs.registry.retry import Patience, Timeouts
from imgfs.registry.session import Session, origin, redirected
from imgfs.registry.transport import Response, Traffic, is_loopback
from imgfs.registry.upload import Upload, check_stored

MAX_MANIFEST = 4 << 20  # bytes; what the spec asks registries to accept ("Pushing Manifests")
MAX_DOCUMENT = 8 << 20  # bytes of a config
_MAX_TAG_PAGE = 4 << 20
_MAX_TAG_PAGES = 20
_CHUNK = 256 << 10  # bytes handed out at once, at least, while there are more
_ACCEPT = ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))
_FEW_TAGS = 10


class Client:
    """Reads and fills `registry/repository`. `plain_http=None`: without TLS on this machine only.

    `credentials` is asked again whenever the registry wants to know; `ca_bundle` is a PEM file.
    """

    def __init__(
        self,
        registry: str,
        repository: str,
        *,
        plain_http: bool | None = None,
        credentials: Callable[[], Credentials | None] = lambda: None,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        ca_bundle: Path | None = None,
    ) -> None:
        host = "registry-1.docker.io" if registry == DOCKER_HUB else registry
        plain = is_loopback(host) if plain_http is None else plain_http
        self._name = f"{registry}/{repository}"
        self._base = f"{'http' if plain else 'https'}://{host}/v2/{repository}/"
        self._session = Session(
            self._base,
            scope=f"repository:{repository}:pull",
            credentials=credentials,
            timeouts=timeouts,
            ca_bundle=ca_bundle,
        )
        self._pushing = f"repository:{repository}:pull,push"
        self._targets: dict[str, str] = {}  # where blobs were redirected to; CDN signatures expire

    @property
    def traffic(self) -> Traffic:
        """Requests sent and body bytes received so far."""
        return self._session.traffic

    def head_manifest(self, name: str | Digest) -> Descriptor:
        """What a tag or digest names now, by HEAD, which registries do not count as a pull.

        A registry whose answer lacks the digest is asked with GET. Raises NotFound naming the tags there are.
        """
        try:
            headers = self._head(self._url("manifests", str(name)))
        except NotFound as error:
            self._explain_missing(name, error)
        except (Unauthorized, Unavailable):
            raise
        except RegistryError:  # HEAD itself is refused
            return self.manifest(name)[0]
        digest = name if isinstance(name, Digest) else _digest_in(headers)
        length = headers.get("Content-Length", "")
        if digest is None or not length.isdecimal():
            return self.manifest(name)[0]
        return Descriptor(_media_type(headers), digest, int(length[:18]))

    def manifest(self, name: str | Digest) -> tuple[Descriptor, bytes]:
        """Fetch a manifest or index by tag or digest: its descriptor and its bytes, at most 4 MiB.

        Raises NotFound naming the tags there are, IntegrityError if the bytes are not the digest's.
        """
        url = self._url("manifests", str(name))
        try:
            headers, body = self._document(url, MAX_MANIFEST, {"Accept": _ACCEPT})
        except NotFound as error:
            self._explain_missing(name, error)
        digest = name if isinstance(name, Digest) else _digest_in(headers) or Digest.of(body)
        digest.verify(body, f"digest of the manifest {self._name} {name}")
        return Descriptor(_media_type(headers), digest, len(body)), body

    def blob_document(self, digest: Digest) -> bytes:
        """Fetch a small blob whole, such as a config, at most 8 MiB; its digest is checked."""
        _, body = self._document(self._url("blobs", str(digest)), MAX_DOCUMENT, {})
        digest.verify(body, f"digest of the document in {self._name}")
        return body

    def blob(
        self, descriptor: Descriptor, start: int = 0, end: int | None = None, *, url: str | None = None
    ) -> Iterator[bytes]:
        """Exactly the bytes `[start, end)` of a blob, in chunks of 256 KiB or more but for the last.

        A body that breaks off is resumed where it stopped. `url` is somewhere else to look (descriptor.md,
        `urls`). Raises IntegrityError for a blob of another length, NotFound, Unauthorized, Unavailable.
        """
        end = descriptor.size if end is None else end
        if not 0 <= start <= end <= descriptor.size:
            raise InvalidImage(
                f"bytes {start}-{end} of a blob of {descriptor.size}", where=str(descriptor.digest)
            )
        own = self._url("blobs", str(descriptor.digest))
        url = redirected(own, url) if url else own
        patience = self._session.patience()
        while start < end:
            try:
                for chunk in gather(self._range(url, Piece(start, end, descriptor.size), patience), _CHUNK):
                    start += len(chunk)
                    handed_out = time.monotonic()
                    yield chunk
                    patience.suspend(time.monotonic() - handed_out)
            except Unavailable as error:
                patience.pause(error)

    def has_blob(self, digest: Digest) -> bool:
        """Ask by HEAD whether a blob is there; a refusal means no, and the push will be told why."""
        patience = self._session.patience()
        url = self._url("blobs", str(digest))
        while True:
            try:
                self._session.follow("HEAD", url, {}, patience, scope=self._pushing).close()
            except Unavailable as error:
                patience.pause(error)
            except RegistryError:
                return False
            else:
                return True

    def push_blob(self, blob: CheckedBlob, *, mount_from: str | None = None) -> bool:
        """Bring a blob in; whether it had to be uploaded, rather than taken from the repository `mount_from`.

        Raises IntegrityError, and leaves nothing behind, if the blob's bytes do not have its digest.
        """
        digest = blob.descriptor.digest
        upload = Upload(
            self._session,
            self._url("blobs", "uploads/"),
            blob,
            scope=self._pushing,
            exists=lambda: self.has_blob(digest),
        )
        if mount_from and upload.mount(mount_from):
            return False
        try:
            upload.run()
        except RegistryError as error:
            if error is blob.failure:
                raise
            raise push_refusal(error, self._name) from error
        return True

    def push_manifest(self, name: str | Digest, media_type: str, body: bytes) -> None:
        """Put a manifest or index under a tag or its digest ("Pushing Manifests")."""
        patience = self._session.patience()
        url, headers = self._url("manifests", str(name)), {"Content-Type": media_type}
        while True:
            try:
                response = self._session.follow("PUT", url, headers, patience, body=body, scope=self._pushing)
            except Unavailable as error:
                patience.pause(error)
            except RegistryError as error:
                raise push_refusal(error, self._name) from error
            else:
                response.close()
                check_stored(response.headers, Digest.of(body))
                return

    def tags(self, limit: int) -> list[str]:
        """Up to `limit` of the repository's tags, in the registry's order ("Listing Tags")."""
        found: list[str] = []
        page: str | None = self._url("tags", f"list?{urlencode({'n': limit})}")
        for _ in range(_MAX_TAG_PAGES):
            if page is None or len(found) >= limit:
                break
            headers, body = self._document(page, _MAX_TAG_PAGE, {})
            found += _tags_in(body)
            page = self._next_page(page, headers)
        return found[:limit]

    def close(self) -> None:
        """Close the connections; pauses before another try end at once."""
        self._session.close()

    def _url(self, kind: str, name: str) -> str:
        return f"{self._base}{kind}/{name}"

    def _head(self, url: str) -> Mapping[str, str]:
        patience = self._session.patience()
        while True:
            try:
                with closing(self._session.follow("HEAD", url, {"Accept": _ACCEPT}, patience)) as response:
                    return response.headers
            except Unavailable as error:
                patience.pause(error)

    def _document(self, url: str, limit: int, headers: Mapping[str, str]) -> tuple[Mapping[str, str], bytes]:
        patience = self._session.patience()
        while True:
            try:
                with closing(self._session.follow("GET", url, headers, patience)) as response:
                    return response.headers, response.read(limit, patience)
            except Unavailable as error:
                patience.pause(error)

    def _range(self, url: str, piece: Piece, patience: Patience) -> Iterator[bytes]:
        """One request for a piece of a blob; it may end early with Unavailable, or without."""
        what = redact(url)
        try:
            response = self._open_blob(url, range_header(piece), patience)
        except RegistryError as error:
            if error.status == 416:
                raise IntegrityError(f"{what}: length", expected=piece.size, actual="less") from error
            raise
        with closing(response):
            window = window_of(response.status, response.headers, piece, what)
            yield from cut_out(response.chunks(patience), window, what)

    def _open_blob(self, url: str, headers: Mapping[str, str], patience: Patience) -> Response:
        """Ask where the blob was redirected to last; a refusal there means: ask the registry again."""
        target = self._targets.get(url)
        if target:
            try:
                return self._session.follow("GET", target, headers, patience)
            except Unavailable:
                self._targets.pop(url, None)
                raise
            except RegistryError:
                self._targets.pop(url, None)
        response = self._session.follow("GET", url, headers, patience)
        if response.url != url:
            self._targets[url] = response.url
        return response

    def _explain_missing(self, name: str | Digest, error: NotFound) -> NoReturn:
        if isinstance(name, Digest):
            text = f"{self._name} has no manifest {name}"
        else:
            text = f"{self._name} has no tag {name!r}; {self._existing_tags()}"
        raise NotFound(text, status=error.status, code=error.code, url=error.url) from error

    def _existing_tags(self) -> str:
        try:
            tags = self.tags(1000)
        except NotFound:
            return "there is no such repository"
        except (RegistryError, InvalidImage):
            return "the registry does not list its tags"
        return describe_tags(tags)

    def _next_page(self, url: str, headers: Mapping[str, str]) -> str | None:
        """The next page of a list, from `Link: <url>; rel="next"`, if it is on the same host (RFC 8288)."""
        target, _, parameters = headers.get("Link", "").partition(">")
        if not target.startswith("<") or "next" not in parameters:
            return None
        following = redirected(url, target[1:])
        return following if origin(following) == origin(self._base) else None


def describe_tags(tags: list[str]) -> str:
    """The tags there are, for a message: all if they are few, else how many and some."""
    if not tags:
        return "there are none"
    if len(tags) <= _FEW_TAGS:
        return f"there are: {', '.join(tags)}"
    return f"there are {len(tags)}, such as {', '.join(tags[:_FEW_TAGS])}"


def _digest_in(headers: Mapping[str, str]) -> Digest | None:
    try:
        return Digest.parse(headers.get("Docker-Content-Digest"))
    except InvalidImage:
        return None


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Type", "").partition(";")[0].strip()


def _tags_in(body: bytes) -> list[str]:
    try:
        tags = json.loads(body.decode())["tags"] or []
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise InvalidImage("the registry's list of tags is not in JSON") from error
    return (
        [tag for tag in tags if isinstance(tag, str) and tag.isprintable()] if isinstance(tags, list) else []
    )
