"""xz and bzip2 layers, which podman and Docker read: streams of the stdlib's, one behind the other.

No engine writes them any more, and nothing in them can be entered but at the beginning of a stream: a layer
of one stream has one span, as one of a single zstd frame has.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Iterator

from imgfs.errors import InvalidImage
from imgfs.layer.limits import XZ_MEMORY_LIMIT

_PIECE = 256 * 1024  # bytes of output at once
_DAMAGE = (lzma.LZMAError, OSError, EOFError, ValueError)  # what the two say of a stream that is none


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_LIMIT)


_MAKERS: dict[str, Callable[[], lzma.LZMADecompressor | bz2.BZ2Decompressor]] = {
    "xz": _xz,
    "bzip2": bz2.BZ2Decompressor,
}


class Streams:
    """Decodes streams of `name`, "xz" or "bzip2", fed in chunks.

    `between` tells whether the last piece ended where a stream ends; `consumed` and `produced` count bytes.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._make = _MAKERS[name]
        self._stream: lzma.LZMADecompressor | bz2.BZ2Decompressor | None = None
        self._fed = 0
        self.between = True
        self.consumed = 0
        self.produced = 0

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """The bytes that `chunk` holds, in pieces of 256 KiB at most, and one at every end of a stream."""
        self._fed += len(chunk)
        left = chunk
        while True:
            if self._stream is None:
                left = left.lstrip(b"\0") if self._name == "xz" else left  # padding (.xz format, 2.2)
                self.consumed = self._fed - len(left)
                if not left:
                    return
                self._stream = self._make()
            output, left = self._step(self._stream, left)
            self.produced += len(output)
            self.consumed = self._fed - len(left)
            if output or self.between:
                yield output
            if self._stream and self._stream.needs_input:
                return

    def _step(self, stream: lzma.LZMADecompressor | bz2.BZ2Decompressor, left: bytes) -> tuple[bytes, bytes]:
        """Some output, and what of the input comes after the stream, if it has ended."""
        try:
            output = stream.decompress(left, _PIECE)
        except _DAMAGE as error:
            where = f"{self._name} offset {self.consumed}"
            raise InvalidImage(f"{self._name}: {error}", where=where) from error
        self.between = stream.eof
        if not stream.eof:
            return output, b""
        self._stream = None
        return output, stream.unused_data
