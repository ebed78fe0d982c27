"""A file's bytes on demand: fetched once, verified, kept; or an error, and nothing kept."""

from __future__ import annotations

import errno
import gzip
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from imgfs.content import inflight as flight_room
from imgfs.content import layer as layer_room
from imgfs.content.content import FileSegment, segments_of
from imgfs.content.requests import requests_for
from imgfs.content.scheduler import Priority
from imgfs.content.stats import Cause
from imgfs.errors import IntegrityError, StoreError, Unavailable
from imgfs.layer.entry import Extent
from tests.support import tarmake
from tests.support.children import Child
from tests.support.content_rig import EXACT, STEP, Rig, tar_of

Make = Callable[..., Rig]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as stack:
        yield lambda blob, flat, **how: Rig(tmp_path / f"{len(blob)}", stack, blob, flat, **how)


@pytest.fixture
def rig(make: Make) -> Rig:
    """A plain tar of twenty-one spans."""
    flat = tar_of(205_000)
    return make(flat, flat)


@pytest.fixture
def gzipped(make: Make) -> Rig:
    """One gzip member of many spans, most of which begin in mid-byte."""
    chance = random.Random(7)
    words = [chance.randbytes(5) for _ in range(50)]
    body = b"".join(chance.choices(words, k=250_000))
    flat = tarmake.archive(tarmake.file("file", body))
    rig = make(gzip.compress(flat, 6, mtime=0), flat)
    assert len(rig.spans) > 5
    assert any(span.checkpoint and span.checkpoint.bits for span in rig.spans)
    return rig


@st.composite
def sparse_files(draw: st.DrawFn) -> tuple[list[Extent], int]:
    """Extents in order without overlap, here and there with holes, and the file's size."""
    extents, offset = [], 0
    for gap, length, flat in draw(
        st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(0, 99)), max_size=6)
    ):
        extents.append(Extent(offset + gap, length, flat))
        offset += gap + length
    return extents, offset + draw(st.integers(0, 9))


@given(sparse_files(), st.data())
def test_the_pieces_of_a_read_are_the_files_bytes(
    file: tuple[list[Extent], int], data: st.DataObject
) -> None:
    extents, size = file
    model: list[int | None] = [None] * size
    for extent in extents:
        for number in range(extent.length):
            model[extent.offset + number] = extent.flat + number
    offset = data.draw(st.integers(0, size))
    length = data.draw(st.integers(0, size - offset))
    pieces = list(segments_of(extents, offset, length))
    found = [None if flat is None else flat + n for flat, count in pieces for n in range(count)]
    assert found == model[offset : offset + length]
    assert all(piece.length > 0 for piece in pieces)


def test_a_read_of_nothing_has_no_pieces() -> None:
    assert list(segments_of([Extent(0, 5, 100)], 3, 0)) == []
    assert list(segments_of([], 0, 4)) == [FileSegment(None, 4)]


def test_a_missing_span_is_fetched_and_kept(rig: Rig) -> None:
    span = rig.spans[3]
    rig.read_span(3)
    rig.read_span(3)
    assert rig.source.ranges == [(span.start, span.end)]
    assert rig.present() == [3]
    assert rig.content.fetched == span.end - span.start


@pytest.mark.parametrize("kind", ["tar", "gzip", "gzip members", "zstd", "zstd frames"])
def test_every_byte_of_every_format_comes_back(make: Make, kind: str) -> None:
    flat = tar_of(90_000)
    parts = [flat[at : at + 7000] for at in range(0, len(flat), 7000)]
    blobs: dict[str, Callable[[], bytes]] = {
        "tar": lambda: flat,
        "gzip": lambda: gzip.compress(flat),
        "gzip members": lambda: b"".join(map(gzip.compress, parts)),
        "zstd": lambda: zstandard.compress(flat),
        "zstd frames": lambda: b"".join(map(zstandard.compress, parts)),
    }
    rig = make(blobs[kind](), flat)
    for offset in random.Random(2).sample(range(len(flat) - 20_000), 12):
        assert rig.content.read(offset, 20_000) == flat[offset : offset + 20_000]
    assert rig.content.read(0, len(flat)) == flat
    assert (kind != "zstd") == (len(rig.spans) > 1)


def test_neighbouring_spans_that_miss_come_in_one_request(gzipped: Rig) -> None:
    first, last = gzipped.spans[1], gzipped.spans[4]
    body = gzipped.content.read(first.flat_start + 5, last.flat_end - first.flat_start - 10)
    assert body == gzipped.bytes[first.flat_start + 5 : last.flat_end - 5]
    assert gzipped.source.ranges == [(first.start, last.end)]
    assert gzipped.present() == [1, 2, 3, 4]


