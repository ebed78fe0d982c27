"""Per-layer merge state, in SQLite temporary tables to bound memory.

hidden, opaque   names that the layer's whiteouts remove from the layers below, and directories they empty
held             targets of the layer's hard links that its whiteouts may remove
aside            nodes without a name in the tree that hard links may still refer to (AUFS metadata)
later            hard links whose target has not been met yet
own              the layer's own directory entries
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from imgfs.tree.builder import Dirent, TreeBuilder

_SCHEMA = """
CREATE TABLE IF NOT EXISTS work.hidden (parent INTEGER, name BLOB, PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS work.held (path BLOB PRIMARY KEY, ino INTEGER, type INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS work.aside (path BLOB PRIMARY KEY, ino INTEGER, type INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS work.opaque (parent INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS work.later (seq INTEGER PRIMARY KEY, path BLOB UNIQUE, target BLOB);
CREATE TABLE IF NOT EXISTS work.own (path BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_END_LAYER = "DELETE FROM work.hidden; DELETE FROM work.opaque; DELETE FROM work.aside; DELETE FROM work.own;"


class MergeState:
    """The tables above, in the database of a `TreeBuilder`; emptied at the end of each layer."""

    def __init__(self, builder: TreeBuilder) -> None:
        self._builder = builder
        self._db = builder.db
        builder.run(_SCHEMA)

    def hide(self, parent: int, name: bytes) -> None:
        """Mark a name for removal by `remove_hidden`, after all of the layer's whiteouts are read."""
        self._db.execute("INSERT OR IGNORE INTO work.hidden VALUES (?,?)", (parent, name))

    def hide_all(self, parent: int) -> None:
        """Mark all names of a directory for removal; repeating it for the same directory costs nothing."""
        if not self._db.execute("INSERT OR IGNORE INTO work.opaque VALUES (?)", (parent,)).rowcount:
            return
        query = "INSERT OR IGNORE INTO work.hidden SELECT parent, name FROM work.name WHERE parent = ?"
        self._db.execute(query, (parent,))

    def hides(self) -> bool:
        """Return True if any name is marked for removal."""
        return self._db.execute("SELECT 1 FROM work.hidden").fetchone() is not None

    def remove_hidden(self) -> None:
        """Remove the marked names that still exist."""
        for parent, name in self._db.execute("SELECT parent, name FROM work.hidden"):
            if found := self._builder.find(parent, name):
                self._builder.remove(parent, name, found)

    def hold(self, path: bytes, found: Dirent) -> None:
        """Pin a node until the end of the layer, as the target of hard links to the clean `path`."""
        cursor = self._db.execute("INSERT OR IGNORE INTO work.held VALUES (?,?,?)", (path, *found))
        if cursor.rowcount == 1:
            self._builder.pin(found.ino)

    def held(self, path: bytes) -> Dirent | None:
        """Return the node pinned for `path`, or None."""
        query = "SELECT ino, type FROM work.held WHERE path = ?"
        return self._dirent(query, path)

    def holdings(self) -> Iterator[tuple[bytes, Dirent]]:
        """Yield (path, node) of all pinned nodes; the caller may release those already yielded."""
        for path, ino, kind in self._db.execute("SELECT path, ino, type FROM work.held"):
            yield path, Dirent(ino, kind)

    def release(self, path: bytes, found: Dirent) -> None:
        """Unpin a node that was held for `path`."""
        self._db.execute("DELETE FROM work.held WHERE path = ?", (path,))
        self._builder.unpin(found.ino)

    def put_aside(self, path: bytes, found: Dirent) -> None:
        """Keep a node that the caller has pinned until the end of the layer: hard links to the clean `path`
        refer to it."""
        if before := self.aside(path):
            self._builder.unpin(before.ino)
        self._db.execute("INSERT OR REPLACE INTO work.aside VALUES (?,?,?)", (path, *found))

    def aside(self, path: bytes) -> Dirent | None:
        """Return the node put aside for `path`, or None."""
        query = "SELECT ino, type FROM work.aside WHERE path = ?"
        return self._dirent(query, path)

    def link_later(self, path: bytes, target: bytes) -> None:
        """Record a hard link whose target does not exist yet; of several at one path the last counts."""
        query = "INSERT OR REPLACE INTO work.later (path, target) VALUES (?,?)"
        self._db.execute(query, (path, target))

    def later(self, *, last_first: bool = True) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield (seq, path, target) of the recorded links; most chains are written last link first."""
        where = "seq < ? ORDER BY seq DESC" if last_first else "seq > ? ORDER BY seq"
        query = f"SELECT seq, path, target FROM work.later WHERE {where} LIMIT 1"
        row = (1 << 62 if last_first else -1, b"", b"")
        while row := self._db.execute(query, (row[0],)).fetchone():
            yield row

    def linked(self, seq: int) -> None:
        """Forget a recorded link, because it has been made."""
        self._db.execute("DELETE FROM work.later WHERE seq = ?", (seq,))

    def add_own(self, paths: Iterable[bytes]) -> None:
        """Record the clean paths of the layer's own directory entries."""
        self._db.executemany("INSERT OR IGNORE INTO work.own VALUES (?)", ((path,) for path in paths))

    def is_own(self, path: bytes) -> bool:
        """Return True if `path` is one of the layer's own directory entries."""
        return self._db.execute("SELECT 1 FROM work.own WHERE path = ?", (path,)).fetchone() is not None

    def _dirent(self, query: str, path: bytes) -> Dirent | None:
        row = self._db.execute(query, (path,)).fetchone()
        return None if row is None else Dirent._make(row)

    def end(self) -> None:
        """Empty the tables and unpin the nodes held."""
        for path, found in self.holdings():
            self.release(path, found)
        for (ino,) in self._db.execute("SELECT ino FROM work.aside"):
            self._builder.unpin(ino)
        self._builder.run(_END_LAYER)
