"""What a mount has fetched and read over time: sums for stretches of time, a bounded number of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from imgfs.content.stats import Cause

if TYPE_CHECKING:
    from imgfs.status import TimelineStatus

_SHORTEST = 0.125  # seconds of a stretch, as long as there are
_MOST = 128  # of them: then two become one, of twice the time
_READ = 0  # the column of bytes read for the first time; the others are of the causes


class Timeline:
    """Compressed bytes that were fetched, by cause, and read for the first time. Any thread may use it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._lock = threading.Lock()
        self._seconds = _SHORTEST
        self._sums: dict[tuple[int, int], int] = {}  # bytes by (stretch, column)

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
            count = self._stretch() + 1
            columns = sorted({column for _, column in self._sums} - {_READ})
            rows = {
                column: tuple(self._sums.get((stretch, column), 0) for stretch in range(count))
                for column in (_READ, *columns)
            }
            seconds = self._seconds
        fetched = {Cause(column).name.lower(): rows[column] for column in columns}
        return TimelineStatus(seconds, rows[_READ], fetched)

    def _add(self, column: int, size: int) -> None:
        with self._lock:
            key = self._stretch(), column
            self._sums[key] = self._sums.get(key, 0) + size

    def _stretch(self) -> int:
        """Return the number of the present stretch; all become longer when there are too many."""
        passed = self._clock() - self._began
        while passed >= self._seconds * _MOST:
            self._seconds *= 2
            halved: dict[tuple[int, int], int] = {}
            for (number, column), size in self._sums.items():
                key = number // 2, column
                halved[key] = halved.get(key, 0) + size
            self._sums = halved
        return int(passed / self._seconds)
