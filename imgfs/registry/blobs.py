"""Reading the blobs of one repository (distribution-spec, "Pulling blobs").

Byte ranges of a blob: what to ask for, and what a response says it carries (RFC 9110, section 14).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from typing import NamedTuple

from imgfs.errors import IntegrityError, InvalidImage, NotFound, RegistryError, Unauthorized, Unavailable
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.registry.endpoint import MAX_DOCUMENT
from imgfs.registry.messages import Response
from imgfs.registry.retry import Patience
from imgfs.registry.session import Answer, HttpSession
from imgfs.registry.ssrf import led_to
from imgfs.registry.urls import redact

_CHUNK = 256 << 10  # bytes handed out at once, at least, while there are more
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.IGNORECASE)


class BlobRange(NamedTuple):
    """The bytes `[start, end)` of a blob of `size` bytes."""

    start: int
    end: int
    size: int


class BodySlice(NamedTuple):
    """The wanted bytes within a response's body: `length` of them after the first `skip`."""

    skip: int
    length: int


def range_header(wanted: BlobRange) -> dict[str, str]:
    """Return the header that asks for a range: one closed range, and none at all for the whole blob.

    Suffix, open-ended and multiple ranges are answered wrongly by some registries.
    """
    start, end, size = wanted
    return {} if (start, end) == (0, size) else {"Range": f"bytes={start}-{end - 1}"}


def slice_of(status: int, headers: Mapping[str, str], wanted: BlobRange, what: str) -> BodySlice:
    """Return where the range is in the response's body; `what` it is of is said in errors.

    A 200 carries the whole blob, whatever was asked. A 206 may carry less than asked, from `start` on. Raises
    IntegrityError if the response contradicts the request or the blob's size.
    """
    start, end, size = wanted
    if status == 200:
        _check_length(headers, size, what)
        return BodySlice(start, end - start)
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if status != 206 or not match:
        given = f"{status}, Content-Range {headers.get('Content-Range', '')[:80]!r}"
        raise IntegrityError(f"{what}: answer to a Range request", expected="206", actual=given)
    first, last, total = int(match[1]), int(match[2]), match[3]
    if first != start or not first <= last < end:
        raise IntegrityError(
            f"{what}: Content-Range", expected=f"{start}-{end - 1}", actual=f"{first}-{last}"
        )
    if total != "*" and int(total) != size:
        raise IntegrityError(f"{what}: size in Content-Range", expected=size, actual=int(total))
    _check_length(headers, last + 1 - first, what)
    return BodySlice(0, last + 1 - first)


def cut_out(chunks: Iterable[bytes], body_slice: BodySlice, what: str) -> Iterator[bytes]:
    """Yield the bytes of a slice out of a body in chunks; raises Unavailable if the body ends before."""
    skip, left = body_slice
    for chunk in chunks:
        piece = chunk[skip : skip + left]
        skip = max(0, skip - len(chunk))
        left -= len(piece)
        if piece:
            yield piece
        if not left:
            return
    if left:
        raise Unavailable(f"{what}: the body ended {left + skip} bytes early")


