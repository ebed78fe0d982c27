"""Writing a flat layer's bytes, and a whole one by a scan."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from imgfs.errors import StoreError


class FlatWriter:
    """A flat layer being written by a scan: nothing of it counts until the scan has ended well.

    Zeros at its end may be missing: `Flat` brings it to its size.
    """

    def __init__(self, directory: Path, grown: Callable[[int], None] = lambda _: None) -> None:
        self._grown = grown
        try:
            for name in ("presence", "flat"):  # whoever reads an older one keeps it
                (directory / name).unlink(missing_ok=True)
            self._fd = os.open(directory / "flat", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{directory}: cannot write to the store: {error.strerror}") from error

    def write(self, offset: int, piece: bytes | memoryview) -> None:
        """Put `piece` at `offset`. Raises StoreError."""
        write_at(self._fd, offset, piece)
        self._grown(len(piece))

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
