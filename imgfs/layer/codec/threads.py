"""Two bridges between threads: an iterator read ahead, and a function that runs behind its caller."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

_DEPTH = 4  # items waiting between two threads: enough to even out, little to hold
_PATIENCE = 1.0  # seconds to wait for a thread that has to stop; it may sit in a network read


class ReadAheadThread(Iterator[bytes]):
    """An iterator run ahead in a thread of its own, which calls `each` on every item."""

    def __init__(self, items: Iterator[bytes], each: Callable[[bytes], None]) -> None:
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_DEPTH)
        self._stop = False
        self._done = False
        self._thread = threading.Thread(target=self._run, args=(items, each), name="imgfs-pull", daemon=True)
        self._thread.start()

    def _run(self, items: Iterator[bytes], each: Callable[[bytes], None]) -> None:
        try:
            for item in items:
                if self._stop:
                    break
                each(item)
                self._queue.put(item)
        except BaseException as error:  # noqa: BLE001  (raised again in the thread that waits for it)
            self._queue.put(error)
        else:
            self._queue.put(None)

    def __next__(self) -> bytes:
        item = None if self._done else self._queue.get()
        if isinstance(item, bytes):
            return item
        self._done = True
        if item is not None:
            raise item
        raise StopIteration

    def close(self) -> None:
        """Stop the thread: at its next item, if it waits for one."""
        self._stop = True
        self._done = True
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join(_PATIENCE)


class WriteBehindThread:
    """Calls `each` on every item put, in a thread of its own; its error comes back from `put` or `finish`."""

    def __init__(self, each: Callable[[tuple[int, bytes]], None]) -> None:
        self._queue: queue.Queue[tuple[int, bytes] | None] = queue.Queue(_DEPTH)
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, args=(each,), name="imgfs-push", daemon=True)
        self._thread.start()

    def _run(self, each: Callable[[tuple[int, bytes]], None]) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    each(item)
                except BaseException as error:  # noqa: BLE001  (raised again in the thread that puts)
                    self._error = error

    def put(self, item: tuple[int, bytes]) -> None:
        """Hand `item` over, waiting for room."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def close(self) -> None:
        """Wait for what was put to be done with."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()

    def finish(self) -> None:
        """`close`, and raise what went wrong."""
        self.close()
        if self._error is not None:
            raise self._error
