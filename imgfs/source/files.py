"""Reading files that others may have made: what is none, or goes away, is an error of a source."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO

from imgfs.errors import InvalidImage, NotFound, Unavailable


def open_regular(path: Path) -> BinaryIO:
    """Open a file that is one: a FIFO would wait for ever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidImage("not a regular file", where=str(path))
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{path}: no such file") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def read_some(file: BinaryIO, length: int, path: Path, *, may_be_empty: bool = False) -> bytes:
    """Up to `length` bytes of a file, and some unless it `may_be_empty`; raises Unavailable."""
    try:
        chunk = file.read(length)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    if not chunk and not may_be_empty:
        raise Unavailable(f"{path}: became shorter while it was read")
    return chunk
