"""Whose turn it is to fetch: what a reader waits for goes first, and never queues behind the background."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from imgfs.content.scheduler import FETCHERS, Fetchers, Lane
from imgfs.errors import ImgfsError


class Work:
    """A task that notes when it begins, and lasts until it is let go."""

    def __init__(self, name: str, lane: Lane, began: list[str]) -> None:
        self.name, self.lane, self._began = name, lane, began
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
        self.fetchers = Fetchers()
        self.began: list[str] = []
        self.works: list[Work] = []

    def submit(self, lane: Lane, count: int = 1, name: str = "") -> list[Work]:
        new = [Work(name or lane.name, lane, self.began) for _ in range(count)]
        self.works += new
        for work in new:
            self.fetchers.submit(work)
        return new

    def occupy(self) -> list[Work]:
        """Take all threads."""
        works = self.submit(Lane.MISS, FETCHERS, "busy")
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
    made.fetchers.close(wait=True)


def test_the_most_urgent_begins_first(desk: Desk) -> None:
    busy = desk.occupy()
    waiting = [desk.submit(lane)[0] for lane in reversed(Lane)]
    desk.end(waiting)
    desk.end(busy[:1])
    assert all(work.running.wait(10) for work in waiting if work.lane is Lane.MISS)
    desk.end(busy)
    assert all(work.running.wait(10) for work in waiting)
    assert desk.began[0] == "MISS"


def test_what_has_the_same_urgency_begins_in_order(desk: Desk) -> None:
    busy = desk.occupy()
    works = [desk.submit(Lane.MISS, name=str(number))[0] for number in range(5)]
    desk.end(works)
    desk.end(busy[:1])
    assert works[-1].running.wait(10)
    assert desk.began == list("01234")


@pytest.mark.parametrize(
    ("lane", "most"), [(Lane.AHEAD, 8), (Lane.REPLAY, 6), (Lane.REST, 4), (Lane.FILL, 2)]
)
def test_the_background_leaves_threads_to_readers(desk: Desk, lane: Lane, most: int) -> None:
    background = desk.submit(lane, FETCHERS)
    assert all(work.running.wait(10) for work in background[:most])
    (miss,) = desk.submit(Lane.MISS)
    assert miss.running.wait(10)
    assert desk.began == [lane.name] * most + ["MISS"]


def test_what_a_reader_comes_to_need_jumps_the_queue(desk: Desk) -> None:
    background = desk.submit(Lane.FILL, 6)
    assert all(work.running.wait(10) for work in background[:2])
    desk.fetchers.hurry(background[5])
    assert background[5].running.wait(10)
    assert not background[4].running.is_set()
    desk.end(background)
    assert all(work.running.wait(10) for work in background)
    assert len(desk.began) == 6  # nobody ran twice


def test_a_task_is_never_made_less_urgent(desk: Desk) -> None:
    busy = desk.occupy()
    (work,) = desk.submit(Lane.AHEAD)
    desk.fetchers.hurry(work, Lane.FILL)
    assert work.lane is Lane.AHEAD
    desk.end([*busy, work])


def test_fill_holds_still_while_a_reader_waits_until_the_reader_needs_it(desk: Desk) -> None:
    held = Work("held", Lane.FILL, [])
    gone_on = threading.Event()

    def give_way() -> None:
        desk.fetchers.give_way(held)
        gone_on.set()

    with desk.fetchers.reader_waits():
        assert desk.fetchers.quiet_for() == 0
        thread = threading.Thread(target=give_way)
        thread.start()
        assert not gone_on.wait(0.05)
        desk.fetchers.hurry(held)
        assert gone_on.wait(10)
    thread.join()
    assert desk.fetchers.quiet_for() >= 0


def test_read_ahead_holds_still_for_nobody(desk: Desk) -> None:
    with desk.fetchers.reader_waits():
        desk.fetchers.give_way(Work("ahead", Lane.AHEAD, []))


def test_at_the_end_what_has_not_begun_is_refused_and_the_threads_end(desk: Desk) -> None:
    works = desk.submit(Lane.FILL, 3)
    assert all(work.running.wait(10) for work in works[:2])
    desk.fetchers.close()
    assert "taken down" in str(works[2].refused)
    (late,) = desk.submit(Lane.MISS)
    assert "taken down" in str(late.refused)
    desk.end(works)
    desk.fetchers.close(wait=True)
    assert not any(thread.name.startswith("imgfs-fetch") for thread in threading.enumerate())
