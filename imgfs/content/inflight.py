"""Single flight: the requests in flight for a layer's spans, and the readers that wait for them.

A span is in at most one request. Its bytes are marked present before it leaves the request, so a thread that
finds it neither present nor in flight, under the lock, may start one. All readers that wait for a span get
the same result: the bytes, or the error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from imgfs.content.fetch import BlobSource, SpanFetcher
from imgfs.content.requests import Request, SpanTable
from imgfs.content.scheduler import FetchPool, Priority
from imgfs.content.stats import Cause, Counts, Usage
from imgfs.errors import ImgfsError, Unavailable
from imgfs.oci.descriptor import Descriptor

if TYPE_CHECKING:
    from imgfs.peers.pool import PeerPool

log = logging.getLogger(__name__)

_NEGATIVE_CACHE = 1.0  # seconds for which a span that failed is not requested again: the kernel repeats a
# read-ahead that failed as a plain read, which would make its reader wait twice


class InFlight:
    """The requests in flight for one layer. Methods say whether they are called under `lock`."""

    def __init__(
        self,
        name: str,
        table: SpanTable,
        counts: Counts,
        source: BlobSource,
        fetcher: SpanFetcher,
        fetch_pool: FetchPool,
    ) -> None:
        self.lock = threading.Lock()
        self.name = name  # of the layer, for errors
        self.table = table
        self.counts = counts
        self.usage = Usage(table, counts)
        self.source = source
        self.fetcher = fetcher
        self.fetch_pool = fetch_pool
        self.is_rangeless = False  # whether the last range was answered with the whole blob
        self._by_span: dict[int, InFlightRequest] = {}
        self._failed: dict[int, tuple[float, Unavailable]] = {}  # by span: until when, and why

    def not_in_flight(self, numbers: Iterable[int]) -> list[int]:
        """Return those of `numbers` that are in no request. Under the lock."""
        return [number for number in numbers if number not in self._by_span]

    def fetching(self, numbers: Iterable[int]) -> set[InFlightRequest]:
        """Return the requests that `numbers` are in. Under the lock."""
        return {self._by_span[number] for number in numbers if number in self._by_span}

    def start(
        self, request: Request, priority: Priority, cause: Cause, needed: Iterable[int] = ()
    ) -> InFlightRequest:
        """Register a new request for spans that are in none; the caller submits it. Under the lock.

        `needed` are the spans that a reader waits for, the others are fetched for `cause`.
        """
        started = InFlightRequest(self, request, priority, cause, frozenset(needed))
        self._by_span.update(dict.fromkeys(request.numbers, started))
        return started

    def numbers_of(self, request: InFlightRequest) -> list[int]:
        """Return the spans that a request has still to bring. Not under the lock."""
        with self.lock:
            return [number for number, other in self._by_span.items() if other is request]

    def wait_for(self, numbers: Iterable[int]) -> list[Future[None]]:
        """Return a future for each of `numbers`, all in flight. Under the lock."""
        return [self._by_span[number].wait_for(number) for number in numbers]

    def submit(self, requests: Iterable[InFlightRequest]) -> None:
        """Queue requests. Not under the lock."""
        for request in requests:
            self.fetch_pool.submit(request)

    def raise_priority(self, requests: Iterable[InFlightRequest], priority: Priority) -> None:
        """Move requests that are queued for less urgent reasons forward. Not under the lock."""
        for request in requests:
            self.fetch_pool.raise_priority(request, priority)

    def raise_recent_failure(self, numbers: Iterable[int]) -> None:
        """Raise the error of a span that has just failed for a reader (negative cache). Under the lock."""
        now = time.monotonic()
        self._failed = {number: failed for number, failed in self._failed.items() if failed[0] > now}
        for number in numbers:
            if number in self._failed:
                raise self._failed[number][1]

    def remove(self, numbers: Iterable[int]) -> None:
        """Remove spans that are done. Under the lock."""
        for number in numbers:
            del self._by_span[number]

    def remember_failure(self, number: int, error: Unavailable) -> None:
        """Add a span that failed for a reader to the negative cache. Under the lock."""
        self._failed[number] = time.monotonic() + _NEGATIVE_CACHE, error

    def forget_failures(self, numbers: Iterable[int]) -> None:
        """Take spans that are here out of the negative cache: they may be evicted at once. Under the lock."""
        if self._failed:
            for number in numbers:
                self._failed.pop(number, None)


class InFlightRequest:
    """One request, queued or under way. `done` is settled, with the first error, once all spans are.

    Its spans are fetched from what it is itself: the layer's source, with what arrives counted.
    """

    def __init__(
        self, in_flight: InFlight, request: Request, priority: Priority, cause: Cause, needed: frozenset[int]
    ) -> None:
        self.priority = priority
        self.done: Future[None] = Future()
        self._in_flight = in_flight
        self._request = request
        self._cause = cause
        self._needed = needed
        self._waits: dict[int, Future[None]] = {}
        self._left = len(request.numbers)
        self._error: Exception | None = None
        self._began = time.monotonic()
        self._awaits_first_byte = True
        self._received = self._kept = 0

    def wait_for(self, number: int) -> Future[None]:
        """Return what a reader of a span waits for. Under the lock."""
        return self._waits.setdefault(number, Future())

    def run(self) -> None:
        """Fetch the spans. Whatever comes of that, no reader waits for one of them afterwards."""
        try:
            self._fetch()
        except Exception as error:
            log.exception("layer %s: a request was given up", self._in_flight.name)
            self._end(self._in_flight.numbers_of(self), error)
        with self._in_flight.lock:
            self._in_flight.counts.discarded += max(0, self._received - self._kept)

    def _fetch(self) -> None:
        for numbers, error, by_peer in self._in_flight.fetcher.fetch(self._request, self):
            if by_peer:
                self._came_from_peer(numbers)
            self._end(numbers, error)
            if by_peer:
                self._in_flight.fetch_pool.yield_to_readers(self)

    def refuse(self, error: ImgfsError) -> None:
        """Fail all spans."""
        self._end(self._request.numbers, Unavailable(f"layer {self._in_flight.name}: {error}"))

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield bytes `[start, end)` of what the source has; count them, and what of it is windows."""
        chunks = self._in_flight.source.blob(descriptor, start, end)
        return self._metered(chunks) if descriptor == self._in_flight.fetcher.blob else self._windows(chunks)

    def ignores_ranges(self, descriptor: Descriptor) -> bool:
        """Return what the layer's source says of it."""
        return self._in_flight.source.ignores_ranges(descriptor)

    def doubt(self, descriptor: Descriptor) -> object:
        """Note that a blob's bytes were wrong."""
        return self._in_flight.source.doubt(descriptor)

    def peers(self) -> PeerPool | None:
        """Return the peers of the layer's source."""
        return self._in_flight.source.peers()

    def _came_from_peer(self, numbers: Sequence[int]) -> None:
        """Count the bytes of the blob that were spared."""
        size = sum(map(self._in_flight.table.size_of, numbers))
        with self._in_flight.lock:
            self._in_flight.counts.from_peers += size
        self._count_received(size)

    def _metered(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Count a request and its bytes; yield to readers."""
        with self._in_flight.lock:
            self._in_flight.counts.requests += 1
        for chunk in chunks:
            self._in_flight.is_rangeless = self.ignores_ranges(self._in_flight.fetcher.blob)
            self._received_more(len(chunk))
            yield chunk

    def _windows(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Count a request of windows and its bytes."""
        counts = self._in_flight.counts
        with self._in_flight.lock:
            counts.requests += 1
        for chunk in chunks:
            with self._in_flight.lock:
                counts.windows += len(chunk)
            yield chunk

    def _received_more(self, size: int) -> None:
        """Count bytes; yield to readers. Raises Unavailable when the mount is being taken down."""
        in_flight, fetch_pool = self._in_flight, self._in_flight.fetch_pool
        self._count_received(size)
        fetch_pool.yield_to_readers(self)
        if fetch_pool.closed:
            raise Unavailable(f"layer {in_flight.name}: the mount is being taken down")

    def _count_received(self, size: int) -> None:
        in_flight = self._in_flight
        with in_flight.lock:
            self._received += size
            in_flight.counts.received += size
            if self._awaits_first_byte and self.priority is Priority.MISS:
                in_flight.counts.waited(time.monotonic() - self._began)
        self._awaits_first_byte = False
        in_flight.fetch_pool.meter.arrived(size)

    def _end(self, numbers: Sequence[int], error: Exception | None) -> None:
        """Remove spans from the table, and wake the readers that wait for them."""
        with self._in_flight.lock:
            self._in_flight.remove(numbers)
            waits = {number: self._waits.pop(number) for number in numbers if number in self._waits}
            if error is None:
                self._in_flight.forget_failures(numbers)
                self._count(numbers)
            else:
                self._fail(waits, error)
        for future in waits.values():
            _settle(future, error)
        self._left -= len(numbers)
        if not self._left:
            _settle(self.done, self._error)

    def _count(self, numbers: Sequence[int]) -> None:
        usage, needed = self._in_flight.usage, self._needed
        self._kept += sum(map(self._in_flight.table.size_of, numbers))
        if needed:
            usage.landed((number for number in numbers if number in needed), Cause.MISS)
        usage.landed((number for number in numbers if number not in needed), self._cause)

    def _fail(self, waited_for: Iterable[int], error: Exception) -> None:
        self._error = self._error or error
        self._in_flight.counts.failed(error)
        if isinstance(error, Unavailable):
            for number in waited_for:
                self._in_flight.remember_failure(number, error)


def _settle(future: Future[None], error: Exception | None) -> None:
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
