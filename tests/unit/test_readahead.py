"""Read-ahead: deep for those who read in sequence, nothing for those who do not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.content.readahead import DEEPEST, ReadaheadWindow, SequentialReaders

MIB = 1 << 20
FAR = 1000 * MIB  # the end of a file that goes on and on


def read_on(
    streams: SequentialReaders, start: int, steps: int, *, seconds: float = 0.01
) -> list[ReadaheadWindow | None]:
    """Read `steps` spans of 1 MiB from `start` on, one each `seconds`."""
    return [
        streams.touched(start + step * MIB, start + (step + 1) * MIB, FAR, step * seconds)
        for step in range(steps)
    ]


def test_the_first_touch_fetches_nothing_ahead() -> None:
    assert read_on(SequentialReaders(), 0, 1) == [None]


def test_a_reader_is_fetched_ahead_of_by_as_much_as_it_has_read() -> None:
    windows = read_on(SequentialReaders(), 0, 4)
    assert windows[1:] == [
        ReadaheadWindow(2 * MIB, 4 * MIB, 256 << 10),
        ReadaheadWindow(4 * MIB, 6 * MIB, 384 << 10),
        ReadaheadWindow(6 * MIB, 8 * MIB, 512 << 10),
    ]


def test_the_window_grows_to_the_deepest_in_large_requests() -> None:
    windows = [window for window in read_on(SequentialReaders(), 0, 100) if window]
    assert max(window.end for window in windows) == 100 * MIB + DEEPEST
    assert windows[-1].request_size == 4 * MIB
    assert windows[-1].end - windows[-1].start >= 4 * MIB


@given(st.lists(st.integers(1, 3 * MIB), max_size=60), st.floats(0.0001, 0.5))
def test_nothing_is_asked_for_twice_nor_more_than_was_read(sizes: list[int], seconds: float) -> None:
    streams, at, asked, now = SequentialReaders(), 0, 0, 0.0
    for size in sizes:
        window = streams.touched(at, at + size, FAR, now)
        at, now = at + size, now + seconds
        if window:
            assert max(asked, at) <= window.start < window.end <= min(2 * at, at + DEEPEST)
            asked = window.end


def test_random_readers_pay_nothing() -> None:
    streams, chance = SequentialReaders(), random.Random(5)
    starts = [chance.randrange(1000) * 10 * MIB for _ in range(500)]
    windows = [
        streams.touched(start, start + MIB, FAR * 10, at * 0.01)
        for at, start in enumerate(dict.fromkeys(starts))
    ]
    assert not any(windows)


def test_several_readers_of_a_layer_are_told_apart() -> None:
    streams, bases = SequentialReaders(), (0, 200 * MIB, 400 * MIB)
    for step in range(8):
        windows = [
            streams.touched(base + step * MIB, base + (step + 1) * MIB, FAR, step * 0.01) for base in bases
        ]
    assert [window and window.end for window in windows] == [base + 16 * MIB for base in bases]


def test_a_reader_is_remembered_only_as_long_as_there_are_not_too_many_others() -> None:
    streams = SequentialReaders()
    read_on(streams, 0, 3)
    for number in range(16):
        streams.touched((100 + 10 * number) * MIB, (101 + 10 * number) * MIB, FAR, 1.0)
    assert streams.touched(3 * MIB, 4 * MIB, FAR, 1.0) is None


def test_a_slow_reader_holds_what_it_reads_in_two_seconds() -> None:
    windows = [window for window in read_on(SequentialReaders(), 0, 60, seconds=0.5) if window]
    depths = [window.end for window in windows[-5:]]
    last = 60 * MIB
    assert max(depths) <= last + 4 * MIB  # 2 MiB a second


@pytest.mark.parametrize("steps", [2, 5, 9])
def test_nothing_is_fetched_beyond_the_file(steps: int) -> None:
    streams, end = SequentialReaders(), 10 * MIB
    for step in range(steps):
        window = streams.touched(step * MIB, (step + 1) * MIB, end, 0.0)
        assert window is None or window.end <= end


def test_a_reader_that_goes_on_from_file_to_file_is_fetched_ahead_of_across_them() -> None:
    streams = SequentialReaders()
    ends = [streams.touched(step * MIB, (step + 1) * MIB, (step + 1) * MIB, 0.0) for step in range(4)]
    assert ends[:2] == [None, None]
    assert ends[2] == ReadaheadWindow(3 * MIB, 6 * MIB, 384 << 10)


def test_little_jumps_are_the_same_reader() -> None:
    streams = SequentialReaders()
    streams.touched(0, MIB, FAR, 0.0)
    assert streams.touched(MIB + (64 << 10), 2 * MIB, FAR, 0.0)
