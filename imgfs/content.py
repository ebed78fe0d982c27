"""A file's bytes: out of the cached flat layer if they are there, else fetched, verified, decoded, kept.

A read turns into extents, flat ranges, spans. Reads of what is there take no lock and no thread. A missing
span is fetched once, whoever asks for it (single flight): the first reader hands it to a pool thread, and
everybody waits for that thread's result, or gets its error. Neighbouring missing spans go in one request. A
reader that goes on where the last miss ended is taken for sequential: the spans after its own are fetched
with them, twice as many each time.

Locks: `LayerContent._lock` guards `_flights` and the read-ahead's state, never held during I/O.
"""

from __future__ import annotations

import threading
import time
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, Protocol

from imgfs.errors import IntegrityError, StoreError, Unavailable
from imgfs.layer.codec import decode_span
from imgfs.layer.entry import Extent, Span
from imgfs.layer.index import LayerIndex
from imgfs.oci.descriptor import Descriptor
from imgfs.store import Flat
from imgfs.store.flat import PRESENT

FETCHERS = 8  # requests under way at once for a mount
PATIENCE = 60.0  # seconds without a byte of the layer after which a read that waits for some fails
_GROUP_SPANS = 8  # spans in one request at most,
_GROUP_BYTES = 8 << 20  # and compressed bytes, unless a single span is larger
_READ_AHEAD = 8  # spans fetched ahead of a sequential reader at most
_LARGEST = 1 << 20  # bytes the kernel asks for at once at most (FUSE_MAX_MAX_PAGES, 256)
_MEMORY = 1.0  # seconds for which a span that could not be had is not asked for again: the kernel repeats a
# read-ahead that failed as a plain read, which would make its reader wait twice
_TRIES = 4  # of a read whose spans are evicted under its hands


class BlobSource(Protocol):
    """Where a layer's compressed bytes come from."""

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Exactly the bytes `[start, end)`, in chunks."""


class Piece(NamedTuple):
    """`length` bytes of a file: those at `flat` in the flat layer, or zeros if that is None."""

    flat: int | None
    length: int


def pieces_of(extents: Sequence[Extent], offset: int, length: int) -> Iterator[Piece]:
    """The pieces that make up a file's bytes `[offset, offset+length)`, which must lie inside the file."""
    end = offset + length
    for extent in extents:
        if extent.offset + extent.length <= offset:
            continue
        if offset >= end or extent.offset >= end:
            break
        if extent.offset > offset:
            yield Piece(None, extent.offset - offset)
            offset = extent.offset
        skipped = offset - extent.offset
        taken = min(extent.length - skipped, end - offset)
        yield Piece(extent.flat + skipped, taken)
        offset += taken
    if offset < end:
        yield Piece(None, end - offset)


class Content:
    """The bytes of an image's files. Any thread may use it."""

    def __init__(self, layers: Sequence[LayerContent]) -> None:
        self.layers = layers
        self.served = 0  # bytes handed out
        self._scratch = memoryview(bytearray(_LARGEST))

    def cached(self, layer: int, extents: Sequence[Extent], offset: int, length: int) -> memoryview | None:
        """A file's bytes if they can be had without waiting for disk or network, else None.

        They are good until the next call, which must come from the same thread: always fresh memory would
        cost twice the time of the read itself. At most 1 MiB, else None.
        """
        if length > len(self._scratch):
            return None
        at = 0
        for flat, size in pieces_of(extents, offset, length):
            into = self._scratch[at : at + size]
            at += size
            if flat is None:
                into[:] = bytes(size)
            elif not self.layers[layer].read_now(flat, into):
                return None
        self.served += length
        return self._scratch[:length]

    def read(self, layer: int, extents: Sequence[Extent], offset: int, length: int) -> bytes:
        """A file's bytes; waits as long as it takes. Raises ImgfsError."""
        parts = [
            bytes(size) if flat is None else self.layers[layer].read(flat, size)
            for flat, size in pieces_of(extents, offset, length)
        ]
        self.served += length
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def is_here(self, layer: int, extents: Sequence[Extent], offset: int, length: int) -> bool:
        """Whether a file's bytes can be had without the network."""
        pieces = pieces_of(extents, offset, length)
        return all(self.layers[layer].is_here(flat, size) for flat, size in pieces if flat is not None)

    def sync(self) -> None:
        """Get what has been fetched to the disk."""
        for layer in self.layers:
            layer.flat.sync()


