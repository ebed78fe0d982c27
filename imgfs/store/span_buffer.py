"""A span's decoded bytes until they are verified: outside the flat layer, where no reader sees them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from imgfs.owned.held import new_file
from imgfs.store.atomic import TEMPORARY, store_errors
from imgfs.store.write_at import write_at

IN_MEMORY = 4 << 20  # bytes of a span; the rest of a larger one (a layer of one frame) is on the disk
_PIECE = 1 << 20  # bytes that are read from there at once


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
