"""Read a merged tree: lookup, children, attributes, extents, each one SQLite query of a few microseconds."""

from __future__ import annotations

import errno
import functools
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from operator import index
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import StoreError
from imgfs.layer.entry import Extent
from imgfs.layer.origin import UNKNOWN_ORIGIN
from imgfs.layer.schema import unpack_extents, unpack_xattrs
from imgfs.layer.sqlite import Row
from imgfs.tree.database import (
    FORMAT,
    NODE,
    PUBLISHED_FORMAT,
    ROOT,
    STRIDE,
    Node,
    TreeDatabase,
    node_of,
)
from imgfs.tree.names import KEPT, NodeNames
from imgfs.tree.paths import LINK_LIMIT

_MANY_ROWS = 4096  # small ones that are all read, fetched at once
_FEW = 16  # rows with their content fetched at once: a sparse file's extents may be megabytes
_DEPTH = 4096  # directories in a path: bounds an imported tree with cycles

_BY_INO = f"SELECT {NODE} FROM node n WHERE n.ino = ?"
_JOIN = "FROM dirent d CROSS JOIN node n ON n.ino = d.ino"
_BY_NAME = f"SELECT {NODE} {_JOIN} WHERE d.parent = ? AND d.name = ?"
_CHILDREN = f"""
SELECT d.position, d.name, {NODE} {_JOIN}
WHERE d.parent = :parent AND d.position > :after AND d.name >= coalesce(
  (SELECT name FROM dirent INDEXED BY milestone WHERE parent = :parent AND position <= :after
   AND position % {STRIDE} = 0 ORDER BY position DESC LIMIT 1), x'')
ORDER BY d.name
"""
_A_NAME = "SELECT parent, name FROM dirent WHERE ino = ? LIMIT 1"  # scans all names
_LISTED = f"SELECT d.name, n.ino, n.mode, n.nlink, n.layer, n.size {_JOIN} WHERE d.parent = ? ORDER BY d.name"
_FILES = f"SELECT n.ino, n.mode, n.layer, n.size, n.flat, n.extents {_JOIN} WHERE d.parent = ? AND d.name > ?"


class NodeRecord(NamedTuple):
    """A node with its content: see `Tree.extents`, `Tree.target` and `Tree.xattrs`."""

    node: Node
    layer: int
    extents: tuple[Extent, ...]
    target: bytes | None
    xattrs: dict[bytes, bytes]


class Listed(NamedTuple):
    """A name in a directory, with what sums of sizes need; the lowest layer is 0."""

    name: bytes
    ino: int
    mode: int
    nlink: int
    layer: int
    size: int


