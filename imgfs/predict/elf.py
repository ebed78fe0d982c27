"""ELF (System V gABI, chapters 4 and 5): the segments, and what the dynamic section says, out of plain bytes.

Only what the dynamic linker looks at; either byte order and size. What is no ELF file, or too odd, is None.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

HEAD = 4096  # bytes of a file that hold its headers
DYNAMIC_LIMIT = 1 << 16  # bytes of a dynamic section: 4,096 entries

_MAGIC = b"\x7fELF"
_ORDERS = {1: "<", 2: ">"}  # EI_DATA
_WIDE = 2  # EI_CLASS: 64 bits
_SEGMENTS = 64  # at most: programs have about a dozen
_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3  # p_type
_RELRO = 0x6474E552  # p_type PT_GNU_RELRO: what is read-only once the dynamic linker has relocated it
_DATA = 8 << 20  # bytes of a segment that can be written, all of which is likely to be relocated
_EXECUTABLE, _WRITABLE = 1, 2  # p_flags
_END, _NEEDED, _STRTAB, _STRSZ, _RPATH, _RUNPATH = 0, 1, 5, 10, 15, 29  # d_tag
# Tables that the dynamic linker goes through to relocate a file: hash tables, symbols, relocations, versions.
_TABLES = frozenset({4, _STRTAB, 6, 7, 17, 23, 36, 0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFE})
_SIZES = {7: 8, 17: 18, 23: 2, 36: 35, _STRTAB: _STRSZ}  # d_tag of a table's size
_NEEDED_LIMIT = 256  # libraries of a file


class Segment(NamedTuple):
    """A program header: `size` bytes of the file from `start` on are mapped at `address`."""

    kind: int
    flags: int
    start: int
    address: int
    size: int


class Elf(NamedTuple):
    """How numbers are written in a file, and its segments."""

    order: str
    is_wide: bool
    segments: tuple[Segment, ...]

    def range_of(self, kind: int) -> tuple[int, int] | None:
        """Return the range in the file of the first segment of a kind."""
        found = next((each for each in self.segments if each.kind == kind), None)
        return (found.start, found.start + found.size) if found else None

    @property
    def dynamic(self) -> tuple[int, int] | None:
        """Where the dynamic section is in the file; None if there is none, or it is too long."""
        found = self.range_of(_DYNAMIC)
        return found if found and found[1] - found[0] <= DYNAMIC_LIMIT else None

    @property
    def interpreter(self) -> tuple[int, int] | None:
        """Where the path of the dynamic linker is in the file."""
        return self.range_of(_INTERPRETER)

    @property
    def code(self) -> list[tuple[int, int]]:
        """The ranges in the file that are executed."""
        return list(self.mapped(_EXECUTABLE))

    def mapped(self, flag: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges in the file of what is loaded with a flag."""
        for each in self.segments:
            if each.kind == _LOAD and each.flags & flag:
                yield each.start, each.start + each.size

    def offset_of(self, address: int) -> int | None:
        """Return where in the file the byte is that is mapped at an address."""
        for each in self.segments:
            if each.kind == _LOAD and each.address <= address < each.address + each.size:
                return each.start + address - each.address
        return None


class Dynamic(NamedTuple):
    """What the dynamic section says; names are offsets in the string table, which begins at `strings`.

    `touched` are the ranges of the file that the dynamic linker reads and writes to relocate it.
    """

    strings: int
    needed: tuple[int, ...]
    paths: tuple[int, ...]
    touched: tuple[tuple[int, int], ...]


def read_elf(head: bytes) -> Elf | None:
    """Read the headers of a file that begins with `head`; None if it is no ELF file with segments."""
    if head[:4] != _MAGIC or len(head) < 64:
        return None
    order, is_wide = _ORDERS.get(head[5]), head[4] == _WIDE
    if order is None or head[4] not in (1, _WIDE):
        return None
    form, at, count_at = ("Q", 32, 54) if is_wide else ("I", 28, 42)  # e_phoff; e_phentsize, e_phnum
    [start] = struct.unpack_from(f"{order}{form}", head, at)
    each, count = struct.unpack_from(f"{order}HH", head, count_at)
    size = 56 if is_wide else 32
    if each != size or not 0 < count <= _SEGMENTS or start + count * size > len(head):
        return None
    rows = range(start, start + count * size, size)
    return Elf(order, is_wide, tuple(_segment(head, row, order, is_wide=is_wide) for row in rows))


def _segment(head: bytes, row: int, order: str, *, is_wide: bool) -> Segment:
    if is_wide:
        kind, flags, start, address, _, size = struct.unpack_from(f"{order}IIQQQQ", head, row)
    else:
        kind, start, address, _, size, _, flags = struct.unpack_from(f"{order}IIIIIII", head, row)
    return Segment(kind, flags, start, address, size)


def read_dynamic(elf: Elf, section: bytes) -> Dynamic | None:
    """Read a dynamic section; None if it names no string table."""
    entry = struct.Struct(f"{elf.order}{'qQ' if elf.is_wide else 'iI'}")
    found: dict[int, int] = {}
    needed: list[int] = []
    for at in range(0, min(len(section), DYNAMIC_LIMIT) - entry.size + 1, entry.size):
        tag, value = entry.unpack_from(section, at)
        if tag == _END:
            break
        if tag == _NEEDED and len(needed) < _NEEDED_LIMIT:
            needed.append(value)
        found.setdefault(tag, value)
    strings = elf.offset_of(found.get(_STRTAB, -1))
    if strings is None:
        return None
    paths = tuple(found[tag] for tag in (_RUNPATH, _RPATH) if tag in found)
    touched = tuple(_joined(sorted(_touched(elf, found))))
    return Dynamic(strings, tuple(needed), paths, touched)


def _touched(elf: Elf, found: dict[int, int]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of tables, each up to the next if its size is not told, and of what is relocated.

    Of a large segment that is what will be read-only; the rest may be a hundred megabytes of code for GPUs.
    """
    places = {tag: elf.offset_of(found[tag]) for tag in _TABLES if tag in found}
    starts = sorted(start for start in places.values() if start is not None)
    after = dict(pairwise(starts))
    for tag, start in places.items():
        if start is not None:
            size = found.get(_SIZES.get(tag, -1), 0)
            yield start, start + size if size else after.get(start, start + HEAD)
    yield from ((start, end) for start, end in elf.mapped(_WRITABLE) if end - start <= _DATA)
    if relocated := elf.range_of(_RELRO):
        yield relocated


def _joined(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield ranges, which ascend, with those that overlap or touch made one."""
    current: tuple[int, int] | None = None
    for start, end in ranges:
        if current and start <= current[1]:
            current = current[0], max(current[1], end)
            continue
        if current:
            yield current
        current = start, end
    if current:
        yield current


def string_at(strings: bytes, offset: int, limit: int = 4096) -> bytes:
    """Return the string of a string table at an offset; b"" if it is none, or longer than `limit` bytes."""
    end = strings.find(0, offset, offset + limit) if 0 <= offset < len(strings) else -1
    return strings[offset:end] if end > 0 else b""
