"""Reading the blobs of one repository (distribution-spec, "Pulling blobs")."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing

from imgfs.errors import IntegrityError, InvalidImage, RegistryError, Unavailable
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.registry.amounts import MAX_DOCUMENT
from imgfs.registry.ranges import Piece, cut_out, gather, range_header, window_of
from imgfs.registry.redirects import led_to
from imgfs.registry.response import Response
from imgfs.registry.retry import Patience
from imgfs.registry.session import Answer, Session
from imgfs.registry.urls import redact

_CHUNK = 256 << 10  # bytes handed out at once, at least, while there are more


class Blobs:
    """The blobs of `name`, `registry/repository`. Safe in threads."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name
        self._targets: dict[str, str] = {}  # where blobs were redirected to; CDN signatures expire

    def document(self, digest: Digest) -> bytes:
        """Fetch a small blob whole, such as a config, at most 8 MiB; its digest is checked."""

        def check(answer: Answer) -> None:
            digest.verify(answer.body, f"digest of the document in {self._name}")

        return self._session.ask("GET", self._url(digest), {}, limit=MAX_DOCUMENT, check=check).body

    def doubt(self, digest: Digest) -> None:
        """What came of a blob was wrong: wherever it was redirected to is not asked again."""
        self._targets.pop(self._url(digest), None)

    def read(
        self, descriptor: Descriptor, start: int = 0, end: int | None = None, *, url: str | None = None
    ) -> Iterator[bytes]:
        """Exactly the bytes `[start, end)` of a blob, in chunks of 256 KiB or more but for the last.

        A body that breaks off is resumed where it stopped; a wrong answer may be followed by a right one.
        `url` is somewhere else to look (descriptor.md, `urls`). Raises IntegrityError for a blob of another
        length, NotFound, Unauthorized, Unavailable.
        """
        end = end_of(descriptor, start, end)
        own = self._url(descriptor.digest)
        url = led_to(own, url, verify=False) if url else own  # without TLS as well: the digest vouches for it
        patience = self._session.patience()
        while start < end:
            try:
                for chunk in gather(self._range(url, Piece(start, end, descriptor.size), patience), _CHUNK):
                    start += len(chunk)
                    handed_out = time.monotonic()
                    yield chunk
                    patience.suspend(time.monotonic() - handed_out)
            except (Unavailable, IntegrityError) as error:
                patience.pause(error)

    def exists(self, digest: Digest, *, scope: str) -> bool:
        """Ask by HEAD, with a token for `scope`; a refusal means no."""
        try:
            self._session.ask("HEAD", self._url(digest), {}, scope=scope)
        except Unavailable:
            raise
        except RegistryError:
            return False
        return True

    def _url(self, digest: Digest) -> str:
        return self._session.at(f"blobs/{digest}")

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
            try:
                window = window_of(response.status, response.headers, piece, what)
            except IntegrityError:
                self._targets.pop(url, None)
                raise
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


def end_of(descriptor: Descriptor, start: int, end: int | None) -> int:
    """Where a piece from `start` on ends, None being the blob's end; InvalidImage if that is not in it."""
    end = descriptor.size if end is None else end
    if not 0 <= start <= end <= descriptor.size:
        raise InvalidImage(
            f"bytes {start}-{end} of a blob of {descriptor.size}", where=str(descriptor.digest)
        )
    return end
