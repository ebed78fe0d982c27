"""Layers of frames that are decoded one by one: zstd frames, xz and bzip2 streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import zstandard

from imgfs.errors import InvalidImage
from imgfs.layer.codec.xz_bzip2 import Streams
from imgfs.layer.entry import Codec
from imgfs.layer.limits import ZSTD_WINDOW_LIMIT

_FEED = 1024  # bytes given to zstd at once: a block of 4 bytes can hold 128 KiB (RFC 8878, section 3.1.1.2.3)
_PIECE = 256 * 1024  # bytes of output collected into one piece

FRAMED = {"zstd": Codec.ZSTD, "xz": Codec.XZ, "bzip2": Codec.BZIP2}  # what is cut between frames only


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
        except zstandard.ZstdError as error:
            raise InvalidImage(f"zstd: {error}", where=f"zstd offset {self.consumed}") from error
        taken = len(part)
        self.between = self._frame.eof
        if self.between:
            taken -= len(self._frame.unused_data)
            self._frame = None
        self.consumed += taken
        return output, at + taken
