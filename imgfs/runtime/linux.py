"""The system calls that Python lacks: unshare(2), mount(2), umount2(2), prctl(2)."""

from __future__ import annotations

import ctypes
import os
import signal

NEWNS, NEWUSER = 0x00020000, 0x10000000  # linux/sched.h, CLONE_*
_REC, _SLAVE = 0x4000, 1 << 19  # linux/mount.h, MS_*
_DETACH = 2  # MNT_DETACH
_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)


def unshare(flags: int) -> None:
    """Give this process namespaces of its own; raises OSError."""
    _check(_libc.unshare(flags), "unshare")


def keep_mounts_in() -> None:
    """Let no mount made here be seen outside of this mount namespace; those made outside still come in."""
    _check(_libc.mount(b"", b"/", None, _REC | _SLAVE, None), "/")


def cover(path: str) -> None:
    """Mount an empty tmpfs on a directory; raises OSError."""
    _check(_libc.mount(b"none", os.fsencode(path), b"tmpfs", 0, b"size=4k,mode=0555"), path)


def detach(path: str) -> None:
    """Unmount, now or when nobody uses it any more; raises OSError."""
    _check(_libc.umount2(os.fsencode(path), _DETACH), path)


def die_with_parent(number: signal.Signals) -> None:
    """Be sent a signal when the process that made this one ends."""
    _check(_libc.prctl(_SET_PDEATHSIG, int(number), 0, 0, 0), "prctl")


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
