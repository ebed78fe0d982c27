"""What a mount has fetched and read over time: sums for stretches of time, a bounded number of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from imgfs.content.stats import Cause
from imgfs.content.stats_memory import WORD, words_of

if TYPE_CHECKING:
    from imgfs.status import TimelineStatus

_SHORTEST = 125_000_000  # nanoseconds of a stretch, as long as there are
_MOST = 128  # of them: then two become one, of twice the time
_READ = 0  # the column of bytes read for the first time; the others are of the causes
_COLUMNS = len(Cause) + 1
_BLOCK, _BEGAN, _BLOCKS = range(3)  # words: which block counts, when it began, and where the two are
_STRETCH, _SUMS = range(2)  # in a block: nanoseconds of a stretch, and where its sums are, by stretches
_BLOCK_WORDS = _SUMS + _MOST * _COLUMNS
_WORDS = _BLOCKS + 2 * _BLOCK_WORDS
TIMELINE_SIZE = _WORDS * WORD  # bytes of memory
_BILLION = 1_000_000_000


class Timeline:
    """Compressed bytes that were fetched, by cause, and read for the first time. Any thread may use it.

    It is kept in `memory`, or goes on with what is there: then by the same clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, memory: memoryview | None = None) -> None:
        self._clock = clock
        self._words = words_of(memory, _WORDS)
        self._lock = threading.Lock()
        if not self._words[_BLOCKS + _STRETCH]:
            self._words[_BEGAN] = int(clock() * _BILLION)
            self._words[_BLOCKS + _STRETCH] = _SHORTEST

    def read(self, size: int) -> None:
        """Count bytes that a reader has come to for the first time."""
        self._add(_READ, size)

    def fetched(self, cause: Cause, size: int) -> None:
        """Count bytes that came from the network."""
        self._add(cause, size)

    def snapshot(self) -> TimelineStatus:
        """Return the sums from the beginning until now."""
        from imgfs.status import TimelineStatus

        with self._lock:
            count, start = self._stretch() + 1, self._block() + _SUMS
            sums = self._words[start : start + count * _COLUMNS].tolist()
            seconds = self._words[self._block() + _STRETCH] / _BILLION
        rows = {column: tuple(sums[column::_COLUMNS]) for column in range(_COLUMNS)}
        fetched = {cause.name.lower(): rows[cause] for cause in Cause if any(rows[cause])}
        return TimelineStatus(seconds, rows[_READ], fetched)

    def _add(self, column: int, size: int) -> None:
        with self._lock:
            stretch = self._stretch()
            self._words[self._block() + _SUMS + stretch * _COLUMNS + column] += size

    def _block(self) -> int:
        """Return where the block is that counts."""
        return _BLOCKS + self._words[_BLOCK] * _BLOCK_WORDS

    def _stretch(self) -> int:
        """Return the number of the present stretch; all become longer when there are too many."""
        passed = int(self._clock() * _BILLION) - self._words[_BEGAN]
        while passed >= self._words[self._block() + _STRETCH] * _MOST:
            self._double()
        return int(passed // self._words[self._block() + _STRETCH])

    def _double(self) -> None:
        """Join two stretches each, in the other block, which counts once it is complete."""
        words, block, number = self._words, self._block(), 1 - self._words[_BLOCK]
        before = words[block + _SUMS : block + _BLOCK_WORDS].tolist()
        joined = [0] * len(before)
        for at, size in enumerate(before):
            stretch, column = divmod(at, _COLUMNS)
            joined[stretch // 2 * _COLUMNS + column] += size
        other = _BLOCKS + number * _BLOCK_WORDS
        for at, size in enumerate(joined, other + _SUMS):
            words[at] = size
        words[other + _STRETCH] = 2 * words[block + _STRETCH]
        words[_BLOCK] = number
