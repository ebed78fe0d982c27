"""Reads of the disk by the event loop itself: as long as they are quick."""

from __future__ import annotations

import pytest

from imgfs.errors import StoreError
from imgfs.fuse.disk_reads import DiskReads, RunDelay


class Disk:
    """A disk whose reads take `seconds` of its clock, of which they wait `waited` for a processor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.seconds, self.reads = 1000.0, 0.0, 0
        self.waited = self._delay = 0.0
        monkeypatch.setattr("imgfs.fuse.disk_reads.time.monotonic", lambda: self.now)
        monkeypatch.setattr(RunDelay, "seconds", lambda _: self._delay)

    def read(self) -> memoryview:
        self.now += self.seconds
        self._delay += self.waited
        self.reads += 1
        return memoryview(b"bytes")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def reads_at_once(reads: DiskReads, disk: Disk, count: int, seconds: float) -> int:
    """How many of `count` reads that take so long each are made at once."""
    disk.seconds = seconds
    return sum(bytes(reads.read(disk.read) or b"") == b"bytes" for _ in range(count))


def test_a_quick_disk_is_read_at_once_although_it_is_slow_now_and_then(disk: Disk) -> None:
    reads = DiskReads()
    for _ in range(20):
        assert reads_at_once(reads, disk, 50, 50e-6) == 50
        assert reads_at_once(reads, disk, 1, 4e-3) == 1


def test_a_slow_disk_is_left_to_threads_and_tried_again_after_a_while(disk: Disk) -> None:
    reads = DiskReads()
    assert reads_at_once(reads, disk, 100, 8e-3) == disk.reads < 5
    disk.now += 1.1
    assert reads_at_once(reads, disk, 100, 1.0) == 1
    disk.now += 1.1
    assert reads_at_once(reads, disk, 100, 50e-6) == 100


def test_on_a_busy_machine_a_quick_disk_is_read_at_once(disk: Disk) -> None:
    disk.waited = 8e-3
    assert reads_at_once(DiskReads(), disk, 100, 8e-3 + 50e-6) == 100
    assert reads_at_once(DiskReads(), disk, 100, 8e-3 + 8e-3) < 5


def test_a_quick_read_asks_once_how_long_the_thread_has_waited_and_not_after_it(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def seconds(_: RunDelay) -> float:
        asked.append(disk.now)
        return 0.0

    monkeypatch.setattr(RunDelay, "seconds", seconds)
    began = disk.now
    assert reads_at_once(DiskReads(), disk, 1, 50e-6) == 1
    assert asked == [began]


def test_what_a_thread_has_waited_for_a_processor_is_known_and_only_grows() -> None:
    run_delay = RunDelay()
    seen = [run_delay.seconds() for _ in range(3)]
    assert 0 <= seen[0] <= seen[1] <= seen[2]


def test_what_is_gone_from_the_disk_is_not_waited_for(disk: Disk) -> None:
    def closed() -> None:
        raise StoreError("closed")

    assert DiskReads().read(lambda: None) is None
    with pytest.raises(StoreError, match="closed"):
        DiskReads().read(closed)
