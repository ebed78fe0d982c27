"""Where in its layer's flat file a file's bytes are, as EROFS says it: chunks of one size, at whole blocks.

Tar puts every file at a whole 512 bytes, and so do the payloads of tables of contents. Only what an old GNU
tar has torn into pieces (sparse files), or a builder cut oddly, may lie otherwise: see `assembled`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imgfs.kernel.erofs import HOLE, MOST_CHUNK_BITS
from imgfs.layer.entry import Extent

# Chunks of one file, 8 bytes each: some for any, else two for each block that is stored of it, or a header of
# 512 bytes could say that a file has millions.
_MOST_CHUNKS, _ANY_CHUNKS = 1 << 16, 1 << 10


class Chunks(NamedTuple):
    """A file in chunks of 1 << `bits` blocks, which begin at the blocks `starts` of a flat file."""

    bits: int
    starts: Sequence[int | None]


def run(start: int, size: int, block_bits: int) -> Chunks:
    """`size` bytes in one piece from the block `start` on."""
    blocks = -(-size >> block_bits)
    bits = min(MOST_CHUNK_BITS, (blocks - 1).bit_length())
    return Chunks(bits, range(start, start + blocks, 1 << bits))


def chunks_of(size: int, extents: Sequence[Extent], block_bits: int) -> Chunks | None:
    """The chunks of a file of `size` bytes, which are not none; None if its extents do not allow any."""
    mask = (1 << block_bits) - 1
    if not extents:
        holes = run(0, size, block_bits)
        few = len(holes.starts) <= _ANY_CHUNKS
        return Chunks(holes.bits, [HOLE] * len(holes.starts)) if few else None
    if len(extents) == 1 and extents[0][:2] == (0, size):
        return None if extents[0].flat & mask else run(extents[0].flat >> block_bits, size, block_bits)
    bounds = 0
    for extent in extents:
        end = extent.offset + extent.length
        if (extent.offset | extent.flat) & mask or (end & mask and end != size):
            return None
        bounds |= extent.offset | (end if end != size else 0)
    return _in_pieces(size, extents, bounds, block_bits)


def _in_pieces(size: int, extents: Sequence[Extent], bounds: int, block_bits: int) -> Chunks | None:
    """Chunks of the largest size that no end of an extent lies within."""
    whole = run(0, size, block_bits).bits
    bits = min(whole, (bounds & -bounds).bit_length() - 1 - block_bits) if bounds else whole
    chunk = 1 << (bits + block_bits)
    stored = sum(extent.length for extent in extents) >> block_bits
    if -(-size // chunk) > min(_MOST_CHUNKS, _ANY_CHUNKS + 2 * stored):
        return None
    return Chunks(bits, list(_starts(size, extents, chunk, block_bits)))


def _starts(size: int, extents: Sequence[Extent], chunk: int, block_bits: int) -> Iterator[int | None]:
    at = 0
    for extent in extents:
        yield from [HOLE] * ((extent.offset - at) // chunk)
        at = extent.offset
        while at < extent.offset + extent.length:
            yield (extent.flat + at - extent.offset) >> block_bits
            at += chunk
    yield from [HOLE] * -(-max(0, size - at) // chunk)
