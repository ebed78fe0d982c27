"""Which spans go together in one request: decided on plain numbers, checked on plain numbers."""

from __future__ import annotations

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from imgfs.content.requests import Request, Sizes, SpanTable, batches, requests_for, waves, widen

SIZES = Sizes(whole=0, near=40, gap=6, largest=30)


def places_of(sizes: list[int], gaps: list[int] | None = None, order: list[int] | None = None) -> SpanTable:
    """Spans of `sizes` compressed bytes, each after a gap, in the blob in `order`; a flat byte each."""
    starts = dict.fromkeys(range(len(sizes)), 0)
    at = 0
    for rank, number in enumerate(order or range(len(sizes))):
        at += gaps[rank] if gaps else 0
        starts[number] = at
        at += sizes[number]
    return SpanTable((n, n + 1, starts[n], starts[n] + size) for n, size in enumerate(sizes))


@st.composite
def layouts(draw: st.DrawFn) -> SpanTable:
    """Spans in a blob, in whichever order, with gaps between them; some share a byte with their neighbour."""
    count = draw(st.integers(1, 30))
    sizes = draw(st.lists(st.integers(2, 50), min_size=count, max_size=count))
    gaps = [0, *draw(st.lists(st.integers(-1, 12), min_size=count - 1, max_size=count - 1))]
    return places_of(sizes, gaps, draw(st.permutations(range(count))))


@given(layouts(), st.data())
def test_requests_bring_every_span_once_and_are_neither_large_nor_full_of_gaps(
    table: SpanTable, data: st.DataObject
) -> None:
    wanted = data.draw(st.sets(st.integers(0, len(table) - 1)))
    requests = list(requests_for(wanted, table, SIZES))
    numbers = [number for request in requests for number in request.numbers]
    assert numbers == table.in_blob_order(wanted)
    for request in requests:
        assert request.start == min(table.starts[number] for number in request.numbers)
        assert request.end == max(table.ends[number] for number in request.numbers)
        assert len(request.numbers) == 1 or request.end - request.start <= SIZES.largest
        for one, other in pairwise(request.numbers):
            assert table.starts[other] - table.ends[one] <= SIZES.gap


@given(layouts(), st.data())
def test_a_small_request_takes_wanted_neighbours_with_it_and_no_others(
    table: SpanTable, data: st.DataObject
) -> None:
    wanted = data.draw(st.sets(st.integers(0, len(table) - 1)))
    number = data.draw(st.integers(0, len(table) - 1))
    small = next(requests_for([number], table, SIZES))
    wide = widen(small, table, (wanted - {number}).__contains__, SIZES)
    assert number in wide.numbers
    assert set(wide.numbers) <= wanted | {number}
    assert list(wide.numbers) == table.in_blob_order(wide.numbers)
    assert wide.end - wide.start <= max(SIZES.near, small.end - small.start)
    assert small.start - wide.start <= SIZES.near // 4
    assert (wide.start, wide.end) == (
        min(table.starts[number] for number in wide.numbers),
        max(table.ends[number] for number in wide.numbers),
    )


def test_neighbours_come_forward_first_and_then_backward() -> None:
    table = places_of([5] * 20)
    wide = widen(Request((10,), 50, 55), table, lambda _: True, SIZES)
    assert wide == Request(tuple(range(8, 16)), 40, 80)  # 30 of 40 bytes from the miss on, 10 before it


def test_a_request_that_fills_half_a_round_trip_takes_nobody_with_it() -> None:
    table = places_of([60, 5, 5])
    request = Request((0,), 0, 60)
    assert widen(request, table, lambda _: True, SIZES) == request


def test_replay_goes_in_waves_that_grow_and_within_a_wave_in_the_blobs_order() -> None:
    table = places_of([10] * 12)
    touches = [(0, 5), (0, 9), (0, 8), (0, 2), (0, 1), (0, 0)]
    found = [request.numbers for _, request in waves(touches, [table], first=10, sizes=SIZES)]
    assert found == [(5,), (8, 9), (0, 1, 2)]


def test_a_wave_asks_every_layer_for_its_part() -> None:
    table = [places_of([10] * 5), places_of([10] * 5)]
    touches = [(1, 3), (0, 0), (1, 4), (0, 1)]
    found = [(layer, request.numbers) for layer, request in waves(touches, table, first=40, sizes=SIZES)]
    assert found == [(1, (3, 4)), (0, (0, 1))]


@given(layouts(), st.data())
def test_waves_bring_every_span_once(table: SpanTable, data: st.DataObject) -> None:
    spans = data.draw(st.lists(st.integers(0, len(table) - 1), unique=True))
    first = data.draw(st.integers(1, 100))
    found = waves([(0, span) for span in spans], [table], first=first, sizes=SIZES)
    assert sorted(number for _, request in found for number in request.numbers) == sorted(spans)


@given(layouts(), st.data())
def test_batches_are_runs_without_gaps(table: SpanTable, data: st.DataObject) -> None:
    numbers = table.in_blob_order(data.draw(st.sets(st.integers(0, len(table) - 1))))
    found = list(batches(numbers, table, 60))
    assert [number for batch in found for number in batch] == numbers
    for batch in found:
        assert list(batch) == list(range(batch[0], batch[0] + len(batch)))
        assert len(batch) == 1 or sum(map(table.size_of, batch)) <= 60


@given(st.lists(st.integers(1, 9), min_size=1), st.data())
def test_spans_are_found_by_their_place_in_the_flat_layer(lengths: list[int], data: st.DataObject) -> None:
    ends = list(accumulate(lengths))
    table = SpanTable((end - length, end, 0, 1) for length, end in zip(lengths, ends, strict=True))
    offset = data.draw(st.integers(0, ends[-1] - 1))
    length = data.draw(st.integers(1, ends[-1] - offset))
    inside = [n for n, end in enumerate(ends) if end - lengths[n] < offset + length and offset < end]
    assert table.holding(offset, length) == (inside[0], inside[-1])
    assert sum(map(table.flat_size_of, range(len(table)))) == ends[-1]


@given(layouts(), st.integers(0, 300), st.integers(0, 300))
def test_spans_are_found_by_their_place_in_the_blob(table: SpanTable, start: int, end: int) -> None:
    inside = [number for number in range(len(table)) if start <= table.starts[number] < end]
    assert list(table.between(start, end)) == table.in_blob_order(inside)
    assert [table.by_start[table.rank(number)] for number in range(len(table))] == list(range(len(table)))
