"""Reading a merged tree: what a file system asks, each answer one SQLite query of a few microseconds."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

from imgfs.errors import StoreError
from imgfs.layer.entry import Extent
from imgfs.layer.origin import UNKNOWN_ORIGIN
from imgfs.layer.rows import (
    open_database,
    unpack_extents,
    unpack_time,
    unpack_xattrs,
)
from imgfs.tree.parents import Parents
from imgfs.tree.paths import LINK_LIMIT
from imgfs.tree.schema import FORMAT, PUBLISHED_FORMAT, ROOT, STRIDE

# Pages of the file that SQLite keeps. A private cache and no mmap: mapped pages would count as the daemon's
# memory too, without bound, and a failing disk would be a SIGBUS.
_CACHE_KIB = 16 * 1024

_SPARSEST = 1000  # numbers for each node, at the most, where there are more than
_MANY = 1 << 24  # numbers

_BATCH = 128  # rows taken at once: as many as one reply of a directory's listing has room for
_FEW = 16  # rows with all that they hold: a sparse file's extents may be megabytes
_DEPTH = 4096  # directories in a path shown: a tree of someone else's may be no tree

_DAMAGE = (sqlite3.DatabaseError, OverflowError, UnicodeDecodeError)  # what SQLite says of it

_NODE = (
    """n.ino, n.mode, n.uid, n.gid, n.size, n.mtime_ns, n.nlink, n.device, n.blocks, n.xattrs IS NOT NULL"""
)
_BY_INO = f"SELECT {_NODE} FROM node n WHERE n.ino = ?"
_JOIN = "FROM dirent d CROSS JOIN node n ON n.ino = d.ino"
_BY_NAME = f"SELECT {_NODE} {_JOIN} WHERE d.parent = ? AND d.name = ?"
_CHILDREN = f"""
SELECT d.position, d.name, {_NODE} {_JOIN}
WHERE d.parent = :parent AND d.position > :after AND d.name >= coalesce(
  (SELECT name FROM dirent INDEXED BY milestone WHERE parent = :parent AND position <= :after
   AND position % {STRIDE} = 0 ORDER BY position DESC LIMIT 1), x'')
