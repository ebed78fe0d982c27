"""Whose turn it is to fetch: what a reader waits for goes first, and never queues behind the background."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from imgfs.content.scheduler import FETCH_THREADS, FetchPool, Priority
from imgfs.errors import ImgfsError
from tests.support.no_threads import no_threads


class Work:
    """A task that notes when it begins, and lasts until it is let go."""

    def __init__(self, name: str, priority: Priority, began: list[str]) -> None:
        self.name, self.priority, self._began = name, priority, began
        self.running, self.go = threading.Event(), threading.Event()
        self.refused: ImgfsError | None = None

    def run(self) -> None:
        self._began.append(self.name)
        self.running.set()
        assert self.go.wait(20)

    def refuse(self, error: ImgfsError) -> None:
        self.refused = error


class Desk:
    """Submits tasks and keeps the order in which they begin."""

    def __init__(self) -> None:
        self.fetch_pool = FetchPool()
        self.began: list[str] = []
        self.works: list[Work] = []

    def submit(self, priority: Priority, count: int = 1, name: str = "") -> list[Work]:
        new = [Work(name or priority.name, priority, self.began) for _ in range(count)]
        self.works += new
        for work in new:
            self.fetch_pool.submit(work)
        return new

    def occupy(self) -> list[Work]:
        """Take all threads."""
        works = self.submit(Priority.MISS, FETCH_THREADS, "busy")
        assert all(work.running.wait(10) for work in works)
        self.began.clear()
        return works

    def end(self, works: list[Work]) -> None:
        for work in works:
            work.go.set()


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.end(made.works)
    made.fetch_pool.close(wait=True)


def test_the_most_urgent_begins_first(desk: Desk) -> None:
    busy = desk.occupy()
    waiting = [desk.submit(priority)[0] for priority in reversed(Priority)]
    desk.end(waiting)
    desk.end(busy[:1])
    assert all(work.running.wait(10) for work in waiting if work.priority is Priority.MISS)
    desk.end(busy)
    assert all(work.running.wait(10) for work in waiting)
    assert desk.began[0] == "MISS"


def test_what_has_the_same_urgency_begins_in_order(desk: Desk) -> None:
    busy = desk.occupy()
    works = [desk.submit(Priority.MISS, name=str(number))[0] for number in range(5)]
    desk.end(works)
    desk.end(busy[:1])
    assert works[-1].running.wait(10)
    assert desk.began == list("01234")


@pytest.mark.parametrize(
    ("priority", "most"),
    [(Priority.READAHEAD, 9), (Priority.REPLAY, 9), (Priority.REST_OF_LAYER, 4), (Priority.BACKGROUND, 2)],
)
def test_the_background_leaves_threads_to_readers(desk: Desk, priority: Priority, most: int) -> None:
    background = desk.submit(priority, FETCH_THREADS)
    assert all(work.running.wait(10) for work in background[:most])
    (miss,) = desk.submit(Priority.MISS)
    assert miss.running.wait(10)
    assert desk.began == [priority.name] * most + ["MISS"]


def test_what_a_reader_comes_to_need_jumps_the_queue(desk: Desk) -> None:
    background = desk.submit(Priority.BACKGROUND, 6)
    assert all(work.running.wait(10) for work in background[:2])
    desk.fetch_pool.raise_priority(background[5])
    assert background[5].running.wait(10)
    assert not background[4].running.is_set()
    desk.end(background)
    assert all(work.running.wait(10) for work in background)
    assert len(desk.began) == 6  # nobody ran twice


def test_a_task_is_never_made_less_urgent(desk: Desk) -> None:
    busy = desk.occupy()
    (work,) = desk.submit(Priority.READAHEAD)
    desk.fetch_pool.raise_priority(work, Priority.BACKGROUND)
    assert work.priority is Priority.READAHEAD
    desk.end([*busy, work])


def test_fill_holds_still_while_a_reader_waits_until_the_reader_needs_it(desk: Desk) -> None:
    held = Work("held", Priority.BACKGROUND, [])
    gone_on = threading.Event()

    def yield_to_readers() -> None:
        desk.fetch_pool.yield_to_readers(held)
        gone_on.set()

    with desk.fetch_pool.reader_waits():
        assert desk.fetch_pool.quiet_for() == 0
        thread = threading.Thread(target=yield_to_readers)
        thread.start()
        assert not gone_on.wait(0.05)
        desk.fetch_pool.raise_priority(held)
        assert gone_on.wait(10)
    thread.join()
    assert desk.fetch_pool.quiet_for() >= 0


def test_read_ahead_holds_still_for_nobody(desk: Desk) -> None:
    with desk.fetch_pool.reader_waits():
        desk.fetch_pool.yield_to_readers(Work("ahead", Priority.READAHEAD, []))


def test_at_the_end_what_has_not_begun_is_refused_and_the_threads_end(desk: Desk) -> None:
    works = desk.submit(Priority.BACKGROUND, 3)
    assert all(work.running.wait(10) for work in works[:2])
    desk.fetch_pool.close()
    assert "taken down" in str(works[2].refused)
    (late,) = desk.submit(Priority.MISS)
    assert "taken down" in str(late.refused)
    desk.end(works)
    desk.fetch_pool.close(wait=True)
    assert not any(thread.name.startswith("imgfs-fetch") for thread in threading.enumerate())


def test_a_task_that_no_thread_is_there_for_is_refused_and_never_runs(desk: Desk) -> None:
    with no_threads():
        (refused,) = desk.submit(Priority.MISS)
    assert "no further thread" in str(refused.refused)
    (other,) = desk.submit(Priority.MISS)
    assert other.running.wait(10)
    assert desk.began == ["MISS"]
    assert not refused.running.is_set()


def test_without_further_threads_tasks_wait_for_those_that_there_are(desk: Desk) -> None:
    (first,) = desk.submit(Priority.MISS)
    assert first.running.wait(10)
    with no_threads():
        others = desk.submit(Priority.MISS, 3)
    desk.end([first, *others])
    assert all(work.running.wait(10) for work in others)
    assert [work.refused for work in others] == [None] * 3
