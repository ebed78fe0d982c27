"""A read of a file as pieces of its flat layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imgfs.layer.entry import Extent


class Piece(NamedTuple):
    """`length` bytes of a file: those at `flat` in the flat layer, or zeros if that is None."""

    flat: int | None
    length: int


def pieces_of(extents: Sequence[Extent], offset: int, length: int) -> Iterator[Piece]:
    """The pieces that make up a file's bytes `[offset, offset+length)`, which must lie inside the file."""
    end = offset + length
    for extent in extents:
        if extent.offset + extent.length <= offset:
            continue
        if offset >= end or extent.offset >= end:
            break
        if extent.offset > offset:
            yield Piece(None, extent.offset - offset)
            offset = extent.offset
        skipped = offset - extent.offset
        taken = min(extent.length - skipped, end - offset)
        yield Piece(extent.flat + skipped, taken)
        offset += taken
    if offset < end:
        yield Piece(None, end - offset)
