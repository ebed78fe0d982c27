"""Readers of whole trees, such as `tar` and `grep -r`: small files are in the page cache when they ask.

Each file that is read costs a request, and that two waits: for the daemon to wake up, and for the reader. So
when such a reader asks for a file, the next ones are stored in the kernel's page cache with it
(FUSE_NOTIFY_STORE). It takes files as directories list them, and so do the inos, for the most part.

A thread stores them: the kernel keeps a page locked until its READ is answered, and a store waits for that.
The request that it began with is held up until the thread is done, for else the two would race.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

from imgfs.errors import ImgfsError
from imgfs.layer.entry import Extent

if TYPE_CHECKING:
    from imgfs.content.content import Content
    from imgfs.fuse.session import Session
    from imgfs.tree.reader import Tree

_STEP = 16  # from one ino to the next: directories and symlinks are not read
_EVIDENCE = 8  # such steps in a row, after which there is a reader of whole trees
_FILES, _BYTES = 64, 2 << 20  # stored at once at most
_LARGEST = 128 << 10  # bytes of a file that is stored: one request reads it
_GAP = 16 << 10  # bytes from one file to the next in the flat layer: the tar's headers
_PATIENCE = 0.01  # seconds that a request is held up

log = logging.getLogger(__name__)

_NOW: Future[None] = Future()  # settled: nothing is waited for
_NOW.set_result(None)


class FilesAhead:
    """Puts small files of an image's tree, whose bytes are in the store, into the kernel's page cache."""

    def __init__(self, tree: Tree, content: Content) -> None:
        self._tree = tree
        self._content = content
        self.session: Session | None = None
        self._first = self._last = 0  # inos between which all small files have been read or stored
        self._evidence = 0
        self._thread: _Storing | None = None

    def reads(self, ino: int) -> None:
        """Note that the kernel reads the beginning of a file; always called from the same thread."""
        if self._first <= ino <= self._last:  # a large one among them
            return
        is_step = 0 < ino - self._last <= _STEP
        self._evidence = self._evidence + 1 if is_step else 0
        self._first = self._last = ino
        if self._evidence >= _EVIDENCE:
            self._thread = self._thread or _Storing(self._store_after)
            self._last = self._thread.stored_after(ino)

    def _store_after(self, ino: int) -> int:
        """Store the files that follow; return the last, or the one to go on from. For the thread."""
        try:
            files = list(self._run(ino))
            if not files or self.session is None:
                return ino
            _, layer, start, _ = files[0]
            _, _, last, size = files[-1]
            run = (Extent(0, last + size - start, start),)
            if self._content.is_here(layer, run, 0, run[0].length):
                body = memoryview(self._content.read(layer, run, 0, run[0].length, _NOW))
                for number, _, flat, size in files:
                    if not self.session.store(number, body[flat - start : flat - start + size]):
                        break  # the kernel has not met it
                    ino = number
            if self._content.is_refused(layer):  # since then
                self.session.forget_pages_soon(number for number, _, _, _ in files)
        except (ImgfsError, OSError):  # a READ will tell
            log.debug("files after %d are not stored ahead", ino, exc_info=True)
        return ino

    def _run(self, ino: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (ino, layer, flat offset, size) of the next files, as far as they lie side by side."""
        start = layer = end = -1
        for file in self._tree.small_files_after(ino, _LARGEST, _FILES):
            number, of, flat, size = file
            if start < 0:
                layer, start, end = of, flat, flat
            is_next = number - ino <= _STEP and of == layer and 0 <= flat - end <= _GAP
            if not is_next or flat + size - start > _BYTES:
                return
            yield file
            ino, end = number, flat + size


class _Storing:
    """A thread that stores files by `store_after`, for ever."""

    def __init__(self, store_after: Callable[[int], int]) -> None:
        from queue import SimpleQueue  # here: many a mount has no such reader

        self._store_after = store_after
        self._wanted, self._stored = SimpleQueue[int](), SimpleQueue[int]()
        self._is_busy = False
        threading.Thread(target=self._store, name="imgfs-files-ahead", daemon=True).start()

    def stored_after(self, ino: int) -> int:
        """Have files stored; return the last that has been within _PATIENCE, or `ino`."""
        from queue import Empty

        try:
            if self._is_busy:
                self._stored.get_nowait()
            self._wanted.put(ino)
            self._is_busy = True
            stored = self._stored.get(timeout=_PATIENCE)
        except Empty:
            return ino
        self._is_busy = False
        return stored

    def _store(self) -> None:
        while True:
            self._stored.put(self._store_after(self._wanted.get()))
