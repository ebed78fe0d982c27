"""One request: fetch a range of the blob, split it into spans, decode, verify and store each.

What peers have of it comes from them, decoded already, if the index has digests of what spans decode to.

Spans are stored as they arrive; small ones a few together, as marking costs more than decoding them
(`StagedBatch`). A request goes in, with a source to pull bytes from, and what became of its spans comes out;
readers wait elsewhere, and bytes are counted there (`content.inflight`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

from imgfs.content.requests import Request, SpanIndex, SpanTable, batches, descriptor_of
from imgfs.content.windows import FetchedWindows, RunInThread, WindowBlocks
from imgfs.errors import ImgfsError, IntegrityError, InvalidImage
from imgfs.layer.codec.span import decode_span
from imgfs.layer.entry import Span
from imgfs.oci.descriptor import Descriptor
from imgfs.peers.flat_name import FlatName
from imgfs.store.flat import FlatLayer
from imgfs.store.staging import SpanBuffer

if TYPE_CHECKING:
    from imgfs.peers.pool import PeerPool, PeerRead

log = logging.getLogger(__name__)
_HELD = 4 << 20  # verified bytes that wait for the rest of their batch, at most: marking costs a lock
_BATCH = 64 << 10  # compressed bytes of small spans that are marked together


class StagedBatch:
    """The spans of `batch`, taken in order; `before` are their marks from the flat layer's `begin`.

    A context manager: buffers that are not written by its end are discarded.
    """

    def __init__(self, flat: FlatLayer, batch: Sequence[int], before: bytes) -> None:
        self._flat = flat
        self._batch = batch
        self._before = before
        self._written = 0  # spans of the batch that are in the flat layer, and
        self._verified: list[tuple[int, SpanBuffer]] = []  # those after them: their offsets and bytes
        self._current: SpanBuffer | None = None

    def buffer_for(self, span: Span) -> SpanBuffer:
        """Return the buffer of the next span; its bytes count once `verified` is called."""
        self._current = self._flat.span_buffer()
        self._offset = span.flat_start
        return self._current

    def verified(self) -> None:
        """Note that the span's bytes are verified. Raises StoreError."""
        if self._current:
            self._verified.append((self._offset, self._current))
            self._current = None
        if sum(body.size for _, body in self._verified) > _HELD:
            self._put()

    def commit(self) -> Sequence[int]:
        """Write what is verified to the flat layer; return all spans written so far. Raises StoreError."""
        self._put()
        return self._batch[: self._written]

    def _put(self) -> None:
        if not self._verified:
            return
        first, self._written = self._written, self._written + len(self._verified)
        try:
            self._flat.put(self._batch[first], self._before[first : self._written], self._verified)
        except BaseException:
            self._written = first
            raise
        finally:
            self._close_verified()

    def _close_verified(self) -> None:
        for _, body in self._verified:
            body.close()
        self._verified = []

    def __enter__(self) -> StagedBatch:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_verified()
        if self._current:
            self._current.close()


class BlobSource(Protocol):
    """Where a layer's compressed bytes come from."""

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield exactly the bytes `[start, end)`, in chunks."""

    def doubt(self, descriptor: Descriptor) -> object:
        """Note that a blob's bytes were wrong: the next request goes to another endpoint, if there is one."""

    def peers(self) -> PeerPool | None:
        """Return the peers that may have flat bytes, None if there are none."""


class SpanOutcome(NamedTuple):
    """These spans are present, brought by a peer or the blob's source, or failed with `error`."""

    numbers: Sequence[int]
    error: Exception | None = None
    by_peer: bool = False


