"""A tree while layers are merged into it: names and nodes, in SQLite, so that memory is bounded.

Names are kept in a file of their own, unlinked as soon as it is open; `finish` copies them in order into the
tree's file, which so has no holes.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.layer.entry import Entry, Kind, kept_xattrs
from imgfs.layer.limits import FILE_LIMIT, MAJORS, MINORS, NO_OWNER, OWNERS, SECONDS, TARGET_LIMIT
from imgfs.layer.schema import pack_time, pack_xattrs, stored_extents
from imgfs.layer.sqlite import create_database, ensure_file, file_uri
from imgfs.tree.database import FORMAT, MILESTONES, ROOT, SCHEMA

# `d_type` of readdir(3): the file type bits of st_mode, shifted.
DIRECTORY = stat.S_IFDIR >> 12
SYMLINK = stat.S_IFLNK >> 12
CHARACTER = stat.S_IFCHR >> 12
_TYPES = {
    Kind.FILE: stat.S_IFREG >> 12,
    Kind.DIRECTORY: DIRECTORY,
    Kind.SYMLINK: SYMLINK,
    Kind.CHARACTER: CHARACTER,
    Kind.BLOCK: stat.S_IFBLK >> 12,
    Kind.FIFO: stat.S_IFIFO >> 12,
}
# A directory no layer describes: root's, open to all, of no date. Unpackers give it the date of unpacking;
# but a merge must give the same tree each time.
IMPLIED = Entry(b"", Kind.DIRECTORY, 0o755, 0, 0, 0, 0)

_CACHE_KIB = 16 * 1024  # of each of the two files
_BATCH, _WEIGHT = 100, 4 << 20  # nodes, and bytes of what they hold packed, until they are written
_KNOWN = 20_000  # paths
_KNOWN_LENGTH = 1024  # bytes of a path
_EARLIEST, _LATEST = -SECONDS * 1_000_000_000, SECONDS * 1_000_000_000  # nanoseconds

_WORK = """
CREATE TABLE work.name (parent INTEGER, name BLOB, ino INTEGER, type INTEGER,
                        PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE TABLE work.doomed (ino INTEGER PRIMARY KEY);
CREATE TABLE work.lost (ino INTEGER PRIMARY KEY, names INTEGER);
"""
# A directory's subtree: its directories first, then how often each other node is named there.
_DOOM = f"""
INSERT INTO work.doomed
  WITH RECURSIVE below (ino) AS (
    VALUES (?) UNION ALL
    SELECT name.ino FROM below CROSS JOIN work.name ON name.parent = below.ino WHERE name.type = {DIRECTORY})
  SELECT ino FROM below
"""
_COUNT_DOOMED = f"""
INSERT INTO work.lost
  SELECT name.ino, count(*) FROM work.doomed CROSS JOIN work.name ON name.parent = doomed.ino
  WHERE name.type <> {DIRECTORY} GROUP BY name.ino;
UPDATE node SET nlink = nlink - (SELECT names FROM work.lost WHERE lost.ino = node.ino)
  WHERE ino IN (SELECT ino FROM work.lost)"""
_DELETE_DOOMED = """
DELETE FROM node WHERE ino IN (SELECT ino FROM work.lost) AND nlink = 0;
DELETE FROM node WHERE ino IN (SELECT ino FROM work.doomed)"""
_FORGET_DOOMED = """
DELETE FROM work.name WHERE parent IN (SELECT ino FROM work.doomed);
DELETE FROM work.doomed;
DELETE FROM work.lost;
"""
_FINISH = f"""
INSERT INTO dirent SELECT parent, name, ino, row_number() OVER (PARTITION BY parent ORDER BY name)
  FROM work.name ORDER BY parent, name;
{MILESTONES};
UPDATE node SET nlink = nlink + below.directories
  FROM (SELECT parent, count(*) AS directories FROM work.name WHERE type = {DIRECTORY} GROUP BY parent)
    AS below
  WHERE below.parent = node.ino;
"""
_ADD_NAME = "INSERT OR IGNORE INTO work.name VALUES (?,?,?,?)"
_ADD_NODE = "INSERT INTO node VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_TOTALS = f"SELECT count(*), total(size) FROM node WHERE mode >> 12 = {stat.S_IFREG >> 12}"


class Dirent(NamedTuple):
    """The node that a name leads to: `d_ino` and `d_type` of readdir(3)."""

    ino: int
    type: int


class TreeBuilder:
    """A tree being merged, written to a new file at `path`; a tree only once `finish` has returned."""

    delete_doomed = _DELETE_DOOMED  # statements on the nodes of a directory that is removed

    def __init__(self, path: Path) -> None:
        self.db = create_database(path, SCHEMA)
        try:
            self.db.execute("COMMIT")
            self._attach_work(path.with_name(f"{path.name}.work"))
        except BaseException:
            self.db.close()
            raise
        self._names = self.db.cursor()
        self._rows: list[tuple[object, ...]] = []  # of the newest nodes, not in the file yet
        self._weight = 0  # of their blobs
        self.next_ino = ROOT
        self.layer = 0
        # Directories by path, symlinks followed. Emptied when a directory or symlink goes, and when full.
        self.known: dict[bytes, int] = {}
        self._add_node(IMPLIED, 0)

    def _attach_work(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # of a merge that was killed
        ensure_file(path)
        self.db.execute("ATTACH ? AS work", (file_uri(path),))
        for schema in ("main", "work"):
            self.db.execute(f"PRAGMA {schema}.cache_size = -{_CACHE_KIB}")
        self.db.execute("PRAGMA work.journal_mode = OFF")
        self.db.execute("PRAGMA work.synchronous = OFF")
        self.db.executescript(f"BEGIN; {_WORK}")
        path.unlink(missing_ok=True)  # a sweep may have been faster

    def begin_layer(self, number: int) -> None:
        """Note which layer is merged from now on, the lowest being 0."""
        self.layer = number

    def end_layer(self) -> None:
        """Note that all of the layer is merged."""

    def find(self, parent: int, name: bytes) -> Dirent | None:
        """Return the node that `name` leads to in the directory `parent`; None if it has no such name."""
        query = "SELECT ino, type FROM work.name WHERE parent = ? AND name = ?"
        row = self._names.execute(query, (parent, name)).fetchone()
        return None if row is None else Dirent._make(row)

    def target(self, ino: int) -> bytes:
        """Return a symlink's target."""
        target: bytes = self._node("SELECT target FROM node WHERE ino = ?", ino).fetchone()[0]
        return target

    def add(self, parent: int, name: bytes, entry: Entry, layer: int) -> bool:
        """Add a node with its name; False, and nothing done, if the name is taken."""
        values = (parent, name, self.next_ino, _TYPES[entry.kind])
        if not self._names.execute(_ADD_NAME, values).rowcount:
            return False
        self._add_node(entry, layer)
        return True

    def add_directory(self, parent: int, name: bytes, entry: Entry = IMPLIED) -> int:
        """Add a directory under a name that is free and return its ino."""
        self._names.execute(_ADD_NAME, (parent, name, self.next_ino, DIRECTORY))
        return self._add_node(entry, self.layer)

    def add_nameless(self, entry: Entry, layer: int) -> Dirent:
        """Add a node that has no name, only a pin: see `unpin`."""
        return Dirent(self._add_node(entry, layer), _TYPES[entry.kind])

    def describe(self, ino: int, entry: Entry) -> None:
        """Give a directory the attributes of an entry in place of its own."""
        _check(entry)
        query = "UPDATE node SET mode = ?, uid = ?, gid = ?, mtime_ns = ?, xattrs = ? WHERE ino = ?"
        mode = stat.S_IFDIR | entry.mode & 0o7777
        xattrs = pack_xattrs(kept_xattrs(entry.kind, entry.xattrs))
        self._node(
            query, ino, (mode, _owner(entry.uid), _owner(entry.gid), pack_time(entry.mtime_ns), xattrs)
        )

    def link(self, parent: int, name: bytes, found: Dirent) -> None:
        """Give a node a further name, in place of what has it."""
        taken = self.find(parent, name)
        if taken == found:
            return
        self.pin(found.ino)  # before the removal: it may be of a directory that holds the node's last name
        if taken:
            self.remove(parent, name, taken)
        self._names.execute(_ADD_NAME, (parent, name, *found))

    def remove(self, parent: int, name: bytes, found: Dirent) -> None:
        """Remove a name and what it leads to; a node that has other names stays."""
        self.db.execute("DELETE FROM work.name WHERE parent = ? AND name = ?", (parent, name))
        ino, kind = found
        if kind in (DIRECTORY, SYMLINK):
            self.known.clear()
        if kind == DIRECTORY:
            self.flush()
            self.db.execute(_DOOM, (ino,))
            self.run(";".join((_COUNT_DOOMED, self.delete_doomed, _FORGET_DOOMED)))
        else:
            self.unpin(ino)

    def remember(self, path: bytes, ino: int) -> None:
        """Note that the clean `path` leads to the directory `ino`."""
        if len(path) <= _KNOWN_LENGTH:
            if len(self.known) >= _KNOWN:
                self.known.clear()
            self.known[path] = ino

    def finish(self, spaces: Sequence[str]) -> None:
        """Complete the tree; `spaces` are those of its flat layers (`layer.index.Summary`)."""
        self.flush()
        self.run(_FINISH)
        nodes = self.db.execute("SELECT count(*) FROM node").fetchone()[0]
        size = self.db.execute(_TOTALS).fetchone()[1]
        row = (FORMAT, len(spaces), nodes, min(int(size), (1 << 63) - 1))
        self.db.execute("INSERT INTO summary VALUES (?,?,?,?,'')", row)
        self.db.executemany("INSERT INTO layer VALUES (?,?)", enumerate(spaces))
        self.db.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._names.close()
        self.db.close()

    def run(self, script: str) -> None:
        """Run statements inside the transaction; `executescript` would commit it first."""
        for statement in script.split(";"):
            self.db.execute(statement)

    def _add_node(self, entry: Entry, layer: int) -> int:
        ino = self.next_ino
        row = _row(ino, entry, layer)
        self._rows.append(row)
        for packed in row[-3:]:
            if isinstance(packed, bytes):
                self._weight += len(packed)
        self.next_ino += 1
        if len(self._rows) >= _BATCH or self._weight >= _WEIGHT:
            self.flush()
        return ino

    def flush(self) -> None:
        """Write the newest nodes to the file."""
        self.db.executemany(_ADD_NODE, self._rows)
        self._rows.clear()
        self._weight = 0

    def _node(self, query: str, ino: int, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        """Run a query about one node, whose ino is its last parameter."""
        if ino >= self.next_ino - len(self._rows):
            self.flush()
        return self.db.execute(query, (*values, ino))

    def pin(self, ino: int) -> None:
        """Keep a node as if it had one name more."""
        self._node("UPDATE node SET nlink = nlink + 1 WHERE ino = ?", ino)

    def unpin(self, ino: int) -> None:
        """Count one name less; without names a node goes."""
        if self._node("DELETE FROM node WHERE nlink = 1 AND ino = ?", ino).rowcount == 0:
            self._node("UPDATE node SET nlink = nlink - 1 WHERE ino = ?", ino)


def _row(ino: int, entry: Entry, layer: int) -> tuple[object, ...]:
    """Return a node's row. A directory's nlink is 2 here; `finish` adds its subdirectories."""
    _check(entry)
    _, kind, mode, uid, gid, size, mtime_ns, target, device, xattrs, extents = entry
    permissions = 0o777 if kind is Kind.SYMLINK else mode & 0o7777  # Linux has no others for it: symlink(7)
    head = (ino, _TYPES[kind] << 12 | permissions, _owner(uid), _owner(gid))
    packed = pack_xattrs(kept_xattrs(kind, xattrs)) if xattrs else None
    mtime = pack_time(mtime_ns)
    if kind is Kind.FILE:
        flat, more = stored_extents(entry)
        stored = size if flat is not None else sum(extent.length for extent in extents)
        return (*head, size, mtime, 1, 0, -(-stored // 512), layer, flat, more, None, packed)
    if kind is Kind.SYMLINK:
        return (*head, len(target), mtime, 1, 0, 0, layer, None, None, target, packed)
    nlink = 2 if kind is Kind.DIRECTORY else 1
    number = os.makedev(*device) if kind in (Kind.CHARACTER, Kind.BLOCK) else 0
    return (*head, 0, mtime, nlink, number, 0, layer, None, None, None, packed)


def _owner(number: int) -> int:
    """Return an owner or group as the kernel can show it: it has none with the number -1 (`INVALID_UID`)."""
    return 0 if number == NO_OWNER else number


def _check(entry: Entry) -> None:
    """Raise InvalidImage for a value that Linux or a driver cannot hold: the table in `layer.limits`."""
    if not (0 <= entry.uid < OWNERS and 0 <= entry.gid < OWNERS):
        raise InvalidImage(f"owner {entry.uid}:{entry.gid} is beyond the 32 bits that Linux has")
    if not 0 <= entry.size <= FILE_LIMIT:
        raise InvalidImage(f"a size of {entry.size} bytes is out of range: a file has {FILE_LIMIT} at most")
    check_time(entry.mtime_ns)
    if entry.kind is Kind.SYMLINK:
        _check_target(entry.target)
    if entry.kind in (Kind.CHARACTER, Kind.BLOCK):
        major, minor = entry.device
        if not (0 <= major < MAJORS and 0 <= minor < MINORS):
            raise InvalidImage(f"device {major}:{minor} is beyond the 12:20 bits that Linux has")


def check_time(mtime_ns: int) -> None:
    """Raise InvalidImage for a time that no inode can have."""
    if not _EARLIEST <= mtime_ns < _LATEST:
        raise InvalidImage("a modification time is beyond the 64 bits of seconds that Linux has")


def _check_target(target: bytes) -> None:
    if not target or b"\0" in target:
        raise InvalidImage("a symlink's target is empty or contains a NUL byte")  # as symlink(2) has it
    if len(target) > TARGET_LIMIT:
        raise InvalidImage(f"a symlink's target of {len(target)} bytes is longer than {TARGET_LIMIT}")