def test_what_is_there_already_is_not_asked_for_again(rig: Rig) -> None:
    rig.read_span(3)
    rig.source.forget_requests()
    start, end = rig.spans[1].flat_start, rig.spans[5].flat_end
    assert rig.content.read(start, end - start) == rig.bytes[start:end]
    ranges = [(rig.spans[1].start, rig.spans[2].end), (rig.spans[4].start, rig.spans[5].end)]
    assert sorted(rig.source.ranges) == ranges


def test_where_each_range_costs_the_whole_blob_the_second_request_is_for_all_of_it(
    rig: Rig,
) -> None:
    rig.source.rangeless = True
    rig.read_span(2)
    assert rig.present() == [2]
    rig.read_span(5)
    rig.settle()
    assert rig.present() == list(range(len(rig.spans)))
    assert len(rig.source.ranges) == 2
    for number in range(len(rig.spans)):
        rig.read_span(number)
    assert len(rig.source.ranges) == 2


def test_a_request_is_no_larger_than_its_limit(make: Make) -> None:
    flat = tar_of(205_000)
    rig = make(flat, flat, sizes=EXACT._replace(largest=3 * STEP))
    assert rig.content.read(0, len(rig.bytes)) == rig.bytes
    assert len(rig.source.ranges) == 7  # 21 spans, three in each
    assert max(end - start for start, end in rig.source.ranges) <= 3 * STEP


def test_a_span_larger_than_the_limit_is_a_request_of_its_own(make: Make) -> None:
    flat = tar_of(205_000)
    rig = make(flat, flat, sizes=EXACT._replace(largest=1))
    rig.content.read(0, 3 * STEP)
    assert sorted(rig.source.ranges) == [(span.start, span.end) for span in rig.spans[:3]]


def test_a_layer_of_one_huge_span_streams(make: Make) -> None:
    """A plain zstd layer is usually one frame: it must pass through, not be held."""
    flat = tar_of(3_000_000)
    rig = make(zstandard.compress(flat), flat)
    assert len(rig.spans) == 1
    assert rig.content.read(2_000_000, 10) == flat[2_000_000:2_000_010]
    assert rig.content.read(0, len(flat)) == flat
    assert len(rig.source.ranges) == 1


def test_many_readers_of_one_span_make_one_request(rig: Rig) -> None:
    rig.source.gate.clear()
    with ThreadPoolExecutor(8) as readers:
        reads = [readers.submit(rig.read_span, 4) for _ in range(8)]
        assert rig.source.waiting.wait(10)
        rig.source.gate.set()
        bodies = {read.result() for read in reads}
    assert len(bodies) == 1
    assert rig.source.ranges == [(rig.spans[4].start, rig.spans[4].end)]


def test_readers_that_wait_for_the_same_span_get_the_same_error(rig: Rig) -> None:
    rig.source.gate.clear()
    with ThreadPoolExecutor(8) as readers:
        reads = [readers.submit(rig.read_span, 4) for _ in range(8)]
        assert rig.source.waiting.wait(10)
        flight = rig.content.in_flight._by_span[4]._waits[4]
        while len(flight._waiters) < len(reads):
            time.sleep(0.001)
        rig.source.away = True
        rig.source.gate.set()
        errors = {read.exception() for read in reads}
    assert [type(error) for error in errors] == [Unavailable]
    assert len(rig.source.ranges) == 1
    assert rig.present() == []


def test_once_the_source_is_back_reads_work_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight_room, "_NEGATIVE_CACHE", 0)
    rig.source.away = True
    with pytest.raises(Unavailable, match="does not answer"):
        rig.read_span(4)
    rig.source.away = False
    rig.read_span(4)


def test_what_has_just_failed_fails_again_at_once_and_nothing_else(rig: Rig) -> None:
    rig.source.away = True
    with pytest.raises(Unavailable, match="does not answer"):
        rig.read_span(4)
    rig.source.away = False
    with pytest.raises(Unavailable, match="does not answer"):
        rig.read_span(4)
    rig.read_span(6)
    assert rig.present() == [6]


