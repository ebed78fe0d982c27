"""Compressed ranges into flat ones: whole blobs with the places where decoding can begin, and single spans.

A blob decoder is fed chunks of the blob, yields pieces of the flat layer and reports each `Cut`, a place
where a new span may begin. `decode_span` is its counterpart: one span's compressed bytes in, verified flat
bytes out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import zstandard

from imgfs.errors import IntegrityError, InvalidImage
from imgfs.layer.codec import isal_engine
from imgfs.layer.codec.gzip import Inflater
from imgfs.layer.codec.xz_bzip2 import Streams
from imgfs.layer.codec.zlib_engine import InflateEngine, ZlibEngine
from imgfs.layer.entry import Checkpoint, ChunkDigest, Codec, Span
from imgfs.layer.limits import ZSTD_WINDOW_LIMIT

MEMBERS = "gzip members"  # the format of a blob of several gzip members
STEP = 1 << 20  # flat bytes between cuts, at least: see the commit that chose it for the measurements
_FEED = 1024  # bytes given to zstd at once: a block of 4 bytes can hold 128 KiB (RFC 8878, section 3.1.1.2.3)
_PIECE = 256 * 1024  # bytes of output collected into one piece

_GZIP_MAGIC = b"\x1f\x8b"  # RFC 1952, section 2.3.1
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # RFC 8878, section 3.1.1
_STREAMS = {b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2"}
_OTHERS = {b"\x04\x22\x4d\x18": "lz4", b"PK\x03\x04": "zip"}
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257  # POSIX pax, "ustar Interchange Format"
MAGIC_LENGTH = _TAR_MAGIC_AT + len(_TAR_MAGIC)  # what `sniff` must see, if the blob has as much


class Cut(NamedTuple):
    """A place where a span may begin: at `start` in the blob, at `flat` in the flat layer."""

    start: int
    flat: int
    codec: Codec
    checkpoint: Checkpoint | None = None


class Decoder(Protocol):
    """Decodes a blob fed in chunks, in order. `format` says how it is packed, for people, once all is fed."""

    format: str

    def pieces(self, chunk: bytes) -> Iterator[bytes | memoryview]:
        """The flat bytes that `chunk` holds; each piece is valid until the next one is asked for."""

    def finish(self) -> None:
        """Raise InvalidImage if the blob cannot end here."""


def sniff(head: bytes) -> str:
    """How a blob that begins with `head` is packed: "gzip", "zstd", "xz", "bzip2" or "tar".

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
    return "tar"


def fastest_engine() -> InflateEngine:
    """What inflates a whole blob fastest here: ISA-L if it is installed, else zlib."""
    return isal_engine.IsalEngine() if isal_engine.available() else ZlibEngine()


def decoder(
    format: str,  # noqa: A002
    on_cut: Callable[[Cut], None],
    step: int = STEP,
    engine: Callable[[], InflateEngine] = fastest_engine,
) -> Decoder:
    """The decoder for `format` as `sniff` names it, with `engine` for gzip; cuts are `step` apart or more."""
    if format == "gzip":
        return _GzipDecoder(on_cut, step, engine())
    if format == "tar":
        return _TarDecoder(on_cut, step)
    return _FramesDecoder(on_cut, step, format)


def decode_span(span: Span, chunks: Iterable[bytes]) -> Iterator[bytes | memoryview]:
    """The flat bytes of `span` out of its compressed bytes; whoever uses them must take all of them first.

    Raises IntegrityError at the end at the latest, if the compressed bytes do not have the span's digest, or
    the flat ones not those of its parts, or decode to another length than the span's.
    """
    length = span.flat_end - span.flat_start
    check = _Parts(span) if span.parts else _Whole(span)
    produced = 0
    hashed = check.watch(chunks)
    try:
        for piece in _SPAN_DECODERS[span.codec](span, hashed, length):
            produced += len(piece)
            check.decoded(piece)
            yield piece
    except InvalidImage as error:  # is it the transport's fault or the image's?
        check.undecodable(hashed, error)
        raise
    for _ in hashed:
        pass
    check.finish()
    if produced != length:
        raise IntegrityError(f"length of span {span.number}", expected=length, actual=produced)


