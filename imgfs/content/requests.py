"""Which spans go together in one request, decided on plain numbers; and the table of a layer's spans.

The sizes come from a link of 200 Mbit/s and 20 ms, on which 0.5 MB are under way within one round trip: bytes
between two wanted spans are cheaper fetched and discarded than left out by another request.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from imgfs.errors import InvalidImage, StoreError
from imgfs.layer.entry import Span
from imgfs.layer.schema import ExternalBlob, Summary
from imgfs.oci.descriptor import Descriptor, Digest

_BEYOND = (1 << 64) - 1  # an offset beyond every layer


class SpanIndex(Protocol):
    """A layer's spans, by number, as `layer.index` reads them. Safe in threads.

    Their compressed ranges are in `blob`, None for the layer itself. `windows` holds the windows of
    checkpoints that are not kept locally.
    """

    summary: Summary
    blob: ExternalBlob | None
    windows: ExternalBlob | None

    def bounds(self) -> Iterable[tuple[int, int, int, int]]:
        """Return (flat_start, flat_end, start, end) of every span, in order."""

    def remote_window(self, number: int) -> tuple[int, int] | None:
        """Return where in `windows` the span's window is, if it is not local."""

    def span(self, number: int, window: bytes | None = None) -> Span:
        """One span; `window` are the bytes at `remote_window`, as they came."""

    def flat_span(self, number: int) -> Span | None:
        """One span as it is read from another store; None if no digests cover its flat bytes."""


def descriptor_of(blob: ExternalBlob) -> Descriptor:
    """Return the descriptor of a blob that an index names beside the layer's own."""
    return Descriptor("application/octet-stream", Digest.parse(blob.digest), blob.size)


class SpanTable:
    """The bounds of a layer's spans: packed numbers, 24 bytes for each span.

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
        self.flat_starts.append(_BEYOND)
        self.by_start: Sequence[int] = range(len(self.starts))
        self._sorted = self.starts
        if any(after < before for before, after in pairwise(self.starts)):
            self.by_start = array("L", sorted(self.by_start, key=self.starts.__getitem__))
            self._sorted = array("Q", map(self.starts.__getitem__, self.by_start))
        self.size = sum(self.ends) - sum(self.starts)

    def __len__(self) -> int:
        return len(self.starts)

    def size_of(self, number: int) -> int:
        """Return the compressed bytes of a span."""
        return self.ends[number] - self.starts[number]

    def flat_size_of(self, number: int) -> int:
        """Return the flat bytes from the start of a span to the next one."""
        after = self.flat_starts[number + 1] if number + 1 < len(self) else self.flat_size
        return after - self.flat_starts[number]

    def flat_range(self, number: int) -> tuple[int, int]:
        """Return where a span is in the flat layer, and its flat bytes."""
        return self.flat_starts[number], self.flat_size_of(number)

    def holding(self, offset: int, length: int) -> tuple[int, int]:
        """Return the first and the last span that a range of the flat layer lies in.

        Raises InvalidImage if the range is beyond the layer, as an imported tree may have it.
        """
        starts, end = self.flat_starts, offset + length
        first = bisect_right(starts, offset) - 1
        if first < 0 or offset >= self.flat_size:
            raise InvalidImage(f"it has no bytes at {offset}: {self.flat_size} in all", where="flat layer")
        return first, first if end <= starts[first + 1] else bisect_left(starts, end, first + 1) - 1

    def rank(self, number: int) -> int:
        """Return a span's position in `by_start`."""
        rank = bisect_left(self._sorted, self.starts[number])
        while self.by_start[rank] != number:
            rank += 1
        return rank

    def between(self, start: int, end: int) -> Sequence[int]:
        """Return the spans that begin in the blob's bytes `[start, end)`, in the blob's order."""
        return self.by_start[bisect_left(self._sorted, start) : bisect_left(self._sorted, end)]

    def in_blob_order(self, numbers: Iterable[int]) -> list[int]:
        """Return numbers of spans, sorted by where the spans begin in the blob."""
        return sorted(numbers, key=self.starts.__getitem__)


_SPANS = 4096  # in a request at most: few spans are lost if it fails
_NEAR_SPANS = 256  # that a miss fetches at most: decoding them must not cost more than the round trip


class Sizes(NamedTuple):
    """What decides on requests, in compressed bytes but for the last."""

    whole: int = 1 << 20  # a blob so small is fetched whole at its first miss: two round trips of that link
    near: int = 256 << 10  # a miss fetches so much, if its neighbours are missing, too: half a round trip
    gap: int = 128 << 10  # bytes between two spans of one request, at most, which are discarded
    largest: int = 4 << 20  # of a request that several spans share
    much: float = 2 / 3  # the part of a blob that readers have used when the rest of it is wanted, too