class SpanFetcher:
    """Fetches spans of one layer into its flat layer. Safe in threads; `run_in_thread` fetches windows."""

    def __init__(
        self,
        layer: Descriptor,
        spans: SpanIndex,
        table: SpanTable,
        flat: FlatLayer,
        run_in_thread: RunInThread,
    ) -> None:
        self._name = layer.digest.short
        self.blob = descriptor_of(spans.blob) if spans.blob else layer  # that spans are cut from
        self._window_blob = descriptor_of(spans.windows) if spans.windows else None
        self.spans = spans
        self.refused: ImgfsError | None = None  # why nothing of the layer may be shown any more
        self._flat_name = FlatName.of(spans.summary)
        self._table = table
        self._flat = flat
        size = self._window_blob.size if self._window_blob else 0
        self._window_blocks = WindowBlocks(size, run_in_thread)

    def fetch(self, request: Request, source: BlobSource) -> Iterator[SpanOutcome]:
        """Fetch a request's spans from `source`; yield each once, in some outcome, early. Raises nothing.

        Bytes that came damaged are requested once more, from the span they were found in.
        """
        left = list(request.numbers)
        yield from self._fetch_from_peers(left, source)
        doubted = -1
        while left:
            try:
                yield from self._fetch_rest_of(left, source)
            except IntegrityError as error:
                source.doubt(self.blob)
                self._window_blocks.forget()
                if left[:1] == [doubted]:  # its error, not that of its neighbours
                    yield SpanOutcome([left.pop(0)], error)
                else:
                    doubted = next(iter(left), -1)
            except Exception as error:  # noqa: BLE001  (every waiting reader gets it)
                self._window_blocks.forget()
                yield SpanOutcome(left, error)
                return

    def _fetch_rest_of(self, left: list[int], source: BlobSource) -> Iterator[SpanOutcome]:
        if self.refused:
            raise self.refused
        starts, ends = self._table.starts, self._table.ends
        ranges = [(starts[number], ends[number]) for number in left]
        windows = self._windows(left, source)
        end = max(end for _, end in ranges)
        with closing(chunk for chunk in source.blob(self.blob, ranges[0][0], end)) as chunks:
            bodies = zip(list(left), split(chunks, ranges, left), strict=True)
            yield from self._store(
                left, bodies, lambda number: self.spans.span(number, windows.window(number))
            )
            for _ in chunks:  # to its end: then the connection can be used again
                pass

    def _fetch_from_peers(self, left: list[int], source: BlobSource) -> Iterator[SpanOutcome]:
        """Fetch those of `left` that peers have; remove them from it. What fails is left in it."""
        try:
            reads = self._planned(left, source.peers())
        except Exception:  # of an index; told to the readers by what comes next
            log.debug("layer %s: peers are not asked", self._name, exc_info=True)
            return
        for read, spans in reads:
            try:
                for outcome in self._fetch_from_peer(read, spans):
                    for number in outcome.numbers:
                        left.remove(number)
                    yield outcome
            except IntegrityError as error:
                read.doubt(error)
            except Exception as error:  # noqa: BLE001  (the registry brings it)
                log.debug("layer %s: a peer did not bring it: %s", self._name, error)

    def _planned(self, left: Sequence[int], peers: PeerPool | None) -> list[tuple[PeerRead, Sequence[Span]]]:
        """Return what is read from peers, and the spans of it."""
        if peers is None or self.refused:
            return []
        found = [span for number in sorted(left) if (span := self.spans.flat_span(number))]
        reads = peers.plan(self._flat_name, [(span.start, span.end) for span in found]) if found else []
        return [(read, found[read.first : read.last + 1]) for read in reads]

    def _fetch_from_peer(self, read: PeerRead, spans: Sequence[Span]) -> Iterator[SpanOutcome]:
        numbers = [span.number for span in spans]
        by_number = dict(zip(numbers, spans, strict=True))
        with closing(chunk for chunk in read.chunks()) as chunks:
            bodies = zip(
                list(numbers), split(chunks, [(span.start, span.end) for span in spans], numbers), strict=True
            )
            for outcome in self._store(numbers, bodies, by_number.__getitem__):
                yield outcome._replace(by_peer=True)
            for _ in chunks:
                pass

    def _store(
        self,
        left: list[int],
        bodies: Iterator[tuple[int, Iterable[bytes]]],
        span_of: Callable[[int], Span],
    ) -> Iterator[SpanOutcome]:
        """Store and mark the verified spans of `left`, and remove them from it."""
        for batch in list(batches(left, self._table, _BATCH)):
            yield from self._store_batch(batch, bodies, span_of, left)

    def _store_batch(
        self,
        batch: Sequence[int],
        bodies: Iterator[tuple[int, Iterable[bytes]]],
        span_of: Callable[[int], Span],
        left: list[int],
    ) -> Iterator[SpanOutcome]:
        """Store and mark the verified spans of `batch`, remove those from `left`, and yield them."""
        before = self._flat.begin(batch[0], batch[-1])
        if self.refused:
            raise self.refused
        with StagedBatch(self._flat, batch, before) as staged:
            try:
                for _ in batch:
                    number, body = next(bodies)
                    span = span_of(number)
                    self._decode(span, body, staged.buffer_for(span))
                    staged.verified()
            finally:
                if written := staged.commit():
                    del left[: len(written)]
                    yield SpanOutcome(written)

    def _decode(self, span: Span, chunks: Iterable[bytes], buffer: SpanBuffer) -> None:
        """Decode a span into `buffer`. Its bytes are verified when this returns, and not before."""
        try:
            for piece in decode_span(span, chunks):
                buffer.write(piece)
        except IntegrityError as error:
            what = f"layer {self._name}, {error.what}"
            raise IntegrityError(what, expected=error.expected, actual=error.actual) from error
        except InvalidImage as error:
            raise InvalidImage(str(error), where=f"layer {self._name}") from error

    def _windows(self, numbers: Sequence[int], source: BlobSource) -> FetchedWindows:
        """Start to fetch the windows that `numbers` need and the store lacks."""
        blob = self._window_blob
        if blob is None:
            return FetchedWindows({}, {})
        found = ((number, self.spans.remote_window(number)) for number in numbers)
        ranges = {number: window for number, window in found if window}
        return FetchedWindows(
            ranges, self._window_blocks.covering(ranges.values(), partial(source.blob, blob))
        )


def split(
    chunks: Iterator[bytes], ranges: Sequence[tuple[int, int]], numbers: Sequence[int]
) -> Iterator[Iterable[bytes]]:
    """Yield the bytes of each of `ranges`, which ascend, from a stream that begins at the first one's start.

    Ranges may have bytes between them, or share some: a span that begins in mid-byte shares that byte with
    the one before it. Raises IntegrityError, naming the span out of `numbers`, if the stream ends early.
    """
    if len(ranges) == 1:  # may be as large as the layer; asked for now, before its window is waited for
        first = list(islice(chunks, 1))
        yield chain(first, chunks)
        return
    held = bytearray()
    base = ranges[0][0]  # offset of what is held
    for number, (start, end) in zip(list(numbers), ranges, strict=True):
        while base + len(held) < end:
            chunk = next(chunks, None)
            if chunk is None:
                raise IntegrityError(f"length of span {number}", expected=end - start, actual=len(held))
            gone = min(len(held), max(0, start - base))
            del held[:gone]
            base += gone
            held += chunk
        yield (bytes(memoryview(held)[start - base : end - base]),)
