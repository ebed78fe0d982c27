"""The names of a tree's nodes: from what was looked up, else from all names, which are read once."""

from __future__ import annotations

import functools

from imgfs.tree.database import ROOT, Parents, TreeDatabase

SPARSEST = 1000  # inos for each node at most, in a tree with more than MANY: each takes memory
MANY = 1 << 24  # inos
KEPT = 256  # answers of each kind: more than a path has

_MOST_FOUND = 1024  # directories whose names are kept, of 150 bytes each


class NodeNames:
    """Where the nodes of a tree stand. Any thread may use it."""

    def __init__(self, database: TreeDatabase) -> None:
        self._db = database
        self._parents: Parents | None = None
        self._found: dict[int, tuple[int, bytes]] = {}  # directories: where the last lookups have found them
        self.of = functools.lru_cache(KEPT)(self._read)  # (directory, name) of a node's names, by its number

    def note(self, ino: int, parent: int, name: bytes) -> None:
        """Note where a lookup has found a directory: it has one name."""
        if self._parents is None:
            if len(self._found) >= _MOST_FOUND:
                self._found = {}
            self._found[ino] = parent, name

    def _read(self, ino: int) -> list[tuple[int, bytes]]:
        if self._parents is None:
            if (found := self._found.get(ino)) is not None:
                return [found]
            if ino == ROOT:
                return []
            self._parents, self._found = self._read_parents(), {}
        parents = dict.fromkeys(self._parents.of(ino))
        query = "SELECT name FROM dirent WHERE parent = ? AND ino = ? ORDER BY name"
        return [(parent, row[0]) for parent in parents for row in self._db.rows(query, (parent, ino))]

    def _read_parents(self) -> Parents:
        largest, count = self._db.row("SELECT max(ino), count(*) FROM node") or (ROOT, 1)
        names = self._db.rows("SELECT ino, parent FROM dirent")
        if count and largest > max(MANY, SPARSEST * count):
            raise self._db.damaged(ValueError(f"a node numbered {largest} of {count}"))
        try:
            return Parents(names, largest or ROOT)
        except (IndexError, TypeError, ValueError, OverflowError, MemoryError) as error:
            raise self._db.damaged(error) from error
