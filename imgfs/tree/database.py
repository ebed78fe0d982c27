"""A tree's file: the tables that `merge` writes and `reader` reads, their rules, and rows read by any thread.

SQLite is used under a lock, its errors turned into StoreError.
"""

from __future__ import annotations

import sqlite3
import threading
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import StoreError
from imgfs.layer.schema import TIME_RULE, unpack_time
from imgfs.layer.sqlite import LARGEST, Row, integers, open_database, typed

FORMAT = 4  # of the file; another number means: merge the layers again
PUBLISHED_FORMAT = 3  # of a published file: without an origin
ROOT = 1  # the ino of the root: FUSE's, too
STRIDE = 64  # every so many names of a directory, one is indexed by its position

# A layer's `space` is what its index says of its flat layer: extents count in that, and in no other.
#
# A node's bytes are extents of the flat layer number `layer`: one of all its `size` bytes at `flat`, or those
# packed in `extents`, or none. `target` and the two blobs come last: whatever their size, a row's attributes
# are on its first page.
#
# `dirent` is clustered by (parent, name): a lookup is one descent, and a directory's names lie side by side.
# `position` counts them from 1, in the order of their bytes: where a reader of a directory has got to. To go
# on from there takes the name at that position; `milestone` has one in STRIDE, so names are not stored twice.
SCHEMA = """
CREATE TABLE summary (format_number INTEGER, layers INTEGER, nodes INTEGER, size INTEGER, origin TEXT);
CREATE TABLE layer (number INTEGER PRIMARY KEY, space TEXT);
CREATE TABLE node (ino INTEGER PRIMARY KEY, mode INTEGER, uid INTEGER, gid INTEGER, size INTEGER,
                   mtime_ns INTEGER, nlink INTEGER, device INTEGER, blocks INTEGER, layer INTEGER,
                   flat INTEGER, extents BLOB, target BLOB, xattrs BLOB);
CREATE TABLE dirent (parent INTEGER, name BLOB, ino INTEGER, position INTEGER,
                     PRIMARY KEY (parent, name)) WITHOUT ROWID;
"""
# What holds for every row of a tree, an imported one too; see `first_invalid_table`.
RULES = {
    "summary": integers(0, LARGEST, "layers", "nodes", "size"),
    "layer": f"{typed('integer', 'number')} AND {typed('text', 'space')} AND "
    "number BETWEEN 0 AND (SELECT count(*) FROM layer) - 1 AND "
    "(SELECT layers FROM summary) = (SELECT count(*) FROM layer)",
    "node": f"{integers(0, 0xFFFF, 'mode')} AND (mode >> 12) IN (1, 2, 4, 6, 8, 10) AND ino > 0 AND "
    f"{integers(0, (1 << 32) - 1, 'uid', 'gid', 'nlink')} AND "
    f"{integers(0, LARGEST, 'size', 'device', 'blocks')} AND {TIME_RULE} AND "
    f"(flat IS NULL OR {integers(0, LARGEST, 'flat')}) AND "
    f"{typed('blob null', 'extents', 'target', 'xattrs')} AND (target IS NULL) = ((mode >> 12) != 10) AND "
    "(target IS NULL OR length(target) BETWEEN 1 AND 4095 AND length(target) = size AND "
    "instr(target, x'00') = 0) AND ((mode >> 12) = 8 OR flat IS NULL AND extents IS NULL) AND "
    f"{typed('integer', 'layer')} AND layer BETWEEN 0 AND max(0, (SELECT layers FROM summary) - 1)",
    "dirent": f"{typed('integer', 'parent', 'ino', 'position')} AND {typed('blob', 'name')} AND "
    "length(name) BETWEEN 1 AND 255 AND position > 0 AND instr(name, x'2f') = 0 AND instr(name, x'00') = 0 "
    "AND name NOT IN (x'2e', x'2e2e') AND ino IN (SELECT ino FROM node)",
}
MILESTONES = f"CREATE INDEX milestone ON dirent (parent, position) WHERE position % {STRIDE} = 0"
# Pages of the file that SQLite keeps. A private cache and no mmap: mapped pages would count as the daemon's
# memory too, without bound, and a failing disk would be a SIGBUS.
_CACHE_KIB = 16 * 1024
_SCAN_KIB = 64  # and of one that is read through once, whose pages are not asked for again
_BATCH = 128  # rows fetched at once: as many as one READDIRPLUS reply has room for

