"""What it cost to serve a layer's readers: plain counters.

Which spans of a layer were fetched, why, and which of them readers have used in this mount.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from imgfs.content.requests import SpanTable

if TYPE_CHECKING:
    from imgfs.status import ErrorStatus, LayerStatus


class Usage:
    """Two bytes for each span, and the counters they lead to; changed under the layer's lock.

    `touched` is 1 where a reader has been: looked at on every cached read, without the lock.
    """

    def __init__(self, table: SpanTable, counts: Counts) -> None:
        self.touched = bytearray(len(table))
        self.on_touch: Callable[[int], None] = _ignore  # told of each span when it is first read
        self._brought = bytearray(len(table))  # the cause for which it was fetched
        self._table = table
        self._counts = counts

    def touch(self, first: int, last: int, missing: Container[int] = ()) -> list[int]:
        """Note that a reader is at the spans `first` to `last`; return those not read before.

        `missing` has those of them that are not in the store.
        """
        fresh = [number for number in range(first, last + 1) if not self.touched[number]]
        for number in fresh:
            self.touched[number] = 1
            size = self._table.size_of(number)
            self._counts.needed += size
            self._counts.needed_flat += self._table.flat_size_of(number)
            if cause := self._brought[number]:
                self._counts.needed_fetched += size
                self._counts.used(Cause(cause), size)
            elif number not in missing:
                self._counts.needed_here += size
            self.on_touch(number)
        return fresh

    def landed(self, numbers: Iterable[int], cause: Cause) -> None:
        """Note that spans have been fetched."""
        for number in numbers:
            size, is_touched = self._table.size_of(number), bool(self.touched[number])
            if is_touched and not self._brought[number]:  # not evicted, and counted when it came first
                self._counts.needed_fetched += size
            self._brought[number] = cause
            self._counts.landed(cause, size, used=is_touched)


def _ignore(*_: int) -> None:
    pass


_FADING = 8.0  # seconds after which what was measured counts for half
_ENOUGH = 1 << 20  # bytes that say something about a link


class Cause(IntEnum):
    """Why a span was fetched."""

    MISS = 1  # a reader waited for it
    NEAR = 2  # it lay beside one that a reader waited for
    AHEAD = 3  # a reader came nearer in sequence
    REPLAY = 4  # an earlier mount needed it
    WHOLE = 5  # the layer is small, or much of it had been read
    FILL = 6  # everything was asked for
    SWEEP = 7  # a reader came nearer that takes file after file of the tree
    LIBRARY = 8  # a program that was opened is linked with it, by a guess
    MODULE = 9  # it lies beside a module that was opened, or that one depends on it, by a guess


class Brought(NamedTuple):
    """What was fetched for one cause, and how much of it has been read: spans and compressed bytes."""

    spans: int = 0
    bytes: int = 0
    spans_used: int = 0
    bytes_used: int = 0


class FirstByte(NamedTuple):
    """The seconds that requests for misses waited for their first byte."""

    requests: int = 0
    seconds: float = 0.0
    longest: float = 0.0


class Counts:
    """The counters of one layer; all but `misses` are changed under its lock."""

    def __init__(self) -> None:
        self.misses = 0  # reads that had to wait
        self.needed = 0  # compressed bytes of the spans that readers have touched
        self.needed_flat = 0
        self.needed_fetched = 0  # of `needed`: fetched by this mount,
        self.needed_here = 0  # or in the store when first read; the rest is awaited, or came by another mount
        self.received = 0  # compressed bytes from the network, whatever became of them
        self.discarded = 0  # of them: thrown away, between spans or after a failure
        self.requests = 0
        self.windows = 0  # bytes of windows
        self.errors = 0
        self.last_error: ErrorStatus | None = None
        self.failing_since: float | None = None  # seconds since 1970: nothing has landed since then
        self.first_byte = FirstByte()
        self.on_landed: Callable[[Cause, int], None] = _ignore  # told of each span that was fetched
        self._brought = {cause: Brought() for cause in Cause}

    def landed(self, cause: Cause, size: int, *, used: bool) -> None:
        """Count a span that was fetched; `used` if a reader has been there already."""
        self.failing_since = None
        self.on_landed(cause, size)
        spans, total, spans_used, bytes_used = self._brought[cause]
        self._brought[cause] = Brought(spans + 1, total + size, spans_used, bytes_used)
        if used:
            self.used(cause, size)

    def used(self, cause: Cause, size: int) -> None:
        """Count a span that was fetched as read."""
        brought = self._brought[cause]
        self._brought[cause] = brought._replace(
            spans_used=brought.spans_used + 1, bytes_used=brought.bytes_used + size
        )

    def brought(self, cause: Cause) -> Brought:
        """Return what was fetched for a cause, and how much of it has been read."""
        return self._brought[cause]

    def waited(self, seconds: float) -> None:
        """Count how long a miss's request waited for its first byte."""
        count, total, longest = self.first_byte
        self.first_byte = FirstByte(count + 1, total + seconds, max(longest, seconds))

    def failed(self, error: Exception) -> None:
        """Count an error."""
        from imgfs.status import ErrorStatus  # here, as in `snapshot`: only a mount has errors and a status

        self.errors += 1
        self.last_error = ErrorStatus(time.time(), str(error))
        self.failing_since = self.failing_since or self.last_error.time

    def snapshot(self) -> LayerStatus:
        """Return all counts; `untouched` are bytes that were fetched and not read yet."""
        from imgfs.status import BroughtStatus, FirstByteStatus, LayerStatus

        brought = self._brought.values()
        return LayerStatus(
            misses=self.misses,
            needed=self.needed,
            needed_flat=self.needed_flat,
            needed_fetched=self.needed_fetched,
            needed_here=self.needed_here,
            fetched=self.received,
            discarded=self.discarded,
            untouched=sum(each.bytes - each.bytes_used for each in brought),
            windows=self.windows,
            requests=self.requests,
            errors=self.errors,
            last_error=self.last_error,
            failing_since=self.failing_since,
            first_byte=FirstByteStatus(*self.first_byte),
            brought={cause.name.lower(): BroughtStatus(*each) for cause, each in self._brought.items()},
        )


class Meter:
    """The bytes per second that the network has lately brought, while it was asked for any."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._busy_since: float | None = None
        self._bytes, self._seconds = 0.0, 0.0

    def busy(self, is_busy: bool) -> None:
        """Say that requests are under way, or none any more."""
        now = self._clock()
        if self._busy_since is not None:
            self._seconds += now - self._busy_since
        self._busy_since = now if is_busy else None
        if self._seconds > _FADING:
            self._bytes, self._seconds = self._bytes / 2, self._seconds / 2

    def arrived(self, count: int) -> None:
        """Count bytes."""
        self._bytes += count

    def speed(self) -> float:
        """Bytes per second; 0 as long as too little is known. Safe while another thread calls `busy`."""
        seconds, since = self._seconds, self._busy_since
        if since is not None:
            seconds += self._clock() - since
        return self._bytes / seconds if self._bytes >= _ENOUGH and seconds > 0 else 0.0
