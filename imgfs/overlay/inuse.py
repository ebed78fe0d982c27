"""Whether overlayfs has an upper directory mounted: it takes no lock that others see (proc(5), mountinfo)."""

from __future__ import annotations

import os
import re
from pathlib import Path

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


def _unescaped(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda octal: bytes((int(octal[1], 8),)), field)
