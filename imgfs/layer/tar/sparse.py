"""Sparse members: GNU's four ways to say where a file's bytes are and where its holes are.

The payload holds the pieces end to end, without the holes (GNU tar manual, "Storing Sparse Files").
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.layer.entry import Extent
from imgfs.layer.limits import MAP_LIMIT
from imgfs.layer.tar.header import BLOCK, ReadRequest, check_size, has_gnu_magic, parse_number
from imgfs.layer.tar.pax import SPARSE_MAP, Records, parse_decimal

_Piece = tuple[int, int]  # offset in the file, length


class MemberLayout(NamedTuple):
    """Where a member's bytes are: the file's size, its extents, the flat range `[start, end)` they fill."""

    size: int
    extents: tuple[Extent, ...]
    start: int
    end: int


def is_pax_sparse(records: Records) -> bool:
    """Return whether PAX records announce a sparse member, of whatever version."""
    return (
        b"GNU.sparse.major" in records
        or SPARSE_MAP in records
        or b"GNU.sparse.size" in records
        or b"GNU.sparse.minor" in records
    )


def read_pax_sparse(records: Records, start: int, stored: int) -> Generator[ReadRequest, bytes, MemberLayout]:
    """Read a member whose `stored` bytes at flat offset `start` are sparse by its PAX records.

    Versions 0.0 and 0.1 have the map in the records, 1.0 at the head of the payload. Raises InvalidImage.
    """
    version = records.get(b"GNU.sparse.major", b"0") + b"." + records.get(b"GNU.sparse.minor", b"0")
    size = records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size")
    if size is None:
        raise InvalidImage("a sparse member does not say its real size")
    if version == b"1.0":
        numbers, length = yield from _map_in_payload(start, stored)
    elif version in (b"0.0", b"0.1"):
        numbers, length = _map_in_records(records), 0
    else:
        raise InvalidImage(f"sparse format {version[:20]!r} is unknown")
    return _laid_out(_pairs(numbers), check_size(parse_decimal(size)), start + length, stored - length)


def read_old_sparse(block: bytes, start: int, stored: int) -> Generator[ReadRequest, bytes, MemberLayout]:
    """Read a member of type `S`: its map is in the header block and, if that says so, in blocks after it.

    Four pieces at 386, the flag at 482, the real size at 483; then 21 pieces a block and the flag at 504 (GNU
    tar manual, "Old GNU Format"). Raises InvalidImage.
    """
    if not has_gnu_magic(block):
        raise InvalidImage("a sparse member without GNU's magic")
    pieces = list(_pieces_in(block[386:482]))
    size, more, at = check_size(parse_number(block[483:495])), block[482], start
    while more:
        if at - start >= MAP_LIMIT:
            raise InvalidImage("the sparse map is larger than 1 MiB")
        extension = yield ReadRequest(at, BLOCK)
        if len(extension) < BLOCK:
            raise InvalidImage("the sparse map is truncated")
        pieces += _pieces_in(extension[:504])
        more, at = extension[504], at + BLOCK
    return _laid_out(pieces, size, at, stored)


def _pieces_in(slots: bytes) -> Iterator[_Piece]:
    """Yield the pieces in 24-byte slots, two 12-byte numbers each; an unused slot ends them."""
    for at in range(0, len(slots), 24):
        if not slots[at]:
            return
        yield parse_number(slots[at : at + 12]), parse_number(slots[at + 12 : at + 24])


def _map_in_records(records: Records) -> list[int]:
    text = records.get(SPARSE_MAP)
    numbers = [parse_decimal(number) for number in text.split(b",")] if text else []
    blocks = records.get(b"GNU.sparse.numblocks")
    if blocks is not None and 2 * parse_decimal(blocks) != len(numbers):
        raise InvalidImage("the sparse map has another length than its records say")
    return numbers


def _map_in_payload(start: int, stored: int) -> Generator[ReadRequest, bytes, tuple[list[int], int]]:
    """Yield (numbers, length of the map): a decimal a line, first their count, padded to a block."""
    text, lines, wanted = bytearray(), 0, 1
    while lines < wanted:
        if len(text) >= MAP_LIMIT:
            raise InvalidImage("the sparse map is larger than 1 MiB")
        if len(text) + BLOCK > stored:
            raise InvalidImage("the sparse map is longer than its member")
        block = yield ReadRequest(start + len(text), BLOCK)
        if len(block) < BLOCK:
            raise InvalidImage("the sparse map is truncated")
        text += block
        lines += block.count(b"\n")
        if wanted == 1 and lines:
            wanted = 1 + 2 * check_size(parse_decimal(bytes(text[: text.index(b"\n")])))
    return [parse_decimal(line) for line in bytes(text).split(b"\n")[1:wanted]], len(text)


def _pairs(numbers: list[int]) -> list[_Piece]:
    if len(numbers) % 2:
        raise InvalidImage("the sparse map ends in mid-piece")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _laid_out(pieces: Iterable[_Piece], size: int, start: int, stored: int) -> MemberLayout:
    """Return the pieces as extents of the flat layer from `start` on.

    Raises InvalidImage unless they are in order, within `size`, and just what is stored.
    """
    extents, flat, previous = [], start, 0
    for offset, length in pieces:
        if length < 0 or offset < previous or offset + length > size:
            raise InvalidImage(
                f"the sparse map's piece {offset}+{length} overlaps another or leaves the file"
            )
        previous = offset + length
        if length:
            extents.append(Extent(offset, length, flat))
            flat += length
    if flat != start + stored:
        raise InvalidImage(f"the sparse map describes {flat - start} bytes where {stored} are stored")
    return MemberLayout(size, tuple(extents), start, flat)
