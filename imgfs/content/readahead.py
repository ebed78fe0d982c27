"""Who reads in sequence, and how far ahead of them to fetch: arithmetic on compressed offsets.

Each reader of a layer is a stream: a position, and how much it has read up to there. One that has gone on
where it stopped is read ahead of, by as much as it has read already: whoever stops costs no more than what
they have read, and the window still doubles at every step until it fills the link. It never holds more than
the reader takes in two seconds, and never goes beyond the file that is being read, until the reader has shown
that it goes on from file to file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

DEEPEST = 32 << 20  # compressed bytes ahead at most
_REQUESTS = 8  # that a full window is cut into
_SMALLEST, _LARGEST = 256 << 10, 4 << 20  # bytes in each of them
_SLACK = 128 << 10  # bytes that a reader may jump over, or back, and still be the same
_STREAMS = 16  # remembered in a layer
_HORIZON = 2.0  # seconds of reading that a window holds
_FLOOR = 1 << 20  # bytes that it may hold however slow the reader is
_CROSSINGS = 2  # from file to file, after which the next file is fetched ahead, too


class ReadaheadWindow(NamedTuple):
    """Fetch the blob's bytes `[start, end)` in requests of `piece` bytes."""

    start: int
    end: int
    piece: int


@dataclass
class _SequentialReader:
    position: int  # where it goes on
    asked: int  # up to where it has been fetched ahead of
    file_end: int  # of the file it is in
    run: int  # bytes read in sequence
    moment: float  # of the last step
    crossings: int = 0
    recent: float = 0.0  # bytes read in `seconds`, both fading
    seconds: float = 0.0

    def advance(self, start: int, end: int, file_end: int, now: float) -> None:
        """Go on to `end`."""
        count = max(0, end - max(start, self.position))
        self.position = max(self.position, end)
        self.asked = max(self.asked, self.position)
        self.run += count
        self.crossings += file_end != self.file_end
        self.file_end = file_end
        self.recent += count
        self.seconds += now - self.moment
        self.moment = now
        if self.seconds > _HORIZON:
            self.recent, self.seconds = self.recent / 2, self.seconds / 2

    def window(self) -> ReadaheadWindow | None:
        """What is to be fetched now, None if enough is under way."""
        depth = min(self.run, DEEPEST)
        if self.seconds > 0:
            depth = min(depth, max(_FLOOR, int(self.recent / self.seconds * _HORIZON)))
        end = self.position + depth
        if self.crossings < _CROSSINGS:
            end = min(end, self.file_end)
        piece = min(_LARGEST, max(_SMALLEST, depth // _REQUESTS))
        if end <= self.asked or (end - self.asked < piece and end != self.file_end):
            return None
        start, self.asked = self.asked, end
        return ReadaheadWindow(start, end, piece)


class SequentialReaders:
    """The readers of one layer, by position; not safe in threads."""

    def __init__(self) -> None:
        self._streams: list[_SequentialReader] = []  # the one that moved last is the last

    def touched(self, start: int, end: int, file_end: int, now: float) -> ReadaheadWindow | None:
        """A reader of a file that ends at `file_end` has come to the spans at `[start, end)`.

        Offsets are the blob's, `now` is in seconds. Returns what to fetch ahead of it.
        """
        stream = self._going_on_at(start)
        if stream is None:
            self._streams = self._streams[1 - _STREAMS :]
            self._streams.append(_SequentialReader(end, end, file_end, end - start, now))
            return None
        self._streams.remove(stream)
        self._streams.append(stream)
        stream.advance(start, end, file_end, now)
        return stream.window()

    def _going_on_at(self, start: int) -> _SequentialReader | None:
        near = [stream for stream in self._streams if abs(start - stream.position) <= _SLACK]
        return min(near, key=lambda stream: abs(start - stream.position), default=None)
