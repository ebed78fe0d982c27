"""What can happen to bytes: by chance, but the same for the same `Random`."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

_NUMBERS = (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63))
_TEXTS = ("", "\0", "../..", "/", "a" * 5000, "\ud800", "ÿ", "sha256:", "sha256:" + "0" * 64, "1e9", "-1")
_BLOCK = 512  # of a tar
_TALLIES = slice(148, 156)  # a tar header's checksum (POSIX.1, ustar)


def damaged(body: bytes, chance: Random) -> bytes:
    """Other bytes than `body`, which must not be empty: one to three accidents."""
    made = body
    while made == body:
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            made = chance.choice(_ACCIDENTS)(bytearray(made or b"\0"), chance)
    return made


def damaged_at(body: bytes, start: int, end: int, chance: Random) -> bytes:
    """`body` with other bytes in `[start, end)`, as many."""
    piece = bytearray(body[start:end])
    for _ in range(chance.choice((1, 1, 4, 64))):
        piece[chance.randrange(len(piece))] ^= chance.randrange(1, 256)
    return body[:start] + bytes(piece) + body[end:]


def _flip(body: bytearray, chance: Random) -> bytes:
    body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    return bytes(body)


def _replace(body: bytearray, chance: Random) -> bytes:
    body[chance.randrange(len(body))] = chance.choice((0, 255, 128, chance.randrange(256)))
    return bytes(body)


def _overwrite(body: bytearray, chance: Random) -> bytes:
    start, end = _run(body, chance)
    body[start:end] = bytes(end - start) if chance.random() < 0.3 else chance.randbytes(end - start)
    return bytes(body)


def _delete(body: bytearray, chance: Random) -> bytes:
    start, end = _run(body, chance)
    del body[start:end]
    return bytes(body)


def _repeat(body: bytearray, chance: Random) -> bytes:
    start, end = _run(body, chance)
    at = chance.randrange(len(body) + 1)
    body[at:at] = body[start:end]
    return bytes(body)


def _insert(body: bytearray, chance: Random) -> bytes:
    at = chance.randrange(len(body) + 1)
    body[at:at] = chance.randbytes(chance.choice((1, 8, 512)))
    return bytes(body)


def _truncate(body: bytearray, chance: Random) -> bytes:
    return bytes(body[: chance.randrange(len(body))])


def _number(body: bytearray, chance: Random) -> bytes:
    code, size = chance.choice((("H", 2), ("I", 4), ("Q", 8)))
    value = chance.choice(_NUMBERS) % (1 << 8 * size)
    at = chance.randrange(max(1, len(body) - size))
    body[at : at + size] = struct.pack(chance.choice("<>") + code, value)
    return bytes(body)


_ACCIDENTS: tuple[Callable[[bytearray, Random], bytes], ...] = (
    *(_flip, _flip, _replace, _overwrite, _delete, _repeat, _insert, _truncate, _number, _number),
)


def _run(body: bytearray, chance: Random) -> tuple[int, int]:
    start = chance.randrange(len(body))
    return start, min(len(body), start + chance.choice((1, 2, 4, 16, 512, 4096)))


def damaged_json(body: bytes, chance: Random) -> bytes:
    """Return a document with other values, or one that is no JSON any more."""
    if chance.random() < 0.3:
        return damaged(body, chance)
    document = json.loads(body)
    for _ in range(chance.choice((1, 1, 2, 4))):
        places = list(_places(document))
        if places:
            holder, key = chance.choice(places)
            _change(holder, key, chance)
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Any:
    """Yield every (container, key) of a document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


def _change(holder: Any, key: Any, chance: Random) -> None:
    old = holder[key]
    how = chance.randrange(6)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, list):
        holder.insert(chance.randrange(len(holder) + 1), old)
    elif how == 2 and isinstance(old, int):
        holder[key] = old + chance.choice((-1, 1, 8, -512, 4096))
    elif how == 3 and isinstance(old, str) and old:
        holder[key] = damaged(old.encode("utf-8", "surrogatepass"), chance).decode("utf-8", "replace")
    else:
        values: tuple[object, ...] = (
            *_NUMBERS,
            *_TEXTS,
            None,
            True,
            1.5,
            float("nan"),
            [],
            {},
            [[]],
            {"": None},
        )
        holder[key] = chance.choice(values)


def damaged_tar(body: bytes, chance: Random) -> bytes:
    """A tar with damage, most of it in headers, whose checksums are then right again as often as not."""
    blocks = [at for at in range(0, len(body) - _BLOCK + 1, _BLOCK) if body[at + 257 : at + 262] == b"ustar"]
    if not blocks or chance.random() < 0.3:
        return damaged(body, chance)
    made = bytearray(body)
    while made == body:
        at = chance.choice(blocks)
        made[at : at + _BLOCK] = damaged(bytes(made[at : at + _BLOCK]), chance)[:_BLOCK].ljust(_BLOCK, b"\0")
        if chance.random() < 0.7:
            _tally(made, at)
    return bytes(made)


def _tally(body: bytearray, at: int) -> None:
    header = body[at : at + _BLOCK]
    header[_TALLIES] = b" " * 8
    header[_TALLIES] = b"%06o\0 " % sum(header)
    body[at : at + _BLOCK] = header


def damage_database(path: Path, chance: Random) -> None:
    """Change values in a SQLite file by its own means, or its bytes."""
    if chance.random() < 0.4:
        path.write_bytes(damaged(path.read_bytes(), chance))
        return
    with contextlib.closing(sqlite3.connect(path)) as database, contextlib.suppress(sqlite3.Error):
        database.execute("PRAGMA writable_schema = 1")
        for _ in range(chance.choice((1, 1, 3))):
            _change_row(database, chance)
        database.commit()


def _change_row(database: sqlite3.Connection, chance: Random) -> None:
    tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    table = chance.choice(tables)
    columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    column = chance.choice(columns)
    count = database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    which = (columns[0], database.execute(f"SELECT {columns[0]} FROM {table}").fetchall())
    if not count:
        return
    key = chance.choice(which[1])[0]
    if chance.random() < 0.15:
        database.execute(f"DELETE FROM {table} WHERE {which[0]} IS ?", (key,))
        return
    old = database.execute(f"SELECT {column} FROM {table} WHERE {which[0]} IS ?", (key,)).fetchone()[0]
    database.execute(f"UPDATE {table} SET {column} = ? WHERE {which[0]} IS ?", (_value(old, chance), key))


def _value(old: Any, chance: Random) -> Any:
    """Return another value for a column; SQLite's take what they are given."""
    if isinstance(old, int) and chance.random() < 0.5:
        return max(-(2**63), min(2**63 - 1, old + chance.choice((-1, 1, 512, -4096, 2**31))))
    if isinstance(old, bytes) and old and chance.random() < 0.7:
        return damaged(old, chance)
    numbers = [number for number in _NUMBERS if -(2**63) <= number < 2**63]
    return chance.choice([*numbers, None, "text", b"", b"\xff" * 40, 1.5])
