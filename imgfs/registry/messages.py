"""What goes over the wire and comes back (RFC 9110, "Message Abstraction"): upload bodies, and responses.

An upload's body can restart at any offset and stops before the last chunk if the digest does not match. A
response is a head, and a body as it comes, undecoded.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from imgfs.errors import ImgfsError, IntegrityError, InvalidImage, RegistryError, Unavailable
from imgfs.oci.descriptor import Descriptor
from imgfs.registry.errors import MAX_ERROR_BODY, reason_of, refusal
from imgfs.registry.retry import Patience
from imgfs.registry.urls import redact

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

    from imgfs.registry.sockets import Deadline

OpenAt = Callable[[int], Iterator[bytes]]  # a blob's bytes from an offset to its end

# bytes given to a socket at once: all of them must be gone within one timeout
_PIECE = 64 << 10
_MARK_EVERY = 4 << 20  # bytes between the places where the digest can be taken up again
_READ = 256 << 10  # bytes asked of a socket at once
_WAKING = 128 << 10  # bytes of a long body that its reader is woken for,
_END = 64 << 10  # but for its end: so much of it may be in the buffers of TLS within TLS, and of the head
_DRAIN = 0.25  # seconds for the end of a body that is not wanted: a new connection takes no longer


class CheckedBlob:
    """A blob whose digest is checked while it is read.

    The last byte is handed out only if all bytes have the digest: a registry that waits for all of them
    cannot take a wrong blob for whole. `failure` is the last error that the blob's source raised: none of
    the registry.
    """

    def __init__(self, descriptor: Descriptor, open_at: OpenAt) -> None:
        self.descriptor = descriptor
        self.failure: ImgfsError | None = None
        self._open_at = open_at
        self._marks = [(0, descriptor.digest.hasher())]

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield exactly the bytes `[start, end)`; raises IntegrityError, or what the blob's source raises."""
        try:
            with closing(self._checked(start)) as chunks:
                for chunk in chunks:
                    piece = chunk[: end - start]
                    start += len(piece)
                    if piece:
                        yield piece
                    if start >= end:
                        return
        except ImgfsError as error:
            self.failure = error
            raise

    def check_empty(self) -> None:
        """Raise IntegrityError for a blob without bytes that has another digest: it is never read."""
        if not self.descriptor.size:
            self.descriptor.digest.verify(b"", f"digest of blob {self.descriptor.digest.short}")

    def _checked(self, start: int) -> Generator[bytes, None, None]:
        """Yield the blob from `start`, read from the nearest mark before it."""
        size, digest = self.descriptor.size, self.descriptor.digest
        at, begun = max((mark for mark in self._marks if mark[0] <= start), key=lambda mark: mark[0])
        hasher = begun.copy()
        for chunk in self._open_at(at):
            hasher.update(chunk)
            at += len(chunk)
            if at > size:
                break
            if at == size and hasher.hexdigest() != digest.hex:
                actual = f"{digest.algorithm}:{hasher.hexdigest()}"
                raise IntegrityError(f"digest of blob {digest.short}", expected=digest, actual=actual)
            if at - self._marks[-1][0] >= _MARK_EVERY:
                self._marks.append((at, hasher.copy()))
            if at > start:
                yield chunk[-(at - start) :]
                start = at
        if at != size:
            raise IntegrityError(f"size of blob {digest.short}", expected=size, actual=at)


class Body:
    """The bytes `[start, end)` of a blob as the body of a request, which may be sent more than once."""

    def __init__(self, blob: CheckedBlob, start: int, end: int) -> None:
        self._blob = blob
        self._start = start
        self._end = end

    def __len__(self) -> int:
        return self._end - self._start

    def __iter__(self) -> Iterator[memoryview]:
        for chunk in self._blob.read(self._start, self._end):
            view = memoryview(chunk)
            for at in range(0, len(view), _PIECE):
                yield view[at : at + _PIECE]


class Slot:
    """The right to have one more request under way, taken; or, without `slots`, one that needs none."""

    def __init__(self, slots: threading.Semaphore | None) -> None:
        self._slots = slots

    def give_back(self) -> None:
        """Once, however often it is said."""
        slots, self._slots = self._slots, None
        if slots:
            slots.release()


class Response:
    """An answer whose body is still on the wire; close it. `slot` is given back then.

    `count` is told of the bytes that arrive. `deadline` is the connection's: whatever comes between two bytes
    of the body (lines of chunks, their extensions, trailers) has `step` seconds in all.
    """

    def __init__(
        self,
        response: BaseHTTPResponse,
        url: str,
        count: Callable[[int], None],
        slot: Slot,
        deadline: Deadline,
        step: float,
    ) -> None:
        self._raw = response
        self._count = count
        self._slot = slot
        self._deadline = deadline
        self._step = step
        self._broken = False
        self.url = url
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    def chunks(self, patience: Patience) -> Iterator[bytes]:
        """Yield the body as it arrives, undecoded.

        Raises Unavailable when it is cut short or `patience` ends.
        """
        for chunk in self._arriving(patience):
            patience.progressed(len(chunk))
            self._check_pace(patience)
            yield chunk

    def _arriving(self, patience: Patience) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError

        waking = _WAKING
        while True:
            self._deadline.begin(min(self._step, patience.left))
            least = self._deadline.least = max(1, min(waking, (self._raw.length_remaining or 0) - _END))
            try:
                chunk = self._raw.read1(_READ, decode_content=False)
            except (HTTPError, OSError) as error:
                self._broken = True
                raise Unavailable(
                    f"{redact(self.url)}: the body was cut short: {reason_of(error)}"
                ) from error
            if not chunk:
                return
            if self._deadline.least < least:  # they did not come in time: it is slow
                waking = 1
            self._count(len(chunk))
            yield chunk

    def _check_pace(self, patience: Patience) -> None:
        if patience.expired:
            self._broken = True
            raise Unavailable(f"{redact(self.url)}: too slow: given up")

    def read(self, limit: int, patience: Patience) -> bytes:
        """Return the whole body; raises InvalidImage, without reading it, if it is longer than `limit` bytes.

        A document is not a stream: that it goes on coming does not begin its deadline anew.
        """
        announced = self.headers.get("Content-Length", "")
        body = bytearray()
        if not announced.isdecimal() or int(announced[:19]) <= limit:
            for chunk in self._arriving(patience):
                body += chunk
                patience.grown(len(body))
                self._check_pace(patience)
                if len(body) > limit:
                    break
            else:
                return bytes(body)
        size = announced or f"more than {limit}"
        raise InvalidImage(f"{redact(self.url)}: a document of {size} bytes; at most {limit} are allowed")

    def refusal(self, patience: Patience) -> RegistryError:
        """This error response as an exception, with what its body says if that is short."""
        body = b""
        with contextlib.suppress(Unavailable, InvalidImage):  # the status says enough
            body = self.read(MAX_ERROR_BODY, patience)
        return refusal(self.status, self.headers, body, self.url)

    def close(self) -> None:
        """Give the connection back: what is left of the body is read if that costs less than a new one."""
        from urllib3.exceptions import HTTPError

        try:
            left = self._raw.length_remaining
            if not self._broken and left is not None and left <= MAX_ERROR_BODY:
                self._deadline.begin(_DRAIN)
                self._deadline.least = 1
                with contextlib.suppress(HTTPError, OSError):
                    self._raw.read(MAX_ERROR_BODY, decode_content=False)
            self._raw.close()
            self._raw.release_conn()
        finally:
            self._slot.give_back()
