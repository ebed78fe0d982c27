"""The bytes of one flat layer: there, or on their way, or fetched because somebody reads them.

Reads of what is there take no lock and no thread. A missing span is fetched once, whoever asks for it. A
reader's miss brings its neighbours if it is small; a reader that goes on in sequence is fetched ahead of; a
small layer comes whole, and so does the rest of one of which much has been read.

Locks: `Flights.lock` guards the flights, the streams and the counters, never held during I/O.
"""

from __future__ import annotations

import errno
import os
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from imgfs.content.fetch import BlobSource, SpanFetcher
from imgfs.content.inflight import Flight, Flights
from imgfs.content.readahead import Streams, Window
from imgfs.content.requests import SIZES, Places, Request, Sizes, Spans, requests_for, widen
from imgfs.content.scheduler import Fetchers, Lane
from imgfs.content.stats import Cause, Counts
from imgfs.errors import ImgfsError, StoreError, Unavailable
from imgfs.layer.entry import Extent
from imgfs.oci.descriptor import Descriptor
from imgfs.store.flat import Flat
from imgfs.store.presence import PRESENT

PATIENCE = 60.0  # seconds without a byte of the layer after which a read that waits for some fails
_TRIES = 4  # of a read whose spans are evicted under its hands
_SOON = 4.0  # seconds: the rest of a layer is brought if it takes no more,
_SLOW = 4e6  # at this many bytes per second as long as nothing has been measured


