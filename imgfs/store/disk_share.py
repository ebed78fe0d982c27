"""A limit as a share of the disk: cached bytes go before the disk is full, other programs' files too.

A share of 80 % has two marks. Once the disk is fuller than 80 %, layers that no mount uses go; only once it
is fuller than halfway from there to the whole, 90 %, those that are mounted: their readers fetch them again.
kubelet removes images at 85 % and evicts pods where that does not help (imageGCHighThresholdPercent, and
imagefs.available, 15 %): what can be fetched again goes before both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_ROOM = 20  # this part of the disk is freed beyond the mark, so that the next byte is not one too many


class DiskUse(NamedTuple):
    """The bytes of a disk, and those of them that are left, for root's reserve does not count as left."""

    capacity: int
    available: int

    @property
    def free_share(self) -> float:
        """Return what is left as a part of the whole; 1 for a file system that says no size."""
        return self.available / self.capacity if self.capacity else 1.0

    def above(self, percent: float) -> int:
        """Return the bytes that are used above so many per cent: negative while there is room."""
        return self.capacity - self.available - int(self.capacity * percent / 100)


class Excess(NamedTuple):
    """Bytes to free: of layers that are not mounted, and of all, mounted ones among them."""

    idle: int
    mounted: int


def disk_use(path: Path) -> DiskUse:
    """Ask how full the disk of `path` is, as kubelet does. Raises OSError."""
    found = os.statvfs(path)
    return DiskUse(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def excess_of(use: DiskUse, percent: int) -> Excess:
    """Return what has to go for the disk to be within a share; 0 for what has not."""
    room = use.capacity // _ROOM
    idle, mounted = use.above(percent), use.above((percent + 100) / 2)
    return Excess(idle + room if idle > 0 else 0, mounted + room // 2 if mounted > 0 else 0)