class Tree(AbstractContextManager["Tree"]):
    """The tree in the file at `path`: a context manager. Raises StoreError if it is none of this format.

    Any thread may use it: no query is kept open between calls (see `TreeDatabase`). A damaged file raises
    StoreError. `origin` is what the tree is trusted by (`layer.origin`), "" if it was merged from verified
    indexes only.
    """

    def __init__(self, path: Path) -> None:
        self._db = TreeDatabase(path)
        # A copy-up asks for the same again and again, and files of one directory for what leads to it.
        keep = functools.lru_cache(KEPT)
        self._last_nodes, self._last_lookups = keep(self._read_node), keep(self._read_lookup)
        self._names = NodeNames(self._db)
        try:
            self.layer_count, self.node_count, self.total_size, self.origin = self._summary()
        except StoreError:
            self._db.close()
            raise

    def spaces(self) -> list[str]:
        """Return for each layer the flat layer that extents refer to: the `space` of the index merged."""
        return [row[0] for row in self._db.rows("SELECT space FROM layer ORDER BY number")]

    def largest_ino(self) -> int:
        """Return the largest number of a node."""
        row = self._db.row("SELECT max(ino) FROM node")
        return int(row[0] or 0) if row else 0

    def node(self, ino: int) -> Node | None:
        """Return the node numbered `ino`, or None; the root is 1."""
        return self._last_nodes(ino)

    def _read_node(self, ino: int) -> Node | None:
        row = self._db.row(_BY_INO, (ino,))
        return node_of(row) if row else None

    def lookup(self, parent: int, name: bytes) -> Node | None:
        """Return the node that `name` leads to in the directory `parent`, or None."""
        return self._last_lookups(parent, name)

    def _read_lookup(self, parent: int, name: bytes) -> Node | None:
        row = self._db.row(_BY_NAME, (parent, name))
        if row is None:
            return None
        node = node_of(row)
        if stat.S_ISDIR(node.mode):
            self._names.note(node.ino, parent, name)
        return node

    def children(self, parent: int, after: int = 0) -> Iterator[tuple[int, bytes, Node]]:
        """Yield (position, name, node) of the children behind the position `after`, ordered by name.

        Positions count from 1. `.` and `..` are not among them. Rows are read as the caller iterates.
        """
        for row in self._db.rows(_CHILDREN, {"parent": parent, "after": after}):
            yield row[0], row[1], node_of(row[2:])

    def listing(self, parent: int) -> Iterator[Listed]:
        """Yield what is in a directory, ordered by name. Rows are read as the caller iterates."""
        return map(Listed._make, self._db.rows(_LISTED, (parent,)))

    def target(self, ino: int) -> bytes:
        """Return a symlink's target; raises OSError: EINVAL for another node, ENOENT."""
        target: bytes | None = self._stored("target", ino)[0]
        if target is None:
            raise _error(errno.EINVAL)
        return target

    def has_xattr(self, prefix: bytes) -> bool:
        """Return True if a file may have an extended attribute so named; one with it in its value counts."""
        query = "SELECT ino FROM node WHERE xattrs IS NOT NULL AND instr(xattrs, ?) LIMIT 1"
        return self._db.scan(query, (prefix,)) is not None

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """Return the extended attributes, by name with its prefix (`user.…`); raises OSError: ENOENT."""
        packed = self._stored("xattrs", ino)[0]
        try:
            return unpack_xattrs(packed)
        except TypeError as error:
            raise self._db.damaged(error) from error

    def extents(self, ino: int) -> tuple[int, tuple[Extent, ...]]:
        """Return (layer, extents) as `contents` does."""
        return self.contents(ino)[:2]

    def contents(self, ino: int) -> tuple[int, tuple[Extent, ...], int]:
        """Return (layer, extents in its flat layer, size in bytes), the lowest layer being 0.

        The extents are in order and do not overlap; what they leave out of the size is a hole. Raises
        OSError: ENOENT.
        """
        layer, size, flat, packed = self._stored("layer, size, flat, extents", ino)
        if layer not in range(max(1, self.layer_count)):
            raise self._db.damaged(ValueError(f"layer {layer} of {self.layer_count}"))
        try:
            if flat is not None:
                return layer, (Extent(0, index(size), index(flat)),), size
            return layer, self._unpacked(packed) if packed else (), index(size)
        except TypeError as error:  # SQLite does not enforce a column's type
            raise self._db.damaged(error) from error

    def nodes(self) -> Iterator[NodeRecord]:
        """Yield every node, ordered by ino."""
        query = f"SELECT {NODE}, n.layer, n.flat, n.extents, n.target, n.xattrs FROM node n ORDER BY n.ino"
        for row in self._db.rows(query, (), _FEW):
            node, (layer, flat, packed, target, xattrs) = node_of(row[:10]), row[10:]
            extents = (Extent(0, node.size, flat),) if flat is not None else self._unpacked(packed or b"")
            yield NodeRecord(node, layer, extents, target, unpack_xattrs(xattrs))

    def file_at(self, layer: int, flat: int) -> int | None:
        """Return the contiguous file that holds the byte at `flat` of a layer, or None; reads all nodes."""
        query = "SELECT ino FROM node WHERE layer = ? AND flat <= ? AND flat + size > ?"
        row = self._db.row(query, (layer, flat, flat))
        return row[0] if row else None

    def files_of(self, layer: int) -> Iterator[int]:
        """Yield the inos of the files whose bytes are in a layer; reads all nodes."""
        query = "SELECT ino FROM node WHERE layer = ? AND (mode >> 12) = 8 AND size > 0"
        return (row[0] for row in self._db.rows(query, (layer,)))

    def contiguous_files(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (layer, flat offset, ino, size) of every file of one extent without holes, ordered by ino."""
        query = "SELECT layer, flat, ino, size FROM node WHERE flat >= 0 AND size > 0 ORDER BY ino"
        return self._db.rows(query, (), _MANY_ROWS)

    def small_files_after(self, ino: int, largest: int, count: int) -> list[tuple[int, int, int, int]]:
        """Return (ino, layer, flat offset, size) of the next files of one extent, ordered by ino.

        Empty ones are left out, and those of more than `largest` bytes; at most `count` are returned.
        """
        query = (
            "SELECT ino, layer, flat, size FROM node "
            "WHERE ino > ? AND flat >= 0 AND size BETWEEN 1 AND ? ORDER BY ino LIMIT ?"
        )
        return list(self._db.rows(query, (ino, largest, count), count))

    def dirents(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield (directory, name, ino) of every name, ordered by directory and name."""
        query = "SELECT parent, name, ino FROM dirent ORDER BY parent, name"
        return self._db.rows(query, (), _MANY_ROWS)

    def files_after(self, ino: int) -> Iterator[tuple[int, tuple[Extent, ...]]]:
        """Yield (layer, extents) of the regular files that a depth-first reader meets after a node.

        Begins at the node's first name; enters directories where they are listed. Rows are read as the caller
        iterates.
        """
        listings: list[Iterator[Row]] = []
        while (found := self._db.row(_A_NAME, (ino,))) and len(listings) < _DEPTH:
            listings.insert(0, self._db.rows(_FILES, found))
            ino = found[0]
        for _ in range(self.node_count):  # bounds an imported tree with cycles
            while listings and (row := next(listings[-1], None)) is None:
                listings.pop()
            if not listings or row is None:
                return
            ino, mode, layer, size, flat, packed = row
            if stat.S_ISDIR(mode) and len(listings) < _DEPTH:
                listings.append(self._db.rows(_FILES, (ino, b"")))
            elif flat is not None:
                yield layer, (Extent(0, size, flat),)
            elif packed:
                yield layer, self._unpacked(packed)

    def a_name(self, ino: int) -> bytes | None:
        """Return one of a node's names, None if it has none; looks through all names, and keeps none."""
        row = self._db.row(_A_NAME, (ino,))
        return row[1] if row else None

    def names(self, ino: int) -> list[tuple[int, bytes]]:
        """Return (directory, name) of a node's names; the root has none. They are not to be changed.

        The first call reads all names, but for a directory that was looked up before: that has one name.
        """
        return self._names.of(ino)

    def path(self, ino: int) -> bytes:
        """Return a path from the root to a node."""
        parts: list[bytes] = []
        while (names := self.names(ino)) and len(parts) < _DEPTH:
            ino, name = names[0]
            parts.append(name)
        return b"/".join(reversed(parts))

    def resolve(self, path: bytes, *, follow: bool = True, most: int = sys.maxsize) -> Node:
        """Return the node at `path`, relative to the root, with symlinks resolved inside the tree.

        Without `follow` a symlink in the last component is not followed. Raises OSError: ENOENT, ENOTDIR,
        ELOOP, and ENAMETOOLONG if it leads over more than `most` names.
        """
        root = self._at(ROOT)
        nodes, ahead, links = [root], path.split(b"/")[::-1], 0
        while ahead:
            name = ahead.pop()
            most -= 1
            if most < 0:
                raise _error(errno.ENAMETOOLONG, path)
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
        """Close the file, once no other thread runs a query."""
        self._db.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _summary(self) -> tuple[int, int, int, str]:
        row = self._db.row("SELECT format_number, layers, nodes, size, origin FROM summary")
        if row is None or row[0] not in (FORMAT, PUBLISHED_FORMAT):
            raise StoreError(
                f"{self._db.path}: a tree of another format; remove it to merge the layers again"
            )
        try:
            origin = str(row[4]) or (UNKNOWN_ORIGIN if row[0] == PUBLISHED_FORMAT else "")
            return index(row[1]), index(row[2]), index(row[3]), origin
        except TypeError as error:
            raise self._db.damaged(error) from error

    def _at(self, ino: int) -> Node:
        node = self.node(ino)
        if node is None:
            raise _error(errno.ENOENT)
        return node

    def _stored(self, columns: str, ino: int) -> Row:
        row = self._db.row(f"SELECT {columns} FROM node WHERE ino = ?", (ino,))
        if row is None:
            raise _error(errno.ENOENT)
        return row

    def _unpacked(self, packed: bytes) -> tuple[Extent, ...]:
        try:
            return unpack_extents(packed)
        except (TypeError, ValueError) as error:
            raise self._db.damaged(error) from error


def leads_nowhere(error: OSError) -> bool:
    """Return True if an error of `Tree.resolve` says that there is no file at the path."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def _error(number: int, path: bytes | None = None) -> OSError:
    return OSError(number, os.strerror(number), *(() if path is None else (os.fsdecode(path),)))