ORDER BY d.name
"""
_A_NAME = "SELECT parent, name FROM dirent WHERE ino = ? LIMIT 1"  # looks through all of them
_FILES = f"SELECT n.ino, n.mode, n.layer, n.size, n.flat, n.extents {_JOIN} WHERE d.parent = ? AND d.name > ?"


class Node(NamedTuple):
    """A file of the tree. `mode` is a whole st_mode, `device` a dev_t; `blocks` of 512 bytes are no holes."""

    ino: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    nlink: int
    device: int
    blocks: int
    has_xattrs: bool

    @property
    def atime_ns(self) -> int:
        """Layers keep no access time."""
        return self.mtime_ns

    @property
    def ctime_ns(self) -> int:
        """Nor a change time."""
        return self.mtime_ns


class Stored(NamedTuple):
    """A node with all there is of it: see `Tree.extents`, `Tree.target` and `Tree.xattrs`."""

    node: Node
    layer: int
    extents: tuple[Extent, ...]
    target: bytes | None
    xattrs: dict[bytes, bytes]


class Tree(AbstractContextManager["Tree"]):
    """The tree in the file at `path`: a context manager. Raises StoreError if it is none of this format.

    Any thread may use it: nothing is kept between calls, and SQLite, in its "serialized" mode, lets one
    thread at a time into the connection. A damaged file raises StoreError. `origin` is who
    vouches for it (`layer.origin`), "" if all that it was merged from is verified.
    """

    def __init__(self, path: Path) -> None:
        if sqlite3.threadsafety != 3:
            raise StoreError("this Python's SQLite is not built for use by several threads")
        self._path = path
        self._lock = threading.Lock()  # SQLite must not be closed under a query
        self._db = open_database(path)
        self._parents: Parents | None = None
        try:
            self.layer_count, self.node_count, self.total_size, self.origin = self._summary()
        except StoreError:
            self._db.close()
            raise
        self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")

    def spaces(self) -> list[str]:
        """What its extents count in, for each layer: the `space` of the index that was merged."""
        return [row[0] for row in self._rows("SELECT space FROM layer ORDER BY number", ())]

    def node(self, ino: int) -> Node | None:
        """The node with that ino; the root's is 1."""
        row = self._row(_BY_INO, (ino,))
        return _node(row) if row else None

    def lookup(self, parent: int, name: bytes) -> Node | None:
        """The node that `name` leads to in the directory `parent`."""
        row = self._row(_BY_NAME, (parent, name))
        return _node(row) if row else None

    def children(self, parent: int, after: int = 0) -> Iterator[tuple[int, bytes, Node]]:
        """(position, name, node) of a directory's children behind the position `after`, ordered by name.

        Positions count from 1. `.` and `..` are not among them. The further one iterates, the more is read.
        """
        for row in self._rows(_CHILDREN, {"parent": parent, "after": after}):
            yield row[0], row[1], _node(row[2:])

    def target(self, ino: int) -> bytes:
        """A symlink's target; raises OSError: EINVAL if it is none, ENOENT."""
        target: bytes | None = self._stored("target", ino)[0]
        if target is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return target

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """The extended attributes, by name with its prefix (`user.…`); raises OSError: ENOENT."""
        packed = self._stored("xattrs", ino)[0]
        try:
            return unpack_xattrs(packed)
        except TypeError as error:
            raise self._damaged(error) from error

    def extents(self, ino: int) -> tuple[int, tuple[Extent, ...]]:
        """(layer, extents in its flat layer), the lowest layer being 0; raises OSError: ENOENT.

        The extents are in order and do not overlap; what they leave out of the file's size is a hole.
        """
        return self.contents(ino)[:2]

    def contents(self, ino: int) -> tuple[int, tuple[Extent, ...], int]:
        """(layer, extents, size in bytes): see `extents`."""
        layer, size, flat, packed = self._stored("layer, size, flat, extents", ino)
        if layer not in range(max(1, self.layer_count)):
            raise self._damaged(ValueError(f"layer {layer} of {self.layer_count}"))
        try:
            if flat is not None:
                return layer, (Extent(0, index(size), index(flat)),), size
            return layer, self._unpacked(packed) if packed else (), index(size)
        except TypeError as error:  # to SQLite a column's type is a wish
            raise self._damaged(error) from error

    def nodes(self) -> Iterator[Stored]:
        """Every node, ordered by ino."""
        query = f"SELECT {_NODE}, n.layer, n.flat, n.extents, n.target, n.xattrs FROM node n ORDER BY n.ino"
        for row in self._rows(query, (), _FEW):
            node, (layer, flat, packed, target, xattrs) = _node(row[:10]), row[10:]
            extents = (Extent(0, node.size, flat),) if flat is not None else self._unpacked(packed or b"")
            yield Stored(node, layer, extents, target, unpack_xattrs(xattrs))

    def file_at(self, layer: int, flat: int) -> int | None:
        """The ino of a file whose bytes in one piece hold the one at `flat` of a layer: reads all nodes."""
        query = "SELECT ino FROM node WHERE layer = ? AND flat <= ? AND flat + size > ?"
        row = self._row(query, (layer, flat, flat))
        return row[0] if row else None

    def placed(self) -> Iterator[tuple[int, int, int]]:
        """(layer, where it begins there, ino) of every file whose bytes are in one piece, ordered by ino."""
        return self._rows("SELECT layer, flat, ino FROM node WHERE flat >= 0 AND size > 0 ORDER BY ino", ())

    def dirents(self) -> Iterator[tuple[int, bytes, int]]:
        """(directory, name, ino) of every name, ordered by directory and name."""
        return self._rows("SELECT parent, name, ino FROM dirent ORDER BY parent, name", ())

    def files_after(self, ino: int) -> Iterator[tuple[int, tuple[Extent, ...]]]:
        """(layer, extents) of the regular files behind a node's first name, as depth-first readers meet them.

        Directories are entered where they are listed. The further one iterates, the more is read.
        """
        listings: list[Iterator[tuple[Any, ...]]] = []
        while (found := self._row(_A_NAME, (ino,))) and len(listings) < _DEPTH:
            listings.insert(0, self._rows(_FILES, found))
            ino = found[0]
        for _ in range(self.node_count):  # of someone else's tree there might be no end
            while listings and (row := next(listings[-1], None)) is None:
                listings.pop()
            if not listings or row is None:
                return
            ino, mode, layer, size, flat, packed = row
            if stat.S_ISDIR(mode) and len(listings) < _DEPTH:
                listings.append(self._rows(_FILES, (ino, b"")))
            elif flat is not None:
                yield layer, (Extent(0, size, flat),)
            elif packed:
                yield layer, self._unpacked(packed)

    def names(self, ino: int) -> list[tuple[int, bytes]]:
        """(directory, name) of every name of a node; the root has none. The first call reads all names."""
        if self._parents is None:
            self._parents = self._read_parents()
        parents = dict.fromkeys(self._parents.of(ino))
        query = "SELECT name FROM dirent WHERE parent = ? AND ino = ? ORDER BY name"
        return [(parent, row[0]) for parent in parents for row in self._rows(query, (parent, ino))]

    def path(self, ino: int) -> bytes:
        """A path that leads to a node, from the root."""
        parts: list[bytes] = []
        while (names := self.names(ino)) and len(parts) < _DEPTH:
            ino, name = names[0]
            parts.append(name)
        return b"/".join(reversed(parts))

    def resolve(self, path: bytes, *, follow: bool = True) -> Node:
        """The node at `path`, taken from the root, with symlinks resolved inside the tree.

        Without `follow` a symlink at its very end is given itself. Raises OSError: ENOENT, ENOTDIR, ELOOP.
        """
        root = self._at(ROOT)
        nodes, ahead, links = [root], path.split(b"/")[::-1], 0
        while ahead:
            name = ahead.pop()
            if not stat.S_ISDIR(nodes[-1].mode):
                raise _error(errno.ENOTDIR, path)
            if name in (b"", b".", b".."):
                del nodes[max(1, len(nodes) - (name == b"..")) :]
                continue
            found = self.lookup(nodes[-1].ino, name)
            if found is None:
                raise _error(errno.ENOENT, path)
            if not stat.S_ISLNK(found.mode) or not (ahead or follow):
                nodes.append(found)
                continue
            links += 1
            if links > LINK_LIMIT:
                raise _error(errno.ELOOP, path)
            target = self.target(found.ino)
            nodes = [root] if target.startswith(b"/") else nodes
            ahead.extend(reversed(target.split(b"/")))
        return nodes[-1]

    def close(self) -> None:
        """Close the file, once no other thread is at it."""
        with self._lock:
            self._db.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _summary(self) -> tuple[int, int, int, str]:
        row = self._row("SELECT format_number, layers, nodes, size, origin FROM summary", ())
        if row is None or row[0] not in (FORMAT, PUBLISHED_FORMAT):
            raise StoreError(f"{self._path}: a tree of another format; remove it to merge the layers again")
        try:
            origin = str(row[4]) or (UNKNOWN_ORIGIN if row[0] == PUBLISHED_FORMAT else "")
            return index(row[1]), index(row[2]), index(row[3]), origin
        except TypeError as error:
            raise self._damaged(error) from error

    def _at(self, ino: int) -> Node:
        node = self.node(ino)
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return node

    def _stored(self, columns: str, ino: int) -> tuple[Any, ...]:
        row = self._row(f"SELECT {columns} FROM node WHERE ino = ?", (ino,))
        if row is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return row

    def _read_parents(self) -> Parents:
        largest, count = self._row("SELECT max(ino), count(*) FROM node", ()) or (ROOT, 1)
        names = self._rows("SELECT ino, parent FROM dirent", ())
        if count and largest > max(_MANY, _SPARSEST * count):  # each takes memory
            raise self._damaged(ValueError(f"a node numbered {largest} of {count}"))
        try:
            return Parents(names, largest or ROOT)
        except (IndexError, TypeError, ValueError, OverflowError, MemoryError) as error:
            raise self._damaged(error) from error

    def _rows(
        self, query: str, values: tuple[object, ...] | dict[str, int], batch_size: int = _BATCH
    ) -> Iterator[tuple[Any, ...]]:
        try:
            with self._lock:
                rows = self._db.execute(query, values)
            # The cursor is not closed: that might be after the database is.
            while batch := self._next(rows, batch_size):
                yield from batch
        except _DAMAGE as error:
            raise self._damaged(error) from error

    def _next(self, rows: sqlite3.Cursor, count: int) -> list[tuple[Any, ...]]:
        with self._lock:
            return rows.fetchmany(count)

    def _row(self, query: str, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        try:
            with self._lock:
                row: tuple[Any, ...] | None = self._db.execute(query, values).fetchone()
        except _DAMAGE as error:
            raise self._damaged(error) from error
        return row

    def _unpacked(self, packed: bytes) -> tuple[Extent, ...]:
        try:
            return unpack_extents(packed)
        except (TypeError, ValueError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> StoreError:
        return StoreError(f"{self._path}: not a tree ({error}); remove it to merge the layers again")


def _node(row: tuple[Any, ...]) -> Node:
    """The node whose columns are `_NODE`."""
    if isinstance(row[5], bytes):
        row = (*row[:5], unpack_time(row[5]), *row[6:])
    return Node._make((*row[:-1], row[-1] == 1))


def _error(number: int, path: bytes) -> OSError:
    return OSError(number, os.strerror(number), os.fsdecode(path))
