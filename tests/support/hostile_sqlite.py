"""SQLite files whose b-trees are no trees (sqlite.org/fileformat2.html, section 1.6)."""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from pathlib import Path

PAGE = 4096
_HEAD = struct.Struct(">BHHHBI")  # type, free block, cells, where they begin, fragments, the rightmost child
_TABLE, _INDEX = 5, 2  # types of interior pages
_LEAVES = {13: _TABLE, 10: _INDEX, 5: _TABLE, 2: _INDEX}


def change(path: Path, script: str) -> None:
    """Do something to a file that its maker would not."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(script)


def root_of(path: Path, table: str) -> int:
    """Return the page that a table's b-tree begins at."""
    with closing(sqlite3.connect(path)) as db:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        page: int = db.execute(query, (table,)).fetchone()[0]
    return page


def share_children(path: Path, table: str, *, depth: int, fan: int = 583) -> None:
    """Put `depth` levels of pages over a table's b-tree, each of which has the one below it `fan` times."""
    body = bytearray(path.read_bytes())
    root = root_of(path, table)
    start = (root - 1) * PAGE
    below = _appended(body, bytes(body[start : start + PAGE]))
    for _ in range(depth - 1):
        below = _appended(body, _interior(body, below, fan))
    body[start : start + PAGE] = _interior(body, below, fan)
    struct.pack_into(">I", body, 28, len(body) // PAGE)  # the file's size in pages
    path.write_bytes(body)


def loop(path: Path, table: str) -> None:
    """Have a table's b-tree be its own child."""
    body = bytearray(path.read_bytes())
    root = root_of(path, table)
    body[(root - 1) * PAGE : root * PAGE] = _interior(body, root, 100)
    path.write_bytes(body)


def _appended(body: bytearray, page: bytes) -> int:
    body += page
    return len(body) // PAGE


def _interior(body: bytearray, child: int, fan: int) -> bytes:
    kind = _LEAVES[body[(child - 1) * PAGE]]
    cell = struct.pack(">I", child) + (b"\1" if kind == _TABLE else b"\2\2\0")
    page = bytearray(PAGE)
    fan = min(fan, (PAGE - 12) // (len(cell) + 2))
    first = PAGE - len(cell) * fan
    _HEAD.pack_into(page, 0, kind, 0, fan, first, 0, child)
    struct.pack_into(f">{fan}H", page, 12, *range(first, PAGE, len(cell)))
    page[first:] = cell * fan
    return bytes(page)
