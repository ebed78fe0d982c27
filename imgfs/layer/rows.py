"""SQLite files that are written once and then only read, and values packed into their rows."""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

from imgfs.errors import StoreError
from imgfs.layer.entry import ChunkDigest, Entry, Extent

_OBJECTS = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
_ABREAST = 2  # tables checked at once: SQLite runs without the interpreter's lock
LARGEST = 1 << 62  # bytes: sums of two still fit into what the kernel takes for an offset
_PART = struct.Struct("<QQ32s")  # skip, length, sha256


def create_database(path: Path, schema: str) -> sqlite3.Connection:
    """Create a SQLite file for one writer: no journal, no syncs; the store syncs and renames it later."""
    path.open("ab").close()  # SQLite would not say that the disk is full, only that it cannot open the file
    db = sqlite3.connect(file_uri(path), uri=True, isolation_level=None, check_same_thread=False)
    db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;")
    db.executescript(f"{schema}BEGIN;")
    return db


def open_database(path: Path) -> sqlite3.Connection:
    """Open a finished SQLite file, which never changes again: no locks are taken. Raises StoreError."""
    try:
        db = sqlite3.connect(f"{file_uri(path)}?immutable=1&mode=ro", uri=True, check_same_thread=False)
        # The file may have been made elsewhere.
        db.executescript("PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON;")
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: {error}") from error
    return db


def has_schema(path: Path, schema: str) -> bool:
    """Return True if the SQLite file has exactly the tables and indexes of `schema`, and no trigger or view.

    To be called for a file made elsewhere before anything else is read of it (sqlite.org, "Defense Against
    The Dark Arts").
    """
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(schema)
        expected = model.execute(_OBJECTS).fetchall()
    try:
        with closing(open_database(path)) as db:
            return db.execute(_OBJECTS).fetchall() == expected
    except (sqlite3.Error, UnicodeDecodeError, StoreError):
        return False


def first_invalid_table(path: Path, rules: Mapping[str, str]) -> str | None:
    """Return a table with a row against its rule, an SQL expression; `has_schema` must be True of the file.

    None if all rows obey. SQLite does not enforce a column's type, so a rule checks types too.
    """
    try:
        with ThreadPoolExecutor(_ABREAST) as pool:
            found = list(pool.map(partial(_has_invalid_row, path), rules, rules.values()))
    except (sqlite3.Error, UnicodeDecodeError, StoreError) as error:
        return str(error)
    return next((table for table, is_invalid in zip(rules, found, strict=True) if is_invalid), None)


def _has_invalid_row(path: Path, table: str, rule: str) -> bool:
    with closing(open_database(path)) as db:
        query = f"SELECT EXISTS (SELECT 1 FROM {table} WHERE ({rule}) IS NOT TRUE)"
        return bool(db.execute(query).fetchone()[0])


def integers(low: int, high: int, *columns: str) -> str:
    """Return a rule: these columns have integers from `low` to `high`.

    A function costs three times what an operator does, so one checks all columns: text and blobs are greater
    than any number, a real makes the sum real, a NULL makes it NULL (sqlite.org/datatype3.html, 4.1).
    """
    within = " AND ".join(f"{name} BETWEEN {low} AND {high}" for name in columns)
    return f"{within} AND typeof({' + '.join(f'0 * {name}' for name in columns)}) = 'integer'"


def typed(kind: str, *columns: str) -> str:
    """Return a rule: these columns have values of one of SQLite's types, or NULL if `kind` says so: `blob`,
    `blob null`."""
    one, _, is_optional = kind.partition(" ")
    nothing = "{0} IS NULL OR " if is_optional else ""
    return " AND ".join(f"({nothing}typeof({{0}}) = '{one}')".format(name) for name in columns)


def set_origin(path: Path, origin: str) -> None:
    """Write `origin` into the summary of a file that imgfs wrote. Raises StoreError."""
    _change(path, "UPDATE summary SET origin = ?", (origin,))


