"""A partial download of a blob: its bytes arrive in any order, and outlive the process.

    layers/sha256/HEX/part        the compressed bytes received so far
    layers/sha256/HEX/part.map    a header, and a byte for each unit of 256 KiB: its mark

A unit is marked after it has been written, so a killed process loses the one it was at. After a reboot no
mark counts: marks may have reached the disk ahead of their bytes. A writer holds the layer's lock.

Other processes may read along (`PartialReader`): so peers get it while it comes. The marks tell them what the
writer has fetched itself, and what it is about to fetch.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from imgfs.errors import StoreError, describe
from imgfs.owned.opening import open_owned_file
from imgfs.owned.writing import os_errors
from imgfs.store.atomic import boot_id, is_held
from imgfs.store.staging import write_at

UNIT = 256 << 10
NAMES = ("part", "part.map")
_HEADER = struct.Struct("<8s16sQQ")  # magic, boot id, bytes of a unit, of the blob
_MAGIC = b"imgfspar"

# Marks. Nothing is fetched of units that are CLAIMED once their writer is gone.
MISSING, FETCHED, BY_PEER, CLAIMED = range(4)
_WRITTEN = (FETCHED, BY_PEER)
_DISCLAIM = bytes(mark if mark in _WRITTEN else MISSING for mark in range(256))
_CLAIM = bytes(CLAIMED if mark == MISSING else mark for mark in range(256))


class UnreadablePartial(StoreError):
    """The disk does not give back what was kept: it has to be fetched again."""


class StoredPiece:
    """The bytes `[start, end)` of a blob, which have been written to the open file `fd` at `path`."""

    def __init__(self, fd: int, start: int, end: int, path: Path) -> None:
        self.fd = fd
        self.start = start
        self.end = end
        self.path = path

    def __len__(self) -> int:
        return self.end - self.start

    def read(self) -> bytes:
        """Read them. Raises UnreadablePartial."""
        try:
            body = os.pread(self.fd, self.end - self.start, self.start)
        except OSError as error:
            raise UnreadablePartial(f"{self.path}: {describe(error)} at {self.start}") from error
        if len(body) != self.end - self.start:
            raise UnreadablePartial(f"{self.path}: ends at {self.start + len(body)}, before {self.end}")
        return body


class PartialBlob:
    """The partial download of a blob of `size` bytes, in a layer's `directory`. Safe in threads.

    `note_written` is called with the number of bytes of each write.
    """

    def __init__(
        self, directory: Path, size: int, note_written: Callable[[int], None] = lambda _: None
    ) -> None:
        self.size = size
        self._note_written = note_written
        self.units = -(-size // UNIT)
        self._paths = [directory / name for name in NAMES]
        self._lock = threading.Lock()  # held by a write, and by `close`
        self._fds: list[int] = []
        try:
            for path in self._paths:
                self._fds.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._marks = self._read_marks()
        except OSError as error:
            self.close()
            raise StoreError(f"{directory}: cannot write to the store: {error.strerror}") from error

    def _read_marks(self) -> bytearray:
        """Read the marks; start over if they are not of this blob and this boot."""
        data, marks = self._fds
        head = _HEADER.pack(_MAGIC, boot_id(), UNIT, self.size)
        stored = os.pread(marks, len(head) + self.units, 0)
        is_whole = len(stored) == len(head) + self.units and os.fstat(data).st_size == self.size
        if stored[: len(head)] == head and is_whole:
            return bytearray(stored[len(head) :].translate(_DISCLAIM))
        os.ftruncate(marks, 0)
        os.ftruncate(data, 0)
        os.ftruncate(data, self.size)
        os.pwrite(marks, head + bytes(self.units), 0)
        return bytearray(self.units)

    def bounds(self, unit: int) -> tuple[int, int]:
        """Return the range of the blob that a unit is."""
        return unit * UNIT, min(self.size, (unit + 1) * UNIT)

    def has(self, unit: int) -> bool:
        """Return True if a unit has been written."""
        return self._marks[unit] in _WRITTEN

    def by_peers(self) -> list[int]:
        """Return the units that peers have brought."""
        return [unit for unit, mark in enumerate(self._marks) if mark == BY_PEER]

    @property
    def name(self) -> str:
        """Return what this download is called between machines."""
        return _name_of(self._fds[1])

    def here(self) -> int:
        """Return how many of the blob's bytes have been written."""
        bounds = (self.bounds(unit) for unit in range(self.units) if self.has(unit))
        return sum(end - start for start, end in bounds)

    def missing(self, largest: int) -> Iterator[tuple[int, int]]:
        """Yield the missing ranges of the blob, in order, of at most `largest` bytes, a multiple of UNIT."""
        run: list[int] = []
        for unit in range(self.units + 1):
            ends = unit == self.units or self.has(unit)
            if run and (ends or len(run) * UNIT >= largest):
                yield self.bounds(run[0])[0], self.bounds(run[-1])[1]
                run = []
            if not ends:
                run.append(unit)

    def write(self, offset: int, piece: bytes) -> None:
        """Write bytes; they count once their unit is marked. Raises StoreError."""
        with self._lock:
            if not self._fds:
                raise StoreError("the download has been given up")
            write_at(self._fds[0], offset, piece)
        self._note_written(len(piece))

    def mark(self, unit: int, mark: int = FETCHED) -> None:
        """Mark a unit, all of which has been written. Raises StoreError."""
        self._set(unit, bytes([mark]))

    def forget(self, unit: int) -> None:
        """Have a unit fetched again. Raises StoreError."""
        self._set(unit, bytes([MISSING]))

    def claim(self, first: int, end: int) -> None:
        """Say that what is missing of the units from `first` up to `end` is about to be fetched.

        Raises StoreError.
        """
        self._set(first, self._marks[first:end].translate(_CLAIM))

    def disclaim(self, first: int, end: int) -> None:
        """Say that what is missing of them is not fetched after all. Raises StoreError."""
        self._set(first, self._marks[first:end].translate(_DISCLAIM))

    def _set(self, first: int, marks: bytes | bytearray) -> None:
        with self._lock:
            if not self._fds:
                raise StoreError("the download has been given up")
            try:
                os.pwrite(self._fds[1], marks, _HEADER.size + first)
            except OSError as error:
                raise StoreError(f"{self._paths[1]}: cannot write to the store: {error.strerror}") from error
            self._marks[first : first + len(marks)] = marks

    def piece(self, unit: int) -> StoredPiece:
        """Return a unit that has been written."""
        start, end = self.bounds(unit)
        return StoredPiece(self._fds[0], start, end, self._paths[0])

    def close(self) -> None:
        """Close the files, without removing them."""
        with self._lock:
            while self._fds:
                os.close(self._fds.pop())


