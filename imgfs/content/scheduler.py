"""The threads that fetch, and whose turn it is: what a reader waits for goes first.

All layers of a mount share them. Work in the background never takes all threads, so a reader's miss begins at
once; the last lanes also stop between chunks while a reader waits.

Locks: `_changed`'s guards everything; held for moments only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from enum import IntEnum
from heapq import heappop, heappush
from typing import Protocol, TypeVar

from imgfs.content.stats import Meter
from imgfs.errors import ImgfsError, Unavailable

FETCHERS = 12  # requests under way at once for a mount
_PAUSE = 1.0  # seconds for which a request under way gives way at most: its connection must not starve

_T = TypeVar("_T")


class Lane(IntEnum):
    """How urgent a request is, the most urgent first."""

    MISS = 0  # a reader waits
    AHEAD = 1  # one will soon
    REPLAY = 2  # one did the last time
    REST = 3  # one may
    FILL = 4  # nobody does


# How many requests of a lane's kind and of those after it may be under way.
_AT_MOST = {Lane.MISS: FETCHERS, Lane.AHEAD: 8, Lane.REPLAY: 6, Lane.REST: 4, Lane.FILL: 2}


class Task(Protocol):
    """A request to be made in a thread; `lane` belongs to `Fetchers` once it has been submitted."""

    lane: Lane

    def run(self) -> None:
        """Do it; must not raise."""

    def refuse(self, error: ImgfsError) -> None:
        """It will not be done."""


class Fetchers:
    """FETCHERS threads, begun as they are needed. Any thread may use it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="imgfs-fetch")
        self._beside = ThreadPoolExecutor(FETCHERS, thread_name_prefix="imgfs-window")
        self._changed = threading.Condition()
        self._queue: list[tuple[Lane, int, Task]] = []
        self._waiting: dict[int, Task] = {}  # queued, by serial number of their first place in the queue
        self._serials: dict[Task, int] = {}
        self._serial = 0
        self._running: dict[Task, Lane] = {}  # and the lane they began in
        self._readers = 0  # that wait
        self._quiet_since = 0.0
        self.meter = Meter()
        self.closed = False
        self._replaying = 0  # requests that are still to come

    def submit(self, task: Task) -> None:
        """Do `task` when its turn comes."""
        with self._changed:
            if not self.closed:
                self._enqueue(task)
        if self.closed:
            task.refuse(Unavailable("the mount is being taken down"))
        self._dispatch()

    def hurry(self, task: Task, lane: Lane = Lane.MISS) -> None:
        """Move `task` to a more urgent lane, if it is not in one; under way, it stops giving way."""
        with self._changed:
            if lane >= task.lane:
                return
            task.lane = lane
            if task in self._serials:
                self._enqueue(task)
            self._changed.notify_all()
        self._dispatch()

    def beside(self, work: Callable[[], _T]) -> Future[_T]:
        """Do something that a task under way needs, in another thread: at most one for each task."""
        return self._beside.submit(work)

    @property
    def is_replaying(self) -> bool:
        """Whether what an earlier mount needed is still on its way: guesses are worth less than that."""
        return self._replaying > 0

    def replays(self, landings: Sequence[Future[None]]) -> None:
        """Note the requests of a replay."""
        with self._changed:
            self._replaying += len(landings)
        for landing in landings:
            landing.add_done_callback(self._replayed)

    def _replayed(self, _: Future[None]) -> None:
        with self._changed:
            self._replaying -= 1

    @contextmanager
    def reader_waits(self) -> Iterator[None]:
        """While a reader waits."""
        with self._changed:
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._quiet_since = time.monotonic()
                self._changed.notify_all()

    def give_way(self, task: Task) -> None:
        """Hold up a task of the last lanes while a reader waits, for a second at most."""
        if task.lane >= Lane.REST and self._readers:
            with self._changed:
                self._changed.wait_for(
                    lambda: not self._readers or task.lane < Lane.REST or self.closed, _PAUSE
                )

    def quiet_for(self) -> float:
        """The seconds for which no reader has waited."""
        return 0.0 if self._readers else time.monotonic() - self._quiet_since

    def close(self, *, wait: bool = False) -> None:
        """Refuse what has not begun; what is under way ends at its next chunk, whether waited for or not."""
        with self._changed:
            self.closed = True
            refused = list(self._waiting.values())
            self._queue, self._waiting, self._serials = [], {}, {}
            self._changed.notify_all()
        for task in refused:
            task.refuse(Unavailable("the mount is being taken down"))
        for pool in (self._pool, self._beside):
            pool.shutdown(wait=wait, cancel_futures=True)

    def _enqueue(self, task: Task) -> None:
        self._serial += 1
        serial = self._serials.setdefault(task, self._serial)  # a task that hurries keeps its place
        self._waiting[serial] = task
        heappush(self._queue, (task.lane, serial, task))

    def _dispatch(self) -> None:
        """Start whatever may begin."""
        while True:
            with self._changed:
                task = self._next()
            if task is None:
                return
            try:
                self._pool.submit(self._run, task)
            except RuntimeError as error:  # the pool is closed, or the system has no thread left
                self._ended(task)
                task.refuse(Unavailable(str(error)))

    def _next(self) -> Task | None:
        """The most urgent task, if its lane may have one more."""
        while self._queue:
            lane, serial, task = self._queue[0]
            if serial in self._waiting and lane == task.lane:
                background = sum(1 for began in self._running.values() if began)
                if len(self._running) >= FETCHERS or (lane and background >= _AT_MOST[lane]):
                    return None
                del self._waiting[serial], self._serials[task]
                self._begin(task, lane)
                heappop(self._queue)
                return task
            heappop(self._queue)  # it has hurried on
        return None

    def _begin(self, task: Task, lane: Lane) -> None:
        if not self._running:
            self.meter.busy(True)
        self._running[task] = lane

    def _ended(self, task: Task) -> None:
        with self._changed:
            del self._running[task]
            if not self._running:
                self.meter.busy(False)

    def _run(self, task: Task) -> None:
        try:
            task.run()
        finally:
            self._ended(task)
            self._dispatch()
