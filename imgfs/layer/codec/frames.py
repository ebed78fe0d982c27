"""Layers of frames that are decoded one by one: zstd frames, xz and bzip2 streams.

podman and Docker read xz and bzip2 layers, but no engine writes them any more, and nothing in them can be
entered but at the beginning of a stream: a layer of one stream has one span, as one of a single zstd frame
has.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from imgfs.errors import InvalidImage
from imgfs.layer.entry import Codec
from imgfs.layer.limits import XZ_MEMORY_LIMIT, ZSTD_WINDOW_LIMIT

if TYPE_CHECKING:
    import zstandard

_PIECE = 256 * 1024  # bytes of output at once
_DAMAGE = (lzma.LZMAError, OSError, EOFError, ValueError)  # raised for bytes that are no such stream
_FEED = 1024  # bytes given to zstd at once: a block of 4 bytes can hold 128 KiB (RFC 8878, section 3.1.1.2.3)
_PIECE = 256 * 1024  # bytes of output collected into one piece

FRAMED = {"zstd": Codec.ZSTD, "xz": Codec.XZ, "bzip2": Codec.BZIP2}  # what is cut between frames only


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
        """Yield what `chunk` decodes to, in pieces of 256 KiB at most, and one at every end of a stream."""
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
        """Return some output, and what of the input comes after the stream, if it has ended."""
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


class Frames(Protocol):
    """Decodes frames fed in chunks: see `ZstdFrames`."""

    between: bool
    consumed: int
    produced: int

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the decoded bytes of `chunk`, and a piece at every end of a frame."""


def frames_of(codec: Codec) -> Frames:
    """Return a decoder of frames for ZSTD, XZ or BZIP2."""
    names = {Codec.XZ: "xz", Codec.BZIP2: "bzip2"}
    return Streams(names[codec]) if codec in names else ZstdFrames()


class ZstdFrames:
    """Decodes zstd frames (RFC 8878) fed in chunks; skippable frames are skipped.

    A frame that asks for a window of more than `window_limit` bytes raises InvalidImage. zstd allocates the
    window when a frame begins and writes to as much of it as the frame decodes to, so a caller that stops
    after N bytes has N bytes of it in memory, and up to 32 MiB more: 1,024 bytes of blocks.

    `between` tells whether the last piece ended where a frame ends; `consumed` and `produced` count bytes.
    """

    def __init__(self, window_limit: int = ZSTD_WINDOW_LIMIT) -> None:
        import zstandard  # here: most layers are gzip's

        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=window_limit)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self.between = True
        self.consumed = 0
        self.produced = 0

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the decoded bytes of `chunk` in pieces of about 256 KiB, and one at every end of a frame."""
        collected: list[bytes] = []
        size = at = 0
        while at < len(chunk):
            output, at = self._step(chunk, at)
            collected.append(output)
            size += len(output)
            if size >= _PIECE or self.between or at == len(chunk):
                self.produced += size
                yield b"".join(collected)
                collected, size = [], 0

    def _step(self, chunk: bytes, at: int) -> tuple[bytes, int]:
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        part = chunk[at : at + _FEED]
        try:
            output = self._frame.decompress(part)
        except self._error as error:
            said = "it needs a dictionary, which no layer brings" if "Dictionary" in str(error) else error
            raise InvalidImage(f"zstd: {said}", where=f"zstd offset {self.consumed}") from error
        taken = len(part)
        self.between = self._frame.eof
        if self.between:
            taken -= len(self._frame.unused_data)
            self._frame = None
        self.consumed += taken
        return output, at + taken
