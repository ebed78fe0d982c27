"""Ranges that are fetched ahead: a read gets the same bytes with them as without, and each of them once."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import Unavailable
from imgfs.oci.descriptor import Descriptor
from imgfs.parallel import begun
from imgfs.transport import ahead
from imgfs.transport.ahead import AheadRange, AheadSource
from tests.support.fake_source import FakeSource
from tests.support.mounted import until
from tests.support.no_threads import no_threads

BODY = random.Random(7).randbytes(700_000)
BOUNDS = st.tuples(st.integers(0, len(BODY) - 1), st.integers(1, len(BODY))).filter(lambda at: at[0] < at[1])


def fetching(*bounds: tuple[int, int]) -> tuple[FakeSource, AheadSource, Descriptor]:
    """Return a source, the same with these ranges of its blob fetched ahead, and the blob."""
    source = FakeSource()
    blob = source.add(BODY)
    return source, AheadSource(source, [AheadRange(blob, *each) for each in bounds]), blob


def read(source: AheadSource, blob: Descriptor, start: int, end: int) -> bytes:
    return b"".join(source.blob(blob, start, end))


def held(source: AheadSource) -> int:
    """Return how many ranges wait for a read."""
    return len(source._pieces)  # memory is not to be seen from without


@given(st.lists(BOUNDS, max_size=6), st.lists(BOUNDS, max_size=6), st.booleans())
def test_reads_yield_what_the_other_source_would(
    bounds: list[tuple[int, int]], reads: list[tuple[int, int]], is_abandoned: bool
) -> None:
    _source, fetched, blob = fetching(*bounds)
    for start, end in [*reads, *bounds]:
        if is_abandoned:
            next(fetched.blob(blob, start, end))
        assert read(fetched, blob, start, end) == BODY[start:end]
    fetched.close()
    until(lambda: held(fetched) == 0, "nothing is held")


def test_a_read_that_begins_with_a_range_has_it_fetched_once() -> None:
    source, fetched, blob = fetching((1000, 300_000), (400_000, 500_000))
    until(lambda: len(source.ranges) == 2, "both are fetched")
    assert read(fetched, blob, 1000, 350_000) == BODY[1000:350_000]
    assert read(fetched, blob, 400_000, 450_000) == BODY[400_000:450_000]
    assert sorted(source.ranges) == [(1000, 300_000), (300_000, 350_000), (400_000, 500_000)]
    assert read(fetched, blob, 1000, 2000) == BODY[1000:2000]  # from the other: it is handed out once
    assert source.ranges[-1] == (1000, 2000)


def test_what_no_thread_has_begun_with_is_asked_for_by_its_read() -> None:
    source = FakeSource()
    blob = source.add(BODY)
    source.gate.clear()
    fetched = AheadSource(source, [AheadRange(blob, at, at + 10) for at in (0, 20, 40, 60)])
    until(lambda: len(source.ranges) == 2, "two are under way")
    reading = begun(lambda: read(fetched, blob, 60, 70), "read")
    until(lambda: len(source.ranges) == 3, "the read does not wait for them")
    assert source.ranges[-1] == (60, 70)
    source.gate.set()
    assert reading.result(10) == BODY[60:70]
    assert [read(fetched, blob, at, at + 10) for at in (0, 20, 40)] == [
        BODY[at : at + 10] for at in (0, 20, 40)
    ]
    assert sorted(source.ranges) == [(at, at + 10) for at in (0, 20, 40, 60)]


def test_an_answer_that_ends_early_is_gone_on_with_by_the_read() -> None:
    source = FakeSource()
    blob = source.add(BODY)
    source.cut_at = 200_000
    fetched = AheadSource(source, [AheadRange(blob, 0, 300_000)])
    until(lambda: source.traffic().bytes == 200_000, "as much as comes has come")
    source.cut_at = None
    assert read(fetched, blob, 0, 300_000) == BODY[:300_000]
    assert source.ranges == [(0, 300_000), (200_000, 300_000)]


def test_an_error_is_told_to_the_read() -> None:
    source = FakeSource()
    blob = source.add(BODY)
    source.away = True
    fetched = AheadSource(source, [AheadRange(blob, 0, 100)])
    with pytest.raises(Unavailable):
        read(fetched, blob, 0, 100)
    source.away = False
    assert read(fetched, blob, 0, 100) == BODY[:100]


def test_a_blob_that_is_doubted_comes_anew() -> None:
    source = FakeSource()
    blob, other = source.add(BODY), source.add(BODY[::-1])
    source.flips[50] = 2  # of each blob once
    fetched = AheadSource(source, [AheadRange(blob, 0, 100), AheadRange(other, 0, 100)])
    until(lambda: source.traffic().bytes == 200, "both have come")
    fetched.doubt(blob)
    assert source.doubted == [blob.digest]
    assert read(fetched, blob, 0, 100) == BODY[:100]
    assert read(fetched, other, 0, 100) != BODY[::-1][:100]  # unverified, as ever


def test_what_no_read_wants_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_KEPT", 0.05)
    source, fetched, blob = fetching((0, 100), (100, 200))
    until(lambda: held(fetched) == 0, "nothing is held")
    assert read(fetched, blob, 0, 100) == BODY[:100]
    assert source.ranges[2:] == [(0, 100)]


def test_closing_stops_what_is_under_way() -> None:
    source = FakeSource()
    blob = source.add(BODY)
    source.gate.clear()
    fetched = AheadSource(source, [AheadRange(blob, at, at + 100_000) for at in range(0, 600_000, 100_000)])
    assert source.waiting.wait(10)
    fetched.close()
    source.gate.set()
    with suppress(AssertionError):
        until(lambda: len(source.ranges) > 2, "more is fetched", 0.2)
    assert len(source.ranges) <= 2
    assert held(fetched) == 0


def test_without_a_further_thread_reads_ask_by_themselves() -> None:
    with no_threads():
        source, fetched, blob = fetching((0, 100), (100, 200))
    assert read(fetched, blob, 100, 200) == BODY[100:200]
    assert source.ranges == [(100, 200)]