SIZES = Sizes()


class Request(NamedTuple):
    """One range of the blob: the spans `numbers`, in the blob's order, and maybe bytes between them."""

    numbers: tuple[int, ...]
    start: int
    end: int


def requests_for(numbers: Iterable[int], table: SpanTable, sizes: Sizes = SIZES) -> Iterator[Request]:
    """Yield requests for all of `numbers`, in the blob's order.

    None is larger than `sizes.largest` unless it is a single span, and none has more than `sizes.gap` bytes
    between two spans.
    """
    group: list[int] = []
    start = end = 0
    for number in table.in_blob_order(numbers):
        first, last = table.starts[number], table.ends[number]
        is_near = first - end <= sizes.gap and max(end, last) - start <= sizes.largest
        fits = is_near and len(group) < _SPANS
        if group and not fits:
            yield Request(tuple(group), start, end)
            group = []
        if not group:
            start = end = first
        group.append(number)
        end = max(end, last)
    if group:
        yield Request(tuple(group), start, end)


def widen(
    request: Request, table: SpanTable, is_wanted: Callable[[int], bool], sizes: Sizes = SIZES
) -> Request:
    """Return the request widened by neighbours that `is_wanted` accepts, to `sizes.near` bytes.

    First forward; backward a quarter of the way at most: those bytes arrive before what a reader waits for.
    """
    if request.end - request.start >= sizes.near:
        return request
    backward = sizes.near // 4
    numbers, start, end = list(request.numbers), request.start, request.end
    ranks = table.by_start
    after = table.rank(numbers[-1]) + 1
    limit = start + sizes.near - backward
    for number in _near(ranks[after : after + _NEAR_SPANS], is_wanted):
        if table.starts[number] - end > sizes.gap or table.ends[number] > limit:
            break
        numbers.append(number)
        end = max(end, table.ends[number])
    before = table.rank(request.numbers[0])
    earlier: list[int] = []
    for number in _near(ranks[max(0, before - _NEAR_SPANS // 4) : before][::-1], is_wanted):
        far = request.start - table.starts[number] > backward or end - table.starts[number] > sizes.near
        if far or start - table.ends[number] > sizes.gap or table.ends[number] > end:
            break
        earlier.append(number)
        start = table.starts[number]
    return Request((*reversed(earlier), *numbers), start, end)


def _near(numbers: Sequence[int], is_wanted: Callable[[int], bool]) -> Iterator[int]:
    return (number for number in numbers if is_wanted(number))


def waves(
    touches: Iterable[tuple[int, int]], tables: Sequence[SpanTable], *, first: int, sizes: Sizes = SIZES
) -> Iterator[tuple[int, Request]]:
    """Yield (layer, request) for the spans of `touches`, (layer, span) in the order they are needed in.

    They are cut into waves: the first of `first` compressed bytes, so that it arrives at once, each of the
    others twice the one before it, up to `sizes.largest`. Within a wave the blobs' order counts.
    """
    wave: list[tuple[int, int]] = []
    size, limit = 0, first
    for layer, span in touches:
        wave.append((layer, span))
        size += tables[layer].size_of(span)
        if size >= limit:
            yield from _wave(wave, tables, sizes)
            wave, size, limit = [], 0, min(sizes.largest, limit * 2)
    yield from _wave(wave, tables, sizes)


def _wave(
    touches: Sequence[tuple[int, int]], tables: Sequence[SpanTable], sizes: Sizes
) -> Iterator[tuple[int, Request]]:
    by_layer: dict[int, list[int]] = {}
    for layer, span in touches:
        by_layer.setdefault(layer, []).append(span)
    for layer, spans in by_layer.items():
        for request in requests_for(spans, tables[layer], sizes):
            yield layer, request


def batches(numbers: Sequence[int], table: SpanTable, size: int) -> Iterator[Sequence[int]]:
    """`numbers` cut into runs without gaps of up to `size` compressed bytes, or of a single span."""
    at = 0
    while at < len(numbers):
        end, left = at + 1, size - table.size_of(numbers[at])
        while end < len(numbers) and numbers[end] == numbers[end - 1] + 1:
            left -= table.size_of(numbers[end])
            if left < 0:
                break
            end += 1
        yield numbers[at:end]
        at = end
