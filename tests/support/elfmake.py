"""ELF files for tests: headers, a dynamic section, and as much code as is wanted."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

LOAD, DYNAMIC, INTERPRETER = 1, 2, 3
CODE, DATA = 5, 6  # p_flags: read and execute, read and write
_PAGE = 4096


class Made(NamedTuple):
    """A file, and where its parts are in it."""

    body: bytes
    strings: int
    dynamic: tuple[int, int]
    code: tuple[int, int]


def program(
    needed: Sequence[bytes] = (),
    *,
    runpath: bytes = b"",
    interpreter: bytes = b"",
    code: bytes = b"\x90" * 100,
    is_wide: bool = True,
    order: str = "<",
) -> Made:
    """An ELF file that needs libraries: a page of headers, one of strings, code, and the dynamic section."""
    names = b"\0" + b"".join(name + b"\0" for name in [*needed, runpath, interpreter])
    code_at = 2 * _PAGE
    dynamic_at = code_at + len(code) + -len(code) % _PAGE
    at, entries = 1, []
    for name in needed:
        entries.append((1, at))
        at += len(name) + 1
    if runpath:
        entries.append((29, at))
    entries += [(5, _PAGE), (10, len(names)), (0, 0)]
    dynamic = b"".join(struct.pack(f"{order}{'qQ' if is_wide else 'iI'}", *entry) for entry in entries)
    segments = [
        (LOAD, 4, 0, code_at),
        (LOAD, CODE, code_at, len(code)),
        (LOAD, DATA, dynamic_at, len(dynamic)),
        (DYNAMIC, DATA, dynamic_at, len(dynamic)),
    ]
    if interpreter:
        segments.append((INTERPRETER, 4, _PAGE + names.rindex(interpreter), len(interpreter) + 1))
    head = _header(len(segments), order, is_wide=is_wide)
    head += b"".join(_segment(*each, order, is_wide=is_wide) for each in segments)
    body = bytearray(dynamic_at + len(dynamic))
    for start, part in ((0, head), (_PAGE, names), (code_at, code), (dynamic_at, dynamic)):
        body[start : start + len(part)] = part
    return Made(bytes(body), _PAGE, (dynamic_at, len(body)), (code_at, code_at + len(code)))


def _header(segments: int, order: str, *, is_wide: bool) -> bytes:
    ident = b"\x7fELF" + bytes([2 if is_wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    address, size, each = ("Q", 64, 56) if is_wide else ("I", 52, 32)
    form = f"{order}HHI{address}{address}{address}IHHHHHH"
    return ident + struct.pack(form, 3, 62, 1, 0, size, 0, 0, size, each, segments, 0, 0, 0)


def _segment(kind: int, flags: int, start: int, size: int, order: str, *, is_wide: bool) -> bytes:
    if is_wide:
        return struct.pack(f"{order}IIQQQQQQ", kind, flags, start, start, start, size, size, _PAGE)
    return struct.pack(f"{order}IIIIIIII", kind, start, start, start, size, size, flags, _PAGE)
