"""One span decoded: its compressed bytes in, verified flat bytes out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

from imgfs.errors import IntegrityError, InvalidImage
from imgfs.layer.codec import isal_engine
from imgfs.layer.codec.frames import frames_of
from imgfs.layer.codec.gzip import Inflater
from imgfs.layer.codec.zlib_engine import InflateEngine, ZlibEngine
from imgfs.layer.entry import ChunkDigest, Codec, Span


def decode_span(span: Span, chunks: Iterable[bytes]) -> Iterator[bytes | memoryview]:
    """Yield the flat bytes of `span` out of its compressed bytes; use none before all were yielded.

    Raises IntegrityError at the end at the latest, if the compressed bytes do not have the span's digest, or
    the flat ones not those of its parts, or decode to another length than the span's.
    """
    length = span.flat_end - span.flat_start
    check = _ChunkDigests(span) if span.parts else _SpanDigest(span)
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


class _SpanDigest:
    """Checks a span whose compressed bytes have a digest."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._hasher = hashlib.sha256()

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the compressed chunks as they go by."""
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


class _ChunkDigests:
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


def _identity_span(_span: Span, chunks: Iterator[bytes], _length: int) -> Iterator[bytes | memoryview]:
    return chunks


def _deflate_span(span: Span, chunks: Iterator[bytes], length: int) -> Iterator[bytes | memoryview]:
    inflater = Inflater(span.checkpoint, _fastest_engine())
    for chunk in chunks:
        if inflater.produced < length:
            yield from inflater.pieces(chunk, length + 1, length)  # boundaries do not matter here


def _fastest_engine() -> InflateEngine:
    return isal_engine.IsalEngine() if isal_engine.can_resume() else ZlibEngine()


def _framed_span(span: Span, chunks: Iterator[bytes], length: int) -> Iterator[bytes | memoryview]:
    """Yield what frames hold beyond a span of parts is the next tar header.

    Any other span is all of its frames.
    """
    frames = frames_of(span.codec)
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


_SPAN_DECODERS: dict[Codec, Callable[[Span, Iterator[bytes], int], Iterator[bytes | memoryview]]] = {
    Codec.IDENTITY: _identity_span,
    Codec.GZIP: _deflate_span,
    Codec.DEFLATE: _deflate_span,
    Codec.ZSTD: _framed_span,
    Codec.XZ: _framed_span,
    Codec.BZIP2: _framed_span,
}
