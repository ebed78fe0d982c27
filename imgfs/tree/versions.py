"""Layers merged so that what upper layers hide stays in the file: every version of every file.

The file is a tree as any other, whose `Tree` shows what the image shows; files that no name leads to any more
(`nlink` 0) keep their rows. The table `hidden` has each name that a layer has removed or replaced: by which
layer, and whether the path leads to something else since. Versions that a layer hides itself, by two entries
of one path, are there, too.

Paths are those of real directories: a name that a layer reached by a symlink is listed where it was.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from imgfs.layer.index import LayerIndex
from imgfs.layer.limits import PATH_LIMIT
from imgfs.tree.builder import DIRECTORY, Dirent, TreeBuilder
from imgfs.tree.database import NODE, ROOT, Node, node_of
from imgfs.tree.merge import merge_by
from imgfs.tree.paths import Budget
from imgfs.tree.reader import Tree

_LONGEST = PATH_LIMIT  # bytes of a path that is listed: symlinks of layers can make longer ones
_BATCH = 1000
_KNOWN, _KNOWN_LENGTH = 20_000, 1024  # directories whose paths are at hand, and the bytes of such a path
_PAGE = 4096  # bytes, SQLite's default
_ROOM_EACH, _ROOM_MORE = 1 << 10, 1 << 30  # bytes of the file for each node, and for any image

_SCHEMA = f"""
CREATE TABLE hidden (seq INTEGER PRIMARY KEY, ino INTEGER, path BLOB, hider INTEGER, is_replaced INTEGER);
CREATE INDEX work.up ON name (ino) WHERE type = {DIRECTORY}
"""
_KEEP_DOOMED = "UPDATE node SET nlink = 0 WHERE ino IN (SELECT ino FROM work.doomed)"
_HIDE = f"""
INSERT INTO hidden (ino, path, hider, is_replaced)
  WITH RECURSIVE below (ino, type, path) AS (
    VALUES (?, ?, ?) UNION ALL
    SELECT name.ino, name.type, CAST(below.path || '/' || name.name AS BLOB)
      FROM below CROSS JOIN work.name ON name.parent = below.ino
      WHERE below.type = {DIRECTORY} AND length(below.path) + length(name.name) < {_LONGEST})
  SELECT ino, path, ?, 0 FROM below
"""
_NAME_OF = f"SELECT parent, name FROM work.name WHERE ino = ? AND type = {DIRECTORY}"
_NEXT = f"SELECT seq, path FROM hidden WHERE seq > ? AND hider = ? ORDER BY seq LIMIT {_BATCH}"
_INDEXES = "CREATE INDEX by_path ON hidden (path); CREATE INDEX by_ino ON hidden (ino)"
# Bytes of a file that its layer has: less than its size where that has holes.
STORED = "min(n.size, n.blocks * 512)"
_IS_FILE = f"n.mode >> 12 = {stat.S_IFREG >> 12}"
_LOST = f"""
FROM node n JOIN (SELECT ino, max(seq) AS seq FROM hidden GROUP BY ino) AS last ON last.ino = n.ino
  JOIN hidden h ON h.seq = last.seq WHERE n.nlink = 0 AND {_IS_FILE}
