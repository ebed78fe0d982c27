"""Rows of a tree's file, read by any thread: SQLite under a lock, its errors turned into StoreError."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imgfs.errors import StoreError
from imgfs.layer.rows import open_database

# Pages of the file that SQLite keeps. A private cache and no mmap: mapped pages would count as the daemon's
# memory too, without bound, and a failing disk would be a SIGBUS.
_CACHE_KIB = 16 * 1024
_BATCH = 128  # rows fetched at once: as many as one READDIRPLUS reply has room for

_DAMAGE = (sqlite3.DatabaseError, OverflowError, UnicodeDecodeError)  # what SQLite raises for a damaged file


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
            self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        except _DAMAGE as error:
            self._db.close()
            raise self.damaged(error) from error

    def rows(
        self, query: str, values: tuple[object, ...] | dict[str, int] = (), batch_size: int = _BATCH
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query; they are read `batch_size` at once, as the caller iterates."""
        try:
            with self._lock:
                cursor = self._db.execute(query, values)
            # The cursor is not closed: that might be after the database is.
            while batch := self._next(cursor, batch_size):
                yield from batch
        except _DAMAGE as error:
            raise self.damaged(error) from error

    def row(self, query: str, values: tuple[object, ...] = ()) -> tuple[Any, ...] | None:
        """Return the first row of a query, or None."""
        try:
            with self._lock:
                row: tuple[Any, ...] | None = self._db.execute(query, values).fetchone()
        except _DAMAGE as error:
            raise self.damaged(error) from error
        return row

    def damaged(self, error: Exception) -> StoreError:
        """Return the error for a value that no tree has, described by `error`."""
        return StoreError(f"{self.path}: not a tree ({error}); remove it to merge the layers again")

    def close(self) -> None:
        """Close the file, once no other thread runs a query."""
        with self._lock:
            self._db.close()

    def _next(self, cursor: sqlite3.Cursor, count: int) -> list[tuple[Any, ...]]:
        with self._lock:
            return cursor.fetchmany(count)
