"""The rows of a table in a SQLite file that comes from elsewhere, read without SQLite.

SQLite follows what a hostile file says; here each page is visited once, so that the work is bounded by the
file's size, and only pages of the table are fetched (sqlite.org/fileformat2.html; sections are named).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeAlias

from imgfs.errors import InvalidImage

Value: TypeAlias = "int | float | str | bytes | None"
_MAGIC = b"SQLite format 3\0"
_LEAF, _INTERIOR = 0x0D, 0x05  # of table b-trees
_DEPTH = 20  # levels of a b-tree; SQLite's BTCURSOR_MAX_DEPTH
_BLOCK, _BLOCKS = 256 << 10, 16  # bytes that are read at once, and how many of them are kept
_LARGEST_ROW = 64 << 20  # bytes
_INTEGERS = (0, 1, 2, 3, 4, 6, 8)  # bytes by serial type


class SqliteFile:
    """A SQLite file of `size` bytes; `read` returns bytes from an offset. Raises InvalidImage."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        header = read(0, 100)
        if len(header) < 100 or not header.startswith(_MAGIC):
            raise InvalidImage("not a SQLite file")
        page = struct.unpack_from(">H", header, 16)[0]
        self._page_size = 65536 if page == 1 else page  # 1.3.2
        self._usable = self._page_size - header[20]  # 1.3.4
        if self._page_size & (self._page_size - 1) or self._page_size < 512 or self._usable < 480:
            raise InvalidImage("a SQLite file with pages of a wrong size")
        self._pages = size // self._page_size
        self._block = lru_cache(_BLOCKS)(lambda number: read(number * _BLOCK, _BLOCK))
        self._seen: set[int] = set()

    def rows(self, table: str) -> Iterator[tuple[Value, ...]]:
        """Yield a table's rows, in the order of their numbers."""
        self._seen.clear()
        schema = list(self._rows(1, 0))  # "Storage Of The SQL Database Schema"
        for row in schema:
            if len(row) >= 4 and row[0] == "table" and row[1] == table and isinstance(row[3], int):
                yield from self._rows(row[3], 0)
                return
        raise InvalidImage(f"a SQLite file without a table {table}")

    def _page(self, number: int) -> bytes:
        """Return a page that was not asked for before."""
        if not 1 <= number <= self._pages or number in self._seen:
            raise InvalidImage("a damaged SQLite file: its pages do not make trees")
        self._seen.add(number)
        start = (number - 1) * self._page_size
        first, offset = divmod(start, _BLOCK)
        page = self._block(first)[offset : offset + self._page_size]
        if len(page) < self._page_size:
            raise InvalidImage("a SQLite file that is cut")
        return page

    def _rows(self, number: int, depth: int) -> Iterator[tuple[Value, ...]]:
        """Yield the rows below a page of a table's b-tree (1.6)."""
        page, at = self._page(number), 100 if number == 1 else 0
        kind, cells = page[at], struct.unpack_from(">H", page, at + 3)[0]
        if kind not in (_LEAF, _INTERIOR) or depth > _DEPTH:
            raise InvalidImage("a damaged SQLite file: not the b-tree of a table")
        first = at + (8 if kind == _LEAF else 12)
        if first + 2 * cells > len(page):
            raise InvalidImage("a damaged SQLite file: too many cells")
        for offset in struct.unpack_from(f">{cells}H", page, first):
            if kind == _LEAF:
                yield _record(self._payload(page, offset))
            else:
                yield from self._rows(_number(page, offset), depth + 1)
        if kind == _INTERIOR:
            yield from self._rows(_number(page, at + 8), depth + 1)

    def _payload(self, page: bytes, offset: int) -> bytes:
        """Return the payload of a leaf's cell, with what lies on overflow pages (1.6, "X", "M", "K"; 1.7)."""
        length, offset = _varint(page, offset)
        _, offset = _varint(page, offset)
        if length > min(self._pages * self._page_size, _LARGEST_ROW):
            raise InvalidImage("a damaged SQLite file: a row longer than the file")
        most, least = self._usable - 35, (self._usable - 12) * 32 // 255 - 23
        here = length
        if length > most:
            some = least + (length - least) % (self._usable - 4)
            here = some if some <= most else least
        parts = [page[offset : offset + here]]
        left = length - here
        if left:
            following = _number(page, offset + here)
        while left > 0:
            overflow = self._page(following)
            parts.append(overflow[4 : min(self._usable, 4 + left)])
            left -= len(parts[-1])
            following = _number(overflow, 0)
        return b"".join(parts)


def _number(page: bytes, offset: int) -> int:
    if offset + 4 > len(page):
        raise InvalidImage("a damaged SQLite file: a cell behind its page's end")
    return int.from_bytes(page[offset : offset + 4])


def _varint(body: bytes, offset: int) -> tuple[int, int]:
    """Return a variable-length integer, and where it ends ("A variable-length integer")."""
    value = 0
    for count, byte in enumerate(body[offset : offset + 9], 1):
        if count == 9:
            return value << 8 | byte, offset + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, offset + count
    raise InvalidImage("a damaged SQLite file: a number that does not end")


def _record(payload: bytes) -> tuple[Value, ...]:
    """Return the values of a row (2.1, "Record Format")."""
    end, at = _varint(payload, 0)
    body, values = end, []
    if end > len(payload):
        raise InvalidImage("a damaged SQLite file: a row longer than it is")
    while at < end:
        serial, at = _varint(payload, at)
        value, length = _value(payload, body, serial)
        values.append(value)
        body += length
    if body > len(payload):
        raise InvalidImage("a damaged SQLite file: values longer than their row")
    return tuple(values)


def _value(payload: bytes, at: int, serial: int) -> tuple[Value, int]:
    """Return the value of a serial type, and its length."""
    if serial >= 12:
        length = (serial - 12) // 2
        body = payload[at : at + length]
        return (body.decode(errors="replace") if serial % 2 else body), length
    if serial <= 6:
        length = _INTEGERS[serial]
        return (int.from_bytes(payload[at : at + length], signed=True) if serial else None), length
    if serial == 7:
        return None, 8  # a real number, which no row here has
    return {8: 0, 9: 1}.get(serial), 0
