"""A partial download of a blob: its bytes arrive in any order, and outlive the process.

    layers/sha256/HEX/part        the compressed bytes received so far
    layers/sha256/HEX/part.map    a header, and a byte for each unit of 256 KiB: 1 once it is written

A unit is marked after it has been written, so a killed process loses the one it was at. After a reboot no
mark counts: marks may have reached the disk ahead of their bytes. A writer holds the layer's lock.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from imgfs.errors import StoreError, describe
from imgfs.store.atomic import boot_id
from imgfs.store.staging import write_at

UNIT = 256 << 10
NAMES = ("part", "part.map")
_HEADER = struct.Struct("<8s16sQQ")  # magic, boot id, bytes of a unit, of the blob
_MAGIC = b"imgfspar"


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
            return bytearray(stored[len(head) :])
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
        return bool(self._marks[unit])

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

    def mark(self, unit: int) -> None:
        """Mark a unit, all of which has been written. Raises StoreError."""
        with self._lock:
            if not self._fds:
                raise StoreError("the download has been given up")
            try:
                os.pwrite(self._fds[1], b"\1", _HEADER.size + unit)
            except OSError as error:
                raise StoreError(f"{self._paths[1]}: cannot write to the store: {error.strerror}") from error
            self._marks[unit] = 1

    def piece(self, unit: int) -> StoredPiece:
        """Return a unit that has been written."""
        start, end = self.bounds(unit)
        return StoredPiece(self._fds[0], start, end, self._paths[0])

    def close(self) -> None:
        """Close the files, without removing them."""
        with self._lock:
            while self._fds:
                os.close(self._fds.pop())
