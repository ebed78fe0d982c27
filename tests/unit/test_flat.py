"""The flat layer on disk: what is marked is there and right, whoever writes, evicts or dies meanwhile."""

from __future__ import annotations

import fcntl
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from imgfs.errors import StoreError
from imgfs.store.flat import FlatLayer
from imgfs.store.flat_files import PRESENT, SYNCED, count_present
from imgfs.store.staging import IN_MEMORY, FlatWriter, SpanBuffer
from tests.support.children import Child

SPAN = 24_000  # bytes; not a multiple of the page size
SPANS = 20
SIZE = SPAN * SPANS - 1000  # the last span is shorter


def body_of(number: int) -> bytes:
    """What span `number` holds: no zeros, and nothing that another span holds."""
    return bytes([number + 1]) * (min(SIZE, (number + 1) * SPAN) - number * SPAN)


def open_flat(directory: Path) -> FlatLayer:
    return FlatLayer(directory, size=SIZE, spans=SPANS)


def fill(flat: FlatLayer, *numbers: int) -> None:
    """Write and mark spans, as a fetch does."""
    for number in numbers:
        put(flat, number)


def put(flat: FlatLayer, number: int, before: bytes | None = None, body: bytes | None = None) -> bool:
    """Write and mark one span, for which a fetch has begun."""
    before = flat.begin(number, number) if before is None else before
    return flat.put(number, before, [(number * SPAN, aside(flat, body_of(number) if body is None else body))])


def aside(flat: FlatLayer, body: bytes) -> SpanBuffer:
    verified = flat.span_buffer()
    verified.write(body)
    return verified


def scribble(directory: Path, number: int, body: bytes) -> None:
    """Leave bytes in the file that nothing has verified."""
    with open(directory / "flat", "r+b") as file:
        file.seek(number * SPAN)
        file.write(body)


def read(flat: FlatLayer, number: int) -> bytes | None:
    """All of a span."""
    return flat.read(number * SPAN, len(body_of(number)), flat.marks(number, number), number)


def present(flat: FlatLayer) -> list[int]:
    return [number for number, mark in enumerate(flat.marks(0, SPANS - 1)) if mark & PRESENT]


def pretend_reboot(directory: Path) -> None:
    """Leave the presence map as the boot before this one would have."""
    with open(directory / "presence", "r+b") as file:
        file.seek(8)  # the boot id comes behind the magic
        file.write(b"another boot, so")


@pytest.fixture
def flat(tmp_path: Path) -> Iterator[FlatLayer]:
    with closing(open_flat(tmp_path)) as flat:
        yield flat


def test_spans_are_counted_without_a_change(tmp_path: Path) -> None:
    binding = bytes(range(24))

    def counted(size: int = SIZE, spans: int = SPANS, bound: bytes = binding) -> int:
        return count_present(tmp_path, size=size, spans=spans, binding=bound)

    assert counted() == 0
    with closing(FlatLayer(tmp_path, size=SIZE, spans=SPANS, binding=binding)) as flat:
        fill(flat, 0, 1)
        assert counted() == 2
        flat.sync()
        fill(flat, 2)
        assert (counted(), counted(size=SIZE + 1), counted(spans=SPANS - 1), counted(bound=bytes(24))) == (
            3,
            0,
            0,
            0,
        )
    pretend_reboot(tmp_path)
    before = (tmp_path / "presence").read_bytes()
    assert counted() == 2  # the third was not synced
    assert (tmp_path / "presence").read_bytes() == before
    os.truncate(tmp_path / "flat", SIZE - 1)
    assert counted() == 0


def test_nothing_is_there_at_first(flat: FlatLayer) -> None:
    assert flat.count_present() == 0
    assert read(flat, 0) is None


def test_what_is_written_and_marked_is_read(flat: FlatLayer) -> None:
    fill(flat, 0, 3, SPANS - 1)
    assert present(flat) == [0, 3, SPANS - 1]
    assert [read(flat, number) for number in (0, 3, SPANS - 1)] == [
        body_of(0),
        body_of(3),
        body_of(SPANS - 1),
    ]


