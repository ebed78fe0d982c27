"""ELF files: what the dynamic linker needs of them, out of plain bytes; and of bytes that are none."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.predict.elf import HEAD, Elf, Segment, read_dynamic, read_elf, string_at
from tests.support import elfmake

WORD = st.integers(0, (1 << 64) - 1)


def needed_of(body: bytes) -> list[bytes]:
    """The names of the libraries that a whole file needs."""
    elf = read_elf(body[:HEAD])
    assert elf
    assert elf.dynamic
    dynamic = read_dynamic(elf, body[slice(*elf.dynamic)])
    assert dynamic
    return [string_at(body[dynamic.strings :], offset) for offset in dynamic.needed]


@pytest.mark.parametrize("is_wide", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_libraries_of_a_file_are_read_in_either_size_and_order(is_wide: bool, order: str) -> None:
    made = elfmake.program(
        [b"libm.so.6", b"libc.so.6"], interpreter=b"/lib/ld.so", is_wide=is_wide, order=order
    )
    assert needed_of(made.body) == [b"libm.so.6", b"libc.so.6"]
    elf = read_elf(made.body[:HEAD])
    assert elf
    assert elf.interpreter
    assert made.body[slice(*elf.interpreter)] == b"/lib/ld.so\0"
    assert list(elf.mapped(1)) == [made.code]


def test_those_of_this_machines_python_are() -> None:
    assert any(name.startswith(b"libc.") for name in needed_of(Path(sys.executable).resolve().read_bytes()))


def test_what_the_linker_touches_is_all_but_the_code() -> None:
    made = elfmake.program([b"libc.so.6"], code=b"\x90" * 50_000)
    elf = read_elf(made.body[:HEAD])
    assert elf
    dynamic = read_dynamic(elf, made.body[slice(*made.dynamic)])
    assert dynamic
    assert dynamic.touched[-1] == made.dynamic
    assert all(end <= made.code[0] or start >= made.code[1] for start, end in dynamic.touched)


@pytest.mark.parametrize(("size", "touched"), [(4 << 20, 4 << 20), (100 << 20, 3 << 20)])
def test_of_much_that_can_be_written_the_linker_touches_what_it_protects(size: int, touched: int) -> None:
    relro, data = 0x6474E552, 1 << 20
    segments = [
        Segment(1, 4, 0, 0, 4096),
        Segment(1, 6, data, data, size),
        Segment(relro, 4, data, data, 3 << 20),
    ]
    section = struct.pack("<qQqQ", 5, 64, 10, 100)  # the string table, and its size
    dynamic = read_dynamic(Elf("<", True, tuple(segments)), section)
    assert dynamic
    assert dynamic.touched == ((64, 164), (data, data + touched))


@pytest.mark.parametrize("head", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(57)])
def test_what_is_no_elf_file_is_none(head: bytes) -> None:
    assert read_elf(head) is None


@given(st.data())
def test_a_damaged_file_gives_ranges_or_nothing(data: st.DataObject) -> None:
    body = bytearray(elfmake.program([b"libc.so.6", b"libm.so.6"], runpath=b"$ORIGIN").body)
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(4, 600))] = data.draw(st.integers(0, 255))
    elf = read_elf(bytes(body[:HEAD]))
    if elf:
        section = bytes(body[slice(*elf.dynamic)]) if elf.dynamic else b""
        dynamic = read_dynamic(elf, section)
        for start, end in dynamic.touched if dynamic else ():
            assert 0 <= start <= end


@given(st.binary(max_size=4000), st.lists(st.tuples(*[WORD] * 5), max_size=4))
def test_a_section_of_any_bytes_gives_offsets_or_nothing(
    section: bytes, segments: list[tuple[int, ...]]
) -> None:
    dynamic = read_dynamic(Elf("<", True, tuple(Segment(1, *each[1:]) for each in segments)), section)
    assert dynamic is None or len(dynamic.needed) <= 256


@given(st.binary(max_size=64), st.integers(-4, 80))
def test_a_string_ends_within_the_table_or_is_none(table: bytes, offset: int) -> None:
    found = string_at(table, offset)
    assert b"\0" not in found
    assert not found or table[offset : offset + len(found) + 1] == found + b"\0"
