"""A flat layer on disk: one sparse file, and a map of which of its spans are present.

The rule of writing: no process ever writes to the bytes of a span that is marked. What comes from a
registry is verified aside (`store.staging`); then, under an exclusive lock on the map (`store.flat_files`),
what is not marked yet is written, and marked. A process killed in between has written verified bytes that
do not count. A reader looks at the marks before and after it reads: if they did not change, neither did the
bytes (an eviction clears the mark first and moves the generation on).

The map names what its marks were verified by. Who comes with another index begins two new files, and leaves
these to those who have them open: no process finds, or marks, bytes that its own index would not let pass.
Only where a layer's DiffID has been proved over all bytes does the map go over to another index (`rebind`).

After a crash of the whole machine the page cache is gone but some marks may have reached the disk ahead of
their bytes: the first process of a new boot forgets every mark that is not synced.

The kernel's drivers may read a complete file without imgfs, which then must stay as it is: it is pinned. A
pinned file has a second name, `pin-…`: an eviction that finds two links unlinks the file instead of
truncating it. A killed process leaves its pin behind, and the kernel may read on or not: it does if it
refuses a write lease (fcntl(2), "leases cannot be taken out on files that are open").
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from imgfs.errors import StoreError, describe
from imgfs.owned.opening import random_name
from imgfs.owned.writing import copy_range, leads_to
from imgfs.store.flat_files import PRESENT, SYNCED, FlatFiles, evicted, give_up
from imgfs.store.staging import SpanBuffer, write_at

PIN = "pin-"  # prefix of the second name
log = logging.getLogger(__name__)

BLOCK = 512  # bytes: of tar, and of the EROFS images whose device the file is


def pin(directory: Path, fd: int) -> Path | None:
    """Pin the open file `fd`, which is `flat` in `directory`; None if that fails.

    The caller removes the returned name once the kernel does not read the file any more.
    """
    sweep_pins(directory)
    path = directory / random_name(PIN)
    try:
        os.link(directory / "flat", path)
    except OSError:  # the file system has no hard links
        return None
    if not leads_to(path, fd):
        path.unlink(missing_ok=True)
        return None
    return path


def has_pins(fd: int) -> bool:
    """Return True if a file has a second name, so may be pinned."""
    return os.fstat(fd).st_nlink != 1


def is_pinned(directory: Path, fd: int) -> bool:
    """Return True if the open file `fd` is pinned. Pins that killed processes have left are removed."""
    if not has_pins(fd):
        return False
    if _is_open_elsewhere(fd):
        return True
    for left in directory.glob(f"{PIN}*"):
        give_up(left, fd)
    return False


def sweep_pins(directory: Path) -> None:
    """Remove the pins of files that no process and no kernel mount has open."""
    for left in directory.glob(f"{PIN}*"):
        with suppress(OSError):  # another process sweeps, too
            fd = os.open(left, os.O_RDWR | os.O_CLOEXEC)
            try:
                if not _is_open_elsewhere(fd):
                    give_up(left, fd)
            finally:
                os.close(fd)


def _is_open_elsewhere(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # ignored, should the file be opened now
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    return False


class FlatLayer(FlatFiles):
    """A flat layer: reads of what is present, writes of what is verified, eviction. Any thread may use it."""

    def read(self, offset: int, length: int, marks: bytes, first: int) -> bytes | None:
        """`length` bytes at `offset`, or None if they are not (or no longer) all present.

        `marks` are what `marks` said of the spans these bytes lie in, the first of which is `first`. A span
        that the disk cannot read is marked absent. Raises StoreError.
        """
        if not all(mark & PRESENT for mark in marks):
            return None
        try:
            body = os.pread(self._fd, length, offset)
        except OSError as error:
            log.warning(
                "%s: %s at %d: to be fetched again", self._directory / "flat", describe(error), offset
            )
            self.forget(range(first, first + len(marks)))
            return None
        if not self._stayed(marks, first):
            return None
        if len(body) != length:
            raise StoreError(f"the flat layer ends at {offset + len(body)}, before {offset + length}")
        return body

    def read_into(self, into: memoryview, offset: int, marks: bytes, first: int, flags: int) -> bool:
        """Fill a buffer with present bytes; return False if some are not. `marks` and `first` as in `read`.

        With RWF_NOWAIT in `flags` also if some are not in the page cache: the disk begins to read them.
        """
        if not all(mark & PRESENT for mark in marks):
            return False
        try:
            count = os.preadv(self._fd, (into,), offset, flags)
        except OSError:  # EAGAIN: not in the page cache; EOPNOTSUPP: this file system cannot say; a bad disk
            return False
        return count == len(into) and self._stayed(marks, first)

    def copy(self, offset: int, length: int, target: int, at: int, marks: bytes, first: int) -> bool:
        """Copy bytes to `at` in the open file `target`, without reading them; False if that fails."""
        if not all(mark & PRESENT for mark in marks):
            return False
        try:
            count = copy_range(self._fd, offset, target, at, length)
        except OSError:  # of another file system, or a disk that cannot read or is full: reading will tell
            return False
        return count == length and self._stayed(marks, first)

    def _stayed(self, marks: bytes, first: int) -> bool:
        """Return True if nothing has been evicted since the marks were read."""
        return self.marks(first, first + len(marks) - 1) == marks

    def pin(self) -> Path | None:
        """Give the file a second name, which keeps it as it is while the kernel reads it; return its path.

        None if a span is absent, or it cannot be pinned. The caller removes the name.

        The kernel reads whole blocks: where a tar ends within its last one, the file has to go on to its end.
        """
        with self._locked():
            if self.count_present() != self.spans:
                return None
            with self._disk_errors():
                os.ftruncate(self._fd, max(os.fstat(self._fd).st_size, self.size + -self.size % BLOCK))
            return pin(self._directory, self._fd)

    def begin(self, first: int, last: int) -> bytes:
        """Return the marks of spans that are about to be fetched, for `put`. Waits for an eviction."""
        with self._locked():
            self._lengthen()
            return self.marks(first, last)

    def span_buffer(self) -> SpanBuffer:
        """Return a buffer for a span's bytes until they are verified."""
        return SpanBuffer(self._directory)

    def put(self, first: int, before: bytes, bodies: Sequence[tuple[int, SpanBuffer]]) -> bool:
        """Write and mark the spans from `first` on: `bodies` are their offsets and verified bytes.

        `before` is what `begin` said of them. What another process has marked meanwhile is not written again.
        Returns False, and writes nothing, if any has been evicted since: that may have been for a reason.
        Raises StoreError.
        """
        written = 0
        try:
            with self._writing, self._locked():
                now = self._unchanged(first, before[: len(bodies)])
                if now is None:
                    return False
                for mark, (offset, body) in zip(now, bodies, strict=True):
                    if not mark & PRESENT:
                        written += self._write(offset, body)
                self._put_marks(first, bytes(mark | PRESENT for mark in now))
                return True
        finally:
            self._note_written(written)

    def _unchanged(self, first: int, before: bytes) -> bytes | None:
        """Return the marks of spans, under the lock; None if any has been evicted since `before` was read."""
        self._lengthen()
        now = self.marks(first, first + len(before) - 1)
        if any((old ^ new) & ~(PRESENT | SYNCED) for old, new in zip(before, now, strict=True)):
            return None
        return now

    def _write(self, offset: int, body: SpanBuffer) -> int:
        """Write a span's bytes, under the lock; return how many."""
        at = offset
        for piece in body.pieces():
            write_at(self._fd, at, piece)
            at += len(piece)
        return at - offset

    def sync(self) -> None:
        """Sync every byte that is marked now, then mark it as synced.

        If the disk fails, spans that were not synced are marked absent (the kernel has dropped their pages),
        and StoreError is raised.
        """
        before = self.marks(0, self.spans - 1)
        if not any(mark & PRESENT and not mark & SYNCED for mark in before):
            return
        with self._disk_errors():
            try:
                os.fdatasync(self._fd)
            except OSError:
                self._forget_unsynced()
                raise
            with self._locked():
                now = self.marks(0, self.spans - 1)
                pairs = zip(before, now, strict=True)
                synced = bytes(new | SYNCED if old == new and new & PRESENT else new for old, new in pairs)
                self._put_marks(0, synced)
            os.fdatasync(self._map_fd)

    def _forget_unsynced(self) -> None:
        with self._locked():
            now = self.marks(0, self.spans - 1)
            self._put_marks(0, bytes(mark if mark & SYNCED else evicted(mark) for mark in now))

    def forget(self, numbers: Iterable[int]) -> None:
        """Mark spans absent: their bytes were found to be wrong. Raises StoreError."""
        with self._locked():
            for number in numbers:
                self._put_marks(number, bytes(map(evicted, self.marks(number, number))))

    def evict(self) -> int:
        """Mark all spans absent and free their disk space; return how many bytes of disk that was.

        0 if the file is pinned: it keeps its bytes while the kernel reads it, and loses its name.
        Raises StoreError.
        """
        with self._disk_errors(), self._locked():
            used = os.fstat(self._fd).st_blocks * 512
            self._put_marks(0, bytes(map(evicted, self.marks(0, self.spans - 1))))
            os.fdatasync(self._map_fd)  # or a crash could leave synced marks whose bytes are gone
            if is_pinned(self._directory, self._fd):
                self._give_up_names()
                return 0
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, self.size)
            return used