class LayerContent:
    """The bytes of one flat layer, fetched by `fetchers` from `source` as they are needed."""

    def __init__(
        self,
        layer: Descriptor,
        index: Spans,
        flat: Flat,
        source: BlobSource,
        fetchers: Fetchers,
        sizes: Sizes = SIZES,
    ) -> None:
        self.layer = layer
        self.index = index
        self.flat = flat
        self.places = Places(self.index.bounds())
        self.counts = Counts()
        self.fetchers = fetchers
        fetcher = SpanFetcher(layer, index, self.places, flat, source, self.fetchers.beside)
        self.flights = Flights(layer.digest.short, self.places, self.counts, fetcher, self.fetchers)
        self.usage = self.flights.usage
        self._lock = self.flights.lock
        self._hits = 0  # reads of what was there
        self._touched = self.usage.touched
        self._flat_starts = self.places.flat_starts
        self._sizes = sizes
        self._streams = Streams()
        self._rest_began = False
        self.on_refuse: Callable[[], None] = _ignore  # told when nothing of it may be shown any more

    @property
    def fetched(self) -> int:
        """Compressed bytes received."""
        return self.counts.received

    def read_now(self, offset: int, into: memoryview, extents: Sequence[Extent] = ()) -> bool:
        """Fill `into` with the flat layer's bytes if they can be had without waiting; False if not.

        `extents` are those of the file that is read.
        """
        starts = self._flat_starts  # what follows is `places.holding`: a call more would be felt here
        first = last = bisect_right(starts, offset) - 1
        if offset + len(into) > starts[first + 1]:
            last = bisect_left(starts, offset + len(into), first + 1) - 1
        if not self.flat.read_now(offset, into, self.flat.marks(first, last), first):
            return False
        if not self._touched[first] or (last > first and self._touched.find(0, first, last + 1) >= 0):
            self._fetch_ahead(self._touch(first, last, extents))
        self._hits += 1
        return True

    def is_here(self, offset: int, length: int) -> bool:
        """Whether the flat layer's bytes can be had without the network."""
        return not self._missing(*self.places.holding(offset, length))

    def read(
        self,
        offset: int,
        length: int,
        extents: Sequence[Extent] = (),
        given_up: Future[None] | None = None,
    ) -> bytes:
        """The flat layer's bytes, which are of a file of `extents`.

        Raises ImgfsError, and InterruptedError if it would have to wait after `given_up` is settled.
        """
        first, last = self.places.holding(offset, length)
        window = self._touch(first, last, extents)
        for tried in range(_TRIES):
            body = self.flat.read(offset, length, self.flat.marks(first, last), first)
            if body is not None:
                self._hits += not tried
                self._fetch_ahead(window)
                return body
            self.counts.misses += not tried
            self._bring(first, last, window, given_up)
            window = None
        raise StoreError(f"layer {self.layer.digest.short} is evicted again and again while it is read")

    def is_touched(self, number: int) -> bool:
        """Whether a reader has been at a span."""
        return bool(self._touched[number])

    def is_missing(self, number: int) -> bool:
        """Whether a span is neither there nor on its way; without the lock, so it may be wrong by now."""
        return self._is_unasked(number)

    def is_whole(self) -> bool:
        """Whether all spans are there."""
        return self.flat.count_present() == self.flat.spans

    def missing(self) -> list[int]:
        """The spans that are neither there nor on their way."""
        with self._lock:
            return self.flights.unasked(self._missing(0, len(self.places) - 1))

    def bring(self, requests: Iterable[Request], lane: Lane, cause: Cause) -> list[Future[None]]:
        """Have spans fetched in the background; futures that have the requests' errors in the end.

        Spans that are there by now, or on their way, are left out.
        """
        flights: list[Flight] = []
        with self._lock:
            for request in requests:
                wanted = self.flights.unasked(self._absent(request.numbers))
                flights += [
                    self.flights.take_off(again, lane, cause)
                    for again in requests_for(wanted, self.places, self._sizes)
                ]
        self.flights.submit(flights)
        return [flight.done for flight in flights]

    def use_index(self, index: Spans) -> None:
        """Go on with another index that cuts the layer into the same spans."""
        self.index = self.flights.fetcher.spans = index

    @property
    def is_refused(self) -> bool:
        """Whether `refuse` has been called."""
        return self.flights.fetcher.refused is not None

    def refuse(self, error: ImgfsError) -> None:
        """Hand out nothing of the layer any more: whoever reads gets `error`."""
        self.flights.fetcher.refused = error  # first: what lands after the eviction has seen it
        self.flat.evict()
        self.on_refuse()

    def snapshot(self) -> dict[str, Any]:
        """The layer's counters, and how much of it is there."""
        return {
            "hits": self._hits,
            **self.counts.snapshot(),
            "spans": self.flat.spans,
            "spans_present": self.flat.count_present(),
            "spans_touched": self._touched.count(1),
        }

    def _touch(self, first: int, last: int, extents: Sequence[Extent]) -> Window | None:
        """Note that a reader is at the spans `first` to `last`; returns what to fetch ahead of it."""
        places = self.places
        with self._lock:
            fresh = self.usage.touch(first, last)
            if not fresh and not self._missing(first, last):  # else it has been evicted since
                return None
            file_end = extents[-1].flat + extents[-1].length if extents else places.flat_size
            beyond = places.ends[places.holding(file_end - 1, 1)[0]]
            start = places.starts[fresh[0] if fresh else first]
            return self._streams.touched(start, places.ends[last], beyond, time.monotonic())

    def _bring(self, first: int, last: int, window: Window | None, given_up: Future[None] | None) -> None:
        """Have all spans `first` to `last` there, or raise what keeps them away."""
        awaited, joined, started = self._board(first, last)
        self.flights.hurry(joined, Lane.MISS)
        self.flights.submit(started)
        self._fetch_ahead(window)
        if started:
            self._fetch_rest()
        with self.fetchers.reader_waits():
            self._wait(awaited, given_up or Future())
        for future in awaited:
            future.result()

    def _wait(self, awaited: Iterable[Future[None]], given_up: Future[None]) -> None:
        """Wait for spans to land, for as long as anything arrives and until `given_up` is settled."""
        late = {*awaited, given_up}
        while len(late) > 1:
            before = self.counts.received
            landed, late = wait(late, timeout=PATIENCE, return_when=FIRST_COMPLETED)
            if given_up in landed:
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
            if not landed and self.counts.received == before:
                raise Unavailable(f"layer {self.layer.digest.short}: nothing arrived for {PATIENCE:.0f} s")

    def _board(self, first: int, last: int) -> tuple[list[Future[None]], set[Flight], list[Flight]]:
        """What a reader waits for, the flights under way that bring it, and the new ones to be submitted."""
        with self._lock:
            needed = self._missing(first, last)
            self.flights.refuse_hopeless(needed)
            joined = self.flights.bringing(needed)
            new = self.flights.unasked(needed)
            cause, requests = self._requests(new)
            started = [self.flights.take_off(request, Lane.MISS, cause, new) for request in requests]
            return self.flights.wait_for(needed), joined, started

    def _requests(self, needed: Sequence[int]) -> tuple[Cause, list[Request]]:
        """The requests for a miss, and why they bring more than is needed."""
        if needed and self.flights.fetcher.blob.size <= self._sizes.whole:
            everything = self.flights.unasked(self._missing(0, len(self.places) - 1))
            return Cause.WHOLE, list(
                requests_for(everything, self.places, self._sizes._replace(gap=self._sizes.whole))
            )
        requests = list(requests_for(needed, self.places, self._sizes))
        if len(requests) == 1 and not self.fetchers.is_replaying:
            requests = [widen(requests[0], self.places, self._is_unasked, self._sizes)]
        return Cause.NEAR, requests

    def _fetch_ahead(self, window: Window | None) -> None:
        if window is None:
            return
        with self._lock:
            absent = self._absent(self.places.between(window.start, window.end))
            queued = self.flights.bringing(absent)
            sizes = self._sizes._replace(largest=min(self._sizes.largest, window.piece))
            requests = requests_for(self.flights.unasked(absent), self.places, sizes)
            lane = Lane.REST if self.fetchers.is_replaying else Lane.AHEAD
            flights = [self.flights.take_off(request, lane, Cause.AHEAD) for request in requests]
        self.flights.hurry(queued, Lane.AHEAD)
        self.flights.submit(flights)

    def _fetch_rest(self) -> None:
        """Have the rest of the layer brought, if much of it has been read and the rest comes soon."""
        if self._rest_began or self.counts.needed < self.places.size * self._sizes.much:
            return
        left = self.missing()
        speed = self.fetchers.meter.speed() or _SLOW
        if sum(map(self.places.size_of, left)) > speed * _SOON:
            return
        self._rest_began = True
        self.bring(list(requests_for(left, self.places, self._sizes)), Lane.REST, Cause.WHOLE)

    def _missing(self, first: int, last: int) -> list[int]:
        marks = self.flat.marks(first, last) if first <= last else b""
        return [number for number, mark in enumerate(marks, first) if not mark & PRESENT]

    def _absent(self, numbers: Sequence[int]) -> list[int]:
        """Those of `numbers` that are not there."""
        if not numbers:
            return []
        first = min(numbers)
        marks = self.flat.marks(first, max(numbers))
        return [number for number in numbers if not marks[number - first] & PRESENT]

    def _is_unasked(self, number: int) -> bool:
        return not self.flat.marks(number, number)[0] & PRESENT and bool(self.flights.unasked([number]))


def _ignore() -> None:
    pass