def test_what_is_written_but_not_marked_is_not_there(flat: FlatLayer, tmp_path: Path) -> None:
    scribble(tmp_path, 0, body_of(0))
    assert read(flat, 0) is None


def test_a_read_across_spans_wants_all_of_them(flat: FlatLayer) -> None:
    fill(flat, 1, 2)
    assert flat.read(2 * SPAN - 5, 10, flat.marks(1, 2), 1) == b"\2" * 5 + b"\3" * 5
    assert flat.read(3 * SPAN - 5, 10, flat.marks(2, 3), 2) is None


def test_marks_seen_before_an_eviction_get_nothing_even_if_the_bytes_are_back(flat: FlatLayer) -> None:
    fill(flat, 0)
    seen = flat.marks(0, 0)
    flat.evict()
    fill(flat, 0)
    assert flat.read(0, SPAN, seen, 0) is None
    assert read(flat, 0) == body_of(0)


@pytest.mark.parametrize("flags", [os.RWF_NOWAIT, 0])
def test_present_bytes_are_read_into_a_buffer(flat: FlatLayer, flags: int) -> None:
    fill(flat, 4)
    into = bytearray(len(body_of(4)))
    assert flat.read_into(memoryview(into), 4 * SPAN, flat.marks(4, 4), 4, flags)
    assert into == body_of(4)
    assert not flat.read_into(memoryview(into), 5 * SPAN, flat.marks(5, 5), 5, flags)


def test_bytes_that_are_evicted_while_they_are_read_into_a_buffer_do_not_count(flat: FlatLayer) -> None:
    fill(flat, 4)
    seen = flat.marks(4, 4)
    flat.evict()
    fill(flat, 4)
    assert not flat.read_into(memoryview(bytearray(SPAN)), 4 * SPAN, seen, 4, 0)


def test_marks_are_shared_with_others_who_have_the_layer_open(flat: FlatLayer, tmp_path: Path) -> None:
    with closing(open_flat(tmp_path)) as other:
        fill(other, 7)
        assert read(flat, 7) == body_of(7)


def test_marks_outlive_the_process_that_set_them(tmp_path: Path) -> None:
    def work() -> None:
        fill(open_flat(tmp_path), 2)

    with Child(work) as child:
        assert child.join() == 0
    with closing(open_flat(tmp_path)) as flat:
        assert present(flat) == [2]
        assert read(flat, 2) == body_of(2)


def test_evicting_forgets_everything_and_gives_the_disk_back(flat: FlatLayer, tmp_path: Path) -> None:
    fill(flat, *range(SPANS))
    flat.sync()
    freed = flat.evict()
    assert freed >= SIZE
    assert flat.count_present() == 0
    found = os.stat(tmp_path / "flat")
    assert (found.st_size, found.st_blocks) == (SIZE, 0)


def test_a_fetch_whose_spans_are_evicted_meanwhile_marks_nothing(flat: FlatLayer) -> None:
    before = flat.begin(1, 2)
    bodies = [(number * SPAN, aside(flat, body_of(number))) for number in (1, 2)]
    flat.evict()
    assert not flat.put(1, before, bodies)
    assert present(flat) == []


def test_two_fetches_of_the_same_span_may_both_mark_it(flat: FlatLayer) -> None:
    first, second = flat.begin(1, 1), flat.begin(1, 1)
    assert put(flat, 1, first)
    assert put(flat, 1, second)
    assert read(flat, 1) == body_of(1)


def test_what_is_marked_is_never_written_to_again(flat: FlatLayer, tmp_path: Path) -> None:
    before = flat.begin(1, 1)
    with closing(open_flat(tmp_path)) as other:
        fill(other, 1)
    assert put(flat, 1, before, b"\xff" * SPAN)
    assert read(flat, 1) == body_of(1)