def test_what_has_failed_and_came_otherwise_is_fetched_again_once_it_is_evicted(rig: Rig) -> None:
    rig.source.away = True
    with pytest.raises(Unavailable, match="does not answer"):
        rig.read_span(4)
    rig.source.away = False
    requests = requests_for([4], rig.content.table)
    (fetched,) = rig.content.fetch_in_background(requests, Priority.REST_OF_LAYER, Cause.WHOLE)
    fetched.result(10)
    rig.flat.evict()
    rig.read_span(4)


def test_a_flipped_byte_is_healed_by_another_try(gzipped: Rig) -> None:
    span = gzipped.spans[2]
    gzipped.source.flips = {span.start + 10: 1}
    gzipped.read_span(2)
    assert gzipped.source.ranges == [(span.start, span.end)] * 2


@pytest.mark.parametrize("where", ["tar", "gzip"])
def test_a_byte_that_stays_flipped_is_an_integrity_error_and_nothing_is_kept(
    rig: Rig, gzipped: Rig, where: str
) -> None:
    tried = {"tar": rig, "gzip": gzipped}[where]
    tried.source.flips = {tried.spans[2].start + 10: 1000}
    with pytest.raises(IntegrityError, match=f"layer {tried.layer.digest.short}, span 2: expected"):
        tried.read_span(2)
    assert len(tried.source.ranges) == 2
    assert tried.present() == []
    tried.source.flips = {}
    tried.read_span(2)


@pytest.mark.parametrize("where", ["tar", "gzip"])
def test_to_what_the_kernel_reads_no_byte_is_written_that_is_not_verified(
    rig: Rig, gzipped: Rig, where: str
) -> None:
    tried = {"tar": rig, "gzip": gzipped}[where]
    tried.content.read(0, len(tried.bytes))
    pin = tried.flat.pin()
    assert pin is not None
    tried.flat.forget([2])
    tried.source.flips = {tried.spans[2].start + 10: 1000}
    with pytest.raises(IntegrityError, match="span 2"):
        tried.read_span(2)
    assert pin.read_bytes() == tried.bytes
    tried.source.flips = {}
    tried.read_span(2)
    assert pin.read_bytes() == tried.bytes


def test_a_bad_span_keeps_only_itself_away(rig: Rig) -> None:
    """Its neighbours, asked for in the same request, are as good as ever."""
    rig.source.flips = {rig.spans[3].start: 1000}
    start, end = rig.spans[1].flat_start, rig.spans[6].flat_end
    with pytest.raises(IntegrityError, match="span 3"):
        rig.content.read(start, end - start)
    rig.settle()
    assert rig.present() == [1, 2, 4, 5, 6]


def test_every_span_of_a_request_gets_its_own_second_try(rig: Rig) -> None:
    rig.source.flips = {rig.spans[number].start: 1 for number in (1, 2, 4)}
    start, end = rig.spans[1].flat_start, rig.spans[4].flat_end
    assert rig.content.read(start, end - start) == rig.bytes[start:end]


@pytest.mark.parametrize("spans", [1, 3])
def test_an_answer_that_ends_early_is_an_error_and_never_a_short_read(rig: Rig, spans: int) -> None:
    rig.source.cut_at = rig.spans[spans].end - 1
    with pytest.raises(IntegrityError):
        rig.content.read(rig.spans[1].flat_start, STEP * spans)
    rig.settle()
    assert spans not in rig.present()


def test_a_source_that_is_silent_for_too_long_is_unavailable(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_room, "PATIENCE", 0.05)
    rig.source.gate.clear()
    with pytest.raises(Unavailable, match="nothing arrived"):
        rig.read_span(4)
    rig.source.gate.set()
    rig.read_span(4)


def test_after_the_end_a_read_is_an_error_and_no_hang(rig: Rig) -> None:
    rig.fetch_pool.close()
    for _ in range(2):
        with pytest.raises(Unavailable, match="taken down"):
            rig.read_span(4)


def test_a_full_disk_is_the_readers_store_error(rig: Rig) -> None:
    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is EFBIG then
        resource.setrlimit(resource.RLIMIT_FSIZE, (STEP, STEP))
        with pytest.raises(StoreError, match="cannot write to the store"):
            rig.read_span(4)
        assert rig.present() == []

    with Child(work) as child:
        assert child.join() == 0


def test_what_is_cached_is_read_without_the_network(rig: Rig) -> None:
    rig.read_span(4)
    rig.source.away = True
    span = rig.spans[4]
    into = bytearray(100)
    assert rig.content.read_into(memoryview(into), span.flat_start + 1)
    assert into == rig.bytes[span.flat_start + 1 :][:100]
    assert rig.content.is_here(span.flat_start, 100)
    assert not rig.content.is_here(span.flat_start, STEP + 1)


