"""Opening a path that may be any kind of file: a directory, a FIFO, a device.

The rule: no call waits, no device is touched, and no descriptor is left open. `open(fd)` leaves the
descriptor of a directory open when it raises, so a descriptor is only handed to it once it is known to be
that of a regular file.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a symbolic link",
}


class NotRegular(OSError):
    """The path is not a regular file; `strerror` says what it is."""


def open_regular(path: Path, *, follow: bool = True) -> BufferedReader:
    """Open a regular file for reading, through a last symbolic link if `follow`.

    Raises OSError, NotRegular for other kinds.
    """
    _check(path, os.stat(path, follow_symlinks=follow))  # not opened at all: a device may act on that
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags)
    try:
        _check(path, os.fstat(fd))  # it may be another one by now
        os.set_blocking(fd, True)
        return open(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def kind(mode: int) -> str:
    """Return the kind of a file of this mode, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "a regular file")


def _check(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
        raise NotRegular(number, f"it is {kind(found.st_mode)}, not a regular file", str(path))
