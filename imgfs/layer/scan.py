"""Index a layer while it is downloaded: one pass over the blob, nothing is fetched or read twice.

One thread takes chunks from the network and hashes the blob; the caller's thread decodes them, reads the tar
headers and notes the spans; a third hashes the flat layer (its DiffID) and writes it. All the heavy calls
release the GIL.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from itertools import chain
from typing import Protocol

from imgfs.errors import IntegrityError, InvalidImage
from imgfs.layer.codec.blob import MAGIC_LENGTH, STEP, decoder, fastest_engine, sniff
from imgfs.layer.codec.threads import ReadAheadThread, WriteBehindThread
from imgfs.layer.codec.zlib_engine import InflateEngine
from imgfs.layer.entry import Entry
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.limits import PLAUSIBLE_RATIO, PLAUSIBLE_SIZE
from imgfs.layer.origin import TOC_DIGEST
from imgfs.layer.soci.spans import SpanWriter
from imgfs.layer.tar.reader import ReadRequest, parse_tar
from imgfs.layer.toc.toc import is_own
from imgfs.oci.descriptor import Descriptor, Digest

_PIECE = 64 << 10  # bytes that are decoded at once


class Bomb(InvalidImage):
    """A blob that decodes to more than is plausible."""


class FlatFile(Protocol):
    """The file that the flat layer is written to."""

    def write(self, offset: int, piece: bytes | memoryview) -> None:
        """Put `piece` at `offset`."""


def scan(
    chunks: Iterator[bytes],
    layer: Descriptor,
    diff_id: Digest,
    flat: FlatFile,
    index: IndexWriter,
    *,
    plausible: int = PLAUSIBLE_SIZE,
    step: int = STEP,
    engine: Callable[[], InflateEngine] = fastest_engine,
) -> int:
    """Decode the whole blob, write its flat layer to `flat` and its entries and spans to `index`.

    Returns the flat layer's size in bytes. Nothing of either may be used unless this returns: only then do
    the blob's size, its digest and the DiffID hold. Raises IntegrityError if they do not, InvalidImage for a
    blob that is no layer or decodes to more than `plausible` bytes and 100 times its own size.
    """
    blob_hash, flat_hash = layer.digest.hasher(), diff_id.hasher()
    limit = max(plausible, PLAUSIBLE_RATIO * layer.size)

    def keep(item: tuple[int, bytes]) -> None:
        flat_hash.update(item[1])
        flat.write(*item)

    source = ReadAheadThread(_even(_measured(chunks, layer)), blob_hash.update)
    sink = WriteBehindThread(keep)
    try:
        size, format_name = _decode(source, sink, layer, index, limit, (step, engine))
    except Bomb:
        raise
    except InvalidImage:  # a wrong digest is the transport's fault, a right one the image's
        for _ in source:
            pass
        layer.digest.check(blob_hash, "layer blob")
        raise
    finally:
        source.close()
        sink.close()
    sink.finish()
    layer.digest.check(blob_hash, "layer blob")
    diff_id.check(flat_hash, f"uncompressed layer {layer.digest.short} (DiffID)")
    index.finish(
        digest=str(layer.digest),
        diff_id=str(diff_id),
        format=format_name,
        size=layer.size,
        flat_size=size,
    )
    return size


def _decode(
    source: ReadAheadThread,
    sink: WriteBehindThread,
    layer: Descriptor,
    index: IndexWriter,
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
            body = bytes(piece)
            sink.put((size, body))
            headers.feed(size, body)
            size += len(body)
            if size > limit:
                raise Bomb(f"a decompression bomb: its {layer.size} bytes decode to over {limit}")
    decode.finish()
    headers.finish(size)
    spans.finish(size)
    return size, decode.format


def _measured(chunks: Iterator[bytes], layer: Descriptor) -> Iterator[bytes]:
    """The chunks, but for empty ones; IntegrityError once they are not as long in all as the layer's size."""
    size = 0
    for chunk in filter(None, chunks):
        size += len(chunk)
        if size > layer.size:
            break
        yield chunk
    if size != layer.size:
        actual = f"{size} or more" if size > layer.size else size
        raise IntegrityError("length of the layer blob", expected=layer.size, actual=actual)


def _even(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of one size: then a layer is cut into the same spans, however it arrives."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) >= _PIECE:
            yield bytes(held[:_PIECE])
            del held[:_PIECE]
    if held:
        yield bytes(held)


def _head(source: ReadAheadThread) -> bytes:
    """The blob's first chunk, or as many of them as `sniff` needs."""
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

    def feed(self, start: int, piece: bytes) -> None:
        """Take the piece of the flat layer at `start`."""
        end = start + len(piece)
        while self._request is not None and self._request.offset < end:
            offset, length = self._request
            if offset + length > end:
                self._held += piece[max(0, offset - start) :]
                return
            self._held += piece[max(0, offset + len(self._held) - start) : offset + length - start]
            self._send_held()

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
        try:
            self._request = self._parser.send(body)
        except StopIteration as stop:
            self._request = None
            self._end = stop.value
