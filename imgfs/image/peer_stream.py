"""The first stream of a layer from peers: its flat bytes, and how its blob is cut, without the registry.

Who vouches for each byte: the manifest for the config, the config for the DiffID, that for all flat bytes
together, and what is made of them here (`layer.verify`): entries, windows, a digest of each span. So nothing
may be shown before the last byte is here. How the blob is cut is a peer's word, and stays it: the digest of
a span's flat bytes refuses what a wrong range brings (`content.fetch`).

The bytes come in order, each run of spans from a peer that has it. What none has, or brings in time, comes
from the registry, in the middle of the layer: the bytes before a span are the window that it is decoded by.
If the DiffID does not hold in the end, the layer is streamed from the registry as if there were no peers;
then its right bytes show which peer has sent others (`PeerStream.judge`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import takewhile
from pathlib import Path

from imgfs.content.storing import split
from imgfs.errors import ImgfsError, IntegrityError, InvalidImage
from imgfs.layer.codec.span import decode_span
from imgfs.layer.entry import WINDOW, Checkpoint, Span
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.verify import verify_index
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.parallel import ReadAheadThread
from imgfs.peers.flat_name import FlatName
from imgfs.peers.layer_spans import LayerSpans
from imgfs.peers.pool import Peer, PeerPool, PeerRead
from imgfs.store.layer import StoredLayer
from imgfs.store.staging import FlatWriter
from imgfs.transport.source import Source

log = logging.getLogger(__name__)

_AHEAD = 64 << 20  # flat bytes of the spans that are planned at once,
_SPANS_AHEAD = 1024  # and how many at most: by a peer's word they may be of a byte each
_REQUEST = 8 << 20  # bytes of the blob in one request to the registry
_LEAST_PART = 2  # one of so many flat bytes is with peers, or the registry streams the blob


class PeerStream:
    """The flat bytes of `layer`, cut as `told`, in order, written to `writer` as they come.

    `advances` is told how many bytes of the blob has come by what has come, in a thread of its own.
    """

    def __init__(
        self,
        layer: Descriptor,
        diff_id: Digest,
        told: LayerSpans,
        teller: Peer,
        *,
        source: Source,
        pool: PeerPool,
        writer: FlatWriter,
        advances: Callable[[int], None],
    ) -> None:
        self._layer = layer
        self._diff_id = diff_id
        self._told = told
        self._teller = teller
        self._source = source
        self._pool = pool
        self._writer = writer
        self._advances = advances
        self._name = FlatName(told.summary.diff_id)
        self._number = 0  # the span that holds
        self._at = 0  # the next flat byte
        self._reads: list[tuple[PeerRead, int]] = []  # and where each ended

    def is_worthwhile(self) -> bool:
        """Return True if peers have enough of the layer."""
        ranges = [(span.flat_start, span.flat_end) for span in self._told.cut]
        there = sum(read.end - read.start for read in self._pool.plan(self._name, ranges))
        return there * _LEAST_PART >= self._told.summary.flat_size > 0

    def take(self, stored: StoredLayer) -> None:
        """Have all of it come, and keep it and its index in the store: under the layer's lock.

        Raises IntegrityError or InvalidImage if it is not the layer, RegistryError if not all of it comes,
        StoreError.
        """
        with stored.new_index() as path:
            self._index(path)
            with LayerIndex(path) as written:
                spans, binding = written.span_count(), written.binding()
            # Before the index can be seen: from then on the flat layer may be evicted.
            self._writer.keep(size=self._at, spans=spans, binding=binding)
        name = self._layer.digest.short
        log.info("layer %s: from peers; its blob is cut as %s says", name, self._teller.client.name)

    def _index(self, path: Path) -> None:
        """Write the verified index of what comes."""
        pieces = ReadAheadThread(self._pieces())
        try:
            with closing(IndexWriter(path)) as index:
                verify_index(self._told, self._layer, self._diff_id, reader_of(pieces), index)
        finally:
            pieces.close()

    def _pieces(self) -> Iterator[bytes]:
        """Yield the bytes, all of them, written."""
        while self._number < len(self._told.cut):
            wanted = self._wanted()
            reads = self._pool.plan(self._name, wanted)
            if reads and not reads[0].first:
                yield from self._from_peer(reads[0])
            else:
                yield from self._from_registry(reads[0].first if reads else len(wanted))

    def judge(self, writer: FlatWriter, index: LayerIndex) -> None:
        """Name the peers that have sent other bytes than `writer` now has, or cut the blob elsewhere.

        Both are of a scan, so the blob's digest and the DiffID hold.
        """
        for read, end in self._reads:
            if _differ(self._writer.read(read.start, end), writer.read(read.start, end)):
                what = f"layer {self._layer.digest.short}, flat bytes {read.start} to {end}"
                read.doubt(IntegrityError(what, expected="those of the DiffID", actual="others"))
        if self._told.summary.flat_size != index.summary.flat_size or not self._agrees(index):
            what = f"how layer {self._layer.digest.short} is cut"
            error = IntegrityError(what, expected="the blob's spans", actual="others")
            self._pool.expel(self._teller, error)

    def _agrees(self, index: LayerIndex) -> bool:
        """Return True if no span of the same flat bytes is elsewhere in the blob."""
        cuts = {span[1:3]: span[3:7] for span in index.spans()}
        return all(cuts.get(span[1:3], span[3:7]) == span[3:7] for span in self._told.cut)

    def close(self) -> None:
        """Remove what has been written, unless it has been kept."""
        self._writer.close()

    def _wanted(self) -> list[tuple[int, int]]:
        """Return the ranges of the next spans; the first one's begins at the next byte."""
        first, *others = self._told.cut[self._number : self._number + _SPANS_AHEAD]
        ahead = takewhile(lambda span: span.flat_end - self._at <= _AHEAD, others)
        return [(self._at, first.flat_end), *((span.flat_start, span.flat_end) for span in ahead)]

    def _from_peer(self, read: PeerRead) -> Iterator[bytes]:
        """Yield what a peer sends of one read: what it does not, is the next one's."""
        with closing(chunk for chunk in read.chunks()) as chunks:
            while chunk := self._next(chunks):
                yield self._taken(chunk)
        if self._at > read.start:
            self._reads.append((read, self._at))

    def _next(self, chunks: Iterator[bytes]) -> bytes:
        """Return what a peer sends next; nothing if that is all, or it fails."""
        try:
            return next(chunks, b"")
        except ImgfsError as error:
            log.info("layer %s: at %d of its flat bytes: %s", self._layer.digest.short, self._at, error)
            return b""

    def _from_registry(self, count: int) -> Iterator[bytes]:
        """Yield the bytes of `count` spans, or of as many as are one request, from the blob."""
        spans = [self._told.cut[self._number]]
        for span in self._told.cut[self._number + 1 : self._number + count]:
            if span.end - spans[0].start > _REQUEST:
                break
            spans.append(span)
        ranges = [(span.start, span.end) for span in spans]
        blob = self._source.blob(self._layer, ranges[0][0], ranges[-1][1])
        with closing(chunk for chunk in blob) as chunks:
            bodies = split(chunks, ranges, [span.number for span in spans])
            for span, body in zip(spans, bodies, strict=True):
                skip = self._at - span.flat_start  # bytes that a peer has brought of it
                for piece in decode_span(self._windowed(span), body):
                    if skip < len(piece):
                        yield self._taken(bytes(piece[skip:]))  # a copy: the decoder may use it again
                    skip = max(0, skip - len(piece))
            for _ in chunks:
                pass

    def _windowed(self, span: Span) -> Span:
        """Return a span with its window, which has been written."""
        if not span.checkpoint:
            return span
        start = max(0, span.flat_start - WINDOW)
        window = b"".join(self._writer.read(start, span.flat_start))
        return span._replace(checkpoint=Checkpoint(span.checkpoint.bits, window))

    def _taken(self, piece: bytes) -> bytes:
        """Write the next bytes, and go on behind them."""
        self._writer.write(self._at, piece)
        self._at += len(piece)
        cut, number = self._told.cut, self._number
        while self._number < len(cut) and cut[self._number].flat_end <= self._at:
            self._number += 1
        if self._number > number:
            self._advances(cut[self._number - 1].end - (cut[number - 1].end if number else 0))
        return piece


