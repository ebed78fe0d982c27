"""What is fetched beyond a reader's span, when, and what it is counted as."""

from __future__ import annotations

import gzip
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zstandard

from imgfs.content.background import BackgroundFetch, BackgroundFetchOptions, Clock, RateLimit
from imgfs.content.inflight import InFlightRequest
from imgfs.content.layer import LayerContent
from imgfs.content.requests import Sizes
from imgfs.content.scheduler import FetchPool, Priority, Task
from imgfs.content.stats import Cause, Meter
from imgfs.content.storing import SpanOutcome
from imgfs.content.windows import _BLOCK
from imgfs.errors import IntegrityError, NotFound, StoreError, Unavailable
from imgfs.layer.entry import Checkpoint, Codec, Extent, Span
from imgfs.layer.index import LayerIndex
from imgfs.layer.schema import ExternalBlob, Summary
from imgfs.status import FillStatus, plain
from tests.support import tarmake
from tests.support.content_rig import EXACT, STEP, Rig, tar_of
from tests.support.fake_source import FakeSource
from tests.support.mounted import until

Make = Callable[..., Rig]
BIG_STEP = 200_000  # wider than what still counts as going on in sequence


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as stack:
        yield lambda size, **how: Rig(tmp_path / f"{size}", stack, tar_of(size), tar_of(size), **how)


@pytest.fixture
def wide(make: Make) -> Rig:
    """Forty spans of 200,000 bytes."""
    rig = make(39 * BIG_STEP, step=BIG_STEP)
    assert len(rig.spans) == 40
    return rig


def counts(rig: Rig) -> dict[str, Any]:
    found: dict[str, Any] = plain(rig.content.snapshot())
    return found


def test_a_small_layer_comes_whole_at_its_first_miss(make: Make) -> None:
    rig = make(205_000, sizes=Sizes())
    rig.read_span(7)
    rig.settle()
    assert rig.source.ranges == [(0, rig.layer.size)]
    assert rig.present() == list(range(21))
    brought = counts(rig)["brought"]
    assert (brought["miss"]["spans"], brought["whole"]["spans"]) == (1, 20)


def test_a_small_miss_brings_its_neighbours(make: Make) -> None:
    rig = make(205_000, sizes=EXACT._replace(near=5 * STEP))
    rig.read_span(10)
    rig.settle()
    assert len(rig.source.ranges) == 1
    assert rig.present() == [9, 10, 11, 12]
    brought = counts(rig)["brought"]
    assert (brought["miss"]["spans"], brought["near"]["spans"]) == (1, 3)


def test_neighbours_that_are_there_are_not_marked_again_and_count_as_discarded(make: Make) -> None:
    rig = make(205_000, sizes=EXACT._replace(gap=STEP))
    rig.read_span(11)
    rig.source.forget_requests()
    first, last = rig.spans[10], rig.spans[12]
    rig.content.read(first.flat_start, last.flat_end - first.flat_start)
    rig.settle()
    assert rig.source.ranges == [(first.start, last.end)]
    assert counts(rig)["discarded"] == STEP


def test_a_reader_in_sequence_soon_waits_for_nothing(wide: Rig) -> None:
    for number in range(40):
        wide.read_span(number)
        wide.settle()
    brought = counts(wide)["brought"]
    assert brought["miss"]["spans"] <= 3
    assert brought["ahead"]["spans_used"] == brought["ahead"]["spans"] == 40 - brought["miss"]["spans"]
    assert sum(end - start for start, end in wide.source.ranges) == wide.layer.size


def test_read_ahead_goes_on_while_what_it_brought_is_read_from_the_cache(wide: Rig) -> None:
    for number in (0, 1):
        wide.read_span(number)
        wide.settle()
    before = len(wide.present())
    for number in (2, 3):
        span = wide.spans[number]
        into = memoryview(bytearray(span.flat_end - span.flat_start))
        assert wide.content.read_into(into, span.flat_start)
        assert into == wide.bytes[span.flat_start : span.flat_end]
        wide.settle()
    assert len(wide.present()) > before


