"""Writing at an offset of a sparse file, with holes for zeros."""

from __future__ import annotations

import os

from imgfs.errors import StoreError
from imgfs.owned.writing import pwrite_all


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
