"""Mounting by the system calls that say why not: fsopen(2), fsconfig(2), fsmount(2), move_mount(2).

A mount made so is nowhere at first: it lives as long as its descriptor, or somebody who uses it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence

READ_ONLY, NO_SUID, NO_DEVICES, NO_PROGRAMS, NO_ACCESS_TIMES = 1, 2, 4, 8, 0x10  # linux/mount.h, MOUNT_ATTR_*

Options = Sequence[tuple[str, str | None]]  # flags have no value

_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432  # the numbers are the same everywhere
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6  # FSCONFIG_*
_CLOSE_ON_EXEC = 1
_FROM_DESCRIPTOR, _FOLLOW = 4, 0x10  # MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_SYMLINKS
_HERE = -100  # AT_FDCWD
_DETACH, _NO_FOLLOW = 2, 8  # linux/fs.h, MNT_DETACH, UMOUNT_NOFOLLOW

_libc = ctypes.CDLL(None, use_errno=True)


def knows(filesystem: str) -> bool:
    """Whether this process could mount a file system of that kind."""
    try:
        os.close(_call(_FSOPEN, filesystem.encode(), _CLOSE_ON_EXEC))
    except OSError:
        return False
    return True


def new_mount(filesystem: str, options: Options, attributes: int) -> int:
    """A mount that is nowhere yet: its descriptor. Raises OSError, with what the kernel says besides."""
    context = _call(_FSOPEN, filesystem.encode(), _CLOSE_ON_EXEC)
    try:
        for key, value in options:
            what, text = (_SET_FLAG, None) if value is None else (_SET_STRING, os.fsencode(value))
            _call(_FSCONFIG, context, what, key.encode(), text, 0)
        _call(_FSCONFIG, context, _CREATE, None, None, 0)
        return _call(_FSMOUNT, context, _CLOSE_ON_EXEC, attributes)
    except OSError as error:
        said = _messages(context)
        if error.errno is None or not said:
            raise
        raise OSError(error.errno, f"{error.strerror}: {said}") from error
    finally:
        os.close(context)


def attach(mount: int, path: str) -> None:
    """Put a mount at `path`; raises OSError."""
    _call(_MOVE_MOUNT, mount, b"", _HERE, os.fsencode(path), _FROM_DESCRIPTOR | _FOLLOW)


def detach(path: str) -> None:
    """Take the topmost mount at `path` away from there; who uses it, keeps it. Raises OSError."""
    if _libc.umount2(os.fsencode(path), _DETACH | _NO_FOLLOW):
        raise _error()


def _call(number: int, *arguments: object) -> int:
    passed = [ctypes.c_long(part) if isinstance(part, int) else part for part in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *passed)
    if result < 0:
        raise _error()
    return result


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _messages(context: int) -> str:
    """What the kernel has to say about a file system that it did not make; lines like `e erofs: …`."""
    lines: list[str] = []
    with contextlib.suppress(OSError):  # ENODATA: that was all
        while len(lines) < 8:
            lines.append(os.read(context, 1024).decode(errors="replace").strip().partition(" ")[2])
    return "; ".join(lines)