def test_a_reader_that_jumps_is_not_read_ahead_of(wide: Rig) -> None:
    for number in (9, 2, 15, 5, 30, 20):
        wide.read_span(number)
    wide.settle()
    assert wide.present() == [2, 5, 9, 15, 20, 30]


def test_a_reader_is_read_ahead_of_where_it_leaves_what_a_profile_names(wide: Rig) -> None:
    wide.file.start(touches=[(0, number) for number in range(12)])
    for number in range(12):
        wide.read_span(number)
        wide.settle()
    assert wide.present() == list(range(12))
    wide.read_span(12)
    wide.settle()
    assert wide.present() == list(range(12 + 1 + 13))  # as much as it has read


def test_read_ahead_ends_with_the_file(wide: Rig) -> None:
    file = [Extent(0, 6 * BIG_STEP, 0)]
    for number in range(5):
        wide.file.read(0, file, number * BIG_STEP, BIG_STEP)
        wide.settle()
    assert wide.present() == list(range(6))


def test_when_much_of_a_layer_has_been_read_the_rest_comes(make: Make) -> None:
    rig = make(39 * BIG_STEP, step=BIG_STEP, sizes=EXACT._replace(much=0.2))
    order = random.Random(8).sample(range(0, 40, 2), 8)
    for number in order[:7]:
        rig.read_span(number)
    rig.settle()
    assert len(rig.present()) < 40
    rig.read_span(order[7])
    rig.settle()
    assert len(rig.present()) == 40
    assert counts(rig)["brought"]["whole"]["spans"] > 20


def test_the_rest_of_a_layer_that_takes_too_long_does_not_come(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Meter, "speed", lambda _: 1000.0)
    rig = make(39 * BIG_STEP, step=BIG_STEP, sizes=EXACT._replace(much=0.05))
    for number in (1, 20, 10):
        rig.read_span(number)
    rig.settle()
    assert rig.present() == [1, 10, 20]


def test_sixteen_readers_make_one_request_for_each_span(wide: Rig) -> None:
    with ThreadPoolExecutor(16) as readers:
        orders = [random.Random(seed).sample(range(40), 40) for seed in range(16)]
        list(readers.map(lambda order: [wide.read_span(number) for number in order], orders))
    wide.settle()
    assert sum(end - start for start, end in wide.source.ranges) == wide.layer.size
    assert counts(wide)["fetched"] == wide.layer.size


def test_a_reader_joins_what_the_background_has_under_way(wide: Rig) -> None:
    wide.source.gate.clear()
    wide.file.start([(0, 8)])
    assert wide.source.waiting.wait(10)
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(wide.read_span, 8)
        wide.source.gate.set()
        read.result()
    wide.settle()
    assert wide.source.ranges == [(wide.spans[8].start, wide.spans[8].end)]


def test_what_was_read_is_recorded_once_in_order_and_nothing_else_is(wide: Rig) -> None:
    for number in (5, 6, 7, 5, 30):
        wide.read_span(number)
        wide.settle()
    assert len(wide.present()) > 4  # read-ahead
    assert wide.file.recorded() == [(0, 5), (0, 6), (0, 7), (0, 30)]


def test_a_read_of_what_is_cached_already_is_recorded_too(wide: Rig) -> None:
    wide.file.start([(0, 3)])
    wide.settle()
    assert wide.file.recorded() == []
    assert wide.file.cached(0, [Extent(0, 50, wide.spans[3].flat_start)], 0, 50)
    assert wide.file.recorded() == [(0, 3)]


class Noting(FetchPool):
    """Notes the spans of each request in the order in which they queue; threads may begin in another."""

    def __init__(self) -> None:
        super().__init__()
        self.queued: list[tuple[int, ...]] = []

    def submit(self, task: Task) -> None:
        assert isinstance(task, InFlightRequest)
        self.queued.append(task._request.numbers)
        super().submit(task)


def test_replay_asks_first_for_what_is_needed_first(make: Make) -> None:
    fetch_pool = Noting()
    rig = make(39 * BIG_STEP, step=BIG_STEP, fetch_pool=fetch_pool)
    order = [30, 31, 29, 28, 32, 33, 2, 1, 0, 11, 12]
    rig.file.start([(0, number) for number in order])
    rig.settle()
    assert rig.present() == sorted(order)
    assert fetch_pool.queued == [(28, 29, 30, 31, 32, 33), (0, 1, 2), (11, 12)]


