"""Where a file's bytes are, as EROFS says it: chunks of one size, at whole blocks of a device.

A device is a layer's flat file. Tar puts every file at a whole 512 bytes, and so do the payloads of tables of
contents. Only sparse files that an old GNU tar has cut into pieces, or an odd builder's, may lie otherwise.

Those have one more device, the `AssembledDevice`: an address space with one file after the other, each at
whole blocks, which the daemon assembles as it is read. The table of its files stands behind the image's last
block, where the kernel does not look: 16 bytes for each file, and their number.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from imgfs.errors import StoreError, describe
from imgfs.kernel.erofs_format import HOLE, MOST_BLOCKS, MOST_CHUNK_BITS, Unsuitable
from imgfs.layer.entry import Extent

# Chunks of one file, 8 bytes each: some for any, else two for each block that is stored of it, or a header of
# 512 bytes could say that a file has millions.
_MOST_CHUNKS, _ANY_CHUNKS = 1 << 16, 1 << 10


class Chunks(NamedTuple):
    """A file in chunks of 1 << `bits` blocks, which begin at the blocks `starts` of a flat file."""

    bits: int
    starts: Sequence[int | None]


def contiguous_chunks(start: int, size: int, block_bits: int) -> Chunks:
    """`size` bytes in one piece from the block `start` on."""
    blocks = -(-size >> block_bits)
    bits = min(MOST_CHUNK_BITS, (blocks - 1).bit_length())
    return Chunks(bits, range(start, start + blocks, 1 << bits))


def chunks_of(size: int, extents: Sequence[Extent], block_bits: int) -> Chunks | None:
    """Return the chunks of a file of `size` bytes, which are not none.

    None if its extents do not allow any.
    """
    mask = (1 << block_bits) - 1
    if not extents:
        holes = contiguous_chunks(0, size, block_bits)
        few = len(holes.starts) <= _ANY_CHUNKS
        return Chunks(holes.bits, [HOLE] * len(holes.starts)) if few else None
    if len(extents) == 1 and extents[0][:2] == (0, size):
        return (
            None
            if extents[0].flat & mask
            else contiguous_chunks(extents[0].flat >> block_bits, size, block_bits)
        )
    bounds = 0
    for extent in extents:
        end = extent.offset + extent.length
        if (extent.offset | extent.flat) & mask or (end & mask and end != size):
            return None
        bounds |= extent.offset | (end if end != size else 0)
    return _in_pieces(size, extents, bounds, block_bits)


def _in_pieces(size: int, extents: Sequence[Extent], bounds: int, block_bits: int) -> Chunks | None:
    """Chunks of the largest size that no end of an extent lies within."""
    whole = contiguous_chunks(0, size, block_bits).bits
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


_END = struct.Struct("<QQ8s")  # files, bytes of address space
_MAGIC = b"imgfsasm"


class AssembledRange(NamedTuple):
    """`length` bytes of the file `ino`, from `offset` on; of none, they are zeros, if that is 0."""

    ino: int
    offset: int
    length: int


class AssembledDevice:
    """The files of the space, by where they begin; bytes, in blocks of 1 << `block_bits`."""

    def __init__(self, block_bits: int) -> None:
        self.size = 0
        self._bits = block_bits
        self._starts, self._inos = array("Q"), array("Q")

    def add(self, ino: int, size: int) -> int:
        """Give a file of `size` bytes a place; the block it begins at. Raises Unsuitable if there is none."""
        start = self.size
        if (start + size >> self._bits) + 1 > MOST_BLOCKS:
            raise Unsuitable(f"EROFS has no blocks for a file of {size} bytes in pieces")
        self._starts.append(start)
        self._inos.append(ino)
        self.size += -(-size >> self._bits) << self._bits
        return start >> self._bits

    def write(self, file: BinaryIO) -> None:
        """Write the table."""
        for table in (self._starts, self._inos):
            table.tofile(file)
        file.write(_END.pack(len(self._inos), self.size, _MAGIC))

    @classmethod
    def read(cls, file: BinaryIO, block_bits: int) -> AssembledDevice:
        """Return the table at the end of a file; raises StoreError."""
        found = cls(block_bits)
        try:
            end = file.seek(-_END.size, 2)
            count, found.size, magic = _END.unpack(file.read(_END.size))
            if magic == _MAGIC:
                file.seek(end - 16 * count)
                found._starts.fromfile(file, count)
                found._inos.fromfile(file, count)
                return found
        except (OSError, EOFError, ValueError, struct.error) as error:
            raise StoreError(f"the EROFS image is damaged: {describe(error)}") from error
        raise StoreError("the EROFS image is damaged: no table at its end")

    def parts(self, offset: int, length: int) -> Iterator[AssembledRange]:
        """Yield what the bytes `[offset, offset+length)` are; a part may reach beyond its file's end."""
        number = bisect_right(self._starts, offset) - 1
        end = min(offset + length, self.size)
        while offset < end:
            after = self._starts[number + 1] if number + 1 < len(self._starts) else self.size
            taken = min(end, after) - offset
            yield AssembledRange(self._inos[number], offset - self._starts[number], taken)
            offset += taken
            number += 1