def set_format(path: Path, number: int, *, before: int) -> None:
    """Change the format number in a file's summary from `before` to `number`. Raises StoreError."""
    _change(path, "UPDATE summary SET format_number = ? WHERE format_number = ?", (number, before))


def _change(path: Path, query: str, values: tuple[object, ...]) -> None:
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.executescript("PRAGMA trusted_schema=OFF; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
            db.execute(query, values)
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {error}") from error


def pack_xattrs(xattrs: Mapping[bytes, bytes]) -> bytes | None:
    """Pack extended attributes into one blob, sorted by name; None if there are none."""
    if not xattrs:
        return None
    parts = []
    for name, value in sorted(xattrs.items()):
        parts += [len(name).to_bytes(4, "little"), len(value).to_bytes(4, "little"), name, value]
    return b"".join(parts)


def unpack_xattrs(blob: bytes | None) -> dict[bytes, bytes]:
    """The inverse of `pack_xattrs`."""
    xattrs, at = {}, 0
    while blob and at < len(blob):
        name_length = int.from_bytes(blob[at : at + 4], "little")
        value_length = int.from_bytes(blob[at + 4 : at + 8], "little")
        at += 8 + name_length + value_length
        xattrs[blob[at - name_length - value_length : at - value_length]] = blob[at - value_length : at]
    return xattrs


def pack_extents(extents: Iterable[Extent]) -> bytes:
    """Pack extents into one blob of little-endian 64-bit triples."""
    return b"".join(number.to_bytes(8, "little") for extent in extents for number in extent)


def unpack_extents(blob: bytes) -> tuple[Extent, ...]:
    """The inverse of `pack_extents`; raises ValueError."""
    if len(blob) % 24:
        raise ValueError(f"{len(blob)} bytes of extents")
    numbers = memoryview(blob).cast("Q")  # little-endian hosts only, like everything FUSE and zlib here
    if any(number >> 63 for number in numbers):
        raise ValueError("an extent beyond all layers")
    return tuple(Extent(*numbers[at : at + 3]) for at in range(0, len(numbers), 3))


def pack_chunk_digests(parts: Iterable[ChunkDigest]) -> bytes | None:
    """Pack a span's chunk digests into one blob, 48 bytes each; None if there are none."""
    return b"".join(_PART.pack(*part) for part in parts) or None


def unpack_chunk_digests(blob: bytes) -> tuple[ChunkDigest, ...]:
    """The inverse of `pack_chunk_digests`; raises ValueError, also for chunks that overlap or do not ascend.

    Chunks that overlapped would have the same bytes hashed as often as an index's author likes.
    """
    if len(blob) % _PART.size:
        raise ValueError(f"{len(blob)} bytes of parts")
    parts = tuple(map(ChunkDigest._make, _PART.iter_unpack(blob)))
    if any(second.skip < first.skip + first.length for first, second in pairwise(parts)):
        raise ValueError("parts that overlap or do not ascend")
    return parts


def pack_time(mtime_ns: int) -> int | bytes:
    """Pack a time: a number, or, for a year before 1678 or after 2262, 16 bytes."""
    if -(1 << 63) <= mtime_ns < 1 << 63:
        return mtime_ns
    return mtime_ns.to_bytes(16, "little", signed=True)


def unpack_time(stored: int | bytes) -> int:
    """The inverse of `pack_time`."""
    return stored if isinstance(stored, int) else int.from_bytes(stored, "little", signed=True)


TIME_RULE = "(typeof(mtime_ns) = 'integer' OR typeof(mtime_ns) = 'blob' AND length(mtime_ns) = 16)"


def stored_extents(entry: Entry) -> tuple[int | None, bytes | None]:
    """Return (flat, None) for a file of one extent, which is usual, else (None, packed extents)."""
    extents = entry.extents
    if len(extents) == 1 and extents[0][:2] == (0, entry.size):
        return extents[0].flat, None
    return None, pack_extents(extents) if extents else None


def file_uri(path: Path) -> str:
    """Return the URI of a file whose name may be any bytes (sqlite.org/uri.html)."""
    return f"file:{quote(os.fsencode(path))}"