def test_what_replay_brought_and_how_much_of_it_was_used_is_counted(wide: Rig) -> None:
    wide.file.start([(0, 3), (0, 20), (0, 21)])
    wide.settle()
    wide.read_span(20)
    replay = counts(wide)["brought"]["replay"]
    assert (replay["spans"], replay["spans_used"]) == (3, 1)
    assert counts(wide)["untouched"] == 2 * BIG_STEP
    assert (counts(wide)["hits"], counts(wide)["misses"]) == (1, 0)


def test_a_replay_that_fails_does_not_keep_readers_away(wide: Rig) -> None:
    wide.source.away = True
    wide.file.start([(0, 3)])
    wide.settle()
    wide.source.away = False
    wide.read_span(3)
    assert counts(wide)["errors"] == 1
    assert "does not answer" in counts(wide)["last_error"]["text"]


def test_the_wait_for_the_first_byte_is_counted_for_misses_only(wide: Rig) -> None:
    wide.file.start([(0, 3)])
    wide.settle()
    assert counts(wide)["first_byte"]["requests"] == 0
    wide.read_span(9)
    first_byte = counts(wide)["first_byte"]
    assert first_byte["requests"] == 1
    assert 0 < first_byte["longest"] == first_byte["seconds"]


def test_needed_bytes_are_those_of_the_spans_that_readers_touched(make: Make) -> None:
    rig = make(205_000, sizes=Sizes())
    rig.content.read(rig.spans[3].flat_start, 10)
    assert (counts(rig)["needed"], counts(rig)["needed_flat"]) == (STEP, STEP)
    assert counts(rig)["spans_touched"] == 1


