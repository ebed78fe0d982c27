"""Holders (`mount.holder`): the processes that have a mount served again if its daemon dies or hangs.

One is found by its command line, which says what device it holds.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from imgfs.mounts.table import Mount

SCRIPT = "imgfs/mount/holder.py"


def holder_of(mount: Mount) -> int | None:
    """Return the pid of the holder of a mount, None if it has none."""
    return next((pid for pid in map(int, _processes()) if _holds(pid, mount)), None)


def is_holder(pid: int) -> bool:
    """Return True if a process is some mount's holder."""
    return bool(held_device(pid))


def held_device(pid: int) -> str:
    """Return the device (major:minor) of the mount that a process holds, nothing if it is no holder."""
    with suppress(OSError, StopIteration, IndexError):
        words = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
        script = next(number for number, word in enumerate(words) if word.endswith(SCRIPT))
        return words[script + 2]
    return ""


def _processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdecimal()]


def _holds(pid: int, mount: Mount) -> bool:
    """Return True if a process is the holder of a mount, and its user's, or root's."""
    with suppress(OSError):
        return held_device(pid) == mount.device and os.stat(f"/proc/{pid}").st_uid in (0, mount.user)
    return False