def test_asking_for_what_is_cached_neither_fetches_nor_waits(rig: Rig) -> None:
    rig.source.gate.clear()
    with ThreadPoolExecutor(1) as readers:
        read = readers.submit(rig.read_span, 4)
        assert rig.source.waiting.wait(10)
        assert not rig.content.read_into(memoryview(bytearray(10)), rig.spans[4].flat_start)
        assert not rig.content.read_into(memoryview(bytearray(10)), rig.spans[8].flat_start)
        rig.source.gate.set()
        read.result()
    assert len(rig.source.ranges) == 1


@pytest.mark.parametrize("span", [0, 1, 20])
def test_reads_at_the_edges_of_spans_bring_no_more_than_they_need(rig: Rig, span: int) -> None:
    start, end = rig.spans[span].flat_start, rig.spans[span].flat_end
    assert rig.content.read(start, 1) == rig.bytes[start : start + 1]
    assert rig.content.read(end - 1, 1) == rig.bytes[end - 1 : end]
    assert rig.present() == [span]


def test_a_file_of_extents_and_holes_is_put_together(rig: Rig) -> None:
    extents = [Extent(5, 20, 3 * STEP - 10), Extent(30, 10, 100), Extent(40, 15, STEP - 5)]
    slots = bytearray(60)
    for offset, length, flat in extents:
        slots[offset : offset + length] = rig.bytes[flat : flat + length]
    model = bytes(slots)
    assert rig.file.read(0, extents, 0, 60) == model
    for offset, length in ((0, 5), (3, 4), (24, 7), (35, 10), (54, 6), (59, 1)):
        assert rig.file.read(0, extents, offset, length) == model[offset : offset + length]
        assert bytes(rig.file.cached(0, extents, offset, length) or b"") == model[offset : offset + length]
    assert rig.file.is_here(0, extents, 0, 60)
    assert rig.present() == [0, 1, 2, 3]


def test_what_only_the_disk_has_is_read_once_it_may_be_waited_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.read_span(4)
    hits, served, preadv = rig.content.counts.hits, rig.file.snapshot().served, os.preadv

    def cold(fd: int, into: Sequence[memoryview], offset: int, flags: int) -> int:
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError(errno.EAGAIN, "not in the page cache")
        return preadv(fd, into, offset, flags)

    monkeypatch.setattr("imgfs.store.flat.os.preadv", cold)
    extents = [Extent(0, 50, 4 * STEP)]
    assert rig.file.cached(0, extents, 0, 50) is None
    assert rig.content.counts.hits == hits
    assert bytes(rig.file.cached(0, extents, 0, 50, flags=0) or b"") == rig.bytes[4 * STEP :][:50]
    assert (rig.content.counts.hits, rig.file.snapshot().served) == (hits + 1, served + 50)
    assert rig.file.cached(0, [Extent(0, 50, 8 * STEP)], 0, 50, flags=0) is None
    assert len(rig.source.ranges) == 1


def test_a_hole_is_always_here_and_asks_for_nothing(rig: Rig) -> None:
    assert bytes(rig.file.cached(0, [], 0, 100) or b"") == bytes(100)
    assert rig.file.is_here(0, [], 0, 100)
    assert rig.file.read(0, [], 0, 0) == b""
    assert rig.source.ranges == []


def test_reads_are_right_while_the_layer_is_evicted_again_and_again(rig: Rig) -> None:
    stop = threading.Event()

    def evict() -> None:
        while not stop.wait(0.004):
            rig.flat.evict()

    evictor = threading.Thread(target=evict)
    evictor.start()
    hits = 0
    try:
        for number in random.Random(3).choices(range(len(rig.spans)), k=150):
            try:
                rig.read_span(number)
                hits += 1
            except StoreError as error:
                assert "evicted again and again" in str(error)  # noqa: PT017  (rare, and allowed)
    finally:
        stop.set()
        evictor.join()
    assert hits > 100


def test_what_was_fetched_is_synced_to_the_disk(rig: Rig) -> None:
    rig.read_span(2)
    assert rig.flat.marks(2, 2)[0] & 2 == 0
    rig.file.sync()
    assert rig.flat.marks(2, 2)[0] & 2


def test_bytes_handed_out_are_counted(rig: Rig) -> None:
    rig.file.read(0, [Extent(0, 50, 0)], 0, 50)
    assert rig.file.cached(0, [Extent(0, 50, 10 * STEP)], 0, 50) is None
    assert rig.file.snapshot().served == 50
