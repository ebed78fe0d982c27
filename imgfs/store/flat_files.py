"""The two files of a flat layer, opened together: the bytes, and the presence map, which all processes share.

The map has a byte for each span, shared by all processes through mmap:

    bit 0      present: the span's bytes are in the file, and right
    bit 1      synced: they are on the disk, not only in the page cache
    bits 2-7   generation: counts evictions

Its header names the index that the marks were verified by (`layer.index.LayerIndex.binding`): an index that
would accept other bytes begins two new files.

The map and the flat file belong together. They get and lose their names under an exclusive lock on the map,
the flat file first: a process that opens both, and then locks, has a pair if both have their names still.

Opening brings both to their size and forgets the marks that do not count: those of an earlier boot that were
not synced, and all of them where the file has lost bytes. A pair whose map was verified by another index, or
cuts the layer into other spans, loses its names and a new pair is begun (`store.flat`).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from imgfs.errors import StoreError, describe, is_full
from imgfs.owned.writing import leads_to, new_file
from imgfs.store.atomic import TEMPORARY, boot_id, store_errors

PRESENT, SYNCED = 1, 2
_GENERATION = 4  # the lowest bit of the generation
MAGIC = b"imgfsmap"
HEADER = struct.Struct("<8s16sQQ24s")  # magic, boot id, spans, flat size, binding
BINDING = slice(40, 64)  # of the header
UNBOUND = bytes(24)  # the binding of marks whose index is not known
FIRST = 64  # offset of the first mark
TRIES = 10  # at opening files that other processes replace meanwhile
_LARGEST = 1 << 43  # bytes of a flat layer: what a file may have on ext4, about


def read_shape(directory: Path) -> tuple[int, int] | None:
    """Return spans and size of the flat layer in `directory`, as its map has them; None without a map.

    Raises OSError.
    """
    presence = directory / "presence"
    try:
        with open(presence, "rb") as file:
            header, length = file.read(HEADER.size), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return None
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        return None
    _, _, spans, size, _ = HEADER.unpack(header)
    return (spans, size) if length == FIRST + max(1, spans) and size <= _LARGEST else None


def count_present(directory: Path, *, size: int, spans: int, binding: bytes) -> int:
    """Return how many spans are present in the flat layer in `directory`, without a change to its files.

    Those of another boot count if they were synced. Raises OSError.
    """
    try:
        body = (directory / "presence").read_bytes()
        is_short = (directory / "flat").stat().st_size < size
    except FileNotFoundError:
        return 0
    header, marks = body[: HEADER.size], body[FIRST : FIRST + spans]
    if is_short or len(marks) < spans or not header.startswith(MAGIC):
        return 0
    _, boot, *shape = HEADER.unpack(header)
    if shape != [spans, size, binding]:
        return 0
    needed = PRESENT if boot == boot_id() else PRESENT | SYNCED
    return sum(mark & needed == needed for mark in marks)


def drop(directory: Path) -> None:
    """Unlink a flat layer's files; processes that have them open keep them. Raises OSError."""
    with _map_locked(directory):
        for name in ("flat", "presence"):
            (directory / name).unlink(missing_ok=True)


def replace(directory: Path, flat: Path, fd: int, *, size: int, spans: int, binding: bytes) -> None:
    """Make the complete, verified file at `flat`, open as `fd`, the flat layer, with a new map.

    Raises OSError.
    """
    held = new_file(directory, TEMPORARY, "-presence")
    try:
        os.pwrite(held.fd, HEADER.pack(MAGIC, boot_id(), spans, size, binding), 0)
        os.pwrite(held.fd, bytes([PRESENT]) * spans or b"\0", FIRST)
        os.ftruncate(fd, size)
        with _map_locked(directory) as old:
            if old is not None:
                os.pwrite(old, bytes(HEADER.size), 0)  # a process killed between the two leaves no valid map
            flat.rename(directory / "flat")
            held.path.rename(directory / "presence")
    finally:
        held.path.unlink(missing_ok=True)
        held.release()


