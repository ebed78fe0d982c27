"""One flat layer's bytes: present, in flight, or fetched because of a read.

Reads of present bytes take no lock and no thread. A missing span is fetched once for all its readers. A miss
also fetches its neighbours if it is small; a sequential reader is read ahead of; a small layer is fetched
whole, and so is the rest of a layer of which much has been read.

Locks: `InFlight.lock` guards the requests in flight, the sequential readers and the counters, never held
during I/O.
"""

from __future__ import annotations

import errno
import os
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING

from imgfs.content.fetch import BlobSource, SpanFetcher
from imgfs.content.inflight import InFlight, InFlightRequest
from imgfs.content.readahead import ReadaheadWindow, SequentialReaders
from imgfs.content.requests import SIZES, Request, Sizes, SpanIndex, SpanTable, requests_for, widen
from imgfs.content.scheduler import FetchPool, Priority
from imgfs.content.stats import COUNTS_SIZE, HITS, Cause, Counts
from imgfs.errors import ImgfsError, StoreError, Unavailable
from imgfs.layer.entry import Extent
from imgfs.oci.descriptor import Descriptor
from imgfs.owned.writing import pwrite_all
from imgfs.store.flat import FlatLayer
from imgfs.store.flat_files import PRESENT

if TYPE_CHECKING:
    from imgfs.status import LayerStatus

PATIENCE = 60.0  # seconds without a byte of the layer after which a read that waits for some fails
_TRIES = 4  # of a read whose spans are evicted meanwhile
_SOON = 4.0  # seconds: the rest of a layer is fetched if it takes no more,
_SLOW = 4e6  # at this many bytes per second as long as nothing has been measured


