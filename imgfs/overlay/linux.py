"""The system calls that Python lacks: renameat2(2), syncfs(2)."""

from __future__ import annotations

import ctypes
import os

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4  # linux/fs.h, RENAME_*

_libc = ctypes.CDLL(None, use_errno=True)
_renameat2 = _libc.renameat2  # glibc 2.28
_renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def rename(source_fd: int, source: bytes, target_fd: int, target: bytes, flags: int = 0) -> None:
    """Rename `source` in one open directory to `target` in another; raises OSError."""
    if _renameat2(source_fd, source, target_fd, target, flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source)


def syncfs(fd: int) -> None:
    """Have what has been written to the file system of an open file written out; raises OSError."""
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
