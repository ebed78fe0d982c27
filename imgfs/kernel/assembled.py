"""Files whose bytes do not stand in their layer's flat file as EROFS needs them.

They get an address space of their own, one behind the other at whole blocks, and with it one more flat file:
whoever serves that puts them together as they are read. Which file is where is written behind the image's
last block, where the kernel does not look: 16 bytes for each, and their number.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from imgfs.errors import StoreError
from imgfs.kernel.erofs import MOST_BLOCKS, Unsuitable

_END = struct.Struct("<QQ8s")  # files, bytes of address space
_MAGIC = b"imgfsasm"


class Part(NamedTuple):
    """`length` bytes of the file `ino`, from `offset` on; of none, they are zeros, if that is 0."""

    ino: int
    offset: int
    length: int


class Assembled:
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
    def read(cls, file: BinaryIO, block_bits: int) -> Assembled:
        """The table at the end of a file; raises StoreError."""
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
            raise StoreError(f"the EROFS image is damaged: {error}") from error
        raise StoreError("the EROFS image is damaged: no table at its end")

    def parts(self, offset: int, length: int) -> Iterator[Part]:
        """What the space's bytes `[offset, offset+length)` are; a part may reach beyond its file's end."""
        number = bisect_right(self._starts, offset) - 1
        end = min(offset + length, self.size)
        while offset < end:
            after = self._starts[number + 1] if number + 1 < len(self._starts) else self.size
            taken = min(end, after) - offset
            yield Part(self._inos[number], offset - self._starts[number], taken)
            offset += taken
            number += 1