class FakeClock(Clock):
    """Time passes only in sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> bool:
        if seconds:
            self.slept.append(seconds)
        self.time += seconds
        return super().sleep(0)


def filled(
    rig: Rig, clock: FakeClock, rate: int | None = None, touches: list[tuple[int, int]] | None = None
) -> BackgroundFetch:
    fill = BackgroundFetch([rig.content], touches or [], BackgroundFetchOptions(rate), clock)
    fill.run()
    return fill


def test_fill_brings_everything_and_ends(wide: Rig) -> None:
    fill = filled(wide, FakeClock())
    assert len(wide.present()) == 40
    assert fill.snapshot() == FillStatus("done", 0)
    assert counts(wide)["brought"]["fill"]["spans"] == 40


def test_fill_keeps_to_its_rate(wide: Rig) -> None:
    clock = FakeClock()
    filled(wide, clock, rate=1_000_000)
    last = max(end - start for start, end in wide.source.ranges)
    assert clock.time >= (wide.layer.size - last) / 1e6


def test_a_bucket_lets_through_no_more_than_its_rate() -> None:
    bucket = RateLimit(100)
    assert [bucket.delay(50, now) for now in (0.0, 0.0, 1.0, 9.0)] == [0.0, 0.5, 0.0, 0.0]
    assert RateLimit(None).delay(1 << 40, 0.0) == 0


def test_fill_begins_with_what_is_known_to_be_needed(make: Make) -> None:
    fetch_pool = Noting()
    rig = make(39 * BIG_STEP, step=BIG_STEP, fetch_pool=fetch_pool)
    filled(rig, FakeClock(), rate=300_000, touches=[(0, 33), (0, 34), (0, 5), (0, 6)])
    assert fetch_pool.queued[:6] == [(33,), (34,), (5,), (6,), (0,), (1,)]


def test_fill_waits_while_a_reader_waits(wide: Rig) -> None:
    with ExitStack() as stack:
        stack.enter_context(wide.fetch_pool.reader_waits())
        fill = BackgroundFetch([wide.content], [], BackgroundFetchOptions(None))
        fill.start()
        stack.callback(fill.stop)
        while fill.snapshot().state != "readers first":
            pass
        assert wide.source.ranges == []
    assert not any(thread.name == "imgfs-fill" for thread in threading.enumerate())


def test_fill_pauses_after_errors_longer_each_time_and_goes_on(
    wide: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    wide.source.away = True
    sleep = FakeClock.sleep

    def back_later(self: FakeClock, seconds: float) -> bool:
        wide.source.away = self.time < 5
        return sleep(self, seconds)

    monkeypatch.setattr(FakeClock, "sleep", back_later)
    fill = filled(wide, clock)
    pauses = [seconds for seconds in clock.slept if seconds >= 1]
    assert pauses[:2] == [1.0, 2.0]
    assert fill.snapshot() == FillStatus("done", 0)


def test_fill_does_not_ask_for_ever_for_what_is_damaged(wide: Rig) -> None:
    wide.source.flips = {wide.spans[3].start: 1000}
    fill = filled(wide, FakeClock())
    assert wide.present() == [number for number in range(40) if number != 3]
    assert fill.snapshot().state == "done"


def test_stopping_ends_the_fills_thread(wide: Rig) -> None:
    wide.source.gate.clear()
    wide.file.start(fill=BackgroundFetchOptions())
    assert wide.source.waiting.wait(10)
    wide.file.stop()
    wide.source.gate.set()
    assert not any(thread.name == "imgfs-fill" for thread in threading.enumerate())


class RemoteWindows:
    """Spans of a layer's index, the windows of whose checkpoints are in a blob of their own."""

    blob: ExternalBlob | None = None

    def __init__(self, index: LayerIndex, source: FakeSource) -> None:
        self.summary: Summary = index.summary
        self._spans = [index.span(number) for number in range(index.span_count())]
        self._places: dict[int, tuple[int, int]] = {}
        body = b""
        for number, span in enumerate(self._spans):
            if span.checkpoint:
                packed = zstandard.compress(span.checkpoint.window)
                self._places[number] = len(body), len(body) + len(packed)
                body += packed
        self.blob_of_windows = source.add(body)
        self.size = len(body)
        self.windows: ExternalBlob | None = ExternalBlob(str(self.blob_of_windows.digest), len(body))

    def bounds(self) -> Iterator[tuple[int, int, int, int]]:
        return ((span.flat_start, span.flat_end, span.start, span.end) for span in self._spans)

    def remote_window(self, number: int) -> tuple[int, int] | None:
        return self._places.get(number)

    def flat_span(self, _number: int) -> None:
        return None

    def span(self, number: int, window: bytes | None = None) -> Span:
        span = self._spans[number]
        if span.codec is not Codec.DEFLATE or span.checkpoint is None:
            return span
        assert window is not None
        try:
            unpacked = zstandard.decompress(window)
        except zstandard.ZstdError as error:
            raise IntegrityError(
                f"window of span {number}", expected="a window", actual=str(error)
            ) from error
        return span._replace(checkpoint=Checkpoint(span.checkpoint.bits, unpacked))


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[tuple[Rig, RemoteWindows, LayerContent]]:
    """A gzip layer whose windows are elsewhere."""
    chance = random.Random(7)
    words = [chance.randbytes(5) for _ in range(50)]
    flat = tarmake.archive(tarmake.file("file", b"".join(chance.choices(words, k=250_000))))
    with ExitStack() as stack:
        rig = Rig(tmp_path, stack, gzip.compress(flat, 6, mtime=0), flat)
        assert isinstance(rig.content.index, LayerIndex)
        spans = RemoteWindows(rig.content.index, rig.source)
        yield rig, spans, LayerContent(rig.layer, spans, rig.flat, rig.source, rig.fetch_pool, EXACT)


def test_windows_of_neighbouring_spans_come_in_one_request(
    remote: tuple[Rig, RemoteWindows, LayerContent],
) -> None:
    rig, spans, content = remote
    first, last = rig.spans[1], rig.spans[4]
    body = content.read(first.flat_start, last.flat_end - first.flat_start)
    assert body == rig.bytes[first.flat_start : last.flat_end]
    last_place = spans.remote_window(4)
    assert last_place
    blocks = [(at, min(at + _BLOCK, spans.size)) for at in range(0, last_place[1], _BLOCK)]
    assert sorted(rig.source.ranges) == sorted([(first.start, last.end), *blocks])
    assert content.snapshot().windows == sum(end - start for start, end in blocks)


