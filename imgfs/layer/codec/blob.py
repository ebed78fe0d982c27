"""A whole blob decoded, in one pass, with the positions where decoding can begin later.

A decoder is fed chunks of the blob, yields pieces of the flat layer and reports each `Cut`, where a new span
may begin. `span.decode_span` is its counterpart for one span.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple, Protocol

from imgfs.errors import InvalidImage
from imgfs.layer.codec import isal_engine
from imgfs.layer.codec.frames import FRAMED, frames_of
from imgfs.layer.codec.gzip import Inflater
from imgfs.layer.codec.zlib_engine import InflateEngine, ZlibEngine
from imgfs.layer.entry import Checkpoint, Codec

MEMBERS = "gzip members"  # the format of a blob of several gzip members
STEP = 1 << 20  # flat bytes between cuts, at least: see the commit that chose it for the measurements

_GZIP_MAGIC = b"\x1f\x8b"  # RFC 1952, section 2.3.1
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # RFC 8878, section 3.1.1
_STREAMS = {b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2"}
_OTHERS = {
    b"\x04\x22\x4d\x18": "lz4",
    b"\x02\x21\x4c\x18": "lz4",  # its legacy frames
    b"PK\x03\x04": "zip",
    b"\x1f\x9d": "compress (.Z)",
    b"LZIP\x01": "lzip",
    b"7z\xbc\xaf\x27\x1c": "7-zip",
    b"\xff\x06\x00\x00sNaPpY": "snappy",
    **{bytes((first, 0xB5, 0x2F, 0xFD)): "a zstd older than its standard" for first in range(0x22, 0x28)},
}
_LZMA, _NO_DICTIONARY = b"\x5d\x00\x00", b"\0\0"  # properties, and the low half of a dictionary's size
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257  # POSIX pax, "ustar Interchange Format"
MAGIC_LENGTH = _TAR_MAGIC_AT + len(_TAR_MAGIC)  # what `sniff` must see, if the blob has as much


class Cut(NamedTuple):
    """A position where a span may begin: at `start` in the blob, at `flat` in the flat layer."""

    start: int
    flat: int
    codec: Codec
    checkpoint: Checkpoint | None = None


class Decoder(Protocol):
    """Decodes a blob fed in chunks, in order. `format` is how it is packed, once all is fed."""

    format: str

    def pieces(self, chunk: bytes) -> Iterator[bytes | memoryview]:
        """Yield the flat bytes of `chunk`; each piece is valid until the next one is requested."""

    def finish(self) -> None:
        """Raise InvalidImage if the blob cannot end here."""


def sniff(head: bytes) -> str:
    """Return how a blob that begins with `head` is packed: "gzip", "zstd", "xz", "bzip2" or "tar".

    The magic decides, not the media type: labels lie. Raises InvalidImage for formats known to be others.
    """
    if head.startswith(_TAR_MAGIC, _TAR_MAGIC_AT):  # its first member may be called as it likes
        return "tar"
    if head.startswith(_GZIP_MAGIC):
        return "gzip"
    if head.startswith(_ZSTD_MAGIC) or _is_skippable(head):
        return "zstd"
    for magic, name in _STREAMS.items():
        if head.startswith(magic):
            return name
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise InvalidImage(f"packed with {name}, which layers must not be")
    if head.startswith(_LZMA) and head[3:5] != _NO_DICTIONARY:  # a tar's member may be called "]"
        raise InvalidImage("packed with lzma, which layers must not be")
    return "tar"


def fastest_engine() -> InflateEngine:
    """Return the fastest engine for a whole blob: ISA-L if it is installed, else zlib."""
    return isal_engine.IsalEngine() if isal_engine.available() else ZlibEngine()


def decoder(
    format: str,  # noqa: A002
    on_cut: Callable[[Cut], None],
    step: int = STEP,
    engine: Callable[[], InflateEngine] = fastest_engine,
) -> Decoder:
    """Return the decoder for `format`, as `sniff` names it; cuts are `step` flat bytes apart or more."""
    if format == "gzip":
        return _GzipDecoder(on_cut, step, engine())
    if format == "tar":
        return _TarDecoder(on_cut, step)
    return _FramesDecoder(on_cut, step, format)


def unpacked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the flat bytes of a whole blob. Raises InvalidImage."""
    head = b""
    while len(head) < MAGIC_LENGTH and (chunk := next(chunks, b"")):
        head += chunk
    decode = decoder(sniff(head), lambda _: None)
    for packed in chain((head,), chunks):
        yield from map(bytes, decode.pieces(packed))
    decode.finish()


