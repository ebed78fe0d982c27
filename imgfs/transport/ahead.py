"""Ranges of blobs that are fetched before it is known what is in them, for the reads that will want them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from imgfs.errors import ImgfsError, LimitReached
from imgfs.oci.descriptor import Descriptor
from imgfs.starting import start_thread
from imgfs.transport.source import Source, WrappedSource

_AT_ONCE = (
    2  # requests under way: they fill a link while nothing else does, and leave room for what is imported
)
_KEPT = 20.0  # seconds for which bytes wait for their read once all have come


class AheadRange(NamedTuple):
    """Bytes `[start, end)` of a blob."""

    blob: Descriptor
    start: int
    end: int


class AheadSource(WrappedSource):
    """Hands everything on to `source`, and fetches `ranges` at once: a read gets those that it begins with.

    Each is handed out once, and held in memory until then, 20 seconds at most; as unverified as all that a
    source yields. Safe in threads.
    """

    def __init__(self, source: Source, ranges: Sequence[AheadRange]) -> None:
        super().__init__(source)
        self._changed = threading.Condition()
        self._pieces = [_Piece(each, self._changed) for each in ranges]  # that no read has taken
        self._waiting = deque(self._pieces)  # those of them that no thread fetches yet
        self._fetchers = min(_AT_ONCE, len(ranges))
        for _ in range(self._fetchers):
            try:
                start_thread(self._fetch, "imgfs-ahead")
            except LimitReached:  # then the reads ask for them
                self._ended()

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes `[start, end)` of a blob, those that were not fetched ahead by the other source."""
        end = descriptor.size if end is None else end
        piece = self._take(descriptor, start)
        if piece:
            for chunk in piece.read(end - start):
                start += len(chunk)
                yield chunk
        if start < end:
            yield from super().blob(descriptor, start, end)

    def doubt(self, descriptor: Descriptor) -> bool:
        """Let go of what came of a blob that is wrong, and tell the other source."""
        self._drop(descriptor)
        return super().doubt(descriptor)

    def close(self) -> None:
        """Fetch no more, and close the other source."""
        self._drop()
        super().close()

    def _take(self, blob: Descriptor, start: int) -> _Piece | None:
        """Return the piece that begins there, if it is being fetched or has come, for its one read."""
        with self._changed:
            for piece in self._pieces:
                if piece.range.start == start and piece.range.blob.digest == blob.digest:
                    self._pieces.remove(piece)
                    self._changed.notify_all()
                    if piece not in self._waiting:
                        return piece
                    self._waiting.remove(piece)  # its read is as fast by itself
                    break
        return None

    def _drop(self, blob: Descriptor | None = None) -> None:
        """Let go of what no read has taken, perhaps of one blob only."""
        with self._changed:
            for piece in [each for each in self._pieces if not blob or each.range.blob.digest == blob.digest]:
                piece.drop()
                self._pieces.remove(piece)
                if piece in self._waiting:
                    self._waiting.remove(piece)
            self._changed.notify_all()

    def _fetch(self) -> None:
        """Fetch what no other thread does. The last of them stays until all has been read, or is let go."""
        while piece := self._next():
            piece.fetch(self._source)
        if self._ended():
            with self._changed:
                self._changed.wait_for(lambda: not self._pieces, _KEPT)
            self._drop()

    def _ended(self) -> bool:
        """Count a fetcher as ended; return whether it was the last."""
        with self._changed:
            self._fetchers -= 1
            return self._fetchers == 0

    def _next(self) -> _Piece | None:
        with self._changed:
            return self._waiting.popleft() if self._waiting else None


class _Piece:
    """A range, as far as it has come: a thread fetches it, a read takes it. `changed` guards it."""

    def __init__(self, wanted: AheadRange, changed: threading.Condition) -> None:
        self.range = wanted
        self._changed = changed
        self._chunks: deque[bytes] = deque()
        self._has_ended = False  # with all of it, or less

    def fetch(self, source: Source) -> None:
        """Fetch it, as far as the source can, unless it is dropped."""
        with suppress(ImgfsError):  # a read asks for the rest by itself, and is told of it
            for chunk in source.blob(*self.range):
                with self._changed:
                    if self._has_ended:
                        break
                    self._chunks.append(chunk)
                    self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def read(self, size: int) -> Iterator[bytes]:
        """Yield its first `size` bytes as they come, fewer if no more will; then drop it."""
        try:
            while size and (chunk := self._next()):
                yield chunk[:size]
                size -= min(size, len(chunk))
        finally:
            self.drop()

    def drop(self) -> None:
        """Have no more of it fetched."""
        with self._changed:
            self._has_ended = True
            self._chunks.clear()

    def _next(self) -> bytes:
        """Wait for the next chunk; b"" if there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._has_ended)
            return self._chunks.popleft() if self._chunks else b""
