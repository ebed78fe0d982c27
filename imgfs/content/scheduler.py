"""The threads that fetch, and the order of requests: what a reader waits for goes first.

All layers of a mount share them. Work in the background never takes all threads, so a reader's miss begins at
once; requests of the last two priorities also pause between chunks while a reader waits.

Locks: `_changed`'s guards everything; held for moments only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from enum import IntEnum
from heapq import heappop, heappush
from typing import Protocol, TypeVar

from imgfs.content.stats import Meter
from imgfs.errors import ImgfsError, LimitReached, Unavailable
from imgfs.parallel import ThreadPool

FETCH_THREADS = 12  # requests under way at once for a mount
_PAUSE = 1.0  # seconds for which a request under way pauses at most: its connection must not starve

_T = TypeVar("_T")


class Priority(IntEnum):
    """How urgent a request is, the most urgent first."""

    MISS = 0  # a reader waits
    READAHEAD = 1  # a sequential reader, or a tree walk, is about to need it
    REPLAY = 2  # the access profile of an earlier mount has it
    GUESS = 3  # it follows from what has been opened, by a guess
    REST_OF_LAYER = 4  # much of the layer has been read
    BACKGROUND = 5  # the whole image is being fetched


# How many requests of this priority and lower ones may be under way. Where many are wanted, so many are that
# some are always on the wire while others are decoded.
_AT_MOST = {
    Priority.MISS: FETCH_THREADS,
    Priority.READAHEAD: 9,
    Priority.REPLAY: 9,
    Priority.GUESS: 5,
    Priority.REST_OF_LAYER: 4,
    Priority.BACKGROUND: 2,
}


class Task(Protocol):
    """A request to be made in a thread; `priority` belongs to `FetchPool` once it has been submitted."""

    priority: Priority

    def run(self) -> None:
        """Make the request; must not raise."""

    def refuse(self, error: ImgfsError) -> None:
        """Fail the request: it will not be made."""


class FetchPool:
    """FETCHERS threads, begun as they are needed. Any thread may use it."""

    def __init__(self) -> None:
        self._pool = ThreadPool(FETCH_THREADS, thread_name_prefix="imgfs-fetch")
        self._window_pool = ThreadPool(FETCH_THREADS, thread_name_prefix="imgfs-window")
        self._changed = threading.Condition()
        self._queue: list[tuple[Priority, int, Task]] = []
        self._waiting: dict[int, Task] = {}  # queued, by serial number of their first place in the queue
        self._serials: dict[Task, int] = {}
        self._serial = 0
        self._running: dict[Task, Priority] = {}  # and the priority they began with
        self._readers = 0  # that wait
        self._quiet_since = 0.0
        self.meter = Meter()
        self.closed = False
        self._replaying = 0  # requests that are still to come

    def submit(self, task: Task) -> None:
        """Queue `task` at its priority."""
        with self._changed:
            if not self.closed:
                self._enqueue(task)
        if self.closed:
            task.refuse(Unavailable("the mount is being taken down"))
        self._dispatch()

    def raise_priority(self, task: Task, priority: Priority = Priority.MISS) -> None:
        """Raise the priority of `task`, if it is lower; if it is under way, it pauses no longer."""
        with self._changed:
            if priority >= task.priority:
                return
            task.priority = priority
            if task in self._serials:
                self._enqueue(task)
            self._changed.notify_all()
        self._dispatch()

    def run_in_thread(self, work: Callable[[], _T]) -> Future[_T]:
        """Run what a task under way needs in another thread: at most one for each task.

        Raises LimitReached.
        """
        return self._window_pool.submit(work)

    @property
    def is_replaying(self) -> bool:
        """Return True while a replay is under way: read-ahead is worth less than what a profile names."""
        return self._replaying > 0

    def note_replay(self, futures: Sequence[Future[None]]) -> None:
        """Count the requests of a replay as under way."""
        with self._changed:
            self._replaying += len(futures)
        for future in futures:
            future.add_done_callback(self._replayed)

    def _replayed(self, _: Future[None]) -> None:
        with self._changed:
            self._replaying -= 1

    @contextmanager
    def reader_waits(self) -> Iterator[None]:
        """Count a waiting reader for the length of the block."""
        with self._changed:
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._quiet_since = time.monotonic()
                self._changed.notify_all()

    def yield_to_readers(self, task: Task) -> None:
        """Pause a task of the last two priorities while a reader waits, for a second at most."""
        if task.priority >= Priority.REST_OF_LAYER and self._readers:
            with self._changed:
                self._changed.wait_for(
                    lambda: not self._readers or task.priority < Priority.REST_OF_LAYER or self.closed, _PAUSE
                )

    def quiet_for(self) -> float:
        """Return the seconds for which no reader has waited."""
        return 0.0 if self._readers else time.monotonic() - self._quiet_since

    def close(self, *, wait: bool = False) -> None:
        """Refuse what has not begun; what is under way ends at its next chunk (`wait` for it)."""
        with self._changed:
            self.closed = True
            refused = list(self._waiting.values())
            self._queue, self._waiting, self._serials = [], {}, {}
            self._changed.notify_all()
        for task in refused:
            task.refuse(Unavailable("the mount is being taken down"))
        for pool in (self._pool, self._window_pool):
            pool.shutdown(wait=wait, cancel_futures=True)

    def _enqueue(self, task: Task) -> None:
        self._serial += 1
        serial = self._serials.setdefault(task, self._serial)  # a task that is raised keeps its place
        self._waiting[serial] = task
        heappush(self._queue, (task.priority, serial, task))

    def _dispatch(self) -> None:
        """Start all tasks that may begin."""
        while True:
            with self._changed:
                task = self._next()
            if task is None:
                return
            try:
                self._pool.submit(self._run, task)
            except (RuntimeError, LimitReached) as error:  # the pool is closed, or has no thread
                self._ended(task)
                task.refuse(Unavailable(str(error)))

    def _next(self) -> Task | None:
        """Remove and return the most urgent task, if one more of its priority may run."""
        while self._queue:
            priority, serial, task = self._queue[0]
            if serial in self._waiting and priority == task.priority:
                background = sum(1 for began in self._running.values() if began)
                if len(self._running) >= FETCH_THREADS or (priority and background >= _AT_MOST[priority]):
                    return None
                del self._waiting[serial], self._serials[task]
                self._begin(task, priority)
                heappop(self._queue)
                return task
            heappop(self._queue)  # an entry from before its priority was raised
        return None

    def _begin(self, task: Task, priority: Priority) -> None:
        if not self._running:
            self.meter.busy(True)
        self._running[task] = priority

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