class PartialReader:
    """The partial download of a blob in a layer's `directory`, which another process may be at.

    Safe in threads. Its files stay open, and so readable, when the download is over and they are removed.
    Raises FileNotFoundError if there is none, or none of this boot; StoreError.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fds: list[int] = []
        try:
            for name in NAMES:
                self._fds.append(open_owned_file(directory / name, os.O_RDONLY))
            with os_errors(directory):
                head = os.pread(self._fds[1], _HEADER.size, 0)
                self.name = _name_of(self._fds[1])
            self.size = _size_in(head)
        except BaseException:
            self.close()
            raise
        self.units = -(-self.size // UNIT)

    def marks(self, first: int = 0, end: int | None = None) -> bytes:
        """Return the marks of the units from `first` up to `end`: fewer if it has been begun anew.

        Raises StoreError.
        """
        with os_errors(self._directory):
            count = (self.units if end is None else end) - first
            return os.pread(self._fds[1], count, _HEADER.size + first)

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes `[start, end)`, which have been written. Raises StoreError."""
        with os_errors(self._directory):
            return os.pread(self._fds[0], end - start, start)

    def is_growing(self) -> bool:
        """Return True while a process is at it. Raises StoreError."""
        return not self.is_removed() and is_held(self._directory / "lock")

    def is_removed(self) -> bool:
        """Return True if the download is over, and its files have been removed."""
        return os.fstat(self._fds[1]).st_nlink == 0

    def is_current(self) -> bool:
        """Return True if it is still the one that has its place."""
        with suppress(OSError):
            return os.path.samestat(os.stat(self._directory / NAMES[1]), os.fstat(self._fds[1]))
        return False

    def close(self) -> None:
        """Close the files."""
        while self._fds:
            os.close(self._fds.pop())


def _size_in(head: bytes) -> int:
    """Return the size of the blob that is in the header of its marks. Raises FileNotFoundError."""
    if len(head) == _HEADER.size:
        magic, boot, unit, size = _HEADER.unpack(head)
        if (magic, boot, unit) == (_MAGIC, boot_id(), UNIT):
            return int(size)
    raise FileNotFoundError("a partial download of another boot")


def _name_of(fd: int) -> str:
    """Return a name for an open file that no other file has, on any machine, while it is there."""
    stat = os.fstat(fd)
    return hashlib.sha256(b"%s %d %d" % (boot_id(), stat.st_dev, stat.st_ino)).hexdigest()[:32]
