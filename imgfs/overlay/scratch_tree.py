"""Make, open and remove the directories of a scratch, whatever depth and modes there are below them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from imgfs.overlay import fdtree
from imgfs.owned.opening import random_name
from imgfs.owned.writing import os_errors

REMOVED = ".removed-"  # begins the names of what is on its way out


def make_directory(path: Path, mode: int) -> None:
    """Make a directory if there is none; raises NotADirectoryError for anything else in its place."""
    try:
        path.mkdir(mode=mode, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error


def remove_tree(path: Path) -> None:
    """Remove a directory with all below it, whatever the modes in it."""
    with opened_directory(path.parent) as fd, os_errors(path):
        if fd is not None:
            spare = fdtree.spares(fd, f"{random_name(REMOVED)}-".encode())
            fdtree.remove(fd, os.fsencode(path.name), spare)


@contextlib.contextmanager
def opened_directory(path: Path) -> Iterator[int | None]:
    """A descriptor of a directory, None if it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
