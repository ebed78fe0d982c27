"""Numbers and modes for people."""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgfs.tree.reader import Node

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


_PERIODS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


def size(count: float) -> str:
    """Bytes in powers of 1000, three digits."""
    for unit in _UNITS[:-1]:
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} {_UNITS[-1]}"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: `1 request`, `2 requests`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def ago(seconds: float) -> str:
    """How long ago something was, in the largest unit of which that is at least one."""
    for name, length in _PERIODS:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"


def long_line(node: Node, name: bytes, target: bytes | None) -> bytes:
    """A line as `ls -ln` writes it."""
    device = f"{os.major(node.device)}, {os.minor(node.device)}"
    number = device if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode) else str(node.size)
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(node.mtime_ns // 1_000_000_000))
    head = f"{stat.filemode(node.mode)} {node.nlink:3} {node.uid:5} {node.gid:5} {number:>10} {when} "
    return head.encode() + name + (b" -> " + target if target is not None else b"")
