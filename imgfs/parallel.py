"""Tasks in parallel: one begun, several ended together, an iterator read ahead, a function run behind."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from functools import partial
from typing import TypeVar

from imgfs.errors import LimitReached
from imgfs.starting import start_thread

T = TypeVar("T")

_GRACE = 1.0  # seconds for tasks under way to clean up after an interrupt
# Items that go from one thread to the next at once: each time costs both a turn at the interpreter's lock.
_BATCH = 4  # A second batch may wait, while a third is made: enough to even out, little to hold.
_PATIENCE = 1.0  # seconds to wait for a thread that has to stop; it may sit in a network read


def begun(work: Callable[[], T], name: str) -> Future[T]:
    """Run `work` in a thread called `name`, which does not hold up the end of the process.

    Raises LimitReached.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001  (raised again where it is waited for)
            future.set_exception(error)

    start_thread(run, name)
    return future


class ThreadPool(ThreadPoolExecutor):
    """A ThreadPoolExecutor that makes do with the threads it has if the system starts no further one.

    `submit` raises LimitReached if there is none. So no task may wait for one that is submitted after it.
    """

    def _adjust_thread_count(self) -> None:
        """Start another thread for the task that was queued last, if none is idle."""
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not self._threads:
                self._work_queue.get_nowait()  # else it would run with the next one, its future with no one
                raise LimitReached from error


class Countdown:
    """Calls `act` once, after the last of `count` tasks, in the thread of that."""

    def __init__(self, count: int, act: Callable[[], None]) -> None:
        self._left = count
        self._act = act
        self._lock = threading.Lock()

    def after(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return `work` as one of the tasks, which counts unless it raises."""

        def counted() -> None:
            work()
            with self._lock:
                self._left -= 1
                is_last = self._left == 0
            if is_last:
                self._act()

        return counted


def run_parallel(
    works: Iterable[Callable[[], object]], workers: int, name: str, cancelled: threading.Event
) -> None:
    """Run all of `works`, at most `workers` at once, in threads named `name`; raise the first error.

    `cancelled` is set then, for tasks under way to check; those that have not begun are dropped.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    futures: list[Future[object]] = []
    try:
        for work in works:  # one may wait for another: all of `workers` or none
            futures.append(_submitted(work, pool))
        for future in as_completed(futures):
            future.result()
    except KeyboardInterrupt:  # the process is about to end: a registry that hangs must not hold it up
        cancelled.set()
        pool.shutdown(wait=False, cancel_futures=True)
        wait([future for future in futures if not future.cancelled()], _GRACE)
        raise
    except BaseException:
        cancelled.set()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _submitted(work: Callable[[], object], pool: ThreadPoolExecutor) -> Future[object]:
    try:
        return pool.submit(work)
    except RuntimeError as error:
        raise LimitReached from error


class ReadAheadThread(Iterator[bytes]):
    """An iterator run ahead in a thread of its own."""

    def __init__(self, items: Iterator[bytes]) -> None:
        # Batches, the last with how it ended: once this is closed, the thread puts one more at most.
        self._queue: queue.Queue[tuple[list[bytes], BaseException | None]] = queue.Queue(1)
        self._taken: Iterator[bytes] = iter(())
        self._end: BaseException | None = None
        self._stop = False
        self._done = False
        self._thread = start_thread(partial(self._run, items), "imgfs-pull")

    def _run(self, items: Iterator[bytes]) -> None:
        batch: list[bytes] = []
        end: BaseException = StopIteration()
        try:
            for item in items:
                if self._stop:
                    return
                batch.append(item)
                if len(batch) == _BATCH:
                    self._queue.put((batch, None))
                    batch = []
        except BaseException as error:  # noqa: BLE001  (raised again in the thread that waits for it)
            end = error
        if not self._stop:  # else what was put last may still be in the queue, for good
            self._queue.put((batch, end))

    def __next__(self) -> bytes:
        while not self._done:
            for item in self._taken:
                return item
            if self._end is not None:
                self._done = True
                raise self._end
            batch, self._end = self._queue.get()
            self._taken = iter(batch)
        raise StopIteration

    def close(self) -> None:
        """Stop the thread: at its next item, if it waits for one."""
        self._stop = True
        self._done = True
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join(_PATIENCE)


class InlineCall:
    """Calls `each` on every item at once, in the caller's thread: a `WriteBehindThread` without a thread."""

    def __init__(self, each: Callable[[tuple[int, bytes | memoryview]], None]) -> None:
        self.put = each

    def close(self) -> None:
        """Nothing is under way."""

    def finish(self) -> None:
        """Nothing is under way."""


class WriteBehindThread:
    """Calls `each` on every item put, in a thread of its own; its error comes back from `put` or `finish`."""

    def __init__(self, each: Callable[[tuple[int, bytes]], None]) -> None:
        self._queue: queue.Queue[list[tuple[int, bytes]] | None] = queue.Queue(1)
        self._batch: list[tuple[int, bytes]] = []
        self._error: BaseException | None = None
        self._closed = False
        self._thread = start_thread(partial(self._run, each), "imgfs-push")

    def _run(self, each: Callable[[tuple[int, bytes]], None]) -> None:
        while (batch := self._queue.get()) is not None:
            if self._error is None:
                try:
                    for item in batch:
                        each(item)
                except BaseException as error:  # noqa: BLE001  (raised again in the thread that puts)
                    self._error = error

    def put(self, item: tuple[int, bytes | memoryview]) -> None:
        """Hand a copy of `item` over, waiting for room."""
        if self._error is not None:
            raise self._error
        self._batch.append((item[0], bytes(item[1])))
        if len(self._batch) == _BATCH:
            self._queue.put(self._batch)
            self._batch = []

    def close(self) -> None:
        """Wait for what was put to be done with."""
        if not self._closed:
            self._closed = True
            self._queue.put(self._batch)
            self._queue.put(None)
            self._thread.join()

    def finish(self) -> None:
        """`close`, and raise what went wrong."""
        self.close()
        if self._error is not None:
            raise self._error
