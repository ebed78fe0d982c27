"""Which spans of a layer were fetched, why, and which of them readers have used in this mount."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from imgfs.content.counts import Cause, Counts
from imgfs.content.spans import Places


class Usage:
    """Two bytes for each span, and the counters they lead to; changed under the layer's lock.

    `touched` is 1 where a reader has been: looked at on every cached read, without the lock.
    """

    def __init__(self, places: Places, counts: Counts) -> None:
        self.touched = bytearray(len(places))
        self.on_touch: Callable[[int], None] = _ignore  # told of each span when it is first read
        self._brought = bytearray(len(places))  # the cause for which it was fetched
        self._places = places
        self._counts = counts

    def touch(self, first: int, last: int) -> list[int]:
        """Note that a reader is at the spans `first` to `last`; those that nobody has read before."""
        fresh = [number for number in range(first, last + 1) if not self.touched[number]]
        for number in fresh:
            self.touched[number] = 1
            size = self._places.size_of(number)
            self._counts.needed += size
            self._counts.needed_flat += self._places.flat_size_of(number)
            if cause := self._brought[number]:
                self._counts.used(Cause(cause), size)
            self.on_touch(number)
        return fresh

    def landed(self, numbers: Iterable[int], cause: Cause) -> None:
        """Note that spans have been fetched."""
        for number in numbers:
            self._brought[number] = cause
            self._counts.landed(cause, self._places.size_of(number), used=bool(self.touched[number]))


def _ignore(_number: int) -> None:
    pass
