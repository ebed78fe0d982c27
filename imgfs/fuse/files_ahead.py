"""Small files are put into the page cache ahead of readers of whole trees, such as `tar` and `grep -r`.

Each file read costs a request, and with it two wake-ups: the daemon's and the reader's. So when such a reader
asks for a file, the next ones are stored in the kernel's page cache as well (FUSE_NOTIFY_STORE). Such readers
take files in the order of the directories' listings, which is mostly that of the inos.

A thread stores them: the kernel keeps a page locked until its READ is answered, and a store waits for that
lock, which no signal ends. The request that set it off is held up until the thread is done, as the two would
race otherwise; all other requests are answered meanwhile, as several readers may be at the same files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from imgfs.errors import ImgfsError, LimitReached
from imgfs.layer.entry import Extent
from imgfs.starting import start_thread

if TYPE_CHECKING:
    from imgfs.content.content import Content
    from imgfs.fuse.session import Session
    from imgfs.tree.reader import Tree

# From one ino to the next: directories and symlinks are not read, and of several readers one is behind.
_STEP = 16
_EVIDENCE = 8  # such steps in a row, after which there is a reader of whole trees
_FILES, _BYTES = 64, 2 << 20  # stored at once at most
_LARGEST = 128 << 10  # bytes of a file that is stored: one request reads it
_GAP = 16 << 10  # bytes from one file to the next in the flat layer: the tar's headers
_PATIENCE = 0.01  # seconds that a request is held up

log = logging.getLogger(__name__)

_NOW: Future[None] = Future()  # settled: nothing is waited for
_NOW.set_result(None)


class SmallFile(NamedTuple):
    """A file of one extent: `size` bytes at `flat` of a layer."""

    ino: int
    layer: int
    flat: int
    size: int


class FilesAhead:
    """Puts small files of an image's tree, whose bytes are in the store, into the kernel's page cache."""

    def __init__(self, tree: Tree, content: Content) -> None:
        self._tree = tree
        self._content = content
        self.session: Session | None = None
        self._first = self._last = 0  # inos between which all small files have been read or stored
        self._evidence = 0
        self._storing: _Storing | None = None

    def reads(self, ino: int) -> bool:
        """Note that the kernel reads the beginning of a file; return True if the next are to be stored now.

        Always called from the same thread.
        """
        is_free = self._storing is None or self._note_stored(self._storing)
        if self._first - _STEP < ino <= self._last:  # a large file among them, or a reader that is behind
            return False
        is_step = 0 < ino - self._last <= _STEP
        self._evidence = self._evidence + 1 if is_step else 0
        self._first = self._last = ino
        return is_free and self._evidence >= _EVIDENCE

    def store(self) -> None:
        """Store the files that follow the last that was read, while other requests are answered."""
        if self.session is None:
            return
        try:
            self._storing = self._storing or _Storing(partial(self._store_after, self.session))
        except LimitReached:
            self._evidence = 0
            return
        self._storing.begin(self._last)
        self.session.answer_until(self._storing.done, _PATIENCE)
        self._note_stored(self._storing)

    def _note_stored(self, storing: _Storing) -> bool:
        """Note how far files have been stored; False if the thread is not done."""
        if storing.is_idle:
            return True
        if (run := storing.take()) is None:
            return False
        began, stored = run
        if not stored:  # the kernel does not know the next, or they are not here
            self._evidence = 0
        elif self._first <= stored[-1] and began <= self._last:
            self._first, self._last = min(began, self._first), max(stored[-1], self._last)
        for ino in stored:  # no READ will tell
            self._content.opened(ino)
        return True

    def _store_after(self, session: Session, ino: int) -> list[int]:
        """Store the files that follow; return them. For the thread."""
        files: list[SmallFile] = []
        stored: list[int] = []
        try:
            files += self._run(ino)
            for part in (files[:1], files[1:]):  # if the kernel has not met the first, no more is read
                before = len(stored)
                stored += (
                    file[0] for file in takewhile(lambda file: session.store(*file), self._bodies(part))
                )
                if len(stored) < before + len(part):
                    break
        except (ImgfsError, OSError):  # a READ will tell
            log.debug("files after %d are not stored ahead", ino, exc_info=True)
        if files and self._content.is_refused(files[0].layer):  # since then
            session.forget_pages_soon(file.ino for file in files)
        return stored

    def _bodies(self, files: Sequence[SmallFile]) -> Iterator[tuple[int, memoryview]]:
        """Yield the bytes of files that lie side by side, by ino; of none if not all are in the store."""
        if not files:
            return
        layer, start, last = files[0].layer, files[0].flat, files[-1]
        run = (Extent(0, last.flat + last.size - start, start),)
        if self._content.is_here(layer, run, 0, run[0].length):
            body = memoryview(self._content.read(layer, run, 0, run[0].length, _NOW))
            for ino, _, flat, size in files:
                yield ino, body[flat - start : flat - start + size]

    def _run(self, ino: int) -> Iterator[SmallFile]:
        """Yield the next files, as far as they lie side by side."""
        start = layer = end = -1
        for file in map(SmallFile._make, self._tree.small_files_after(ino, _LARGEST, _FILES)):
            number, of, flat, size = file
            if start < 0:
                layer, start, end = of, flat, flat
            is_next = number - ino <= _STEP and of == layer and 0 <= flat - end <= _GAP
            if not is_next or flat + size - start > _BYTES:
                return
            yield file
            ino, end = number, flat + size


class _Storing:
    """A thread that stores files by `store_after`, for ever; `done` can be read once it has, until `take`.

    Raises LimitReached.
    """

    def __init__(self, store_after: Callable[[int], list[int]]) -> None:
        from queue import SimpleQueue  # here: many a mount has no such reader

        self._store_after = store_after
        self._wanted, self._stored = SimpleQueue[int](), SimpleQueue[tuple[int, list[int]]]()
        self.is_idle = True
        start_thread(self._store, "imgfs-files-ahead")
        self.done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def begin(self, ino: int) -> None:
        """Have the files after `ino` stored; it must be idle."""
        self.is_idle = False
        self._wanted.put(ino)

    def take(self) -> tuple[int, list[int]] | None:
        """Return after which file it has begun, and what it has stored; None if it is not done."""
        try:
            os.eventfd_read(self.done)
        except BlockingIOError:
            return None
        self.is_idle = True
        return self._stored.get()

    def _store(self) -> None:
        while True:
            ino = self._wanted.get()
            self._stored.put((ino, self._store_after(ino)))
            os.eventfd_write(self.done, 1)