class _TarDecoder:
    """An uncompressed layer: cut anywhere."""

    format = "tar"

    def __init__(self, on_cut: Callable[[Cut], None], step: int) -> None:
        self._on_cut = on_cut
        self._step = step
        self._at = 0
        self._last = 0

    def pieces(self, chunk: bytes) -> Iterator[bytes | memoryview]:
        while self._last + self._step < self._at + len(chunk):
            self._last += self._step
            self._on_cut(Cut(self._last, self._last, Codec.IDENTITY))
        self._at += len(chunk)
        yield chunk

    def finish(self) -> None:
        pass


class _GzipDecoder:
    """Gzip members: cut between them, or inside them at a block boundary with a checkpoint."""

    format = "gzip"

    def __init__(self, on_cut: Callable[[Cut], None], step: int, engine: InflateEngine) -> None:
        self._on_cut = on_cut
        self._step = step
        self._inflater = Inflater(engine=engine)
        self._stop = step
        self._members = 0  # that have ended

    def pieces(self, chunk: bytes) -> Iterator[bytes | memoryview]:
        inflater = self._inflater
        for piece in inflater.pieces(chunk, self._stop):
            if inflater.boundary == "member":
                self._members += 1
                self.format = "gzip" if self._members == 1 else MEMBERS
            if inflater.boundary and inflater.produced >= self._stop:
                self._cut(inflater)
            if piece:
                yield piece

    def _cut(self, inflater: Inflater) -> None:
        at, flat = inflater.consumed, inflater.produced
        if inflater.boundary == "member":
            self._on_cut(Cut(at, flat, Codec.GZIP))
        else:
            checkpoint = inflater.checkpoint()
            self._on_cut(Cut(at - bool(checkpoint.bits), flat, Codec.DEFLATE, checkpoint))
        self._stop = inflater.until = flat + self._step

    def finish(self) -> None:
        if not self._inflater.complete:
            raise InvalidImage(
                "the gzip stream ends in mid-member", where=f"gzip offset {self._inflater.consumed}"
            )


class _FramesDecoder:
    """Frames or streams, each decodable alone: cut between them. A layer of one has one span: all of it."""

    def __init__(self, on_cut: Callable[[Cut], None], step: int, format: str) -> None:  # noqa: A002
        self.format = format
        self._on_cut = on_cut
        self._codec = FRAMED[format]
        self._frames = frames_of(self._codec)
        self._stop = step
        self._step = step

    def pieces(self, chunk: bytes) -> Iterator[bytes | memoryview]:
        for piece in self._frames.pieces(chunk):
            yield piece
            if self._frames.between and self._frames.produced >= self._stop:
                self._on_cut(Cut(self._frames.consumed, self._frames.produced, self._codec))
                self._stop = self._frames.produced + self._step

    def finish(self) -> None:
        if not self._frames.between:
            where = f"{self.format} offset {self._frames.consumed}"
            raise InvalidImage(f"the {self.format} stream ends in mid-frame", where=where)


def _is_skippable(head: bytes) -> bool:
    """Return True for a skippable frame: magic 0x184D2A50 to 0x184D2A5F (RFC 8878, section 3.1.2)."""
    return len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
