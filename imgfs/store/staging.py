"""Bytes that are written before they are verified, and so before any reader sees them; zeros stay holes.

A span that is fetched is decoded into a `SpanBuffer`; a scan writes a whole flat layer by a `FlatWriter`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from imgfs.errors import StoreError
from imgfs.owned.writing import new_file, pwrite_all
from imgfs.store.atomic import TEMPORARY, store_errors
from imgfs.store.flat_files import UNBOUND, drop, replace

IN_MEMORY = 4 << 20  # bytes of a span; the rest of a larger one (a layer of one frame) is on the disk
_PIECE = 1 << 20  # bytes that are read from there at once
SUFFIX = "-flat"  # ends the name of a file that a scan writes


def write_at(fd: int, offset: int, piece: bytes | memoryview) -> None:
    """Write all of `piece`, or raise StoreError, for example when the disk is full.

    Zeros are not written over a hole: it reads the same, so a bomb of zeros costs no disk.
    """
    try:
        if not any(piece[:64]) and piece == bytes(len(piece)) and _is_hole(fd, offset, len(piece)):
            return
        pwrite_all(fd, piece, offset)
    except OSError as error:
        raise StoreError(
            f"{os.readlink(f'/proc/self/fd/{fd}')}: cannot write to the store: {error.strerror}"
        ) from error


def _is_hole(fd: int, offset: int, length: int) -> bool:
    """Return True if the file reads as zeros there, once `FlatLayer` has brought it to its size."""
    body = os.pread(fd, length, offset)
    return body == bytes(len(body))


class SpanBuffer:
    """Bytes that are not verified yet: in memory, or, of a large span, in a file without a name.

    That file is in `directory`, on the disk of the flat layer; zeros are holes in it.
    """

    def __init__(self, directory: Path) -> None:
        self.size = 0
        self._directory = directory
        self._pieces: list[bytes] = []
        self._held = 0  # bytes of `_pieces`
        self._fd = -1

    def write(self, piece: bytes | memoryview) -> None:
        """Append bytes. Raises StoreError."""
        self._pieces.append(bytes(piece))  # which copies a view: its buffer may be used again
        self._held += len(piece)
        self.size += len(piece)
        if self._held > IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        if self._fd < 0:
            self._fd = _nameless(self._directory)
        at = self.size - self._held
        for piece in self._pieces:
            write_at(self._fd, at, piece)
            at += len(piece)
        self._pieces, self._held = [], 0

    def pieces(self) -> Iterator[bytes]:
        """Yield all bytes, in order. Raises StoreError."""
        on_disk = self.size - self._held
        for at in range(0, on_disk, _PIECE):
            length = min(_PIECE, on_disk - at)
            with store_errors(self._directory):
                yield os.pread(self._fd, length, at).ljust(length, b"\0")
        yield from self._pieces

    def close(self) -> None:
        """Free memory and file."""
        self._pieces = []
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _nameless(directory: Path) -> int:
    """Open a file without a name: it is gone when it is closed."""
    with store_errors(directory):
        held = new_file(directory, TEMPORARY, "-span")
        held.path.unlink(missing_ok=True)
        return held.fd


class FlatWriter:
    """A flat layer that a scan writes: a temporary file until the scan has succeeded and `keep` is called.

    The present one is removed at once, to save disk, unless it `stays` until then: so a scan that fails costs
    no other image a cached byte. Zeros at its end may be missing until `keep`. `note_written` is called with
    the number of bytes of each write.
    """

    def __init__(
        self, directory: Path, note_written: Callable[[int], None] = lambda _: None, *, stays: bool = False
    ) -> None:
        self._directory = directory
        self._note_written = note_written
        self.end = 0  # of what has been written
        try:
            if not stays:
                drop(directory)
            self._held = new_file(directory, TEMPORARY, SUFFIX)
        except OSError as error:
            raise StoreError(f"{directory}: cannot write to the store: {error.strerror}") from error

    def write(self, offset: int, piece: bytes | memoryview) -> None:
        """Write `piece` at `offset`. Raises StoreError."""
        write_at(self._held.fd, offset, piece)
        self.note(len(piece))

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes `[start, end)` that have been written. Raises StoreError."""
        for at in range(start, end, _PIECE):
            length = min(_PIECE, end - at)
            with store_errors(self._directory):
                yield os.pread(self._held.fd, length, at).ljust(length, b"\0")

    def note(self, count: int) -> None:
        """Note that `count` more bytes have been written, here or by a process that was given the file."""
        self.end += count
        self._note_written(count)

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._held.fd

    def keep(self, *, size: int, spans: int, binding: bytes = UNBOUND) -> None:
        """Make it the flat layer: all of its `size` bytes are written and verified. Raises StoreError.

        `binding` names the index that verified them, as for `FlatLayer`.
        """
        try:
            replace(self._directory, self._held.path, self._held.fd, size=size, spans=spans, binding=binding)
        except OSError as error:
            raise StoreError(f"{self._directory}: cannot write to the store: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; remove it unless it was kept."""
        self._held.path.unlink(missing_ok=True)
        self._held.release()
