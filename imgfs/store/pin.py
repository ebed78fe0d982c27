"""Pins: flat files that the kernel reads by itself, and that therefore must stay as they are.

A pinned file has a second name, `pin-…`: an eviction that finds two links unlinks the file instead of
truncating it. A killed process leaves its pin behind, and the kernel may read on or not: it does if it
refuses a write lease (fcntl(2), "leases cannot be taken out on files that are open").
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

PIN = "pin-"  # prefix of the second name


def pin(directory: Path, fd: int) -> Path | None:
    """Pin the open file `fd`, which is `flat` in `directory`; None if that fails.

    The caller removes the returned name once the kernel does not read the file any more.
    """
    sweep_pins(directory)
    path = directory / random_name(PIN)
    try:
        os.link(directory / "flat", path)
    except OSError:  # the file system has no hard links
        return None
    if not leads_to(path, fd):
        path.unlink(missing_ok=True)
        return None
    return path


def has_pins(fd: int) -> bool:
    """Return True if a file has a second name, so may be pinned."""
    return os.fstat(fd).st_nlink != 1


def is_pinned(directory: Path, fd: int) -> bool:
    """Return True if the open file `fd` is pinned. Pins that killed processes have left are removed."""
    if not has_pins(fd):
        return False
    if _is_open_elsewhere(fd):
        return True
    for left in directory.glob(f"{PIN}*"):
        give_up(left, fd)
    return False


def sweep_pins(directory: Path) -> None:
    """Remove the pins of files that no process and no kernel mount has open."""
    for left in directory.glob(f"{PIN}*"):
        with suppress(OSError):  # another process sweeps, too
            fd = os.open(left, os.O_RDWR | os.O_CLOEXEC)
            try:
                if not _is_open_elsewhere(fd):
                    give_up(left, fd)
            finally:
                os.close(fd)


def _is_open_elsewhere(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # ignored, should the file be opened now
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    return False


def give_up(path: Path, fd: int) -> None:
    """Unlink a name of an open file, if it still is that file's."""
    if leads_to(path, fd):
        path.unlink(missing_ok=True)


@contextmanager
def lock_on(fd: int, kind: int) -> Iterator[None]:
    """Hold a lock (flock(2)) on an open file that excludes other threads of this process, too.

    So each takes a descriptor of its own; opening one costs less than a page fault.
    """
    lock = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, kind)
        yield
    finally:
        os.close(lock)