def test_bytes_aside_are_in_no_file_that_has_a_name(flat: FlatLayer, tmp_path: Path) -> None:
    with closing(flat.span_buffer()) as large:
        for piece in (b"x" * IN_MEMORY, bytes(3 * IN_MEMORY), b"y" * 10, memoryview(bytearray(b"z"))):
            large.write(piece)
        assert sorted(os.listdir(tmp_path)) == ["flat", "presence"]
        assert (tmp_path / "flat").read_bytes() == bytes(SIZE)
        assert b"".join(large.pieces()) == b"x" * IN_MEMORY + bytes(3 * IN_MEMORY) + b"y" * 10 + b"z"
    with closing(flat.span_buffer()) as zeros:
        zeros.write(bytes(2 * IN_MEMORY))
        assert b"".join(zeros.pieces()) == bytes(2 * IN_MEMORY)


def test_a_process_killed_between_writing_and_marking_leaves_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        flat = open_flat(tmp_path)
        monkeypatch.setattr(FlatLayer, "_put_marks", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        fill(flat, 2)

    with Child(work) as child:
        assert child.join() == -signal.SIGKILL
    assert (tmp_path / "flat").read_bytes()[2 * SPAN : 3 * SPAN] == body_of(2), "it was at it"
    with closing(open_flat(tmp_path)) as flat:
        assert present(flat) == []
        fill(flat, 2)
        assert read(flat, 2) == body_of(2)


def test_a_fetch_begins_only_when_an_eviction_under_way_has_ended(flat: FlatLayer, tmp_path: Path) -> None:
    """Bytes written between an eviction's clearing of the marks and its cutting of the file would be lost."""
    begun: list[bytes] = []
    with open(tmp_path / "presence", "rb") as evictor:
        fcntl.flock(evictor, fcntl.LOCK_EX)
        fetch = threading.Thread(target=lambda: begun.append(flat.begin(0, 0)))
        fetch.start()
        fetch.join(0.1)
        assert not begun
    fetch.join()
    assert begun == [b"\0"]


def test_an_eviction_that_was_killed_half_way_does_no_harm(flat: FlatLayer, tmp_path: Path) -> None:
    os.truncate(tmp_path / "flat", 0)  # it has cleared the marks and cut the file
    assert put(flat, SPANS - 1, body=bytes(len(body_of(SPANS - 1))))  # which need not be written to be there
    assert read(flat, SPANS - 1) == bytes(len(body_of(SPANS - 1)))


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_readers_never_see_wrong_bytes_while_others_fill_and_evict(tmp_path: Path, where: str) -> None:
    deadline = time.monotonic() + 1.2

    def filling(flat: FlatLayer) -> None:
        while time.monotonic() < deadline:
            fill(flat, random.randrange(SPANS))

    def evicting(flat: FlatLayer) -> None:
        while time.monotonic() < deadline:
            flat.evict()
            time.sleep(0.002)  # 64 evictions would bring the generation round: not within one read

    def reading(flat: FlatLayer) -> None:
        hits = 0
        while time.monotonic() < deadline or not hits:
            number = random.randrange(SPANS)
            found = read(flat, number)
            assert found in (None, body_of(number)), f"span {number}"
            hits += found is not None
            if time.monotonic() > deadline:
                fill(flat, *range(SPANS))  # the others have ended: now there must be hits

    runners = {"threads": run_in_threads, "processes": run_in_processes}
    runners[where](tmp_path, [filling, filling, evicting, reading, reading])


def run_in_threads(directory: Path, works: list[Callable[[FlatLayer], None]]) -> None:
    with closing(open_flat(directory)) as shared, ThreadPoolExecutor(len(works)) as threads:
        for future in [threads.submit(work, shared) for work in works]:
            future.result()


def run_in_processes(directory: Path, works: list[Callable[[FlatLayer], None]]) -> None:
    def run(work: Callable[[FlatLayer], None]) -> None:
        work(open_flat(directory))

    with ExitStack() as stack:
        children = [stack.enter_context(Child(partial(run, work))) for work in works]
        assert [child.join() for child in children] == [0] * len(works)


def test_a_process_killed_at_any_moment_leaves_no_wrong_byte_marked(tmp_path: Path) -> None:
    def work() -> None:
        flat = open_flat(tmp_path)
        while True:
            fill(flat, *random.sample(range(SPANS), 6))
            if random.random() < 0.2:
                flat.evict()

    marked = rounds = 0
    while rounds < 12 or not marked:  # on a busy machine a child may need longer to mark anything
        rounds += 1
        with Child(work) as child:
            time.sleep(random.uniform(0.005, 0.05) * max(1, rounds / 12))
            child.kill()
        with closing(open_flat(tmp_path)) as flat:
            assert [read(flat, number) for number in present(flat)] == [body_of(n) for n in present(flat)]
            marked += flat.count_present()


def test_a_killed_process_leaves_no_lock_behind(tmp_path: Path) -> None:
    def work() -> None:
        flat = open_flat(tmp_path)
        with flat._locked():
            os.kill(os.getpid(), signal.SIGKILL)

    with Child(work) as child:
        assert child.join() == -signal.SIGKILL
    with closing(open_flat(tmp_path)) as flat:
        fill(flat, 0)
        assert read(flat, 0) == body_of(0)


def test_a_crash_of_the_machine_costs_the_marks_that_were_not_synced_and_only_those(tmp_path: Path) -> None:
    with closing(open_flat(tmp_path)) as flat:
        fill(flat, 1, 2)
        flat.sync()
        fill(flat, 5)
    pretend_reboot(tmp_path)
    with closing(open_flat(tmp_path)) as flat:
        assert present(flat) == [1, 2]
        assert read(flat, 2) == body_of(2)
    with closing(open_flat(tmp_path)) as flat:  # the new boot is noted
        fill(flat, 5)
    with closing(open_flat(tmp_path)) as flat:
        assert present(flat) == [1, 2, 5]


def test_evicted_spans_are_not_synced_any_more(tmp_path: Path) -> None:
    with closing(open_flat(tmp_path)) as flat:
        fill(flat, 1)
        flat.sync()
        assert flat.marks(1, 1)[0] & SYNCED
        flat.evict()
        fill(flat, 1)
    pretend_reboot(tmp_path)
    with closing(open_flat(tmp_path)) as flat:
        assert present(flat) == []


@pytest.mark.parametrize("other", [(SIZE, SPANS + 1), (SIZE + 1, SPANS)])
def test_a_map_of_another_cut_of_the_layer_counts_for_nothing(tmp_path: Path, other: tuple[int, int]) -> None:
    with closing(FlatLayer(tmp_path, size=other[0], spans=other[1])) as flat:
        fill(flat, 0, 1)
        flat.sync()
    with closing(open_flat(tmp_path)) as flat:
        assert present(flat) == []


@pytest.mark.parametrize("presence", [b"", b"imgfsmap", b"imgfsmap" + bytes(56), b"\xff" * 4096])
def test_a_damaged_map_counts_for_nothing(tmp_path: Path, presence: bytes) -> None:
    (tmp_path / "presence").write_bytes(presence)
    with closing(open_flat(tmp_path)) as flat:
        assert present(flat) == []
        fill(flat, 0)
        assert read(flat, 0) == body_of(0)


def test_a_map_cut_short_loses_the_marks_it_lacks(tmp_path: Path) -> None:
    with closing(open_flat(tmp_path)) as flat:
        fill(flat, 0, SPANS - 1)
        flat.sync()
    os.truncate(tmp_path / "presence", 64 + 3)
    with closing(open_flat(tmp_path)) as flat:
        assert present(flat) == [0]


def test_a_flat_file_cut_short_is_an_error_and_never_a_short_read(flat: FlatLayer, tmp_path: Path) -> None:
    fill(flat, 0)
    os.truncate(tmp_path / "flat", 100)
    with pytest.raises(StoreError, match="ends at 100"):
        read(flat, 0)


def test_what_a_cut_file_has_lost_is_not_there_for_whoever_opens_it(flat: FlatLayer, tmp_path: Path) -> None:
    fill(flat, *range(SPANS))
    flat.sync()
    os.truncate(tmp_path / "flat", 100)
    with closing(open_flat(tmp_path)) as other:
        assert present(other) == present(flat) == []
        fill(other, 3)
        assert [read(flat, 3), read(flat, 4)] == [body_of(3), None]


def test_nor_does_writing_to_it_make_zeros_of_what_was_lost(flat: FlatLayer, tmp_path: Path) -> None:
    fill(flat, 0, 5)
    os.truncate(tmp_path / "flat", 100)
    fill(flat, 7)
    assert present(flat) == [7]
    assert read(flat, 7) == body_of(7)


def test_bytes_lost_while_a_span_was_written_are_not_marked(flat: FlatLayer, tmp_path: Path) -> None:
    before = flat.begin(0, 0)
    os.truncate(tmp_path / "flat", 100)
    assert not put(flat, 0, before)
    assert read(flat, 0) is None


def test_what_the_disk_cannot_give_back_is_fetched_again(
    flat: FlatLayer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(flat, 0, 1)
    with failing(flat, tmp_path):
        assert read(flat, 1) is None
    assert present(flat) == [0]
    assert "to be fetched again" in caplog.text
    fill(flat, 1)
    assert [read(flat, number) for number in (0, 1)] == [body_of(0), body_of(1)]


def test_what_could_not_be_synced_counts_for_nothing_and_what_was_stays(
    flat: FlatLayer, tmp_path: Path
) -> None:
    """The kernel says it once, and shows what the disk has from then on (fsync(2))."""
    fill(flat, 0)
    flat.sync()
    fill(flat, 1)
    pipe = os.pipe()
    with failing(flat, pipe[0]), pytest.raises(StoreError, match="flat: Invalid argument"):
        flat.sync()
    assert present(flat) == [0]
    for fd in pipe:
        os.close(fd)


@contextmanager
def failing(flat: FlatLayer, other: Path | int) -> Iterator[None]:
    """Have the kernel refuse what is done to the flat file: it is a directory, or a pipe."""
    kept = os.dup(flat._fd)
    fd = os.open(other, os.O_RDONLY) if isinstance(other, Path) else os.dup(other)
    os.dup2(fd, flat._fd)
    yield
    os.dup2(kept, flat._fd)
    os.close(kept)
    os.close(fd)


def test_spans_that_are_forgotten_are_fetched_again(flat: FlatLayer) -> None:
    fill(flat, 0, 1, 2)
    before = flat.begin(2, 2)
    flat.forget([0, 2])
    assert present(flat) == [1]
    assert not put(flat, 2, before)


def test_whoever_writes_says_how_much(tmp_path: Path) -> None:
    note_written: list[int] = []
    with closing(FlatLayer(tmp_path, size=SIZE, spans=SPANS, note_written=note_written.append)) as flat:
        bodies = [(number * SPAN, aside(flat, body_of(number))) for number in (0, 1)]
        assert note_written == []
        flat.put(0, flat.begin(0, 1), bodies)
        flat.put(0, flat.begin(0, 1), bodies)
    assert note_written == [2 * SPAN, 0]
    writer = FlatWriter(tmp_path, note_written.append)
    writer.write(0, b"1234")
    writer.close()
    assert note_written == [2 * SPAN, 0, 4]


def test_zeros_take_no_disk(flat: FlatLayer, tmp_path: Path) -> None:
    for number in (0, 1):
        put(flat, number, body=bytes(SPAN))
    assert read(flat, 1) == bytes(SPAN)
    assert os.stat(tmp_path / "flat").st_blocks == 0


def test_zeros_replace_what_was_there(flat: FlatLayer, tmp_path: Path) -> None:
    """Another version of this program may have left something else."""
    scribble(tmp_path, 0, b"\xff" * SPAN)
    put(flat, 0, body=bytes(SPAN))
    assert read(flat, 0) == bytes(SPAN)


def test_zeros_of_a_scan_take_no_disk_wherever_they_are(tmp_path: Path) -> None:
    with closing(FlatWriter(tmp_path)) as writer:
        for number in range(SPANS):
            writer.write(number * SPAN, body_of(number) if number == 4 else bytes(len(body_of(number))))
        writer.keep(size=SIZE, spans=SPANS)
    with closing(open_flat(tmp_path)) as flat:
        assert present(flat) == list(range(SPANS))
        assert [read(flat, n) for n in (3, 4, SPANS - 1)] == [bytes(SPAN), body_of(4), bytes(SPAN - 1000)]
    found = os.stat(tmp_path / "flat")
    assert found.st_blocks * 512 < 2 * SPAN + 8192


def test_a_scan_begins_with_nothing_of_an_older_one(tmp_path: Path) -> None:
    with closing(open_flat(tmp_path)) as old:
        fill(old, 0)
        FlatWriter(tmp_path).close()
        with closing(open_flat(tmp_path)) as new:
            assert present(new) == []
        assert read(old, 0) == body_of(0), "who reads the older one keeps it"


def test_what_a_scan_writes_is_not_there_before_it_is_kept(tmp_path: Path) -> None:
    with closing(FlatWriter(tmp_path)) as writer:
        writer.write(0, b"not verified")
        with closing(open_flat(tmp_path)) as other:
            fill(other, 1)
            assert (tmp_path / "flat").read_bytes()[:SPAN] == bytes(SPAN)
            writer.write(0, body_of(0))
            writer.keep(size=SIZE, spans=SPANS)
            assert read(other, 1) == body_of(1), "who reads the older one keeps it"
            assert other.evict() > 0
        with closing(open_flat(tmp_path)) as new:
            assert read(new, 0) == body_of(0)
    assert sorted(os.listdir(tmp_path)) == ["flat", "presence"]


def test_a_scan_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with closing(FlatWriter(tmp_path)) as writer:
        writer.write(0, body_of(0))
    assert os.listdir(tmp_path) == []


def test_two_cuts_of_one_layer_do_not_share_a_map(flat: FlatLayer, tmp_path: Path) -> None:
    """Who has the layer open with one index would read the marks of another's spans as its own."""
    fill(flat, 3)
    with closing(FlatLayer(tmp_path, size=SIZE, spans=SPANS + 1)) as other:
        put(other, 0, body=b"\xff" * SPAN)
        put(other, 5, body=b"\xff" * SPAN)
        assert present(flat) == [3]
        assert read(flat, 3) == body_of(3)
        assert other.evict() > 0
        assert read(flat, 3) == body_of(3)


def test_a_full_disk_is_a_store_error(tmp_path: Path) -> None:
    def work() -> None:
        flat = open_flat(tmp_path)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is EFBIG then
        resource.setrlimit(resource.RLIMIT_FSIZE, (SPAN, SPAN))
        fill(flat, 0)
        with pytest.raises(StoreError, match="cannot write to the store: File too large"):
            fill(flat, 1)
        assert present(flat) == [0]

    with Child(work) as child:
        assert child.join() == 0


def test_files_that_cannot_be_had_are_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot open the flat layer"):
        open_flat(tmp_path / "missing")
    (tmp_path / "flat").mkdir()
    with pytest.raises(StoreError, match="cannot open the flat layer"):
        open_flat(tmp_path)
    with pytest.raises(StoreError, match="cannot write to the store"):
        FlatWriter(tmp_path / "missing")


def test_a_closed_flat_layer_writes_nowhere(tmp_path: Path) -> None:
    flat = open_flat(tmp_path)
    flat.close()
    with pytest.raises(StoreError, match="closed"):
        put(flat, 0, b"\0")
    with pytest.raises(StoreError, match="closed"):
        flat.begin(0, 0)
    flat.close()


def test_an_empty_layer_has_an_empty_flat_layer(tmp_path: Path) -> None:
    with closing(FlatLayer(tmp_path, size=0, spans=0)) as flat:
        assert flat.put(0, flat.begin(0, -1), [])
        flat.sync()
        assert (flat.count_present(), flat.evict()) == (0, 0)


def test_one_that_is_closed_says_so(tmp_path: Path) -> None:
    flat = open_flat(tmp_path)
    flat.close()
    for use in (partial(flat.marks, 0, 1), partial(flat.forget, [0]), partial(put, flat, 0)):
        with pytest.raises(StoreError, match="the flat layer has been closed"):
            use()