@contextmanager
def _map_locked(directory: Path) -> Iterator[int | None]:
    """Hold the lock of the current map, so that no pair is opened meanwhile; create it if there is none."""
    path = directory / "presence"
    for _ in range(TRIES):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            if not is_full(error):
                raise
            yield None  # no other process can make one either
            return
        try:
            with lock_on(fd, fcntl.LOCK_EX):
                if leads_to(path, fd):
                    yield fd
                    return
        finally:
            os.close(fd)
    raise StoreError(f"{directory}: the flat layer is replaced again and again")


def evicted(mark: int) -> int:
    """Return the mark of a span that is evicted: absent, with the next generation."""
    return (mark & ~(PRESENT | SYNCED)) + _GENERATION & 0xFF


def give_up(path: Path, fd: int) -> None:
    """Unlink a name of an open file, if it still is that file's."""
    if leads_to(path, fd):
        path.unlink(missing_ok=True)


@contextmanager
def lock_on(fd: int, kind: int) -> Iterator[None]:
    """Hold a lock (flock(2)) on an open file that excludes other threads of this process, too.

    So each takes a descriptor of its own; opening one costs less than a page fault.
    """
    lock = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, kind)
        yield
    finally:
        os.close(lock)


class FlatFiles:
    """The files of a flat layer of `size` bytes in `spans` spans, kept in `directory`, and the lock on them.

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
            for _ in range(TRIES):
                if self._open(directory):
                    return
                self._close_files()
        except (OSError, ValueError) as error:
            self.close()
            raise StoreError(f"{directory}: cannot open the flat layer: {describe(error)}") from error
        raise StoreError(f"{directory}: the flat layer is replaced again and again")

    def _open(self, directory: Path) -> bool:
        """Open both files; return False if other files have got their names meanwhile."""
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
        """Bring both files to their size; clear the marks that do not count any more.

        Return False, and take their names away, if they have other spans or were verified by another index:
        other processes may have them open, and keep them.
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
        """Bind the marks to another index, which all the bytes have been verified by.

        Processes that have the files open with the index before may go on to write to them, so that index
        must be determined (`layer.index`): it accepts the same bytes only. Raises StoreError.
        """
        with self._disk_errors(), self._locked():
            os.pwrite(self._map_fd, binding, BINDING.start)
        self._binding = binding

    def is_bound_to(self, binding: bytes) -> bool:
        """Return True if the marks count for the index of that binding."""
        return os.pread(self._map_fd, FIRST, 0)[BINDING] == binding

    def _give_up_names(self) -> None:
        """Unlink both files, under the lock: processes that have them open keep them."""
        give_up(self._directory / "flat", self._fd)
        give_up(self._directory / "presence", self._map_fd)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._map_fd < 0:
            raise StoreError("the flat layer has been closed")
        with lock_on(self._map_fd, fcntl.LOCK_EX):
            yield

    def marks(self, first: int, last: int) -> bytes:
        """Return the marks of the spans `first` to `last`, both included. Raises StoreError if closed."""
        try:
            return self._map[FIRST + first : FIRST + last + 1]
        except ValueError as error:
            raise StoreError("the flat layer has been closed") from error

    def count_present(self) -> int:
        """Return the number of present spans."""
        return sum(mark & PRESENT for mark in self.marks(0, self.spans - 1))

    def _lengthen(self) -> None:
        """Bring the file to its size, under the lock; all spans are marked absent if it was shorter.

        It is too short if a process was killed in the middle of `evict`, or if a disk has lost its end.
        """
        with self._disk_errors():
            if os.fstat(self._fd).st_size < self.size:
                self._put_marks(0, bytes(map(evicted, self.marks(0, self.spans - 1))))
                os.ftruncate(self._fd, self.size)

    def _put_marks(self, first: int, marks: bytes) -> None:
        """Write marks, under the lock; not through the mapping: a failing disk would be a SIGBUS."""
        with self._disk_errors():
            os.pwrite(self._map_fd, marks, FIRST + first)

    def _disk_errors(self) -> AbstractContextManager[None]:
        return store_errors(self._directory / "flat")

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
