"""What `content` must be told of a layer's spans, and where each of them is."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Protocol

from imgfs.errors import InvalidImage, StoreError
from imgfs.layer.entry import Span
from imgfs.layer.index import Elsewhere, Summary
from imgfs.oci.descriptor import Descriptor, Digest

_NOWHERE = (1 << 64) - 1  # an offset beyond every layer


class Spans(Protocol):
    """A layer's spans, by number, as `layer.index` reads them. Safe in threads.

    Their compressed ranges are in `blob`, None for the layer itself. `windows` holds the windows of
    checkpoints that are not kept locally.
    """

    summary: Summary
    blob: Elsewhere | None
    windows: Elsewhere | None

    def bounds(self) -> Iterable[tuple[int, int, int, int]]:
        """(flat_start, flat_end, start, end) of every span, in order."""

    def remote_window(self, number: int) -> tuple[int, int] | None:
        """Where in `windows` the span's window is, if it is not local."""

    def span(self, number: int, window: bytes | None = None) -> Span:
        """One span; `window` are the bytes at `remote_window`, as they came."""


def descriptor_of(place: Elsewhere) -> Descriptor:
    """A blob beside a layer's own, as a source wants it."""
    return Descriptor("application/octet-stream", Digest.parse(place.digest), place.size)


class Places:
    """Where a layer's spans are: packed numbers, 24 bytes for each span.

    `flat_starts` are offsets in the flat layer, and one beyond all of them at the end; `starts` and `ends`
    are compressed offsets by span number. Flat ranges ascend with the numbers; compressed ones usually do
    (not so in a table of contents that is sorted otherwise): `by_start` are the numbers as the blob has them.
    """

    def __init__(self, bounds: Iterable[tuple[int, int, int, int]]) -> None:
        self.flat_starts, self.starts, self.ends = array("Q"), array("Q"), array("Q")
        self.flat_size = 0
        try:
            for flat_start, flat_end, start, end in bounds:
                self.flat_starts.append(flat_start)
                self.starts.append(start)
                self.ends.append(end)
                self.flat_size = flat_end
        except (TypeError, OverflowError) as error:
            raise StoreError(
                f"a layer's index is damaged: {error}; remove the layer from the store"
            ) from error
        self.flat_starts.append(_NOWHERE)
        self.by_start: Sequence[int] = range(len(self.starts))
        self._sorted = self.starts
        if any(after < before for before, after in pairwise(self.starts)):
            self.by_start = array("L", sorted(self.by_start, key=self.starts.__getitem__))
            self._sorted = array("Q", map(self.starts.__getitem__, self.by_start))
        self.size = sum(self.ends) - sum(self.starts)

    def __len__(self) -> int:
        return len(self.starts)

    def size_of(self, number: int) -> int:
        """How many compressed bytes a span has."""
        return self.ends[number] - self.starts[number]

    def flat_size_of(self, number: int) -> int:
        """How many flat bytes there are from a span to the next one."""
        after = self.flat_starts[number + 1] if number + 1 < len(self) else self.flat_size
        return after - self.flat_starts[number]

    def holding(self, offset: int, length: int) -> tuple[int, int]:
        """The first and the last span that a range of the flat layer lies in.

        Raises InvalidImage if there is nothing: a tree of someone else's may say so.
        """
        starts, end = self.flat_starts, offset + length
        first = bisect_right(starts, offset) - 1
        if first < 0 or offset >= self.flat_size:
            raise InvalidImage(f"it has no bytes at {offset}: {self.flat_size} in all", where="flat layer")
        return first, first if end <= starts[first + 1] else bisect_left(starts, end, first + 1) - 1

    def rank(self, number: int) -> int:
        """A span's place in `by_start`."""
        rank = bisect_left(self._sorted, self.starts[number])
        while self.by_start[rank] != number:
            rank += 1
        return rank

    def between(self, start: int, end: int) -> Sequence[int]:
        """The spans that begin in the blob's bytes `[start, end)`, in the blob's order."""
        return self.by_start[bisect_left(self._sorted, start) : bisect_left(self._sorted, end)]

    def in_blob_order(self, numbers: Iterable[int]) -> list[int]:
        """The same numbers, sorted as the blob has them."""
        return sorted(numbers, key=self.starts.__getitem__)
