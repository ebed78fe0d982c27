"""What it cost to serve a layer's readers: plain counters.

Which spans of a layer were fetched, why, and which of them readers have used in this mount.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from imgfs.content.requests import SpanTable
from imgfs.content.stats_memory import WORD, words_of

if TYPE_CHECKING:
    from imgfs.status import ErrorStatus, LayerStatus


_FADING = 8.0  # seconds after which what was measured counts for half
_ENOUGH = 1 << 20  # bytes that say something about a link
_BILLION = 1_000_000_000


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


class _Word:
    """A counter of Counts: a word of its memory."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __get__(self, counts: Counts, _: object = None) -> int:
        value: int = counts.words[self._number]
        return value

    def __set__(self, counts: Counts, value: int) -> None:
        counts.words[self._number] = value


HITS = 0
(_FIRST_BYTES, _FIRST_BYTE_NS, _LONGEST_NS, _FAILING_SINCE_NS, _LAST_ERROR_NS, _ERROR_LENGTH) = range(12, 18)
_BROUGHT = 18  # words for each cause, as in `Brought`
_COUNTS = _BROUGHT + len(Brought._fields) * (len(Cause) + 1)
_ERROR = 1024  # bytes of the text of an error


class Counts:
    """The counters of one layer; all but `hits` and `misses` are changed under its lock.

    They are words of memory: zeros, until it is to `count_in` another's.
    """

    hits = _Word(HITS)  # reads of present bytes
    misses = _Word(1)  # reads that had to wait
    needed = _Word(2)  # compressed bytes of the spans that readers have touched
    needed_flat = _Word(3)
    needed_fetched = _Word(4)  # of `needed`: fetched by this mount,
    needed_here = _Word(5)  # or in the store when first read; the rest is awaited, or came by another mount
    received = _Word(6)  # compressed bytes from the network, whatever became of them
    discarded = _Word(7)  # of them: thrown away, between spans or after a failure
    requests = _Word(8)
    windows = _Word(9)  # bytes of windows
    errors = _Word(10)
    from_peers = _Word(11)  # of `received`: what peers brought, decompressed

    def __init__(self) -> None:
        self.words = words_of(None, _COUNTS)
        self._error = memoryview(bytearray(_ERROR))
        self.on_landed: Callable[[Cause, int], None] = _ignore  # told of each span that was fetched

    def count_in(self, memory: memoryview) -> None:
        """Go on with what is in a memory of COUNTS_SIZE bytes, and keep it there from now on."""
        self.words = words_of(memory, _COUNTS)
        self._error = memory[_COUNTS * WORD : COUNTS_SIZE]

    def landed(self, cause: Cause, size: int, *, used: bool) -> None:
        """Count a span that was fetched; `used` if a reader has been there already."""
        self.words[_FAILING_SINCE_NS] = 0
        self.on_landed(cause, size)
        self._bring(cause, Brought(1, size))
        if used:
            self.used(cause, size)

    def used(self, cause: Cause, size: int) -> None:
        """Count a span that was fetched as read."""
        self._bring(cause, Brought(0, 0, 1, size))

    def brought(self, cause: Cause) -> Brought:
        """Return what was fetched for a cause, and how much of it has been read."""
        start = _BROUGHT + cause * len(Brought._fields)
        return Brought(*self.words[start : start + len(Brought._fields)])

    def waited(self, seconds: float) -> None:
        """Count how long a miss's request waited for its first byte."""
        waited_ns = int(seconds * _BILLION)
        self.words[_FIRST_BYTES] += 1
        self.words[_FIRST_BYTE_NS] += waited_ns
        self.words[_LONGEST_NS] = max(self.words[_LONGEST_NS], waited_ns)

    def failed(self, error: Exception) -> None:
        """Count an error."""
        text, words = str(error).encode(errors="replace")[:_ERROR], self.words
        self.errors += 1
        words[_ERROR_LENGTH] = 0
        self._error[: len(text)] = text
        words[_LAST_ERROR_NS] = time.time_ns()
        words[_ERROR_LENGTH] = len(text)
        words[_FAILING_SINCE_NS] = words[_FAILING_SINCE_NS] or words[_LAST_ERROR_NS]

    @property
    def last_error(self) -> ErrorStatus | None:
        """Return the last error, if there was one."""
        from imgfs.status import ErrorStatus  # here, as in `snapshot`: only a mount has errors and a status

        if not self.errors:
            return None
        text = bytes(self._error[: self.words[_ERROR_LENGTH]]).decode(errors="replace")
        return ErrorStatus(self.words[_LAST_ERROR_NS] / _BILLION, text)

    def snapshot(self) -> LayerStatus:
        """Return all counts; `untouched` are bytes that were fetched and not read yet."""
        from imgfs.status import BroughtStatus, FirstByteStatus, LayerStatus

        brought = {cause: self.brought(cause) for cause in Cause}
        first_bytes, seconds_ns, longest_ns = self.words[_FIRST_BYTES : _LONGEST_NS + 1]
        return LayerStatus(
            hits=self.hits,
            misses=self.misses,
            needed=self.needed,
            needed_flat=self.needed_flat,
            needed_fetched=self.needed_fetched,
            needed_here=self.needed_here,
            fetched=self.received,
            from_peers=self.from_peers,
            discarded=self.discarded,
            untouched=sum(each.bytes - each.bytes_used for each in brought.values()),
            windows=self.windows,
            requests=self.requests,
            errors=self.errors,
            last_error=self.last_error,
            failing_since=self.words[_FAILING_SINCE_NS] / _BILLION or None,
            first_byte=FirstByteStatus(first_bytes, seconds_ns / _BILLION, longest_ns / _BILLION),
            brought={cause.name.lower(): BroughtStatus(*each) for cause, each in brought.items()},
        )

    def _bring(self, cause: Cause, more: Brought) -> None:
        for number, count in enumerate(more, _BROUGHT + cause * len(more)):
            self.words[number] += count


COUNTS_SIZE = _COUNTS * WORD + _ERROR  # bytes of memory


class Usage:
    """Two bytes for each span, and the counters they lead to; changed under the layer's lock.

    `touched` is 1 where a reader has been: looked at on every cached read, without the lock.
    """

    def __init__(self, table: SpanTable, counts: Counts) -> None:
        self.touched = bytearray(len(table))
        self.on_touch: Callable[[int], None] = _ignore  # told of each span when it is first read
        self._kept = memoryview(bytearray(len(table)))  # what `touched` has, for another process
        self._brought = memoryview(bytearray(len(table)))  # the cause for which it was fetched
        self._table = table
        self._counts = counts

    def count_in(self, memory: memoryview) -> None:
        """Go on with what is in a memory of `size` bytes, and keep it there from now on."""
        count = len(self._table)
        self._kept, self._brought = memory[:count], memory[count : 2 * count]
        self.touched[:] = self._kept  # of its own: that is faster to look at

    @property
    def size(self) -> int:
        """Return the bytes of memory that it takes."""
        return 2 * len(self._table)

    def touch(self, first: int, last: int, missing: Container[int] = ()) -> list[int]:
        """Note that a reader is at the spans `first` to `last`; return those not read before.

        `missing` has those of them that are not in the store.
        """
        fresh = [number for number in range(first, last + 1) if not self.touched[number]]
        for number in fresh:
            self.touched[number] = self._kept[number] = 1
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
        """Return bytes per second; 0 as long as too little is known.

        Safe while another thread calls `busy`.
        """
        seconds, since = self._seconds, self._busy_since
        if since is not None:
            seconds += self._clock() - since
        return self._bytes / seconds if self._bytes >= _ENOUGH and seconds > 0 else 0.0
