"""Upload body that can restart at any offset and stops before the last chunk if the digest does not match."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

from imgfs.errors import ImgfsError, IntegrityError
from imgfs.oci.descriptor import Descriptor

OpenAt = Callable[[int], Iterator[bytes]]  # a blob's bytes from an offset to its end

# bytes given to a socket at once: all of them must be gone within one timeout
_PIECE = 64 << 10
_MARK_EVERY = 4 << 20  # bytes between the places where the digest can be taken up again


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
        """The blob from `start`, read from the nearest mark before it."""
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
