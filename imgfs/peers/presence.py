"""What peers have of a flat layer, and which of them is asked for what: decided on plain numbers.

A peer's presence is the ranges that it has, as JSON: `{"size": 1000, "present": [[0, 512], [600, 1000]]}`.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from imgfs.errors import InvalidImage

MOST_RANGES = 20_000  # that are told: the longest ones
LARGEST_TEXT = 1 << 20  # bytes: of so many ranges
_LARGEST = 16 << 20  # bytes of a read: what one peer is slow with is not much
_NEAR = 4096  # bytes between two ranges of one read, at most: a table's spans begin at blocks


class Presence:
    """The ranges of a flat layer that are present: they ascend and do not touch."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts, self._ends = array("q"), array("q")  # a twelfth of what tuples of numbers take
        for start, end in ranges:
            self._starts.append(start)
            self._ends.append(end)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Return the ranges."""
        return list(zip(self._starts, self._ends, strict=True))

    def __bool__(self) -> bool:
        """Return True if anything is present."""
        return bool(self._starts)

    def has(self, start: int, end: int) -> bool:
        """Return True if all of a range is present."""
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and end <= self._ends[at]

    @property
    def size(self) -> int:
        """Return the bytes of all ranges."""
        return sum(self._ends) - sum(self._starts)

    def overlaps(self, start: int, end: int) -> bool:
        """Return True if any of a range is present."""
        at = bisect_left(self._starts, end) - 1
        return at >= 0 and self._ends[at] > start

    def longest(self) -> list[tuple[int, int]]:
        """Return the ranges that are told: the longest ones."""
        ranges = self.ranges
        if len(ranges) > MOST_RANGES:
            longest = sorted(ranges, key=lambda range_: range_[0] - range_[1])[:MOST_RANGES]
            ranges = sorted(longest)
        return ranges

    def to_json(self, size: int) -> bytes:
        """Return what is told of a flat layer of `size` bytes."""
        return json.dumps({"size": size, "present": self.longest()}, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, body: bytes) -> Presence:
        """Parse what a peer tells; raises InvalidImage."""
        if body.count(b"[") > MOST_RANGES + 1 or body.count(b",") > 2 * MOST_RANGES or body.count(b"{") > 1:
            raise InvalidImage(f"a presence of more than {MOST_RANGES} ranges", where="peer")
        try:
            return cls.of(json.loads(body)["present"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidImage(f"a presence that makes no sense: {error}", where="peer") from error

    @classmethod
    def of(cls, told: Iterable[Sequence[object]]) -> Presence:
        """Return the ranges that a peer tells; raises InvalidImage, ValueError or TypeError."""
        ranges = [(start, end) for start, end in told]
        if len(ranges) > MOST_RANGES:
            raise InvalidImage(f"a presence of more than {MOST_RANGES} ranges", where="peer")
        numbers = [
            number for range_ in ranges for number in range_ if type(number) is int and 0 <= number < 1 << 62
        ]
        if len(numbers) != 2 * len(ranges):
            raise InvalidImage("a presence with offsets that are none", where="peer")
        if any(after < before for before, after in pairwise(numbers)):
            raise InvalidImage("a presence whose ranges do not ascend", where="peer")
        return cls(zip(numbers[::2], numbers[1::2], strict=True))

    @classmethod
    def of_spans(cls, bounds: Iterable[tuple[int, int]]) -> Presence:
        """Join the bounds of present spans, which ascend."""
        joined: list[tuple[int, int]] = []
        for start, end in bounds:
            if joined and joined[-1][1] == start:
                joined[-1] = joined[-1][0], end
            else:
                joined.append((start, end))
        return cls(joined)


class Share(NamedTuple):
    """The ranges number `first` to `last`, both included, are read from the peer number `peer`."""

    peer: int
    first: int
    last: int


def shares(ranges: Sequence[tuple[int, int]], presences: Sequence[Presence]) -> list[Share]:
    """Return who is asked for which of `ranges`, which ascend: for as many at once as possible.

    Ranges that no peer has are left out; of two that have as much, the first is asked.
    """
    found: list[Share] = []
    at = 0
    while at < len(ranges):
        runs = [_run(ranges, at, presence) for presence in presences]
        longest = max(runs, default=0)
        if longest:
            found.append(Share(runs.index(longest), at, at + longest - 1))
        at += longest or 1
    return found


def _run(ranges: Sequence[tuple[int, int]], first: int, presence: Presence) -> int:
    """Return how many ranges from `first` on one read of a peer can bring."""
    start, end = ranges[first]
    if not presence.has(start, end):
        return 0
    count = 1
    for number in range(first + 1, len(ranges)):  # no slice: it would be one of all for each range
        after_start, after_end = ranges[number]
        if after_start - end > _NEAR or after_end - start > _LARGEST or not presence.has(start, after_end):
            break
        end = after_end
        count += 1
    return count