def gather(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Join chunks until each has at least `size` bytes, but for the last.

    What came before Unavailable is handed out before it is raised.
    """
    parts: list[bytes] = []
    length = 0
    try:
        for chunk in chunks:
            parts.append(chunk)
            length += len(chunk)
            if length >= size:
                yield b"".join(parts)
                parts, length = [], 0
    except Unavailable:
        if parts:
            yield b"".join(parts)
        raise
    if parts:
        yield b"".join(parts)


def _check_length(headers: Mapping[str, str], expected: int, what: str) -> None:
    given = headers.get("Content-Length")
    if given is not None and given.strip() != str(expected):
        raise IntegrityError(f"{what}: Content-Length", expected=expected, actual=given[:40])


class Blobs:
    """The blobs of `name`, `registry/repository`. Safe in threads."""

    def __init__(self, session: HttpSession, name: str) -> None:
        self._session = session
        self._name = name
        self._targets: dict[str, str] = {}  # where blobs were redirected to; CDN signatures expire
        self._rangeless: set[Digest] = set()  # blobs that came whole when a range was asked for

    def document(self, digest: Digest) -> bytes:
        """Fetch a small blob whole, such as a config, at most 8 MiB; its digest is checked.

        Raises NotFound naming repository and digest.
        """

        def check(answer: Answer) -> None:
            digest.verify(answer.body, f"digest of the document in {self._name}")

        try:
            return self._session.ask("GET", self._url(digest), {}, limit=MAX_DOCUMENT, check=check).body
        except NotFound as error:
            text = f"{self._name} has no blob {digest}"
            raise NotFound(text, status=error.status, code=error.code, url=error.url) from error

    def doubt(self, digest: Digest) -> None:
        """Forget where a blob was redirected to: what came from there was wrong."""
        self._targets.pop(self._url(digest), None)

    def ignores_ranges(self, digest: Digest) -> bool:
        """Return True if the last range of this blob was answered with all of it: each range costs that."""
        return digest in self._rangeless

    def read(
        self, descriptor: Descriptor, start: int = 0, end: int | None = None, *, url: str | None = None
    ) -> Iterator[bytes]:
        """Yield exactly the bytes `[start, end)` of a blob, in chunks of 256 KiB or more but for the last.

        A body that breaks off is resumed where it stopped; a wrong answer may be followed by a right one.
        `url` is somewhere else to look (descriptor.md, `urls`). Raises IntegrityError for a blob of another
        length, NotFound, Unauthorized, Unavailable.
        """
        end = end_of(descriptor, start, end)
        own = self._url(descriptor.digest)
        url = led_to(own, url, verify=False) if url else own  # without TLS as well: the digest vouches for it
        patience = self._session.patience()
        while start < end:
            wanted = BlobRange(start, end, descriptor.size)
            try:
                for chunk in gather(self._range(descriptor.digest, url, wanted, patience), _CHUNK):
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

    def _range(self, digest: Digest, url: str, wanted: BlobRange, patience: Patience) -> Iterator[bytes]:
        """Send one request for a range of a blob; it may end early with Unavailable, or without."""
        what, headers = redact(url), range_header(wanted)
        with closing(self._open_range(url, wanted, headers, patience)) as response:
            try:
                body_slice = slice_of(response.status, response.headers, wanted, what)
            except IntegrityError:
                self._targets.pop(url, None)
                raise
            if headers and response.status == 200:
                self._rangeless.add(digest)
            elif headers:
                self._rangeless.discard(digest)
            yield from cut_out(response.chunks(patience), body_slice, what)

    def _open_range(
        self, url: str, wanted: BlobRange, headers: Mapping[str, str], patience: Patience
    ) -> Response:
        """Ask for a range; where it is refused (400, 405, 416, 501), as by a gateway, for the whole blob.

        An endpoint that has one try is not asked for that: another one may have the range. A 416 raises
        IntegrityError, whatever was asked for: the blob is said to be shorter, and may be said to be longer
        next.
        """
        try:
            return self._open_blob(url, headers, patience)
        except (NotFound, Unauthorized, Unavailable):
            raise
        except RegistryError as error:
            if headers and self._session.timeouts.tries > 1:
                with suppress(RegistryError):
                    return self._open_blob(url, {}, patience)
            if error.status == 416:
                text = f"{redact(url)}: length"
                raise IntegrityError(text, expected=wanted.size, actual="less") from error
            raise

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
    """Return where a piece from `start` on ends, None being the blob's end.

    Raises InvalidImage if that is not in it.
    """
    end = descriptor.size if end is None else end
    if not 0 <= start <= end <= descriptor.size:
        raise InvalidImage(
            f"bytes {start}-{end} of a blob of {descriptor.size}", where=str(descriptor.digest)
        )
    return end
