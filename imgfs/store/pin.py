"""Flat files that the kernel reads without us, and that therefore stay as they are.

Such a file has another name beside it for as long, `pin-…`: whoever would take bytes from it finds it has
two, and takes away the names that lead to it instead. A process that is killed leaves its pin behind, though
not always the kernel's reading: whether that goes on, the kernel says by refusing a lease (fcntl(2), "leases
cannot be taken out on files that are open").
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imgfs.owned.held import leads_to
from imgfs.owned.opening import random_name

PIN = "pin-"  # begins the other name


def pin(directory: Path, fd: int) -> Path | None:
    """Pin the open file `fd`, which is `flat` in `directory`; None if that cannot be, or is not so any more.

    Whoever has pinned it removes the name once nothing reads by it.
    """
    sweep_pins(directory)
    path = directory / random_name(PIN)
    try:
        os.link(directory / "flat", path)
    except OSError:  # the file system knows no other names
        return None
    if not leads_to(path, fd):
        path.unlink(missing_ok=True)
        return None
    return path


def has_pins(fd: int) -> bool:
    """Whether a file may be pinned."""
    return os.fstat(fd).st_nlink != 1


def is_pinned(directory: Path, fd: int) -> bool:
    """Whether the open file `fd` is pinned. What a killed process has left behind is taken away."""
    if not has_pins(fd):
        return False
    if _is_open_elsewhere(fd):
        return True
    for left in directory.glob(f"{PIN}*"):
        give_up(left, fd)
    return False


def sweep_pins(directory: Path) -> None:
    """Take away the pins of files that nobody has open."""
    for left in directory.glob(f"{PIN}*"):
        with suppress(OSError):  # another process is at it, too
            fd = os.open(left, os.O_RDWR | os.O_CLOEXEC)
            try:
                if not _is_open_elsewhere(fd):
                    give_up(left, fd)
            finally:
                os.close(fd)


def _is_open_elsewhere(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # ignored, should somebody come just now
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    return False


def give_up(path: Path, fd: int) -> None:
    """Take a name away from an open file, if it still is that file's."""
    if leads_to(path, fd):
        path.unlink(missing_ok=True)


@contextmanager
def lock_on(fd: int, kind: int) -> Iterator[None]:
    """A lock (flock(2)) on an open file, not of this process: each thread has its own.

    That takes a descriptor each; opening one costs less than a page fault.
    """
    lock = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, kind)
        yield
    finally:
        os.close(lock)