def open_peer_stream(
    layer: Descriptor,
    diff_id: Digest,
    source: Source,
    new_writer: Callable[[], FlatWriter],
    advances: Callable[[int], None],
) -> PeerStream | None:
    """Return the stream of a layer from peers; None if they do not have enough of it, or have not scanned it.

    `new_writer` begins the flat layer that it writes.
    """
    pool = source.peers()
    found = pool.spans(layer, diff_id) if pool else None
    if pool is None or found is None:
        return None
    stream = PeerStream(
        layer, diff_id, *found, source=source, pool=pool, writer=new_writer(), advances=advances
    )
    if stream.is_worthwhile():
        return stream
    stream.close()
    return None


def reader_of(pieces: Iterator[bytes]) -> Callable[[int, int], Iterator[bytes]]:
    """Return a function that yields the bytes `[start, end)`: of ranges that follow each other."""
    held = b""

    def read(start: int, end: int) -> Iterator[bytes]:
        nonlocal held
        left = end - start
        while left:
            held = held or next(pieces, b"")
            if not held:
                raise InvalidImage("flat bytes that end early", where="peer")
            piece, held = (held, b"") if len(held) <= left else (held[:left], held[left:])
            left -= len(piece)
            yield piece

    return read


def _differ(these: Iterator[bytes], those: Iterator[bytes]) -> bool:
    return any(this != that for this, that in zip(these, those, strict=True))
