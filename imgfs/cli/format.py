"""Numbers and modes for people."""

from __future__ import annotations

import os
import stat
import time
from collections import namedtuple

TYPE_CHECKING = False  # as that of `typing`, which takes long to load
if TYPE_CHECKING:
    from imgfs.tree.database import Node

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


_PERIODS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


def size(count: float) -> str:
    """Return bytes in powers of 1000, three digits."""
    for unit in _UNITS[:-1]:
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} {_UNITS[-1]}"


Column = namedtuple("Column", ("title", "right"), defaults=(False,))
"""A column of a table; `right` for numbers."""


def sizes(*parts: int) -> list[str]:
    """Return the sum of some sizes and each of them, in the sum's unit, so that what is shown adds up."""
    total, unit, factor = sum(parts), 0, 1
    while total >= 999.5 * factor and unit < len(_UNITS) - 1:
        unit, factor = unit + 1, factor * 1000
    digits = 0 if unit == 0 else 2 if total < 9.995 * factor else 1 if total < 99.95 * factor else 0
    step = factor // 10**digits
    steps = [part // step for part in parts]
    # what rounding down has taken from the sum goes to the parts that lost most
    lost = (total + step // 2) // step - sum(steps)
    for number in sorted(range(len(parts)), key=lambda number: -(parts[number] % step))[:lost]:
        steps[number] += 1
    shown = [f"{count / 10**digits:.{digits}f} {_UNITS[unit]}" for count in (sum(steps), *steps)]
    return [text if count else "0 B" for text, count in zip(shown, (sum(parts), *parts), strict=True)]


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 request`, `2 requests`, `3 tries`."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def ago(seconds: float) -> str:
    """Return how long ago something was, in the largest unit of which that is at least one."""
    return "just now" if seconds < 1 else f"{age(seconds)} ago"


def age(seconds: float) -> str:
    """Return a time that has passed, in the largest unit of which that is at least one."""
    for name, length in _PERIODS:
        if seconds >= length:
            return counted(int(seconds // length), name)
    return counted(0, "second")


def moment(seconds: int, pattern: str = "%Y-%m-%d %H:%M:%S UTC") -> str:
    """Return a time in UTC; where no calendar reaches, in seconds since 1970: a layer may say any."""
    try:
        return time.strftime(pattern, time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds} s since 1970"


def short(digest: str) -> str:
    """Return the first twelve digits of a digest, by which people tell digests apart."""
    return digest.partition(":")[2][:12]


def long_line(node: Node, name: bytes, target: bytes | None, *, human: bool = False) -> bytes:
    """Return a line as `ls -ln` writes it; `human` sizes are in kB, MB, …."""
    device = f"{os.major(node.device)}, {os.minor(node.device)}"
    is_device = stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode)
    number = device if is_device else size(node.size) if human else str(node.size)
    when = moment(node.mtime_ns // 1_000_000_000, "%Y-%m-%d %H:%M")
    head = f"{stat.filemode(node.mode)} {node.nlink:3} {node.uid:5} {node.gid:5} {number:>10} {when} "
    return head.encode() + name + (b" -> " + target if target is not None else b"")
