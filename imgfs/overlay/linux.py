"""The system calls that Python lacks: renameat2(2), syncfs(2), utimensat(2) of one time only."""

from __future__ import annotations

import ctypes
import os

_HERE, _NOFOLLOW, _OMIT = (
    -100,
    0x100,
    (1 << 30) - 2,
)  # fcntl.h, sys/stat.h: AT_FDCWD, AT_SYMLINK_…, UTIME_OMIT
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4  # linux/fs.h, RENAME_*

_libc = ctypes.CDLL(None, use_errno=True)
_renameat2 = _libc.renameat2  # glibc 2.28
_renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def rename(source_fd: int, source: bytes, target_fd: int, target: bytes, flags: int = 0) -> None:
    """Rename `source` in one open directory to `target` in another; raises OSError."""
    if _renameat2(source_fd, source, target_fd, target, flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source)


class _Time(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]  # struct timespec


def touch_access(path: bytes) -> None:
    """Set a file's access time to what it is, and no other: a change that nobody sees. Raises OSError."""
    seconds, nanoseconds = divmod(os.lstat(path).st_atime_ns, 1_000_000_000)
    times = (_Time * 2)(_Time(seconds, nanoseconds), _Time(0, _OMIT))
    if _libc.utimensat(_HERE, path, times, _NOFOLLOW):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def syncfs(fd: int) -> None:
    """Have what has been written to the file system of an open file written out; raises OSError."""
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
