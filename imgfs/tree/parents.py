"""The directories that a node has names in.

The tree's file is clustered for lookups by directory. For the way up, all names are read once, at the first
call, into an array with the directory of each node; only nodes with several names cost more.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from imgfs.tree.schema import ROOT


class Parents:
    """Built from `names`, (ino, ino of the directory) of each name; no ino is greater than `largest`."""

    def __init__(self, names: Iterable[tuple[int, int]], largest: int) -> None:
        self._first = array("L", bytes(array("L").itemsize * (largest + 1)))
        self._more: dict[int, list[int]] = {}
        for ino, parent in names:
            if self._first[ino]:
                self._more.setdefault(ino, []).append(parent)
            else:
                self._first[ino] = parent

    def of(self, ino: int) -> list[int]:
        """Return the directory of each of a node's names; none for the root."""
        if ino == ROOT or not 0 <= ino < len(self._first) or not self._first[ino]:
            return []
        return [self._first[ino], *self._more.get(ino, [])]
