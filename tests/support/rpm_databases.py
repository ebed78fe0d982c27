"""rpm's databases as rpm writes them: headers, in SQLite and in ndb; `imgfs.packages.rpm` has the sources."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

_TAGS = {"name": 1000, "version": 1001, "release": 1002, "more": 1005, "license": 1014, "arch": 1022}
_PAGE = 4096


def header(*, epoch: int | None = None, **fields: str | bytes) -> bytes:
    """Return a package's header, without its magic."""
    entries, data = [], b""
    if epoch is not None:
        entries.append((1003, 4, 0, 1))
        data = struct.pack(">I", epoch)
    for name, value in fields.items():
        entries.append((_TAGS[name], 6, len(data), 1))
        data += (value.encode() if isinstance(value, str) else value) + b"\0"
    index = b"".join(struct.pack(">IIII", *entry) for entry in entries)
    return struct.pack(">II", len(entries), len(data)) + index + data


def sqlite_database(path: Path, headers: Sequence[bytes], page: int = 4096) -> bytes:
    """Return the bytes of an rpmdb.sqlite."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA page_size={page}")
        db.execute("CREATE TABLE Name (key TEXT NOT NULL, hnum INTEGER NOT NULL, idx INTEGER NOT NULL)")
        db.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)")
        db.executemany("INSERT INTO Packages (blob) VALUES (?)", [(one,) for one in headers])
        db.commit()
    return path.read_bytes()


def ndb(headers: Sequence[bytes]) -> bytes:
    """Return the bytes of a Packages.db."""
    pages = -(-(len(headers) + 2) * 16 // _PAGE)
    slots, blobs = [], b""
    for number, one in enumerate(headers, 1):
        size = -(-(len(one) + 28) // 16) * 16
        slots.append(
            struct.pack("<4sIII", b"Slot", number, pages * _PAGE // 16 + len(blobs) // 16, size // 16)
        )
        blob = struct.pack("<4sIII", b"BlbS", number, 0, len(one)) + one
        blobs += blob.ljust(size - 12, b"\0") + struct.pack("<II4s", 0, len(one), b"BlbE")
    start = struct.pack("<4sIIII", b"RpmP", 0, 1, pages, len(headers) + 1).ljust(32, b"\0")
    table = start + b"".join(slots)
    free = struct.pack("<4sIII", b"Slot", 0, 0, 0)
    return table + free * ((pages * _PAGE - len(table)) // 16) + blobs