class LayerContent:
    """The bytes of one flat layer, fetched by `fetch_pool` from `source` as they are needed."""

    def __init__(
        self,
        layer: Descriptor,
        index: SpanIndex,
        flat: FlatLayer,
        source: BlobSource,
        fetch_pool: FetchPool,
        sizes: Sizes = SIZES,
    ) -> None:
        self.layer = layer
        self.index = index
        self.flat = flat
        self.table = SpanTable(self.index.bounds())
        self.counts = Counts()
        self.fetch_pool = fetch_pool
        fetcher = SpanFetcher(layer, index, self.table, flat, self.fetch_pool.run_in_thread)
        self.in_flight = InFlight(
            layer.digest.short, self.table, self.counts, source, fetcher, self.fetch_pool
        )
        self.usage = self.in_flight.usage
        self._lock = self.in_flight.lock
        self._touched = self.usage.touched
        self._flat_starts = self.table.flat_starts
        self._sizes = sizes
        self._readers = SequentialReaders()
        self._replayed: frozenset[int] = frozenset()  # the spans of a profile
        self._rest_began = False
        self.on_refuse: Callable[[], None] = _ignore  # called once its reads must fail

    @property
    def fetched(self) -> int:
        """Return the compressed bytes received."""
        return self.counts.received

    @property
    def stats_size(self) -> int:
        """Return the bytes of memory that its statistics take."""
        return COUNTS_SIZE + self.usage.size

    def count_in(self, memory: memoryview) -> None:
        """Go on with the statistics in a memory of `stats_size` bytes, and keep them there from now on."""
        self.counts.count_in(memory)
        self.usage.count_in(memory[COUNTS_SIZE:])

    def read_into(
        self, into: memoryview, offset: int, extents: Sequence[Extent] = (), flags: int = os.RWF_NOWAIT
    ) -> bool:
        """Fill a buffer with the flat layer's bytes if they are in the page cache; else return False.

        Without RWF_NOWAIT in `flags` it waits for the disk, so that False says that bytes are absent, or bad.
        `extents` are those of the file that is read.
        """
        starts = self._flat_starts  # what follows is `table.holding`: a call more would be felt here
        first = last = bisect_right(starts, offset) - 1
        if offset + len(into) > starts[first + 1]:
            last = bisect_left(starts, offset + len(into), first + 1) - 1
        if not self.flat.read_into(into, offset, self.flat.marks(first, last), first, flags):
            return False
        if not self._touched[first] or (last > first and self._touched.find(0, first, last + 1) >= 0):
            self._fetch_ahead(self._touch(first, last, extents))
        self.counts.words[HITS] += 1
        return True

    def is_here(self, offset: int, length: int) -> bool:
        """Return True if a range can be read without the network."""
        return not self._missing(*self.table.holding(offset, length))

    def bytes_here(self, offset: int, length: int) -> int:
        """Return how many bytes of a range can be read without the network."""
        first, last = self.table.holding(offset, length)
        starts, end = self.table.flat_starts, offset + length
        return sum(
            min(end, starts[number + 1]) - max(offset, starts[number])
            for number, mark in enumerate(self.flat.marks(first, last), first)
            if mark & PRESENT
        )

    def read(
        self,
        offset: int,
        length: int,
        extents: Sequence[Extent] = (),
        given_up: Future[None] | None = None,
    ) -> bytes:
        """Read a range of the flat layer, which lies in a file of `extents`.

        Raises ImgfsError, and InterruptedError if it would have to wait after `given_up` is settled.
        """
        first, last = self.table.holding(offset, length)
        window = self._touch(first, last, extents)
        for tried in range(_TRIES):
            body = self.flat.read(offset, length, self.flat.marks(first, last), first)
            if body is not None:
                self.counts.hits += not tried
                self._fetch_ahead(window)
                return body
            self.counts.misses += not tried
            self._fetch_missing(first, last, window, given_up)
            window = None
        raise StoreError(f"layer {self.layer.digest.short} is evicted again and again while it is read")

    def copy(
        self,
        offset: int,
        length: int,
        target: int,
        at: int,
        extents: Sequence[Extent] = (),
        given_up: Future[None] | None = None,
    ) -> None:
        """Copy a range of the flat layer to `at` in the open file `target`; raises as `read`, and OSError.

        What is present goes there by reference, where the store's file system can.
        """
        first, last = self.table.holding(offset, length)
        if self.flat.copy(offset, length, target, at, self.flat.marks(first, last), first):
            self._fetch_ahead(self._touch(first, last, extents))
            self.counts.hits += 1
        else:
            pwrite_all(target, self.read(offset, length, extents, given_up), at)

    def expect(self, numbers: Iterable[int]) -> None:
        """Note the spans that a profile names: a reader of these is not read ahead of."""
        self._replayed = frozenset(numbers)

    def is_touched(self, number: int) -> bool:
        """Return True if a reader has touched a span."""
        return bool(self._touched[number])

    def is_missing(self, number: int) -> bool:
        """Return True if a span is neither present nor in flight; without the lock, so it may be outdated."""
        return self._is_fetchable(number)

    def is_complete(self) -> bool:
        """Return True if all spans are present."""
        return self.flat.count_present() == self.flat.spans

    def missing(self) -> list[int]:
        """Return the spans that are neither present nor in flight."""
        with self._lock:
            return self.in_flight.not_in_flight(self._missing(0, len(self.table) - 1))

    def read_present(self, offset: int, length: int) -> bytes | None:
        """Return a range of the flat layer if all of it is present, without counting it as read."""
        first, last = self.table.holding(offset, length)
        return self.flat.read(offset, length, self.flat.marks(first, last), first)

    def fetch_for(self, numbers: Sequence[int], priority: Priority, cause: Cause) -> list[Future[None]]:
        """Start to fetch those of `numbers` that are absent; return a future for each of them."""
        with self._lock:
            absent = self._absent(numbers)
            queued = self.in_flight.fetching(absent)
            requests = self._requests_for(absent, self._sizes)
            started = [self.in_flight.start(request, priority, cause) for request in requests]
            awaited = self.in_flight.wait_for(absent)
        self.in_flight.raise_priority(queued, priority)
        self.in_flight.submit(started)
        return awaited

    def fetch_in_background(
        self, requests: Iterable[Request], priority: Priority, cause: Cause
    ) -> list[Future[None]]:
        """Start to fetch spans; return a future for each request, which will hold its error.

        Spans that are present by now, or in flight, are left out.
        """
        started: list[InFlightRequest] = []
        with self._lock:
            for request in requests:
                absent = self._absent(request.numbers)
                started += [
                    self.in_flight.start(again, priority, cause)
                    for again in self._requests_for(absent, self._sizes)
                ]
        self.in_flight.submit(started)
        return [request.done for request in started]

    def use_index(self, index: SpanIndex) -> None:
        """Replace the index by another that cuts the layer into the same spans."""
        self.index = self.in_flight.fetcher.spans = index

    def on_misplaced(self, act: Callable[[], None]) -> None:
        """Call `act` once it turns out that spans are not where the index says."""
        self.in_flight.fetcher.misplaced.on_found = act

    @property
    def is_refused(self) -> bool:
        """Return True if `refuse` has been called."""
        return self.in_flight.fetcher.store.refused is not None

    def refuse(self, error: ImgfsError) -> None:
        """Make all reads of the layer fail with `error`, from now on."""
        self.in_flight.fetcher.store.refused = error  # first: what lands after the eviction has seen it
        self.flat.evict()
        self.on_refuse()

    def snapshot(self) -> LayerStatus:
        """Return what serving the layer has cost, and how much of it is present."""
        summary = self.index.summary
        return self.counts.snapshot()._replace(
            digest=str(self.layer.digest),
            format=summary.format,
            size=self.layer.size,
            flat_size=summary.flat_size,
            index=summary.trusted_by or "verified",
            bytes_fetched=self.fetched - self.counts.from_peers,
            spans=self.flat.spans,
            spans_present=self.flat.count_present(),
            spans_touched=self._touched.count(1),
        )

    def _touch(self, first: int, last: int, extents: Sequence[Extent]) -> ReadaheadWindow | None:
        """Note that a reader is at the spans `first` to `last`; return what to read ahead, if anything."""
        table = self.table
        with self._lock:
            missing = self._missing(first, last)
            fresh = self.usage.touch(first, last, missing)
            if not fresh and not missing:  # else it has been evicted since
                return None
            file_end = extents[-1].flat + extents[-1].length if extents else table.flat_size
            beyond = table.ends[table.holding(file_end - 1, 1)[0]]
            start = table.starts[fresh[0] if fresh else first]
            in_profile = self._replayed.issuperset(range(first, last + 1))
            return self._readers.touched(
                start, table.ends[last], beyond, time.monotonic(), in_profile=in_profile
            )

    def _fetch_missing(
        self, first: int, last: int, window: ReadaheadWindow | None, given_up: Future[None] | None
    ) -> None:
        """Wait until all spans `first` to `last` are present, or raise what one failed with."""
        awaited, joined, started = self._join_or_start(first, last)
        self.in_flight.raise_priority(joined, Priority.MISS)
        self.in_flight.submit(started)
        self._fetch_ahead(window)
        if started:
            self._fetch_rest()
        with self.fetch_pool.reader_waits():
            self._wait(awaited, given_up or Future())
        for future in awaited:
            future.result()

    def _wait(self, awaited: Iterable[Future[None]], given_up: Future[None]) -> None:
        """Wait for spans, for as long as any bytes arrive and until `given_up` is settled."""
        late = {*awaited, given_up}
        while len(late) > 1:
            before = self.counts.received
            settled, late = wait(late, timeout=PATIENCE, return_when=FIRST_COMPLETED)
            if given_up in settled:
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
            if not settled and self.counts.received == before:
                raise Unavailable(f"layer {self.layer.digest.short}: nothing arrived for {PATIENCE:.0f} s")

    def _join_or_start(
        self, first: int, last: int
    ) -> tuple[list[Future[None]], set[InFlightRequest], list[InFlightRequest]]:
        """Return what a reader waits for, the requests in flight that it joins, and new ones to submit."""
        with self._lock:
            needed = self._missing(first, last)
            self.in_flight.raise_recent_failure(needed)
            joined = self.in_flight.fetching(needed)
            new = self.in_flight.not_in_flight(needed)
            cause, requests = self._requests(new)
            started = [self.in_flight.start(request, Priority.MISS, cause, new) for request in requests]
            return self.in_flight.wait_for(needed), joined, started

    def _requests(self, needed: Sequence[int]) -> tuple[Cause, list[Request]]:
        """Return the requests for a miss, and the cause of what they fetch beyond it."""
        if needed and self.in_flight.fetcher.blob.size <= self._sizes.whole:
            everything = self._missing(0, len(self.table) - 1)
            sizes = self._sizes._replace(gap=self._sizes.whole)
            return Cause.WHOLE, list(self._requests_for(everything, sizes))
        requests = list(self._requests_for(needed, self._sizes))
        if self.in_flight.is_rangeless:
            return Cause.WHOLE, requests
        if len(requests) == 1 and not self.fetch_pool.is_replaying:
            requests = [widen(requests[0], self.table, self._is_fetchable, self._sizes)]
        return Cause.NEAR, requests

    def _requests_for(self, absent: Sequence[int], sizes: Sizes) -> Iterator[Request]:
        """Return requests for those of `absent` that are in none. Under the lock.

        Where each range costs the whole blob, one request is for all of it that is missing.
        """
        wanted = self.in_flight.not_in_flight(absent)
        if wanted and self.in_flight.is_rangeless:
            wanted = self.in_flight.not_in_flight(self._missing(0, len(self.table) - 1))
            size = self.in_flight.fetcher.blob.size
            sizes = sizes._replace(gap=size, largest=size)
        return requests_for(wanted, self.table, sizes)

    def _fetch_ahead(self, window: ReadaheadWindow | None) -> None:
        if window is None:
            return
        with self._lock:
            absent = self._absent(self.table.between(window.start, window.end))
            queued = self.in_flight.fetching(absent)
            sizes = self._sizes._replace(largest=min(self._sizes.largest, window.request_size))
            requests = self._requests_for(absent, sizes)
            priority = Priority.REST_OF_LAYER if self.fetch_pool.is_replaying else Priority.READAHEAD
            started = [self.in_flight.start(request, priority, Cause.AHEAD) for request in requests]
        self.in_flight.raise_priority(queued, Priority.READAHEAD)
        self.in_flight.submit(started)

    def _fetch_rest(self) -> None:
        """Start to fetch the rest of the layer, if much of it has been read and little is left."""
        if self._rest_began or self.counts.needed < self.table.size * self._sizes.much:
            return
        left = self.missing()
        speed = self.fetch_pool.meter.speed() or _SLOW
        if sum(map(self.table.size_of, left)) > speed * _SOON:
            return
        self._rest_began = True
        self.fetch_in_background(
            list(requests_for(left, self.table, self._sizes)), Priority.REST_OF_LAYER, Cause.WHOLE
        )

    def _missing(self, first: int, last: int) -> list[int]:
        marks = self.flat.marks(first, last) if first <= last else b""
        return [number for number, mark in enumerate(marks, first) if not mark & PRESENT]

    def _absent(self, numbers: Sequence[int]) -> list[int]:
        """Return those of `numbers` that are not present."""
        if not numbers:
            return []
        first = min(numbers)
        marks = self.flat.marks(first, max(numbers))
        return [number for number in numbers if not marks[number - first] & PRESENT]

    def _is_fetchable(self, number: int) -> bool:
        return not self.flat.marks(number, number)[0] & PRESENT and bool(
            self.in_flight.not_in_flight([number])
        )


def _ignore() -> None:
    pass
