"""Readers of whole trees, such as `tar`, `grep -r` and `cp -a`: what they will open next is prefetched.

Such a reader opens small files by the thousand, each for the first time, out of one layer and then another:
read-ahead within a file, or a layer, has no time to get anywhere. But it takes them as the directories list
them, so the tree itself says what comes next. A tree walk shows in files read from their beginnings whose
inos ascend in small steps: a layer's files got theirs in its own order, which hardly any tool makes other
than directory by directory. A program that starts reads files as it needs them, here and there.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from imgfs.content.layer import LayerContent
from imgfs.content.requests import SIZES, requests_for
from imgfs.content.scheduler import Priority
from imgfs.content.stats import Cause
from imgfs.errors import ImgfsError
from imgfs.layer.entry import Extent
from imgfs.starting import try_thread

FilesAfter = Callable[
    [int], Iterator[tuple[int, Sequence[Extent]]]
]  # (layer, extents) of the files after an ino

_STEP = 16  # from one ino to the next: directories and symlinks are not opened
_EVIDENCE = 32  # such steps, less what speaks against it
# Compressed bytes ahead of the reader at first, and at most: small files take a reader longer than the wire,
# so what comes meanwhile is there for the large ones. It grows by what the reader has passed, no faster.
_FIRST, _DEEPEST = 2 << 20, 128 << 20
_REQUESTS = 8  # that what is ahead is cut into
_FILES = 1000  # of the tree examined at once; twice as many beyond the reader, and as many as it has opened
_POLL = 0.02  # seconds between checks where the reader is
_LOST = 5.0  # seconds without a step of the reader after which there is none
_NOWHERE = -1, 0, 0  # no span, and its place


class TreeWalkPrefetch:
    """Detects a reader of whole trees, and prefetches for it, in a thread that ends with the walk.

    `files_after` yields (layer, extents) of the files that follow an ino in the tree.
    """

    def __init__(self, layers: Sequence[LayerContent], files_after: FilesAfter) -> None:
        self._layers = layers
        self.files_after = files_after
        self._last = 0
        self._opened = 0  # files
        self._evidence = 0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def opened(self, ino: int) -> None:
        """Note that a file is read from its beginning: cheap; always called from the same thread."""
        step = ino - self._last
        self._last = ino
        self._opened += 1
        if not 0 < step <= _STEP:
            self._evidence //= 2
            return
        self._evidence += 1
        if self._evidence >= _EVIDENCE:
            self._evidence = 0
            if not self.is_running and not all(layer.is_complete() for layer in self._layers):
                self._thread = try_thread(partial(self._run, ino), "imgfs-sweep")

    @property
    def is_running(self) -> bool:
        """Return True while a reader of the whole tree is prefetched for."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Stop, and wait for the thread."""
        self._stopped.set()
        if self._thread:
            self._thread.join()

    def _run(self, ino: int) -> None:
        with suppress(ImgfsError):  # a damaged tree is the reader's error
            self._fetch_after(ino)

    def _fetch_after(self, ino: int) -> None:
        prefetched = _Prefetched(self._layers)
        batch: dict[tuple[int, int], int] = {}  # (layer, span) and its compressed bytes
        for layer, span in self._missing_after(ino):
            batch[layer, span] = self._layers[layer].table.size_of(span)
            if sum(batch.values()) >= min(prefetched.depth // _REQUESTS, SIZES.largest):
                if not self._wait_for(prefetched):
                    return
                self._fetch_missing(batch)
                prefetched.extend(batch)
                batch = {}
        self._fetch_missing(batch)

    def _missing_after(self, ino: int) -> Iterator[tuple[int, int]]:
        """Yield (layer, span) of what follows a file and is neither present nor in flight."""
        # The span that was last in each layer, and where it is: files follow each other in it.
        seen: dict[int, tuple[int, int, int]] = {}
        opened = self._opened
        complete = {number for number, layer in enumerate(self._layers) if layer.is_complete()}
        coming = (
            found for found in self.files_after(ino) if found[0] not in complete
        )  # those may be read unseen
        for count, (layer, extents) in enumerate(coming):
            if count % _FILES == 0 and not self._reader_comes(opened + count // 2 - _FILES):
                return
            for extent in extents:
                before, start, end = seen.get(layer, _NOWHERE)
                if start <= extent.flat and extent.flat + extent.length <= end:
                    continue
                table = self._layers[layer].table
                first, last = table.holding(extent.flat, extent.length)
                for span in range(first, last + 1):
                    if before != span and self._layers[layer].is_missing(span):
                        yield layer, span
                seen[layer] = last, table.flat_starts[last], table.flat_starts[last + 1]

    def _reader_comes(self, opened: int) -> bool:
        """Wait until so many files have been opened, so as not to examine the tree far ahead; else False."""
        before, moved = self._opened, time.monotonic()
        while self._opened < opened:
            if self._opened != before:
                before, moved = self._opened, time.monotonic()
            if time.monotonic() - moved > _LOST or self._stopped.wait(_POLL):
                return False
        return not self._stopped.is_set()

    def _fetch_missing(self, touches: Iterable[tuple[int, int]]) -> None:
        by_layer: dict[int, list[int]] = {}
        for layer, span in touches:
            by_layer.setdefault(layer, []).append(span)
        for number, spans in by_layer.items():
            content = self._layers[number]
            content.fetch_in_background(
                list(requests_for(spans, content.table)), Priority.READAHEAD, Cause.SWEEP
            )

    def _wait_for(self, prefetched: _Prefetched) -> bool:
        """Wait until more may be requested; False if the reader has gone, or `stop` has been called."""
        while prefetched.bytes() >= prefetched.depth:
            if time.monotonic() - prefetched.moved > _LOST or self._stopped.wait(_POLL):
                return False
        return not self._stopped.is_set()


class _Prefetched:
    """Spans that have been requested and not been read yet."""

    def __init__(self, layers: Sequence[LayerContent]) -> None:
        self._layers = layers
        self._touches: deque[tuple[int, int]] = deque()
        self._passed = 0  # compressed bytes that the reader has left behind
        self.moved = time.monotonic()  # when it last did

    @property
    def depth(self) -> int:
        """Return the compressed bytes that may be ahead of the reader: they grow with what it has read."""
        return min(_DEEPEST, _FIRST + self._passed)

    def extend(self, touches: Iterable[tuple[int, int]]) -> None:
        """Add spans that have been requested."""
        self._touches.extend(touches)

    def bytes(self) -> int:
        """Return the compressed bytes beyond the furthest span that the reader has touched."""
        left = 0
        for count, (layer, span) in enumerate(reversed(self._touches)):
            if self._layers[layer].is_touched(span):
                self._pass(len(self._touches) - count)
                break
            left += self._size_of(layer, span)
        return left

    def _pass(self, count: int) -> None:
        for _ in range(count):
            self._passed += self._size_of(*self._touches.popleft())
        self.moved = time.monotonic()

    def _size_of(self, layer: int, span: int) -> int:
        return self._layers[layer].table.size_of(span)
