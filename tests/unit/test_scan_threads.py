"""The threads of a scan: order, errors and ends, though items go from one to the next several at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest

from imgfs.parallel import Countdown, ReadAheadThread, WriteBehindThread, run_parallel
from tests.support.mounted import until

COUNTS = [0, 1, 3, 4, 5, 15, 16, 17, 100]


def numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def broken_after(count: int) -> Iterator[bytes]:
    yield from numbered(count)
    raise ConnectionError("the wire is cut")


@pytest.mark.parametrize("count", COUNTS)
def test_items_come_in_order_and_then_it_has_ended(count: int) -> None:
    ahead = ReadAheadThread(iter(numbered(count)))
    assert list(ahead) == numbered(count)
    assert next(ahead, None) is None


@pytest.mark.parametrize("count", COUNTS)
def test_an_error_comes_after_all_that_came_before_it_and_once(count: int) -> None:
    ahead = ReadAheadThread(broken_after(count))
    assert [next(ahead) for _ in range(count)] == numbered(count)
    with pytest.raises(ConnectionError, match="the wire is cut"):
        next(ahead)
    assert next(ahead, None) is None


def test_a_thread_that_is_far_ahead_ends_when_it_is_closed() -> None:
    before = threading.active_count()
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x"

    ahead = ReadAheadThread(endless())
    assert next(ahead) == b"x"
    seen = -1
    while seen != taken:  # until it waits for room
        seen = taken
        time.sleep(0.1)
    ahead.close()
    assert threading.active_count() == before
    assert next(ahead, None) is None
    assert taken < 50


@pytest.mark.parametrize("count", COUNTS)
def test_a_thread_whose_items_have_ended_ends_when_it_is_closed(count: int) -> None:
    before = threading.active_count()
    ahead = ReadAheadThread(broken_after(count))
    time.sleep(0.05)
    ahead.close()
    assert threading.active_count() == before
    assert next(ahead, None) is None


@pytest.mark.parametrize("count", COUNTS)
def test_what_was_put_is_done_in_order_by_the_time_it_has_finished(count: int) -> None:
    done: list[tuple[int, bytes]] = []
    behind = WriteBehindThread(done.append)
    for item in enumerate(numbered(count)):
        behind.put(item)
    behind.finish()
    assert done == list(enumerate(numbered(count)))


@pytest.mark.parametrize("count", COUNTS[1:])
def test_an_error_is_raised_by_a_later_put_or_at_the_end_and_nothing_is_done_after_it(count: int) -> None:
    done: list[int] = []

    def each(item: tuple[int, bytes]) -> None:
        if item[0] == count - 1:
            raise OSError("no space")
        done.append(item[0])

    def put_all() -> None:
        for item in enumerate(numbered(count + 50)):
            behind.put(item)
        behind.finish()

    behind = WriteBehindThread(each)
    with pytest.raises(OSError, match="no space"):
        put_all()
    behind.close()
    assert done == list(range(count - 1))


@pytest.mark.parametrize("end", [lambda: iter(numbered(8)), lambda: broken_after(8)], ids=["end", "error"])
def test_a_thread_whose_items_end_while_it_waits_for_room_ends_when_it_is_closed(
    end: Callable[[], Iterator[bytes]],
) -> None:
    before = threading.active_count()
    items, taken = end(), 0

    def counted() -> Iterator[bytes]:
        nonlocal taken
        for item in items:
            taken += 1
            yield item

    ahead = ReadAheadThread(counted())
    until(lambda: taken == 8, "the last items have been taken")
    time.sleep(0.05)  # and wait for room, behind those of which none was asked for
    ahead.close()
    until(lambda: threading.active_count() == before, "the thread has ended")


@pytest.mark.parametrize(("failing", "acted"), [(0, [8]), (1, [])])
def test_a_countdown_acts_once_after_the_last_task_and_never_if_one_fails(
    failing: int, acted: list[int]
) -> None:
    begun: list[int] = []
    acts: list[int] = []

    def work() -> None:
        begun.append(1)

    def fail() -> None:
        raise ConnectionError("the wire is cut")

    countdown = Countdown(8, lambda: acts.append(len(begun)))
    works = [countdown.after(each) for each in [fail] * failing + [work] * (8 - failing)]
    with pytest.raises(ConnectionError) if failing else nullcontext():
        run_parallel(works, 3, "countdown", threading.Event())
    assert acts == acted
