"""The size of a container's terminal: crun 1.8 lets that follow neither the beginning nor changes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import termios
from pathlib import Path

_FIRST_PTS, _LAST_PTS = 136, 143  # majors of pseudo-terminals (Linux devices.txt)
_WINSIZE = 8  # bytes of a struct winsize (ioctl_tty(2))


def follow_size(pid_file: Path) -> None:
    """Give the terminal of the process whose pid is in a file the size of ours, if both have one."""
    with contextlib.suppress(OSError, ValueError):
        size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(_WINSIZE))
        fd = os.open(f"/proc/{int(pid_file.read_text())}/fd/0", os.O_PATH | os.O_CLOEXEC)
        try:
            _set_size(fd, size)
        finally:
            os.close(fd)


def _set_size(path: int, size: bytes) -> None:
    """The container may have put anything in its terminal's place: it is only opened if it is a terminal."""
    found = os.fstat(path)
    if stat.S_ISCHR(found.st_mode) and _FIRST_PTS <= os.major(found.st_rdev) <= _LAST_PTS:
        fd = os.open(f"/proc/self/fd/{path}", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, termios.TIOCSWINSZ, size)
        finally:
            os.close(fd)
