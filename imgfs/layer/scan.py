"""Index a layer while it is downloaded: one pass over the blob, nothing is fetched or read twice.

One thread takes chunks from the network and hashes the blob; the caller's thread decodes them, reads the tar
headers and notes the spans, where each begins and ends, and its digest; a third hashes the flat layer (its
DiffID) and writes it. All the heavy calls release the GIL. A scan `inline` does it all in the caller's
thread: where each core scans a small layer of its own, threads would only take its lock from each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from imgfs.errors import IntegrityError, InvalidImage
from imgfs.layer.codec.blob import MAGIC_LENGTH, STEP, Cut, decoder, fastest_engine, sniff
from imgfs.layer.codec.frames import FRAMED
from imgfs.layer.codec.zlib_engine import InflateEngine
from imgfs.layer.entry import Codec, Entry, Span
from imgfs.layer.limits import PLAUSIBLE_RATIO, PLAUSIBLE_SIZE
from imgfs.layer.origin import TOC_DIGEST
from imgfs.layer.tar.reader import ReadRequest, parse_tar
from imgfs.layer.toc.toc import is_own
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.parallel import InlineCall, ReadAheadThread, WriteBehindThread

if TYPE_CHECKING:
    from hashlib import _Hash

# Bytes that are decoded at once, as many as a download hands on: where spans are cut depends on it.
_PIECE = 256 << 10


class Bomb(InvalidImage):
    """A blob that decodes to more than is plausible."""


class IndexSink(Protocol):
    """What takes the entries and spans that a scan finds."""

    def add_entry(self, entry: Entry, /) -> None:
        """Take one entry, in the layer's own order."""

    def add_span(self, span: Span, /) -> None:
        """Take one span; their flat ranges ascend."""

    def finish(self, *, digest: str, diff_id: str, format: str, size: int, flat_size: int) -> None:  # noqa: A002
        """End the index: all that was taken is right."""


class FlatFile(Protocol):
    """The file that the flat layer is written to."""

    def write(self, offset: int, piece: bytes | memoryview) -> None:
        """Put `piece` at `offset`."""


def scan(
    chunks: Iterator[bytes],
    layer: Descriptor,
    diff_id: Digest,
    flat: FlatFile,
    index: IndexSink,
    *,
    plausible: int = PLAUSIBLE_SIZE,
    step: int = STEP,
    engine: Callable[[], InflateEngine] = fastest_engine,
    inline: bool = False,
) -> int:
    """Decode the whole blob, write its flat layer to `flat` and its entries and spans to `index`.

    Returns the flat layer's size in bytes. Nothing of either may be used unless this returns: only then do
    the blob's size, its digest and the DiffID hold. Raises IntegrityError if they do not, InvalidImage for a
    blob that is no layer or decodes to more than `plausible` bytes and 100 times its own size.
    """
    blob_hash, flat_hash = layer.digest.hasher(), diff_id.hasher()
    limit = max(plausible, PLAUSIBLE_RATIO * layer.size)

    def keep(item: tuple[int, bytes | memoryview]) -> None:
        flat_hash.update(item[1])
        flat.write(*item)

    pieces = _even(_hashed(_measured(chunks, layer), blob_hash))
    with (
        closing(pieces if inline else ReadAheadThread(pieces)) as source,
        closing(InlineCall(keep) if inline else WriteBehindThread(keep)) as sink,
    ):
        try:
            size, format_name = _decode(source, sink, layer, index, limit, (step, engine))
        except Bomb:
            raise
        except InvalidImage as error:  # a wrong digest is the transport's fault, a right one the image's
            for _ in source:
                pass
            layer.digest.check(blob_hash, "layer blob")
            if "tar" in layer.media_type:
                raise
            raise InvalidImage(f"{error}; a blob of type {layer.media_type[:100]!r}") from error
    sink.finish()
    layer.digest.check(blob_hash, "layer blob")
    diff_id.check(flat_hash, f"uncompressed layer {layer.digest.short} (DiffID)")
    index.finish(
        digest=str(layer.digest), diff_id=str(diff_id), format=format_name, size=layer.size, flat_size=size
    )
    return size