_DAMAGE = (sqlite3.DatabaseError, OverflowError, UnicodeDecodeError)  # what SQLite raises for a damaged file


NODE = "n.ino, n.mode, n.uid, n.gid, n.size, n.mtime_ns, n.nlink, n.device, n.blocks, n.xattrs IS NOT NULL"


class Attributes(NamedTuple):
    """What stat(2) says of a file. `mode` is a whole st_mode, `device` a dev_t.

    `blocks` of 512 bytes are no holes. `has_xattrs` is false where there are no extended attributes.
    """

    ino: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    nlink: int
    device: int
    blocks: int
    atime_ns: int
    ctime_ns: int
    has_xattrs: bool = True


class Node(Attributes):
    """A file of a tree. Layers keep no other times than that of the last modification."""

    __slots__ = ()


def node_of(row: Row) -> Node:
    """Return the node whose columns are `NODE`."""
    if isinstance(row[5], bytes):
        row = (*row[:5], unpack_time(row[5]), *row[6:])
    return Node._make((*row[:9], row[5], row[5], row[9] == 1))


class TreeDatabase:
    """The SQLite file at `path`, which never changes. Raises StoreError if it is damaged.

    Any thread may use it: SQLite, in its "serialized" mode, lets one thread at a time into the connection.
    """

    def __init__(self, path: Path) -> None:
        if sqlite3.threadsafety != 3:
            raise StoreError("this Python's SQLite is not built for use by several threads")
        self.path = path
        self._lock = threading.Lock()  # SQLite must not be closed under a query
        self._db = open_database(path)
        try:
            self._keep(_CACHE_KIB)
        except _DAMAGE as error:
            self._db.close()
            raise self.damaged(error) from error

    def rows(
        self, query: str, values: tuple[object, ...] | dict[str, int] = (), batch_size: int = _BATCH
    ) -> Iterator[Row]:
        """Yield the rows of a query; they are read `batch_size` at once, as the caller iterates."""
        try:
            with self._lock:
                cursor = self._db.execute(query, values)
            # The cursor is not closed: that might be after the database is.
            while batch := self._next(cursor, batch_size):
                yield from batch
        except _DAMAGE as error:
            raise self.damaged(error) from error

    def row(self, query: str, values: tuple[object, ...] = ()) -> Row | None:
        """Return the first row of a query, or None."""
        try:
            with self._lock:
                row: Row | None = self._db.execute(query, values).fetchone()
        except _DAMAGE as error:
            raise self.damaged(error) from error
        return row

    def scan(self, query: str, values: tuple[object, ...]) -> Row | None:
        """Return the first row of a query that reads much of the file: what it has read is not kept."""
        try:
            with self._lock:
                self._keep(_SCAN_KIB)
                try:
                    row: Row | None = self._db.execute(query, values).fetchone()
                finally:
                    self._keep(_CACHE_KIB)
        except _DAMAGE as error:
            raise self.damaged(error) from error
        return row

    def _keep(self, kib: int) -> None:
        self._db.execute(f"PRAGMA cache_size = -{kib}")

    def damaged(self, error: Exception) -> StoreError:
        """Return the error for a value that no tree has, described by `error`."""
        return StoreError(f"{self.path}: not a tree ({error}); remove it to merge the layers again")

    def close(self) -> None:
        """Close the file, once no other thread runs a query."""
        with self._lock:
            self._db.close()

    def _next(self, cursor: sqlite3.Cursor, count: int) -> list[Row]:
        with self._lock:
            return cursor.fetchmany(count)


class Parents:
    """The directories that a node has names in; `names` are (ino, ino of the directory) of each name.

    The file is clustered for lookups by directory. For the way up, all names are read once into an array with
    the directory of each node, of which no ino is greater than `largest`; only nodes with several names cost
    more.
    """

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
