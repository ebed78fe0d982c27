"""How much of what layers store an image shows, by the formula of dive (wagoodman/dive, efficiency.go).

Each layer by itself is a tree of paths; its leaves count: files by their sizes, everything else as nothing, a
whiteout of a directory as all that was in it then. The score is the sum over all paths of the smallest size
of a path, divided by the sum of all sizes. Opaque whiteouts do not count, nor does other AUFS metadata.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

from imgfs.errors import StoreError
from imgfs.layer.entry import Entry, Kind
from imgfs.layer.index import LayerIndex
from imgfs.layer.sqlite import create_database
from imgfs.owned.writing import explained
from imgfs.tree.paths import OPAQUE, clean, is_reserved, parse_whiteout

_SCHEMA = """
CREATE TABLE own (path BLOB, is_whiteout INTEGER, size INTEGER, can_hold INTEGER,
                  PRIMARY KEY (path, is_whiteout)) WITHOUT ROWID;
CREATE TABLE leaf (path BLOB PRIMARY KEY, least INTEGER, sum INTEGER) WITHOUT ROWID;
"""
_ADD = "INSERT OR REPLACE INTO own VALUES (?,?,?,?)"
_TAKE_LEAVES = """
INSERT INTO leaf SELECT path, size, size FROM own WHERE NOT (can_hold AND EXISTS (
    SELECT 1 FROM own AS below
    WHERE below.path > CAST(own.path || '/' AS BLOB) AND below.path < CAST(own.path || '0' AS BLOB)))
  ON CONFLICT (path) DO UPDATE SET least = min(least, excluded.least), sum = sum + excluded.sum
"""
_SCORE = "SELECT total(least), total(sum) FROM leaf"


def efficiency(layers: Iterable[LayerIndex], path: Path, hidden_below: Callable[[bytes, int], int]) -> float:
    """Return the score of layers, the lowest first: 1 if nothing is stored for nothing.

    `path` is for a file that is needed meanwhile; memory is bounded. `hidden_below` tells the bytes that a
    layer, from 1, has removed below a directory, whose path begins with `/`. Raises InvalidImage, StoreError.
    """
    try:
        with closing(create_database(path, _SCHEMA)) as db:
            db.execute("PRAGMA cache_size = -16384")
            for number, index in enumerate(layers, 1):
                db.executemany(_ADD, _own(index, number, hidden_below))
                db.execute(_TAKE_LEAVES)
                db.execute("DELETE FROM own")
            least, total = db.execute(_SCORE).fetchone()
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{path}: the layers cannot be compared: {explained(error, path)}") from error
    return float(least / total) if total else 1.0


def _own(
    index: LayerIndex, number: int, hidden_below: Callable[[bytes, int], int]
) -> Iterator[tuple[bytes, bool, int, bool]]:
    """Yield what a layer has by itself, as rows of `own`."""
    for entry in index.entries():
        path = clean(entry.path)
        if not is_reserved(path):
            yield path, False, _size(entry), entry.kind is not Kind.FILE
        elif (whiteout := parse_whiteout(path)) and whiteout[1] != OPAQUE:
            hidden = b"/".join(part for part in whiteout if part)
            yield hidden, True, hidden_below(b"/" + hidden, number), False


def _size(entry: Entry) -> int:
    return entry.size if entry.kind is Kind.FILE else 0
