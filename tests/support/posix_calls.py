"""System calls that Python's `os` lacks, for tests: each raises OSError as `os` would."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Any

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4  # linux/fs.h
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2  # sys/stat.h: in place of the nanoseconds
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16  # linux/falloc.h
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_EACCESS = -100, 0x100, 0x200  # fcntl.h
F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2  # struct flock's l_type

Time = tuple[int, int]  # seconds, nanoseconds or one of UTIME_*

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long


def renameat2(source: Path | str, target: Path | str, flags: int) -> None:
    """Rename with `flags`, RENAME_*: rename(2)."""
    _call("renameat2", AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags)


def utimensat(path: Path | str, accessed: Time, modified: Time, flags: int = 0) -> None:
    """Set a file's times: utimensat(2)."""
    times = (ctypes.c_long * 4)(*accessed, *modified)
    _call("utimensat", AT_FDCWD, os.fsencode(path), times, flags)


def futimens(fd: int, accessed: Time, modified: Time) -> None:
    """Set an open file's times."""
    _call("futimens", fd, (ctypes.c_long * 4)(*accessed, *modified))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Have room allocated, or with FALLOC_PUNCH_HOLE freed: fallocate(2)."""
    _call("fallocate64", fd, mode, ctypes.c_long(offset), ctypes.c_long(length))


def syncfs(fd: int) -> None:
    """Sync the file system that `fd` is on."""
    _call("syncfs", fd)


def faccessat(path: Path | str, mode: int, flags: int) -> None:
    """Ask for access: faccessat(2)."""
    _call("faccessat", AT_FDCWD, os.fsencode(path), mode, flags)


class DirectoryStream:
    """opendir(3) and what belongs to it, for positions: `os.scandir` knows none."""

    def __init__(self, path: Path | str) -> None:
        self._stream = ctypes.c_void_p(_libc.opendir(os.fsencode(path)))
        if not self._stream:
            raise _error()

    def read(self) -> bytes | None:
        """Return the next entry's name."""
        ctypes.set_errno(0)
        entry = _libc.readdir64(self._stream)
        if entry is None:
            if ctypes.get_errno():
                raise _error()
            return None
        # struct dirent64: d_ino 8, d_off 8, d_reclen 2, d_type 1, d_name
        return ctypes.string_at(entry + 19)

    def rest(self) -> list[bytes]:
        """Return the names from here on."""
        return list(iter(self.read, None))

    def tell(self) -> int:
        """Return where it stands."""
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        """Go to what `tell` said."""
        _libc.seekdir(self._stream, ctypes.c_long(position))

    def rewind(self) -> None:
        """Begin again."""
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        """Let go of the directory."""
        _libc.closedir(self._stream)


def pack_lock(kind: int, start: int = 0, length: int = 0) -> bytes:
    """Return a struct flock of 64-bit Linux: F_RDLCK, F_WRLCK or F_UNLCK.

    A length of 0 is all from `start` on.
    """
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def lock_kind(packed: bytes) -> int:
    """Return the kind of a struct flock."""
    kind: int = struct.unpack("hhqqi4x", packed)[0]
    return kind


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments):
        raise _error()


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
