"""FlatBuffers, as much as a zTOC takes: a reader that trusts no offset, and a writer.

A buffer is tables that point at strings, vectors and other tables further on, and back at a vtable that says
where in a table each field is (FlatBuffers, "Internals"). The caller passes the fields of a table; the reader
checks every offset and length against the buffer. It never follows a pointer that its caller did not ask
for, so nothing can go in circles, and what is read out of a buffer is at most twice as long as it is, however
many pointers share a target.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from imgfs.errors import InvalidImage
from imgfs.layer.limits import VTABLES as VTABLES

# What a field of a schema can be: these three are pointers (uoffset, 32 bits), the others struct's letters.
STRING = "string"
TABLE = "table"
VECTOR = "vector"
INT64 = "q"
INT32 = "i"
UINT32 = "I"
INT8 = "b"
_POINTERS = frozenset((STRING, TABLE, VECTOR))
_DEFAULTS: dict[str, Any] = {STRING: b"", TABLE: None, VECTOR: None, INT64: 0, INT32: 0, UINT32: 0, INT8: 0}
_SIZES = {STRING: 4, TABLE: 4, VECTOR: 4, INT64: 8, INT32: 4, UINT32: 4, INT8: 1}

Schema: TypeAlias = tuple[str, ...]  # the kinds of a table's fields, by slot
_U32, _I32 = struct.Struct("<I"), struct.Struct("<i")
_VTABLE_HEAD = struct.Struct("<HH")  # its own length, that of the table's inline part; then 16 bits a slot


class TableLayout(NamedTuple):
    """Where a vtable has put the fields of a schema: how to unpack them at once, and which they are."""

    packed: struct.Struct
    slots: tuple[int, ...]  # of the unpacked values, in order
    pointers: tuple[tuple[int, int, str], ...]  # (slot, offset in the table, kind) of those that are there


class Flatbuffer:
    """Reads the tables of `body`; every method raises InvalidImage for what is not inside of it.

    An absent string is b"", an absent number 0, an absent table or vector None: the defaults of the schemas
    that this is for.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._left = 2 * len(body)  # bytes that may still be read out of it
        self._fields: dict[tuple[int, Schema], TableLayout] = {}

    def root(self) -> int:
        """Return where the root table is."""
        return self._pointer(0)

    def table(self, at: int, schema: Schema) -> list[Any]:
        """Return the fields of the table at `at`: numbers, strings, and where its tables and vectors are."""
        fields = self._fields_of(at, schema)
        values = [_DEFAULTS[kind] for kind in schema]
        for slot, value in zip(fields.slots, self._unpack(fields.packed, at), strict=True):
            values[slot] = value
        for slot, offset, kind in fields.pointers:
            target = at + offset + values[slot]
            values[slot] = self.string(target) if kind == STRING else target
        return values

    def string(self, at: int) -> bytes:
        """Return the string, or the vector of bytes, at `at`: its length (32 bits) and its bytes."""
        length = self._length(at, 1)
        self._spend(length + 5, at)  # with its length and the NUL that follows it
        return self._body[at + 4 : at + 4 + length]

    def octets(self, at: int) -> memoryview:
        """Return the vector of bytes at `at`, which may be most of the buffer: not copied."""
        length = self._length(at, 1)
        self._spend(length + 4, at)
        return memoryview(self._body)[at + 4 : at + 4 + length]

    def pointers(self, at: int) -> list[int]:
        """Return where the elements are of the vector at `at`, which holds strings or tables."""
        count = self._length(at, 4)
        self._spend(4 * count, at)
        offsets = struct.unpack_from(f"<{count}I", self._body, at + 4)
        return [at + 4 + 4 * number + offset for number, offset in enumerate(offsets)]

    def _length(self, at: int, width: int) -> int:
        (length,) = self._unpack(_U32, at)
        if length * width > len(self._body) - at - 4:
            raise InvalidImage(f"{length} elements do not fit", where=_at(at))
        return int(length)

    def _fields_of(self, at: int, schema: Schema) -> TableLayout:
        """Return where the table at `at` has its fields; tables of one shape share a vtable."""
        (back,) = self._unpack(_I32, at)
        vtable = at - back
        fields = self._fields.get((vtable, schema))
        if fields is None:
            if len(self._fields) == VTABLES:
                raise InvalidImage(f"more than {VTABLES} vtables", where=_at(vtable))
            fields = self._fields[vtable, schema] = self._read_vtable(vtable, schema)
        self._spend(fields.packed.size, at)
        return fields

    def _read_vtable(self, at: int, schema: Schema) -> TableLayout:
        length, inline = self._unpack(_VTABLE_HEAD, at)
        if length < 4 or length % 2 or inline < 4 or length > len(self._body) - at:
            raise InvalidImage("a vtable of impossible length", where=_at(at))
        count = min(len(schema), (length - 4) // 2)  # a newer writer's further fields are left alone
        offsets = struct.unpack_from(f"<{count}H", self._body, at + 4)
        return _fields(
            sorted((offset, slot) for slot, offset in enumerate(offsets) if offset), inline, schema, at
        )

    def _pointer(self, at: int) -> int:
        (offset,) = self._unpack(_U32, at)
        return at + int(offset)

    def _unpack(self, packed: struct.Struct, at: int) -> tuple[int, ...]:
        if at < 0 or packed.size > len(self._body) - at:
            raise InvalidImage("outside of the buffer", where=_at(at))
        return packed.unpack_from(self._body, at)

    def _spend(self, length: int, at: int) -> None:
        self._left -= length
        if self._left < 0:
            raise InvalidImage("the same bytes are pointed at again and again", where=_at(at))


def _fields(found: list[tuple[int, int]], inline: int, schema: Schema, at: int) -> TableLayout:
    """Plan for reading the fields `found`, (offset in the table, slot) in ascending order."""
    layout, end = "<4x", 4  # the first 32 bits of a table say where its vtable is
    for offset, slot in found:
        kind = schema[slot]
        if offset < end:
            raise InvalidImage("a vtable's fields overlap", where=_at(at))
        layout += f"{offset - end}x{'I' if kind in _POINTERS else kind}"
        end = offset + _SIZES[kind]
    if end > inline:
        raise InvalidImage("a vtable's field is outside of its table", where=_at(at))
    pointers = tuple((slot, offset, schema[slot]) for offset, slot in found if schema[slot] in _POINTERS)
    return TableLayout(struct.Struct(layout), tuple(slot for _, slot in found), pointers)


class FlatbufferBuilder:
    """Writes a buffer from its end: what is pointed at before what points at it.

    The targets it returns, to be given to `vector` and `table`, are distances from the buffer's end.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # the last in the buffer first
        self._size = 0
        self._vtables: dict[bytes, int] = {}
        self._shared: dict[bytes, int] = {}

    def string(self, text: bytes, *, shared: bool = False) -> int:
        """Add a string; `shared` ones that are equal are written once. Also a vector of bytes."""
        if shared and text in self._shared:
            return self._shared[text]
        target = self._add(_U32.pack(len(text)) + text + b"\0", 4)
        if shared:
            self._shared[text] = target
        return target

    def vector(self, targets: Sequence[int]) -> int:
        """Add a vector of pointers to strings or tables."""
        length = 4 + 4 * len(targets)
        start = self._room(length, 4)
        offsets = (start - 4 - 4 * number - target for number, target in enumerate(targets))
        return self._add(struct.pack(f"<I{len(targets)}I", len(targets), *offsets), 4)

    def table(self, schema: Schema, values: Sequence[int | None]) -> int:
        """Add a table: `values` are its fields by slot, numbers or targets; a number that is 0, the default,
        and a target that is None are left out."""
        present = [
            slot
            for slot, value in enumerate(values)
            if (value is not None if schema[slot] in _POINTERS else value)
        ]
        present.sort(key=lambda slot: -_SIZES[schema[slot]])  # so that none needs padding
        offsets, end = {}, 4
        for slot in present:
            offsets[slot], end = end, end + _SIZES[schema[slot]]
        inline = end + -end % 4
        vtable = self._vtable([offsets.get(slot, 0) for slot in range(max(present, default=-1) + 1)], inline)
        start = self._room(inline, 8, 4)  # 64-bit fields come first, 4 bytes in: aligned, as they must be
        body = struct.pack("<i", vtable - start)
        for slot in present:
            value, kind = values[slot], schema[slot]
            assert value is not None
            pointer = kind in _POINTERS
            body += struct.pack(
                "<I" if pointer else f"<{kind}", start - offsets[slot] - value if pointer else value
            )
        return self._add(body.ljust(inline, b"\0"), 8, 4)

    def finish(self, root: int) -> bytes:
        """Return the whole buffer, whose root is the table at `root`."""
        start = self._room(4, 8)
        self._add(_U32.pack(start - root), 8)
        return b"".join(reversed(self._parts))

    def _vtable(self, offsets: list[int], inline: int) -> int:
        length = 4 + 2 * len(offsets)
        body = struct.pack(f"<HH{len(offsets)}H", length, inline, *offsets)
        if body not in self._vtables:
            self._vtables[body] = self._add(body, 2)
        return self._vtables[body]

    def _room(self, length: int, alignment: int, shift: int = 0) -> int:
        """Return where the next `length` bytes will begin: `shift` bytes before an aligned target."""
        start = self._size + length
        return start + (shift - start) % alignment

    def _add(self, body: bytes, alignment: int, shift: int = 0) -> int:
        start = self._room(len(body), alignment, shift)
        self._parts.append(body + bytes(start - self._size - len(body)))
        self._size = start
        return start


def _at(offset: int) -> str:
    return f"flatbuffer offset {offset}"
