"""By which names a node can be reached: the tree's names turned round.

The tree's file is made for going down. To go up, all names are read once, the first time somebody asks, into
four bytes for each node: its directory. Only nodes with several names cost more.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from imgfs.tree.schema import ROOT


class Parents:
    """The directories that every node is in, from `names`: (ino, ino of the directory) of each name."""

    def __init__(self, names: Iterable[tuple[int, int]], largest: int) -> None:
        self._first = array("L", bytes(array("L").itemsize * (largest + 1)))
        self._more: dict[int, list[int]] = {}
        for ino, parent in names:
            if self._first[ino]:
                self._more.setdefault(ino, []).append(parent)
            else:
                self._first[ino] = parent

    def of(self, ino: int) -> list[int]:
        """The directories a node is in, one for each of its names; none for the root."""
        if ino == ROOT or not 0 <= ino < len(self._first) or not self._first[ino]:
            return []
        return [self._first[ino], *self._more.get(ino, [])]
