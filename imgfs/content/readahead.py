"""Sequential readers, and how far to read ahead of each: arithmetic on compressed offsets.

A reader of a layer is a position, and the bytes it has read in sequence up to there. One that continues where
it stopped is read ahead of by as much as it has read already: a reader that stops wastes no more than it has
read, and the window still doubles at every step until it fills the link. The window never holds more than the
reader takes in two seconds, and ends with the file that is being read, until the reader has shown that it
continues from file to file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

DEEPEST = 32 << 20  # compressed bytes ahead at most
_REQUESTS = 8  # that a full window is cut into
_SMALLEST, _LARGEST = 256 << 10, 4 << 20  # bytes in each of them
_SLACK = 128 << 10  # bytes that a reader may jump over, or back, and still be the same
_READERS = 16  # remembered for a layer
_HORIZON = 2.0  # seconds of reading that a window holds
_FLOOR = 1 << 20  # bytes that it may hold however slow the reader is
_CROSSINGS = 2  # from file to file, after which the next file is fetched ahead, too


class ReadaheadWindow(NamedTuple):
    """Fetch the blob's bytes `[start, end)` in requests of `request_size` bytes."""

    start: int
    end: int
    request_size: int


@dataclass
class _SequentialReader:
    position: int  # where its next read is expected
    fetched_to: int  # end of what has been read ahead
    file_end: int  # of the file it is in
    run: int  # bytes read in sequence
    last_step: float  # its time
    crossings: int = 0
    recent: float = 0.0  # bytes read in `seconds`, both fading
    seconds: float = 0.0

    def advance(self, start: int, end: int, file_end: int, now: float) -> None:
        """Move to `end`."""
        count = max(0, end - max(start, self.position))
        self.position = max(self.position, end)
        self.fetched_to = max(self.fetched_to, self.position)
        self.run += count
        self.crossings += file_end != self.file_end
        self.file_end = file_end
        self.recent += count
        self.seconds += now - self.last_step
        self.last_step = now
        if self.seconds > _HORIZON:
            self.recent, self.seconds = self.recent / 2, self.seconds / 2

    def window(self) -> ReadaheadWindow | None:
        """Return what to fetch now, None if enough is in flight."""
        depth = min(self.run, DEEPEST)
        if self.seconds > 0:
            depth = min(depth, max(_FLOOR, int(self.recent / self.seconds * _HORIZON)))
        end = self.position + depth
        if self.crossings < _CROSSINGS:
            end = min(end, self.file_end)
        size = min(_LARGEST, max(_SMALLEST, depth // _REQUESTS))
        if end <= self.fetched_to or (end - self.fetched_to < size and end != self.file_end):
            return None
        start, self.fetched_to = self.fetched_to, end
        return ReadaheadWindow(start, end, size)


class SequentialReaders:
    """The readers of one layer, by position. Not safe in threads."""

    def __init__(self) -> None:
        self._readers: list[_SequentialReader] = []  # the one that moved last is the last

    def touched(
        self, start: int, end: int, file_end: int, now: float, *, in_profile: bool = False
    ) -> ReadaheadWindow | None:
        """Return the window to fetch ahead of a reader that has come to the spans at `[start, end)`, if any.

        Its file ends at `file_end`. Offsets are the blob's, `now` is in seconds. There is no window for spans
        of a profile that is replayed: the profile names what was read after them, too.
        """
        reader = self._continuing_at(start)
        if reader is None:
            self._readers = self._readers[1 - _READERS :]
            self._readers.append(_SequentialReader(end, end, file_end, end - start, now))
            return None
        self._readers.remove(reader)
        self._readers.append(reader)
        reader.advance(start, end, file_end, now)
        return None if in_profile else reader.window()

    def _continuing_at(self, start: int) -> _SequentialReader | None:
        near = [reader for reader in self._readers if abs(start - reader.position) <= _SLACK]
        return min(near, key=lambda reader: abs(start - reader.position), default=None)
