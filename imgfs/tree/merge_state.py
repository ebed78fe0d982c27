"""What one layer wants remembered while it is merged: in SQLite too, for a layer may want much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from imgfs.tree.builder import Draft, Found

_SCHEMA = """
CREATE TABLE IF NOT EXISTS work.hidden (parent INTEGER, name BLOB, PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS work.held (path BLOB PRIMARY KEY, ino INTEGER, type INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS work.aside (path BLOB PRIMARY KEY, ino INTEGER, type INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS work.opaque (parent INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS work.later (seq INTEGER PRIMARY KEY, path BLOB UNIQUE, target BLOB);
CREATE TABLE IF NOT EXISTS work.own (path BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_END_LAYER = "DELETE FROM work.hidden; DELETE FROM work.opaque; DELETE FROM work.aside; DELETE FROM work.own;"


class Notes:
    """Names to hide, nodes to hold, links to make later, the layer's own directories."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._db = draft.db
        draft.run(_SCHEMA)

    def hide(self, parent: int, name: bytes) -> None:
        """Note that a name is to go when all of the layer's whiteouts have been read."""
        self._db.execute("INSERT OR IGNORE INTO work.hidden VALUES (?,?)", (parent, name))

    def hide_all(self, parent: int) -> None:
        """Note that all names of a directory are to go; however often that is said, it costs once."""
        if not self._db.execute("INSERT OR IGNORE INTO work.opaque VALUES (?)", (parent,)).rowcount:
            return
        query = "INSERT OR IGNORE INTO work.hidden SELECT parent, name FROM work.name WHERE parent = ?"
        self._db.execute(query, (parent,))

    def hides(self) -> bool:
        """Whether any name is to go."""
        return self._db.execute("SELECT 1 FROM work.hidden").fetchone() is not None

    def remove_hidden(self) -> None:
        """Remove the names noted, those that are still there."""
        for parent, name in self._db.execute("SELECT parent, name FROM work.hidden"):
            if found := self._draft.find(parent, name):
                self._draft.remove(parent, name, found)

    def hold(self, path: bytes, found: Found) -> None:
        """Keep a node until the end of the layer for hard links to the clean `path`."""
        cursor = self._db.execute("INSERT OR IGNORE INTO work.held VALUES (?,?,?)", (path, *found))
        if cursor.rowcount == 1:
            self._draft.pin(found[0])

    def held(self, path: bytes) -> Found | None:
        """The node held for `path`."""
        query = "SELECT ino, type FROM work.held WHERE path = ?"
        found: Found | None = self._db.execute(query, (path,)).fetchone()
        return found

    def holdings(self) -> Iterator[tuple[bytes, Found]]:
        """(path, node) of all that is held; what has been given out may be released meanwhile."""
        for path, ino, kind in self._db.execute("SELECT path, ino, type FROM work.held"):
            yield path, (ino, kind)

    def release(self, path: bytes, found: Found) -> None:
        """Let go of a node that was held for `path`."""
        self._db.execute("DELETE FROM work.held WHERE path = ?", (path,))
        self._draft.unpin(found[0])

    def put_aside(self, path: bytes, found: Found) -> None:
        """Keep a node, pinned once, until the end of the layer: hard links to the clean `path` mean it."""
        if before := self.aside(path):
            self._draft.unpin(before[0])
        self._db.execute("INSERT OR REPLACE INTO work.aside VALUES (?,?,?)", (path, *found))

    def aside(self, path: bytes) -> Found | None:
        """The node put aside for `path`."""
        query = "SELECT ino, type FROM work.aside WHERE path = ?"
        found: Found | None = self._db.execute(query, (path,)).fetchone()
        return found

    def link_later(self, path: bytes, target: bytes) -> None:
        """Note a hard link whose target is not there yet; of several at one path the last counts."""
        query = "INSERT OR REPLACE INTO work.later (path, target) VALUES (?,?)"
        self._db.execute(query, (path, target))

    def later(self, *, last_first: bool = True) -> Iterator[tuple[int, bytes, bytes]]:
        """(seq, path, target) of the links noted: chains are mostly written the last of them first."""
        where = "seq < ? ORDER BY seq DESC" if last_first else "seq > ? ORDER BY seq"
        query = f"SELECT seq, path, target FROM work.later WHERE {where} LIMIT 1"
        row = (1 << 62 if last_first else -1, b"", b"")
        while row := self._db.execute(query, (row[0],)).fetchone():
            yield row

    def linked(self, seq: int) -> None:
        """Strike a link off the list."""
        self._db.execute("DELETE FROM work.later WHERE seq = ?", (seq,))

    def own(self, paths: Iterable[bytes]) -> None:
        """Note the clean paths of the layer's own directory entries."""
        self._db.executemany("INSERT OR IGNORE INTO work.own VALUES (?)", ((path,) for path in paths))

    def is_own(self, path: bytes) -> bool:
        """Whether `path` was noted as the layer's own directory."""
        return self._db.execute("SELECT 1 FROM work.own WHERE path = ?", (path,)).fetchone() is not None

    def end(self) -> None:
        """Forget everything; let go of the nodes held."""
        for path, found in self.holdings():
            self.release(path, found)
        for (ino,) in self._db.execute("SELECT ino FROM work.aside"):
            self._draft.unpin(ino)
        self._draft.run(_END_LAYER)
