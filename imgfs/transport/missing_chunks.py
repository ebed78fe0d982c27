"""Which chunks of a partial download are missing, and where in them: kept up to date as units come."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice

from imgfs.peers.division import CHUNK
from imgfs.store.partial import UNIT, PartialBlob

_WINDOW = 64  # chunks that are looked at: the next ones


class MissingChunks:
    """The chunks of a download of which anything is missing. Not safe in threads."""

    def __init__(self, part: PartialBlob) -> None:
        self._part = part
        self._begins: dict[int, int] = {}  # by chunk: where what is missing of it begins, in order
        for chunk in range(-(-part.size // CHUNK)):
            self.note(chunk)

    def __bool__(self) -> bool:
        """Return True if anything is missing."""
        return bool(self._begins)

    def __contains__(self, chunk: int) -> bool:
        """Return True if anything of a chunk is missing."""
        return chunk in self._begins

    def note(self, chunk: int) -> None:
        """Note that units of a chunk have come."""
        start = self._next(chunk * CHUNK, chunk, is_here=False)
        if start < self._end(chunk):
            self._begins[chunk] = start
        else:
            self._begins.pop(chunk, None)

    def gap(self, chunk: int) -> tuple[int, int]:
        """Return the first range of a chunk that is missing."""
        start = self._begins[chunk]
        return start, self._next(start, chunk, is_here=True)

    def is_untouched(self, chunk: int) -> bool:
        """Return True if all of a chunk is missing."""
        return chunk in self._begins and self.gap(chunk) == (chunk * CHUNK, self._end(chunk))

    def without(self, *taken: Collection[int]) -> list[tuple[int, int]]:
        """Return the next chunks, but for those `taken`, and where what is missing of them begins."""
        return list(islice(self._without(taken), _WINDOW))

    def _without(self, taken: tuple[Collection[int], ...]) -> Iterator[tuple[int, int]]:
        for chunk, start in self._begins.items():
            if not any(chunk in chunks for chunks in taken):
                yield chunk, start

    def _next(self, start: int, chunk: int, *, is_here: bool) -> int:
        """Return where the first unit from an offset on begins that is here, or is not; else the end."""
        end = self._end(chunk)
        units = range(start // UNIT, -(-end // UNIT))
        return min((unit * UNIT for unit in units if self._part.has(unit) == is_here), default=end)

    def _end(self, chunk: int) -> int:
        return min(self._part.size, (chunk + 1) * CHUNK)
