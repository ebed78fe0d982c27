"""Whether overlayfs has an upper directory mounted: it takes no lock that others see (proc(5), mountinfo)."""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOUNTED = re.compile(r"mounted at (.*) \(pid \d+\)$", re.DOTALL)  # what a daemon says
_ESCAPE = re.compile(rb"\\([0-7]{3})")


def overlayfs_over(upper: Path) -> str | None:
    """Where overlayfs is mounted over `upper`, if it is and this process sees it."""
    wanted = b"upperdir=" + os.fsencode(os.path.realpath(upper))
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            fields = line.split()
            if b"overlay" in fields and wanted in map(_unescaped, fields[-1].split(b",")):
                return os.fsdecode(_unescaped(fields[4]))
    return None


def is_at_work(said: str) -> bool:
    """Whether the holder of a scratch's lock, by what it says, goes on: its mount is seen, or it has none."""
    mount = _MOUNTED.match(said)
    return mount is None or _is_mounted_at(os.fsencode(mount[1]))


def _is_mounted_at(path: bytes) -> bool:
    with open("/proc/self/mountinfo", "rb") as lines:
        return any(_unescaped(line.split()[4]) == path for line in lines)


def _unescaped(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda octal: bytes((int(octal[1], 8),)), field)