def scan_unknown(chunks: Iterator[bytes], size: int, index: IndexSink) -> None:
    """Write the entries and spans of a file that is a tar, perhaps packed, to `index`, and its digests.

    `size` is its bytes. Nothing is promised of it and nothing kept: the summary has the digests that were
    found. Raises InvalidImage as `scan` does.
    """
    blob_hash, flat_hash = hashlib.sha256(), hashlib.sha256()
    blob = Descriptor("", Digest.of(b""), size)
    cutting = (STEP, fastest_engine)
    limit = max(PLAUSIBLE_SIZE, PLAUSIBLE_RATIO * size)
    with (
        closing(ReadAheadThread(_even(_hashed(_measured(chunks, blob), blob_hash)))) as source,
        closing(WriteBehindThread(lambda item: flat_hash.update(item[1]))) as sink,
    ):
        flat_size, format_name = _decode(source, sink, blob, index, limit, cutting)
    sink.finish()
    index.finish(
        digest=f"sha256:{blob_hash.hexdigest()}",
        diff_id=f"sha256:{flat_hash.hexdigest()}",
        format=format_name,
        size=size,
        flat_size=flat_size,
    )


def _decode(
    source: Iterator[bytes],
    sink: WriteBehindThread | InlineCall,
    layer: Descriptor,
    index: IndexSink,
    limit: int,
    cutting: tuple[int, Callable[[], InflateEngine]],
) -> tuple[int, str]:
    """Drive decoder, tar reader and span writer over the chunks; returns flat size and format."""
    head = _head(source)
    format_name = sniff(head)
    spans = SpanWriter(index, format_name)
    decode = decoder(format_name, spans.cut, *cutting)
    hides = TOC_DIGEST in layer.annotations

    def keep(entry: Entry) -> None:
        if not (hides and is_own(entry.path)):
            index.add_entry(entry)

    headers = HeaderFeeder(parse_tar(keep))
    size = 0
    for chunk in chain((head,), source):
        spans.chunk(chunk)
        for piece in decode.pieces(chunk):
            sink.put((size, piece))
            headers.feed(size, piece)
            size += len(piece)
            if size > limit:
                raise Bomb(f"a decompression bomb: its {layer.size} bytes decode to over {limit}")
    decode.finish()
    headers.finish(size)
    spans.finish(size)
    return size, decode.format


def _measured(chunks: Iterator[bytes], layer: Descriptor) -> Iterator[bytes]:
    """Yield the chunks, but for empty ones.

    Raises IntegrityError once they are not as long in all as the layer's size.
    """
    size = 0
    for chunk in filter(None, chunks):
        size += len(chunk)
        if size > layer.size:
            break
        yield chunk
    if size != layer.size:
        actual = f"{size} or more" if size > layer.size else size
        raise IntegrityError("length of the layer blob", expected=layer.size, actual=actual)


def _hashed(chunks: Iterator[bytes], hasher: _Hash) -> Iterator[bytes]:
    """Yield the chunks, each added to `hasher` as it arrives, whole."""
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk


def _even(chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
    """Cut chunks into pieces of one size: a layer gets the same spans however its bytes arrive."""
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size >= _PIECE:
            whole = b"".join(parts)
            end = size - size % _PIECE
            for at in range(0, end, _PIECE):
                yield whole[at : at + _PIECE]
            parts, size = [whole[end:]], size - end
    if size:
        yield b"".join(parts)


def _head(source: Iterator[bytes]) -> bytes:
    """Return the blob's first chunk, or as many of them as `sniff` needs."""
    head = b""
    while len(head) < MAGIC_LENGTH and (chunk := next(source, b"")):
        head += chunk
    return head


class HeaderFeeder:
    """Feeds the tar reader from pieces in order, and keeps only the bytes of a request across pieces."""

    def __init__(self, parser: Generator[ReadRequest, bytes, int]) -> None:
        self._parser = parser
        self._held = bytearray()
        self._request: ReadRequest | None = next(parser)
        self._end = 0

    def feed(self, start: int, piece: bytes | memoryview) -> None:
        """Take the piece of the flat layer at `start`."""
        end = start + len(piece)
        while self._request is not None and self._request.offset < end:
            offset, length = self._request
            if offset + length > end:
                self._held += piece[max(0, offset - start) :]
                return
            if self._held:
                self._held += piece[max(0, offset + len(self._held) - start) : offset + length - start]
                self._send_held()
            else:
                self._send(bytes(piece[offset - start : offset + length - start]))

    def finish(self, size: int) -> None:
        """End the flat layer at `size`; raises InvalidImage if the reader needs more."""
        while self._request is not None:
            self._send_held()
        if self._end > size:
            raise InvalidImage(
                f"the archive ends at {size}, inside its last member", where=f"tar offset {size}"
            )

    def _send_held(self) -> None:
        body = bytes(self._held)
        self._held.clear()
        self._send(body)

    def _send(self, body: bytes) -> None:
        try:
            self._request = self._parser.send(body)
        except StopIteration as stop:
            self._request = None
            self._end = stop.value


class SpanWriter:
    """Turns cuts into spans with digests, given the compressed chunks they lie in."""

    def __init__(self, index: IndexSink, format_name: str) -> None:
        self._index = index
        self._number = 0
        codec = {"tar": Codec.IDENTITY, "gzip": Codec.GZIP, **FRAMED}[format_name]
        self._open = Cut(0, 0, codec)
        self._hasher = hashlib.sha256()
        self._chunk = b""
        self._chunk_start = 0
        self._hashed = 0  # offset in the blob up to which the open span is hashed

    def chunk(self, chunk: bytes) -> None:
        """Take the next chunk, before its cuts are reported."""
        self._hash_to(self._chunk_start + len(self._chunk))
        self._chunk_start += len(self._chunk)
        self._chunk = chunk

    def cut(self, cut: Cut) -> None:
        """End the open span at `cut` and begin the next."""
        shared = 1 if cut.checkpoint and cut.checkpoint.bits else 0
        end = cut.start + shared
        self._hash_to(end)
        self._close(end, cut.flat)
        self._open = cut
        self._hasher = hashlib.sha256()
        if shared:
            at = cut.start - self._chunk_start
            self._hasher.update(self._chunk[at : at + 1])

    def finish(self, size: int) -> None:
        """End the last span at the end of the blob."""
        end = self._chunk_start + len(self._chunk)
        self._hash_to(end)
        if size > self._open.flat:
            self._close(end, size)

    def _close(self, end: int, flat_end: int) -> None:
        start, flat, codec, checkpoint = self._open
        digest = self._hasher.digest()
        self._index.add_span(Span(self._number, flat, flat_end, start, end, codec, digest, checkpoint))
        self._number += 1

    def _hash_to(self, end: int) -> None:
        if end > self._hashed:
            base = self._chunk_start
            self._hasher.update(memoryview(self._chunk)[self._hashed - base : end - base])
            self._hashed = end


def merge_spans(spans: Iterable[tuple[Span, bytes]], least: int) -> Iterator[Span]:
    """Spans of `least` flat bytes or more out of smaller ones that follow each other, given with their bytes.

    They must be of a blob's own digests and cover it without gaps; a merged one has the checkpoint of its
    first.
    """
    first: Span | None = None
    number, hasher, last = 0, hashlib.sha256(), None
    for span, body in spans:
        if first is None or last is None:
            first, hasher = span, hashlib.sha256(body)
        else:
            hasher.update(body[last.end - span.start :])  # a byte may belong to both
        last = span
        if span.flat_end - first.flat_start >= least:
            yield _from_to(first, last, number, hasher.digest())
            number, first = number + 1, None
    if first and last:
        yield _from_to(first, last, number, hasher.digest())


def _from_to(first: Span, last: Span, number: int, digest: bytes) -> Span:
    return first._replace(number=number, flat_end=last.flat_end, end=last.end, digest=digest)