def test_windows_beside_those_that_were_fetched_are_not_asked_for_again(
    remote: tuple[Rig, RemoteWindows, LayerContent],
) -> None:
    rig, spans, content = remote
    for number in (1, 2, 1):
        span = rig.spans[number]
        assert content.read(span.flat_start, 100) == rig.bytes[span.flat_start :][:100]
    first, second = (rig.spans[number] for number in (1, 2))
    asked = [(0, min(_BLOCK, spans.size)), (first.start, first.end), (second.start, second.end)]
    assert sorted(rig.source.ranges) == sorted(asked)


def test_a_span_is_asked_for_at_once_and_not_after_its_window(
    remote: tuple[Rig, RemoteWindows, LayerContent],
) -> None:
    rig, _, content = remote
    span = rig.spans[2]
    rig.source.gate.clear()
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(content.read, span.flat_start, 100)
        until(lambda: len(rig.source.ranges) == 2, "both have been asked for")
        rig.source.gate.set()
        assert read.result() == rig.bytes[span.flat_start :][:100]


def test_a_damaged_window_is_fetched_again(remote: tuple[Rig, RemoteWindows, LayerContent]) -> None:
    rig, spans, content = remote
    place = spans.remote_window(2)
    assert place
    rig.source.flips = {place[0]: 1}
    span = rig.spans[2]
    assert content.read(span.flat_start, 100) == rig.bytes[span.flat_start :][:100]


def test_windows_that_are_not_to_be_had_are_the_readers_error(
    remote: tuple[Rig, RemoteWindows, LayerContent],
) -> None:
    rig, spans, content = remote
    rig.source.broken.add(spans.blob_of_windows.digest)
    with pytest.raises(NotFound, match="no blob"):
        content.read(rig.spans[2].flat_start, 100)
    assert rig.present() == []


def test_an_end_while_a_reader_waits_is_its_error(wide: Rig) -> None:
    wide.source.gate.clear()
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(wide.read_span, 3)
        assert wide.source.waiting.wait(10)
        wide.fetch_pool.close()
        wide.source.gate.set()
        assert isinstance(read.exception(), Unavailable)


def test_the_speed_can_be_asked_for_while_the_last_request_ends() -> None:
    """Another thread may say so at any moment: here, while the clock is looked at."""
    now = [0.0]
    is_asked = False

    def clock() -> float:
        nonlocal is_asked
        now[0] += 1.0
        if is_asked:
            is_asked = False
            meter.busy(False)
        return now[0]

    meter = Meter(clock)
    meter.busy(True)
    meter.arrived(10 << 20)
    is_asked = True
    assert 0 < meter.speed() <= 10 << 20


def test_a_request_that_is_given_up_leaves_no_reader_waiting(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make(205_000)

    def fetch(*_: object) -> Iterator[SpanOutcome]:
        yield SpanOutcome([7])
        raise RuntimeError("a fault of imgfs's own")

    monkeypatch.setattr(rig.content.in_flight.fetcher, "fetch", fetch)
    futures = rig.content.fetch_for([7, 8], Priority.MISS, Cause.MISS)
    assert futures[0].result(10) is None
    with pytest.raises(RuntimeError, match="a fault of imgfs's own"):
        futures[1].result(10)
    assert rig.content.in_flight.not_in_flight([7, 8]) == [7, 8]
    assert "a request was given up" in caplog.text
    caplog.clear()


def test_what_goes_wrong_while_damage_is_looked_into_reaches_the_readers(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make(205_000)
    rig.source.flips[rig.spans[7].start] = 9

    def closed(*_: object) -> Iterator[SpanOutcome]:
        raise StoreError("the flat layer has been closed")

    monkeypatch.setattr(rig.content.in_flight.fetcher.misplaced, "fetch", closed)
    with pytest.raises(StoreError, match="has been closed"):
        rig.read_span(7)
