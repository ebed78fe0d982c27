"""A flat layer on disk: one sparse file, and a map of which of its spans are there.

The kernel's drivers may read a whole file without us: `pin`.

The rule of writing: no process ever writes to the bytes of a span that is marked. What comes from a
registry is verified aside (`store.span_buffer`, `store.flatwriter`); then, under an exclusive lock on the map
(`store.presence`), what is not marked yet is written, and marked. A process killed in between has written
verified bytes that do not count. A reader looks at the marks before and after it reads: if they did not
change, neither did the bytes (an eviction clears the mark first and moves the generation on).

The map names what its marks were verified by. Who comes with another index begins two new files, and leaves
these to those who have them open: no process finds, or marks, bytes that its own index would not let pass.
Only where a layer's DiffID has been proved over all bytes does the map go over to another index (`rebind`).

After a crash of the whole machine the page cache is gone but some marks may have reached the disk ahead of
their bytes: the first process of a new boot forgets every mark that is not synced.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from imgfs.errors import StoreError
from imgfs.store.atomic import boot_id, store_errors
from imgfs.store.pin import give_up, is_pinned, leads_to, lock_on, pin
from imgfs.store.presence import BINDING, FIRST, HEADER, MAGIC, PRESENT, SYNCED, UNBOUND, evicted
from imgfs.store.span_buffer import SpanBuffer
from imgfs.store.write_at import write_at

log = logging.getLogger(__name__)

_TRIES = 10  # at opening files that others replace meanwhile
BLOCK = 512  # bytes: of tar, and of the EROFS images whose device the file is


class FlatLayer:
    """A flat layer of `size` bytes in `spans` spans, kept in `directory`. Any thread may use it.

    `binding` names the index that the marks must have been verified by; None accepts any. `note_written` is
    called with the number of bytes written, once they are marked.
    Raises StoreError if the files cannot be opened.
    """

    def __init__(
        self,
        directory: Path,
        *,
        size: int,
        spans: int,
        binding: bytes | None = None,
        note_written: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.size = size
        self.spans = spans
        self._binding = binding
        self._directory = directory
        self._note_written = note_written
        self._fd = self._map_fd = -1
        self._writing = threading.Lock()  # held by a write, and by `close`
        try:
            for _ in range(_TRIES):
                if self._open(directory):
                    return
                self._close_files()
        except (OSError, ValueError) as error:
            self.close()
            raise StoreError(f"{directory}: cannot open the flat layer: {error}") from error
        raise StoreError(f"{directory}: the flat layer is replaced again and again")

    def _open(self, directory: Path) -> bool:
        """Open both files; False if they have lost their names to others meanwhile."""
        self._fd = os.open(directory / "flat", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._map_fd = os.open(directory / "presence", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with self._locked():
            if not (self._have_names() and self._begin()):
                return False
            self._map = mmap.mmap(self._map_fd, FIRST + max(1, self.spans), access=mmap.ACCESS_READ)
        return True

    def _have_names(self) -> bool:
        names = (("flat", self._fd), ("presence", self._map_fd))
        return all(leads_to(self._directory / name, fd) for name, fd in names)

    def _begin(self) -> bool:
        """Bring both files to their size; forget the marks that do not count any more.

        False if they are those of a layer that is cut otherwise, or if their marks were verified by what ours
        are not: others may have them open, and keep them.
        """
        is_short = os.fstat(self._fd).st_size < self.size  # then something has been lost
        if is_short:
            os.ftruncate(self._fd, self.size)
        boot = boot_id()
        header = os.pread(self._map_fd, FIRST, 0)
        binding = (header[BINDING] or UNBOUND) if self._binding is None else self._binding
        fresh = HEADER.pack(MAGIC, boot, self.spans, self.size, binding)
        length = FIRST + max(1, self.spans)
        if header[: len(fresh)] == fresh and os.fstat(self._map_fd).st_size == length and not is_short:
            return True
        marks = bytes(self.spans)
        if len(header) >= len(fresh) and header[:8] == MAGIC:
            if header[24 : len(fresh)] != fresh[24:]:
                self._give_up_names()
                return False
            old = os.pread(self._map_fd, self.spans, FIRST)
            stays = 0 if is_short else SYNCED
            marks = bytes(mark if mark & stays else evicted(mark) for mark in old)
        os.ftruncate(self._map_fd, length)
        os.pwrite(self._map_fd, marks, FIRST)
        os.pwrite(self._map_fd, fresh, 0)
        return True

    def rebind(self, binding: bytes) -> None:
        """Have the marks count for another index: the bytes have been proved to be what that lets pass.

        Who has the files open with the index before may go on to write to them, so that index must be
        determined (`layer.index`): it lets pass the same bytes only. Raises StoreError.
        """
        with self._disk_errors(), self._locked():
            os.pwrite(self._map_fd, binding, BINDING.start)
        self._binding = binding

    def is_bound_to(self, binding: bytes) -> bool:
        """Whether the marks were verified by that, or would have been."""
        return os.pread(self._map_fd, FIRST, 0)[BINDING] == binding

    def _give_up_names(self) -> None:
        """Take both names away, under the lock: who has the files open keeps them."""
        give_up(self._directory / "flat", self._fd)
        give_up(self._directory / "presence", self._map_fd)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._map_fd < 0:
            raise StoreError("the flat layer has been closed")
        with lock_on(self._map_fd, fcntl.LOCK_EX):
            yield

    def marks(self, first: int, last: int) -> bytes:
        """The marks of the spans `first` to `last`, both included."""
        return self._map[FIRST + first : FIRST + last + 1]

    def read(self, offset: int, length: int, marks: bytes, first: int) -> bytes | None:
        """`length` bytes at `offset`, or None if they are not (or no longer) all there.

        `marks` are what `marks` said of the spans these bytes lie in, the first of which is `first`. What the
        disk cannot give back is not there any more. Raises StoreError.
        """
        if not all(mark & PRESENT for mark in marks):
            return None
        try:
            body = os.pread(self._fd, length, offset)
        except OSError as error:
            log.warning("%s: %s at %d: to be fetched again", self._directory / "flat", error, offset)
            self.forget(range(first, first + len(marks)))
            return None
        if not self._stayed(marks, first):
            return None
        if len(body) != length:
            raise StoreError(f"the flat layer ends at {offset + len(body)}, before {offset + length}")
        return body

    def read_now(self, offset: int, into: memoryview, marks: bytes, first: int) -> bool:
        """`read` into a buffer, as long as that is; False also if the disk would have to be waited for."""
        if not all(mark & PRESENT for mark in marks):
            return False
        try:
            count = os.preadv(self._fd, [into], offset, os.RWF_NOWAIT)
        except OSError:  # EAGAIN: not in the page cache; EOPNOTSUPP: this file system cannot say
            return False
        return count == len(into) and self._stayed(marks, first)

    def _stayed(self, marks: bytes, first: int) -> bool:
        """Whether nothing has been evicted since."""
        return self.marks(first, first + len(marks) - 1) == marks

    def pin(self) -> Path | None:
        """Another name for the file, which stays as it is as long as it has that: the kernel may read it.

        None if some of it is not there, or it cannot be pinned. Whoever has pinned it removes the name.

        The kernel reads whole blocks: where a tar ends within its last one, the file has to go on to its end.
        """
        with self._locked():
            if self.count_present() != self.spans:
                return None
            with self._disk_errors():
                os.ftruncate(self._fd, max(os.fstat(self._fd).st_size, self.size + -self.size % BLOCK))
            return pin(self._directory, self._fd)

    def begin(self, first: int, last: int) -> bytes:
        """The marks of spans that are about to be fetched, for `put`. Waits for an eviction under way."""
        with self._locked():
            self._lengthen()
            return self.marks(first, last)

    def _lengthen(self) -> None:
        """Bring the file to its size, under the lock: what lay beyond its end is not there any more.

        It is too short if a process was killed in the middle of `evict`, or if a disk has lost its end.
        """
        with self._disk_errors():
            if os.fstat(self._fd).st_size < self.size:
                self._put_marks(0, bytes(map(evicted, self.marks(0, self.spans - 1))))
                os.ftruncate(self._fd, self.size)

    def aside(self) -> SpanBuffer:
        """A place for a span's bytes until they are verified."""
        return SpanBuffer(self._directory)

    def put(self, first: int, before: bytes, bodies: Sequence[tuple[int, SpanBuffer]]) -> bool:
        """Write and mark the spans from `first` on: `bodies` are their offsets and verified bytes.

        `before` is what `begin` said of them. What another process has marked meanwhile is not written again.
        False if they have been evicted since: there may have been a reason, so nothing is written or marked.
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
        """The marks of spans, under the lock; None if any has been evicted since they were `before`."""
        self._lengthen()
        now = self.marks(first, first + len(before) - 1)
        if any((old ^ new) & ~(PRESENT | SYNCED) for old, new in zip(before, now, strict=True)):
            return None
        return now

    def _write(self, offset: int, body: SpanBuffer) -> int:
        """Write a span's bytes, under the lock; returns how many."""
        at = offset
        for piece in body.pieces():
            write_at(self._fd, at, piece)
            at += len(piece)
        return at - offset

    def _put_marks(self, first: int, marks: bytes) -> None:
        """Change marks, under the lock; not through the map: a disk that fails would be a SIGBUS."""
        with self._disk_errors():
            os.pwrite(self._map_fd, marks, FIRST + first)

    def _disk_errors(self) -> AbstractContextManager[None]:
        return store_errors(self._directory / "flat")

    def sync(self) -> None:
        """Get every byte that is marked now to the disk, then say so in the marks.

        If the disk fails, what has not been on it counts for nothing any more: the kernel has given it up.
        Raises StoreError, then.
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
        """Have spans count as not there: their bytes are found to be wrong. Raises StoreError."""
        with self._locked():
            for number in numbers:
                self._put_marks(number, bytes(map(evicted, self.marks(number, number))))

    def evict(self) -> int:
        """Forget all bytes and give their disk space back; returns how many bytes of disk that were.

        None, if the kernel reads the file: it keeps them as long as it does. Whoever comes begins anew.
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

    def count_present(self) -> int:
        """How many spans are there."""
        return sum(mark & PRESENT for mark in self.marks(0, self.spans - 1))

    def close(self) -> None:
        """Close the files."""
        if hasattr(self, "_map"):
            self._map.close()
        with self._writing:
            self._close_files()

    def _close_files(self) -> None:
        for fd in (self._fd, self._map_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._map_fd = -1
