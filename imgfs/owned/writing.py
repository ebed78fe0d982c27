"""Writing to files: all bytes or an error, and errors of the disk as StoreError with the path."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgfs.errors import StoreError


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Raise StoreError, naming the file, where the block raises OSError; `path` if the error names none."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror or error}") from error


def write_all(fd: int, body: bytes | memoryview) -> None:
    """Write all of `body` at the descriptor's position: write(2) may write less. Raises OSError."""
    left = memoryview(body)
    while left:
        left = left[os.write(fd, left) :]


def pwrite_all(fd: int, body: bytes | memoryview, offset: int) -> None:
    """Write all of `body` at `offset`, likewise. Raises OSError."""
    left = memoryview(body)
    while left:
        count = os.pwrite(fd, left, offset)
        left, offset = left[count:], offset + count


def sync_directory(path: Path) -> None:
    """Get the names in a directory to the disk (fsync(2)). Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that have nothing to sync
            raise
    finally:
        os.close(fd)
