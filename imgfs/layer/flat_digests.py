"""Digests of the flat bytes of each span, kept in the layer's index beside the spans.

The digest of a span made by a scan is of its compressed bytes, which a peer does not have: a peer caches what
they decode to. So an index may also have the sha256 of each span's flat bytes, in a table that only the
store's own indexes have. They are as good as the index is: made here of bytes that have the DiffID, or
published beside the index by those who vouch for it. They travel as a list, 32 bytes for each span in order.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from imgfs.errors import InvalidImage, StoreError
from imgfs.layer.sqlite import file_uri
from imgfs.owned.writing import explained

Read = Callable[[int, int], Iterable[bytes]]  # the flat layer's bytes `[start, end)`, in pieces
SIZE = 32  # bytes of a digest
_TABLE = "CREATE TABLE flat_digest (number INTEGER PRIMARY KEY, digest BLOB)"
IS_THERE = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'flat_digest')"
SELECT_ALL = "SELECT number, digest FROM flat_digest ORDER BY number"
SELECT = "SELECT digest FROM flat_digest WHERE number = ?"


def flat_digests(bounds: Iterable[tuple[int, int]], read: Read) -> bytes:
    """Return the list of digests of the ranges `bounds` of a flat layer."""
    digests = bytearray()
    for start, end in bounds:
        hasher = hashlib.sha256()
        for piece in read(start, end):
            hasher.update(piece)
        digests += hasher.digest()
    return bytes(digests)


def add_flat_digests(path: Path, digests: bytes) -> None:
    """Add a list of digests to the index at `path`, which has none. Raises InvalidImage, StoreError."""
    try:
        with closing(sqlite3.connect(file_uri(path), uri=True, isolation_level=None)) as db:
            db.executescript("PRAGMA trusted_schema=OFF; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
            numbers = [number for (number,) in db.execute("SELECT number FROM span ORDER BY number")]
            if len(digests) != SIZE * len(numbers):
                raise InvalidImage(
                    f"{len(digests)} bytes of flat digests for {len(numbers)} spans", where=str(path)
                )
            db.execute(_TABLE)
            rows = ((number, digests[SIZE * at : SIZE * (at + 1)]) for at, number in enumerate(numbers))
            db.execute("BEGIN")
            db.executemany("INSERT INTO flat_digest VALUES (?,?)", rows)
            db.execute("COMMIT")
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {explained(error, path)}") from error
