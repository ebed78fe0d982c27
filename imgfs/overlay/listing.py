"""A directory of the union being read, while it may change: positions that stay good, no name twice.

First come the names that the upper half had when the reading began, then the image's own, as the tree has
them. What has changed since is looked up again before it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator

from imgfs.overlay.union import File, Union
from imgfs.tree.reader import Node


class UnionListing:
    """What one reader of the directory `ino` sees."""

    def __init__(self, union: Union, ino: int) -> None:
        self._union = union
        self._ino = ino
        self._begin()

    def children(self, directory: int, after: int) -> Iterator[tuple[int, bytes, File]]:
        """(position, name, file) of the children behind the position `after`; from 0 on, as they are now."""
        assert directory == self._ino
        if after == 0:
            self._begin()
        for position in range(after, len(self._names)):
            found = self._union.find(self._ino, self._names[position])
            if found is not None:
                yield position + 1, self._names[position], found
        if self._lower is not None:
            yield from self._of_the_image(self._lower, max(0, after - len(self._names)))

    def _begin(self) -> None:
        node = self._union.nodes.get(self._ino)
        self._changes = node.changes if node else None
        self._lower = node.lower if node else self._ino
        self._names: list[bytes] = []
        self._covered: set[bytes] = set()
        if node:
            self._names, self._covered = self._union.upper_names(node)

    def _of_the_image(self, lower: int, after: int) -> Iterator[tuple[int, bytes, File]]:
        for position, name, child in self._union.tree.children(lower, after):
            found = self._as_it_is(name, child) if name not in self._covered else None
            if found is not None:
                yield len(self._names) + position, name, found

    def _as_it_is(self, name: bytes, child: Node) -> File | None:
        node = self._union.nodes.get(self._ino)
        if (node.changes if node else None) == self._changes:
            return child
        return self._union.find(self._ino, name)
