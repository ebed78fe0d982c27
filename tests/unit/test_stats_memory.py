"""Statistics are kept in memory that outlives the process: the next one counts on, however it ended."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from imgfs.content.profile import RECORDER_SIZE, ProfileRecorder
from imgfs.content.stats import COUNTS_SIZE, Cause, Counts
from imgfs.content.stats_memory import StatsMemory
from imgfs.content.timeline import TIMELINE_SIZE, Timeline

PARTS = (COUNTS_SIZE, RECORDER_SIZE, TIMELINE_SIZE, 3)


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("stats")
    yield fd
    os.close(fd)


def opened(file: int, now: float) -> tuple[Counts, ProfileRecorder, Timeline]:
    """What a process of the mount counts in, at a time."""
    counts, (first, second, third, _) = Counts(), StatsMemory(PARTS, file, "a").parts
    counts.count_in(first)
    return counts, ProfileRecorder(1000, second), Timeline(lambda: now, third)


def test_the_next_process_counts_on(file: int) -> None:
    for number in range(1, 4):
        counts, recorder, timeline = opened(file, 10.0 + number)
        counts.hits += 5
        counts.landed(Cause.MISS, 100, used=True)
        counts.waited(0.25 * number)
        counts.failed(OSError(f"error {number}" * 500))
        recorder.touched(7, number, 10)
        timeline.read(number)
    layer = counts.snapshot()
    assert (layer.hits, layer.brought["miss"].spans_used, layer.errors) == (15, 3, 3)
    assert (layer.first_byte.seconds, layer.first_byte.longest) == (1.5, 0.75)
    assert layer.last_error
    assert layer.last_error.text == ("error 3" * 500)[:1024]
    assert recorder.touches() == [(7, 1), (7, 2), (7, 3)]
    assert (sum(timeline.snapshot().read), len(timeline.snapshot().read)) == (6, 17)


def test_stretches_that_were_just_being_joined_are_joined_again(file: int) -> None:
    timeline = opened(file, 0.0)[2]
    timeline.read(3)
    later = opened(file, 30.0)[2]
    later._words[-5:-1] = memoryview(bytes([9] * 32)).cast("q")  # what was left in the block that is not used
    later.read(4)
    assert [size for size in later.snapshot().read if size] == [3, 4]


def test_memory_that_is_divided_otherwise_begins_anew_and_takes_little(file: int) -> None:
    opened(file, 0.0)[0].hits += 1
    assert os.fstat(file).st_blocks * 512 < 100_000 < sum(PARTS)
    other = StatsMemory(PARTS, file, "b").parts
    assert not any(other[0])
    other[3][0] = 9
    assert StatsMemory(PARTS, file, "b").parts[3].tolist() == [9, 0, 0, 0, 0, 0, 0, 0]
    assert opened(file, 0.0)[0].hits == 0
