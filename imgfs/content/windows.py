"""The windows of a layer's checkpoints, where they are a blob of their own: fetched in blocks, kept a while.

A window is some 2 KiB, so a request for each would cost more than what it brings: a block of the blob has the
windows of some 30 spans, and the next request usually needs one of these.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial

_BLOCK = 64 << 10  # bytes
_BLOCKS = 16  # that are kept for a layer

RunInThread = Callable[[Callable[[], bytes]], "Future[bytes]"]  # runs a function in another thread
ReadRange = Callable[[int, int], Iterator[bytes]]  # yields the blob's bytes `[start, end)`


class FetchedWindows:
    """The windows of some spans, by number: `ranges` of the blob, whose bytes are in `blocks`."""

    def __init__(self, ranges: Mapping[int, tuple[int, int]], blocks: Mapping[int, Future[bytes]]) -> None:
        self._ranges = ranges
        self._blocks = blocks

    def window(self, number: int) -> bytes | None:
        """Wait for a span's window and return it; None if none is fetched. Raises what a request did."""
        if number not in self._ranges:
            return None
        start, end = self._ranges[number]
        first = start // _BLOCK
        body = b"".join(self._blocks[block].result() for block in range(first, (end - 1) // _BLOCK + 1))
        return body[start - first * _BLOCK : end - first * _BLOCK]


class WindowBlocks:
    """The blocks of a blob of `size` bytes that were fetched lately, or are on their way. Safe in threads."""

    def __init__(self, size: int, run_in_thread: RunInThread) -> None:
        self._size = size
        self._run_in_thread = run_in_thread
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()

    def covering(self, ranges: Iterable[tuple[int, int]], read: ReadRange) -> dict[int, Future[bytes]]:
        """Return the blocks that hold `ranges`; those that are not here are requested from `read`."""
        numbers = {
            block for start, end in ranges for block in range(start // _BLOCK, (end - 1) // _BLOCK + 1)
        }
        with self._lock:
            found = {number: self._block(number, read) for number in sorted(numbers)}
            while len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        return found

    def forget(self) -> None:
        """Forget all blocks: one of them is damaged, or did not come."""
        with self._lock:
            self._blocks.clear()

    def _block(self, number: int, read: ReadRange) -> Future[bytes]:
        """Return a block, the one used last from now on. Under the lock."""
        if number not in self._blocks:
            start = number * _BLOCK
            fetch = partial(_joined, read, start, min(start + _BLOCK, self._size))
            self._blocks[number] = self._run_in_thread(fetch)
        self._blocks.move_to_end(number)
        return self._blocks[number]


def _joined(read: ReadRange, start: int, end: int) -> bytes:
    return b"".join(read(start, end))
