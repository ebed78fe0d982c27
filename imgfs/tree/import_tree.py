"""Import a tree that was merged elsewhere, if it is one that a merge could have made; export one.

The file is rewritten row by row first (`layer.sqlite`), so the checks here read sound b-trees, and cost what
the file's size allows. Link counts, blocks and totals are computed again.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

from imgfs.errors import InvalidImage, StoreError
from imgfs.layer.entry import KIND_OF, Extent, Kind, kept_xattrs
from imgfs.layer.limits import MAJORS, MINORS, PATH_LIMIT
from imgfs.layer.schema import unpack_extents, unpack_time, unpack_xattrs
from imgfs.layer.sqlite import (
    DatabaseForm,
    file_uri,
    note_import,
    open_database,
    rewrite_database,
    set_format,
)
from imgfs.owned.writing import explained
from imgfs.tree.builder import check_time
from imgfs.tree.database import FORMAT, MILESTONES, PUBLISHED_FORMAT, ROOT, RULES, SCHEMA
from imgfs.tree.names import MANY, SPARSEST
from imgfs.tree.reader import Tree

_FORM = DatabaseForm("a tree", SCHEMA, f"{MILESTONES};", RULES)
_DIRECTORY, _CHARACTER, _BLOCK = stat.S_IFDIR >> 12, stat.S_IFCHR >> 12, stat.S_IFBLK >> 12
# `named` are the nodes of several names, which are few; the rules see to it that each name is that of a node.
_NAMED = """
CREATE TEMP TABLE named (ino INTEGER PRIMARY KEY, names INTEGER);
INSERT INTO named SELECT ino, count(*) FROM dirent GROUP BY ino HAVING count(*) > 1;
CREATE TEMP TABLE parent (ino INTEGER PRIMARY KEY, directories INTEGER);
INSERT INTO parent SELECT d.parent, sum(n.mode >> 12 = 4) FROM dirent d JOIN node n ON n.ino = d.ino
  GROUP BY d.parent;
"""
# Faults of a tree, each with a query that is true if it has it.
_FAULTS = {
    "more than one summary": "SELECT count(*) <> 1 FROM summary",
    "no root": f"SELECT count(*) = 0 FROM node WHERE ino = {ROOT} AND mode >> 12 = {_DIRECTORY}",
    "numbers of nodes too far apart": f"SELECT max(ino) > max({MANY}, {SPARSEST} * count(*)) FROM node",
    "a name for the root": f"SELECT EXISTS (SELECT 1 FROM dirent WHERE ino = {ROOT})",
    "a node without a name": "SELECT (SELECT count(*) FROM node) <> "
    "(SELECT count(*) FROM dirent) - (SELECT coalesce(sum(names - 1), 0) FROM named) + 1",
    "a directory of several names": "SELECT EXISTS (SELECT 1 FROM named JOIN node USING (ino) "
    f"WHERE mode >> 12 = {_DIRECTORY})",
    "names in what is not a directory": "SELECT EXISTS (SELECT 1 FROM parent LEFT JOIN node USING (ino) "
    f"WHERE coalesce(mode >> 12, 0) <> {_DIRECTORY})",
}
_DISORDER = (
    "SELECT EXISTS (SELECT 1 FROM (SELECT position, "
    "row_number() OVER (PARTITION BY parent ORDER BY name) AS right FROM dirent) WHERE position <> right)"
)
# Every directory but the root has one name, so this ends, and what goes in circles is not among them.
_REACHED = f"""
WITH RECURSIVE below (ino, length) AS (
  VALUES ({ROOT}, 0) UNION ALL
  SELECT d.ino, below.length + 1 + length(d.name) FROM below CROSS JOIN dirent d ON d.parent = below.ino
    CROSS JOIN node n ON n.ino = d.ino WHERE n.mode >> 12 = {_DIRECTORY})
SELECT count(*), max(length) FROM below
"""
_DIRECTORIES = f"SELECT count(*) FROM node WHERE mode >> 12 = {_DIRECTORY}"
_BELOW = "coalesce((SELECT directories FROM parent WHERE parent.ino = node.ino), 0)"
_NAMES = "coalesce((SELECT names FROM named WHERE named.ino = node.ino), 1)"
_COUNTED = f"""
UPDATE node SET nlink = 2 + {_BELOW} WHERE mode >> 12 = {_DIRECTORY} AND nlink <> 2 + {_BELOW};
UPDATE node SET nlink = {_NAMES} WHERE mode >> 12 <> {_DIRECTORY} AND nlink <> {_NAMES};
UPDATE summary SET nodes = (SELECT count(*) FROM node),
  size = (SELECT min(total(size), 9223372036854774784.0) FROM node WHERE mode >> 12 = 8);