"""


class HiddenFile(NamedTuple):
    """A version of a file that does not show: the layer `hider`, from 1, deletes or replaces its name."""

    path: bytes
    node: Node
    hider: int
    is_replaced: bool


class Lost(NamedTuple):
    """A file whose bytes a layer stores for nothing: `layer` brought it, `hider` hides it, both from 1."""

    path: bytes
    size: int  # bytes stored
    layer: int
    hider: int
    is_replaced: bool


class LostSum(NamedTuple):
    """Files of one layer that another one hides, and their bytes."""

    layer: int
    hider: int
    is_replaced: bool
    files: int
    size: int


def merge_versions(layers: Iterable[LayerIndex], path: Path) -> None:
    """Merge layers, the lowest first, into a tree of all versions at `path`. Raises as `merge.merge`."""
    merge_by(VersionsBuilder, layers, path)


class VersionsBuilder(TreeBuilder):
    """Builds a tree of all versions: see `merge_versions`."""

    delete_doomed = _KEEP_DOOMED

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.run(_SCHEMA)
        self._first = 0  # row of `hidden` that this layer may have made
        self._paths: dict[int, bytes] = {ROOT: b""}
        self._budget = Budget()

    def begin_layer(self, number: int) -> None:
        """Note which layer hides files from now on."""
        super().begin_layer(number)
        self._limit_file()
        self._first = self.db.execute("SELECT coalesce(max(seq), 0) FROM hidden").fetchone()[0]

    def end_layer(self) -> None:
        """Mark what the layer has replaced."""
        self._limit_file()
        known: dict[bytes, int | None] = {}
        after = self._first
        while rows := self.db.execute(_NEXT, (after, self.layer)).fetchall():
            after = rows[-1][0]
            replaced = [(seq,) for seq, path in rows if self._leads_somewhere(path, known)]
            self.db.executemany("UPDATE hidden SET is_replaced = 1 WHERE seq = ?", replaced)

    def _limit_file(self) -> None:
        """Let the file grow by what is hidden no more than its nodes do: paths can be long."""
        pages = (_ROOM_MORE + _ROOM_EACH * self.next_ino) // _PAGE
        self.db.execute(f"PRAGMA main.max_page_count = {pages}")

    def remove(self, parent: int, name: bytes, found: Dirent) -> None:
        """Remove a name, after what it leads to, and all below that, is listed as hidden."""
        self._budget.add_entry()
        above = self._path(parent)
        if above is not None and len(above) + len(name) < _LONGEST:
            self.db.execute(_HIDE, (found.ino, found.type, above + b"/" + name, self.layer))
        super().remove(parent, name, found)

    def unpin(self, ino: int) -> None:
        """Count one name less; a node without names stays."""
        self.flush()
        self.db.execute("UPDATE node SET nlink = nlink - 1 WHERE ino = ?", (ino,))

    def finish(self, spaces: Sequence[str]) -> None:
        """Complete the tree."""
        self.run(_INDEXES)
        super().finish(spaces)

    def _path(self, ino: int) -> bytes | None:
        """Return the path of a directory: it has one name, and no other one ever; None if it is too long."""
        names: list[bytes] = []
        at, length = ino, 0
        while at not in self._paths:
            at, name = self.db.execute(_NAME_OF, (at,)).fetchone()
            names.append(name)
            length += len(name) + 1
            self._budget.look_up(1)
            if length > _LONGEST:
                return None
        path = b"/".join([self._paths[at], *reversed(names)])
        if len(path) <= _KNOWN_LENGTH:
            if len(self._paths) > _KNOWN:
                self._paths = {ROOT: b""}
            self._paths[ino] = path
        return path

    def _leads_somewhere(self, path: bytes, known: dict[bytes, int | None]) -> bool:
        """Return True if a path leads to anything now, without following symlinks."""
        self._budget.add_entry()
        directory, _, name = path.rpartition(b"/")
        if directory not in known:
            if len(known) > _KNOWN or len(directory) > _KNOWN_LENGTH:
                known.clear()
            known[directory] = self._directory(directory.split(b"/")[1:])
        parent = known[directory]
        return parent is not None and self.find(parent, name) is not None

    def _directory(self, parts: list[bytes]) -> int | None:
        """Return the directory that a path leads to without symlinks, or None."""
        self._budget.look_up(len(parts))
        at = ROOT
        for name in parts:
            found = self.find(at, name)
            if found is None or found.type != DIRECTORY:
                return None
            at = found.ino
        return at


class VersionsTree(Tree):
    """The tree that `merge_versions` has written."""

    def __enter__(self) -> VersionsTree:
        return self

    def hidden(self) -> Iterator[HiddenFile]:
        """Yield all names that a layer hides, by their paths; of one path the latest version first."""
        query = f"SELECT {NODE}, h.path, h.hider, h.is_replaced FROM hidden h JOIN node n ON n.ino = h.ino"
        for row in self._db.rows(f"{query} ORDER BY h.path, h.seq DESC"):
            path, hider, is_replaced = row[10:]
            yield HiddenFile(path, node_of(row[:10]), hider + 1, bool(is_replaced))

    def stored(self) -> int:
        """Return the bytes that all layers store of files."""
        row = next(self._db.rows(f"SELECT total({STORED}) FROM node n WHERE {_IS_FILE}"))
        return int(row[0])

    def lost(self, most: int) -> Iterator[Lost]:
        """Yield the largest files whose bytes are stored for nothing; `most` of them."""
        query = f"SELECT h.path, {STORED} AS stored, n.layer, h.hider, h.is_replaced {_LOST}"
        for path, size, layer, hider, is_replaced in self._db.rows(
            f"{query} AND stored > 0 ORDER BY stored DESC, h.path LIMIT ?", (most,)
        ):
            yield Lost(path, size, layer + 1, hider + 1, bool(is_replaced))

    def lost_sums(self) -> list[LostSum]:
        """Return the sums of what is stored for nothing, by the layers that brought it and that hide it."""
        query = f"SELECT n.layer, h.hider, h.is_replaced, count(*), total({STORED}) {_LOST}"
        rows = self._db.rows(f"{query} GROUP BY n.layer, h.hider, h.is_replaced ORDER BY 2, 1, 3")
        return [LostSum(row[0] + 1, row[1] + 1, bool(row[2]), row[3], int(row[4])) for row in rows]

    def of_same_size(self) -> Iterator[tuple[int, Iterator[int]]]:
        """Yield sizes that several files that show have, the largest first, each with those files' inos."""
        query = (
            f"SELECT n.size, n.ino FROM node n WHERE n.nlink > 0 AND n.size > 0 AND {_IS_FILE} AND n.size IN "
            f"(SELECT size FROM node n WHERE nlink > 0 AND {_IS_FILE} GROUP BY size HAVING count(*) > 1) "
            "ORDER BY n.size DESC, n.layer, n.ino"
        )
        for size, rows in groupby(self._db.rows(query), itemgetter(0)):
            yield size, (row[1] for row in rows)

    def hidden_below(self, path: bytes, hider: int) -> int:
        """Return the bytes of the files below a directory that the layer `hider`, from 1, has removed."""
        query = (
            f"SELECT total(size) FROM (SELECT DISTINCT n.ino, n.size FROM hidden h JOIN node n USING (ino) "
            f"WHERE h.path > ? AND h.path < ? AND h.hider = ? AND {_IS_FILE})"
        )
        return int(next(self._db.rows(query, (path + b"/", path + b"0", hider - 1)))[0])