class LayerContent:
    """The bytes of one flat layer."""

    def __init__(
        self, layer: Descriptor, index: LayerIndex, flat: Flat, source: BlobSource, pool: ThreadPoolExecutor
    ) -> None:
        self.layer = layer
        self.index = index
        self.flat = flat
        self.fetched = 0  # compressed bytes
        self._source = source
        self._pool = pool
        self._starts = array("Q")
        self._sizes = array("Q")  # compressed
        for flat_start, _, start, end in index.bounds():
            self._starts.append(flat_start)
            self._sizes.append(end - start)
        self._lock = threading.Lock()
        self._flights: dict[int, Future[None]] = {}
        self._failed: dict[int, tuple[float, Unavailable]] = {}  # by span: until when, and why
        self._next = -1  # the span after the last one fetched: where a sequential reader misses next
        self._ahead = 0  # spans to fetch ahead of it

    def read_now(self, offset: int, into: memoryview) -> bool:
        """Fill `into` with the flat layer's bytes if they can be had without waiting; False if not."""
        first, last = self._spans(offset, len(into))
        return self.flat.read_now(offset, into, self.flat.marks(first, last), first)

    def is_here(self, offset: int, length: int) -> bool:
        """Whether the flat layer's bytes can be had without the network."""
        return not self._missing(*self._spans(offset, length))

    def read(self, offset: int, length: int) -> bytes:
        """The flat layer's bytes. Raises ImgfsError."""
        first, last = self._spans(offset, length)
        for _ in range(_TRIES):
            marks = self.flat.marks(first, last)
            body = self.flat.read(offset, length, marks, first)
            if body is not None:
                return body
            self._bring(first, last)
        raise StoreError(f"layer {self.layer.digest.short} is evicted again and again while it is read")

    def _spans(self, offset: int, length: int) -> tuple[int, int]:
        """The first and the last span that the range lies in."""
        first = bisect_right(self._starts, offset) - 1
        last = first
        while last + 1 < len(self._starts) and self._starts[last + 1] < offset + length:
            last += 1
        return first, last

    def _bring(self, first: int, last: int) -> None:
        """Have all spans `first` to `last` there, or raise what keeps them away."""
        flights, started = self._board(first, last)
        for group in _groups(started, self._sizes):
            self._start(group)
        late: Iterable[Future[None]] = flights
        while late:
            before = self.fetched
            _, late = wait(late, timeout=PATIENCE)
            if late and self.fetched == before:
                raise Unavailable(f"layer {self.layer.digest.short}: nothing arrived for {PATIENCE:.0f} s")
        for flight in flights:
            flight.result()

    def _board(self, first: int, last: int) -> tuple[list[Future[None]], list[int]]:
        """The flights of the missing spans, and those of them that are new and yet to be started."""
        with self._lock:
            needed = self._missing(first, last)
            self._refuse_hopeless(needed)
            started = [number for number in needed if number not in self._flights]
            if started:
                self._ahead = min(_READ_AHEAD, self._ahead * 2 or 1) if started[0] == self._next else 0
                ahead = self._missing(last + 1, min(last + self._ahead, len(self._starts) - 1))
                started += [number for number in ahead if number not in self._flights]
                self._next = started[-1] + 1
            for number in started:
                self._flights[number] = Future()
            return [self._flights[number] for number in needed], started

    def _refuse_hopeless(self, numbers: Iterable[int]) -> None:
        """Raise again what has just kept one of the spans away."""
        now = time.monotonic()
        self._failed = {number: failed for number, failed in self._failed.items() if failed[0] > now}
        for number in numbers:
            if number in self._failed:
                raise self._failed[number][1]

    def _missing(self, first: int, last: int) -> list[int]:
        marks = self.flat.marks(first, last) if first <= last else b""
        return [number for number, mark in enumerate(marks, first) if not mark & PRESENT]

    def _start(self, numbers: Sequence[int]) -> None:
        try:
            self._pool.submit(self._fetch, numbers)
        except RuntimeError as error:  # the pool is closed, or the system has no thread left
            for number in numbers:
                self._land(number, Unavailable(f"layer {self.layer.digest.short}: {error}"))

    def _fetch(self, numbers: Sequence[int]) -> None:
        """Fetch spans that follow each other and land their flights, each as soon as it is there."""
        left = list(numbers)
        doubted = -1
        while left:
            try:
                self._fetch_left(left)
            except IntegrityError as error:
                if left[:1] == [doubted]:  # its error, not that of its neighbours
                    self._land(left.pop(0), error)
                else:  # a flipped bit on the way is worth another try
                    doubted = next(iter(left), -1)
            except Exception as error:  # noqa: BLE001  (every waiting reader gets it)
                while left:
                    self._land(left.pop(), error)

    def _fetch_left(self, left: list[int]) -> None:
        spans = [self.index.span(number) for number in left]
        chunks = self._counted(self._source.blob(self.layer, spans[0].start, spans[-1].end))
        for span, body in zip(spans, split(chunks, spans), strict=True):
            self._keep(span, body)
            left.remove(span.number)
            self._land(span.number, None)

    def _keep(self, span: Span, chunks: Iterable[bytes]) -> None:
        before = self.flat.begin(span.number, span.number)
        offset = span.flat_start
        try:
            for piece in decode_span(span, chunks):
                self.flat.write(offset, piece)
                offset += len(piece)
        except IntegrityError as error:
            what = f"layer {self.layer.digest.short}, {error.what}"
            raise IntegrityError(what, expected=error.expected, actual=error.actual) from error
        self.flat.mark(span.number, before)

    def _land(self, number: int, error: Exception | None) -> None:
        with self._lock:
            flight = self._flights.pop(number)
            if isinstance(error, Unavailable):
                self._failed[number] = time.monotonic() + _MEMORY, error
        if error is None:
            flight.set_result(None)
        else:
            flight.set_exception(error)

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.fetched += len(chunk)
            yield chunk


def split(chunks: Iterator[bytes], spans: Sequence[Span]) -> Iterator[Iterable[bytes]]:
    """The compressed bytes of each of `spans`, which follow each other, out of one stream of them all.

    A span that begins in mid-byte shares that byte with the one before it.
    """
    if len(spans) == 1:  # may be as large as the layer
        yield chunks
        return
    held = bytearray()
    base = spans[0].start
    for span in spans:
        del held[: span.start - base]
        base = span.start
        while base + len(held) < span.end:
            chunk = next(chunks, None)
            if chunk is None:
                raise IntegrityError(
                    f"length of span {span.number}", expected=span.end - base, actual=len(held)
                )
            held += chunk
        yield (bytes(held[: span.end - base]),)
    for _ in chunks:  # to its end: then the connection can be used again
        pass


def _groups(numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """`numbers` cut into runs that one request can bring."""
    group: list[int] = []
    size = 0
    for number in numbers:
        follows = bool(group) and number == group[-1] + 1
        if group and not (follows and len(group) < _GROUP_SPANS and size + sizes[number] <= _GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(number)
        size += sizes[number]
    if group:
        yield group