class _Whole:
    """Checks a span whose compressed bytes have a digest."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._hasher = hashlib.sha256()

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The compressed chunks as they go by."""
        for chunk in chunks:
            self._hasher.update(chunk)
            yield chunk

    def decoded(self, piece: bytes | memoryview) -> None:
        """Flat bytes: they follow from the compressed ones."""

    def undecodable(self, rest: Iterator[bytes], _error: InvalidImage) -> None:
        """Raise IntegrityError if these are not the bytes that the span's digest is of."""
        for _ in rest:
            pass
        self.finish()

    def finish(self) -> None:
        """Raise IntegrityError if the digest is another."""
        span, hasher = self._span, self._hasher
        if hasher.digest() != span.digest:
            raise IntegrityError(f"span {span.number}", expected=span.digest.hex(), actual=hasher.hexdigest())


class _Parts:
    """Checks a span of whose flat bytes runs have digests: they ascend, so each byte is hashed once at most.

    Raises IntegrityError as soon as a run is complete and has another digest.
    """

    def __init__(self, span: Span) -> None:
        self._span = span
        self._at = 0
        self._parts = iter(span.parts)
        self._begin()

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Return the compressed chunks as they are: no digest is of them."""
        return iter(chunks)

    def decoded(self, piece: bytes | memoryview) -> None:
        """Hash the next flat bytes."""
        view, at, end = memoryview(piece), self._at, self._at + len(piece)
        while (part := self._part) and part.skip < end:
            self._hasher.update(view[max(0, part.skip - at) : max(0, part.skip + part.length - at)])
            if part.skip + part.length > end:
                break
            self._check(part)
            self._begin()
        self._at = end

    def undecodable(self, _rest: Iterator[bytes], error: InvalidImage) -> None:
        """Raise IntegrityError: what cannot be decoded cannot have a flat digest."""
        part = self._span.parts[0]
        raise IntegrityError(
            f"span {self._span.number}", expected=part.digest.hex(), actual=str(error)
        ) from error

    def finish(self) -> None:
        """Raise IntegrityError if the flat bytes end before the runs do."""
        while self._part:
            self._check(self._part)
            self._begin()

    def _begin(self) -> None:
        self._part = next(self._parts, None)
        self._hasher = hashlib.sha256()

    def _check(self, part: ChunkDigest) -> None:
        if self._hasher.digest() != part.digest:
            what = f"span {self._span.number}, {part.length} bytes from {part.skip}"
            raise IntegrityError(what, expected=part.digest.hex(), actual=self._hasher.hexdigest())


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
        self._frames = _frames(self._codec)
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
        """The bytes that `chunk` holds, in pieces of about 256 KiB, and one at every end of a frame."""
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


FRAMED = {"zstd": Codec.ZSTD, "xz": Codec.XZ, "bzip2": Codec.BZIP2}  # what is cut between frames only


class _Frames(Protocol):
    """Decodes frames fed in chunks: see `ZstdFrames`."""

    between: bool
    consumed: int
    produced: int

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """The bytes that `chunk` holds, and a piece at every end of a frame."""


def _frames(codec: Codec) -> _Frames:
    names = {Codec.XZ: "xz", Codec.BZIP2: "bzip2"}
    return Streams(names[codec]) if codec in names else ZstdFrames()


def _identity_span(_span: Span, chunks: Iterator[bytes], _length: int) -> Iterator[bytes | memoryview]:
    return chunks


def _deflate_span(span: Span, chunks: Iterator[bytes], length: int) -> Iterator[bytes | memoryview]:
    inflater = Inflater(span.checkpoint)
    for chunk in chunks:
        if inflater.produced < length:
            yield from inflater.pieces(chunk, length + 1, length)  # boundaries do not matter here


def _framed_span(span: Span, chunks: Iterator[bytes], length: int) -> Iterator[bytes | memoryview]:
    """What frames hold beyond a span of parts is the next tar header; any other span is all of its frames."""
    frames = _frames(span.codec)
    for chunk in chunks:
        if span.parts and frames.produced >= length:
            continue
        for piece in frames.pieces(chunk):
            surplus = max(0, frames.produced - length)
            if surplus and not span.parts:
                raise InvalidImage(f"a span decodes to more than the {length} bytes its index says")
            yield piece[: len(piece) - surplus]
            if surplus:
                break


def _is_skippable(head: bytes) -> bool:
    """A skippable frame's magic is 0x184D2A50 to 0x184D2A5F (RFC 8878, section 3.1.2)."""
    return len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50


_SPAN_DECODERS: dict[Codec, Callable[[Span, Iterator[bytes], int], Iterator[bytes | memoryview]]] = {
    Codec.IDENTITY: _identity_span,
    Codec.GZIP: _deflate_span,
    Codec.DEFLATE: _deflate_span,
    Codec.ZSTD: _framed_span,
    Codec.XZ: _framed_span,
    Codec.BZIP2: _framed_span,
}