UPDATE summary SET size = CAST(size AS INTEGER);
"""
_ODD = f"""
SELECT ino, mode, size, mtime_ns, device, extents, xattrs FROM node
WHERE extents IS NOT NULL OR xattrs IS NOT NULL OR typeof(mtime_ns) = 'blob'
  OR mode >> 12 IN ({_CHARACTER}, {_BLOCK})
"""


def import_tree(path: Path, origin: str) -> None:
    """Rewrite a tree made elsewhere, check it, and record its `origin` (`layer.origin`).

    Raises InvalidImage if the file is no such tree, or costs more than its size allows; StoreError.
    """
    _rewrite(path)
    note_import(path, origin, FORMAT, before=PUBLISHED_FORMAT)
    try:
        Tree(path).close()
    except StoreError as error:
        raise InvalidImage("not a tree of this format", where=str(path)) from error


def export_tree(path: Path, copy: Path) -> None:
    """Copy a verified tree to be published, of unknown origin; StoreError for one not verified here."""
    with Tree(path) as tree:
        if tree.origin:
            raise StoreError(f"{path}: the tree is another's; it is not published")
    shutil.copyfile(path, copy)
    set_format(copy, PUBLISHED_FORMAT, before=FORMAT)


def _rewrite(path: Path) -> None:
    """Rewrite the file and check all its rows; raises InvalidImage, StoreError."""
    with closing(_Shape()) as shape:
        try:
            rewrite_database(path, _FORM, (shape.check, _check_order))  # SQLite runs without Python's lock
            with closing(open_database(path)) as db:
                for row in db.execute(_ODD):
                    _check_node(row)
            shape.count()
        except InvalidImage as error:
            if error.where:
                raise
            raise InvalidImage(f"a tree with rows that make no sense: {error}", where=str(path)) from error
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {explained(error, path)}") from error


def _check_order(path: Path) -> None:
    """Raise InvalidImage for a name out of its order."""
    with closing(open_database(path)) as db:
        if db.execute(_DISORDER).fetchone()[0]:
            raise InvalidImage("dirent: names that are not counted in their order")


class _Shape:
    """What the names make of the nodes: checked, and counted once all rows are known to be right."""

    def __init__(self) -> None:
        self._db: sqlite3.Connection | None = None

    def check(self, path: Path) -> None:
        """Raise InvalidImage unless the names make a tree of the nodes; changes nothing."""
        self._db = sqlite3.connect(file_uri(path), uri=True, isolation_level=None, check_same_thread=False)
        self._db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
        self._db.executescript(_NAMED)
        for fault, query in _FAULTS.items():
            if self._db.execute(query).fetchone()[0]:
                raise InvalidImage(f"dirent: {fault}")
        reached, length = self._db.execute(_REACHED).fetchone()
        if reached != self._db.execute(_DIRECTORIES).fetchone()[0]:
            raise InvalidImage("dirent: directories that go in circles")
        if length - 1 > PATH_LIMIT:
            raise InvalidImage(f"dirent: a path longer than {PATH_LIMIT} bytes")

    def count(self) -> None:
        """Write link counts and totals into what has been checked."""
        assert self._db is not None
        self._db.executescript(_COUNTED)

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._db:
            self._db.close()


def _check_node(row: tuple[int, int, int, int | bytes, int, bytes | None, bytes | None]) -> None:
    """Raise InvalidImage for a row of _ODD that a merge would have refused, or left out (`layer.limits`)."""
    ino, mode, size, mtime, device, extents, xattrs = row
    kind = KIND_OF[stat.S_IFMT(mode)]
    check_time(unpack_time(mtime))
    found = unpack_xattrs(xattrs)
    if kept_xattrs(kind, found) != found:
        raise InvalidImage(f"node: attributes of {ino} that Linux cannot keep")
    if kind in (Kind.CHARACTER, Kind.BLOCK):
        major, minor = os.major(device), os.minor(device)
        if major >= MAJORS or minor >= MINORS or (kind is Kind.CHARACTER and not device):
            raise InvalidImage(f"node: {ino} is the device {major}:{minor}")
    try:
        _check_extents(ino, size, unpack_extents(extents or b""))
    except ValueError as error:
        raise InvalidImage(f"node: {ino} has {error}") from error


def _check_extents(ino: int, size: int, extents: tuple[Extent, ...]) -> None:
    at = 0
    for offset, length, _ in extents:
        if offset < at or length < 1 or offset + length > size:
            raise InvalidImage(f"node: the extents of {ino} overlap or leave it")
        at = offset + length
