"""A flat layer on disk: one sparse file, and a map of which of its spans are there.

The map has a byte for each span, shared by all processes through mmap:

    bit 0      present: the span's bytes are in the file, and right
    bit 1      synced: they are on the disk, not only in the page cache
    bits 2-7   generation: counts evictions

Bytes are written before their mark is set, so a process killed in between loses only the mark. A reader looks
at the marks before and after it reads: if they did not change, neither did the bytes (an eviction clears the
mark first and moves the generation on). Marks are changed under an exclusive lock on the map.

After a crash of the whole machine the page cache is gone but some marks may have reached the disk ahead of
their bytes: the first process of a new boot forgets every mark that is not synced.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgfs.errors import StoreError

PRESENT, SYNCED = 1, 2
_GENERATION = 4  # the lowest bit of the generation
_MAGIC = b"imgfsmap"
_HEADER = struct.Struct("<8s16sQQ")  # magic, boot id, spans, flat size
_FIRST = 64  # where the marks begin


class Flat:
    """A flat layer of `size` bytes in `spans` spans, kept in `directory`. Any thread may use it.

    Raises StoreError when the files cannot be had.
    """

    def __init__(self, directory: Path, *, size: int, spans: int) -> None:
        self.size = size
        self.spans = spans
        self._fd = self._map_fd = -1
        self._writing = threading.Lock()  # held by a write, and by `close`
        try:
            self._open(directory)
        except (OSError, ValueError) as error:
            self.close()
            raise StoreError(f"{directory}: cannot open the flat layer: {error}") from error

    def _open(self, directory: Path) -> None:
        self._fd = os.open(directory / "flat", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._map_fd = os.open(directory / "presence", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with self._locked():
            self._begin()
            self._map = mmap.mmap(self._map_fd, _FIRST + max(1, self.spans))

    def _begin(self) -> None:
        """Bring both files to their size; forget the marks that do not count any more."""
        if os.fstat(self._fd).st_size < self.size:
            os.ftruncate(self._fd, self.size)
        boot = boot_id()
        header = os.pread(self._map_fd, _FIRST, 0)
        fresh = _HEADER.pack(_MAGIC, boot, self.spans, self.size)
        length = _FIRST + max(1, self.spans)
        if header[: len(fresh)] == fresh and os.fstat(self._map_fd).st_size == length:
            return
        marks = bytes(self.spans)
        if header[:8] == _MAGIC and header[24 : len(fresh)] == fresh[24:]:
            old = os.pread(self._map_fd, self.spans, _FIRST)
            marks = bytes(mark if mark & SYNCED else mark & ~PRESENT for mark in old)
        os.ftruncate(self._map_fd, length)
        os.pwrite(self._map_fd, marks, _FIRST)
        os.pwrite(self._map_fd, fresh, 0)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A lock of the open file, not of the process: threads of one process exclude each other through it
        # only with a descriptor each, and opening one costs less than a page fault.
        lock = os.open(f"/proc/self/fd/{self._map_fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def marks(self, first: int, last: int) -> bytes:
        """The marks of the spans `first` to `last`, both included."""
        return self._map[_FIRST + first : _FIRST + last + 1]

    def read(self, offset: int, length: int, marks: bytes, first: int) -> bytes | None:
        """`length` bytes at `offset`, or None if they are not (or no longer) all there.

        `marks` are what `marks` said of the spans these bytes lie in, the first of which is `first`.
        """
        if not all(mark & PRESENT for mark in marks):
            return None
        body = os.pread(self._fd, length, offset)
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

    def write(self, offset: int, piece: bytes | memoryview) -> None:
        """Put `piece` at `offset`; it counts for nothing until its spans are marked. Raises StoreError."""
        with self._writing:  # the number of a closed descriptor may be another file's already
            if self._fd < 0:
                raise StoreError("the flat layer has been closed")
            write_at(self._fd, offset, piece)

    def begin(self, first: int, last: int) -> bytes:
        """The marks of spans that are about to be written, for `mark`.

        Waits for an eviction under way: what is written after it cleared the marks would fall to it still.
        """
        with self._locked():
            return self.marks(first, last)

    def mark(self, first: int, before: bytes) -> bool:
        """Say that the spans from `first` on have been written since `begin` said `before`, and verified.

        False if they were evicted meanwhile: then some of their bytes may be gone again, and none is marked.
        """
        last = first + len(before) - 1
        with self._locked():
            now = self.marks(first, last)
            if any((old ^ new) & ~(PRESENT | SYNCED) for old, new in zip(before, now, strict=True)):
                return False
            if os.fstat(self._fd).st_size < self.size:  # a process was killed in the middle of `evict`
                os.ftruncate(self._fd, self.size)
            self._map[_FIRST + first : _FIRST + last + 1] = bytes(mark | PRESENT for mark in now)
            return True

    def sync(self) -> None:
        """Get every byte that is marked now to the disk, then say so in the marks."""
        before = self.marks(0, self.spans - 1)
        if not any(mark & PRESENT and not mark & SYNCED for mark in before):
            return
        os.fdatasync(self._fd)
        with self._locked():
            for number, mark in enumerate(before):
                if mark & PRESENT and self._map[_FIRST + number] == mark:
                    self._map[_FIRST + number] = mark | SYNCED
        self._map.flush()

    def evict(self) -> int:
        """Forget all bytes and give their disk space back; returns how many bytes of disk that were."""
        with self._locked():
            used = os.fstat(self._fd).st_blocks * 512
            marks = (mark & ~(PRESENT | SYNCED) for mark in self.marks(0, self.spans - 1))
            self._map[_FIRST : _FIRST + self.spans] = bytes(mark + _GENERATION & 0xFF for mark in marks)
            self._map.flush()  # or a crash could leave synced marks whose bytes are gone
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
            for fd in (self._fd, self._map_fd):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._map_fd = -1


class FlatWriter:
    """A flat layer being written by a scan: nothing of it counts until the scan has ended well.

    Zeros at its end may be missing: `Flat` brings it to its size.
    """

    def __init__(self, directory: Path) -> None:
        try:
            for name in ("presence", "flat"):  # whoever reads an older one keeps it
                (directory / name).unlink(missing_ok=True)
            self._fd = os.open(directory / "flat", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{directory}: cannot write to the store: {error.strerror}") from error

    def write(self, offset: int, piece: bytes | memoryview) -> None:
        """Put `piece` at `offset`. Raises StoreError."""
        write_at(self._fd, offset, piece)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def write_at(fd: int, offset: int, piece: bytes | memoryview) -> None:
    """Write all of `piece`, or raise StoreError, for example when the disk is full.

    Zeros are left out where there is nothing yet: a hole reads the same, so a bomb of zeros costs no disk.
    """
    try:
        if not any(piece[:64]) and piece == bytes(len(piece)) and _is_hole(fd, offset, len(piece)):
            return
        view = memoryview(piece)
        while view:
            written = os.pwrite(fd, view, offset)
            offset += written
            view = view[written:]
    except OSError as error:
        raise StoreError(
            f"{os.readlink(f'/proc/self/fd/{fd}')}: cannot write to the store: {error.strerror}"
        ) from error


def _is_hole(fd: int, offset: int, length: int) -> bool:
    """Whether the file reads as zeros there, once `Flat` has brought it to its size."""
    found = os.pread(fd, length, offset)
    return found == bytes(len(found))


def boot_id() -> bytes:
    """Sixteen bytes that change with every boot; random if the kernel does not say, so nothing is trusted."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        return bytes.fromhex(text.strip().replace("-", ""))
    except (OSError, ValueError):
        return os.urandom(16)
