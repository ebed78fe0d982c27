"""Fetch of the whole image in the background: at a limited rate if wanted, and never while a reader waits."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import TYPE_CHECKING, NamedTuple

from imgfs.content.layer import LayerContent
from imgfs.content.requests import SIZES, Request, requests_for, waves
from imgfs.content.scheduler import Priority
from imgfs.content.stats import Cause
from imgfs.errors import ImgfsError, StoreError, Unavailable
from imgfs.starting import try_thread

if TYPE_CHECKING:
    from imgfs.status import FillStatus

_QUIET = 0.2  # seconds without a waiting reader before the next request: misses come in bursts
_IN_FLIGHT = 2  # requests at once
_LONGEST_PAUSE = 60.0  # seconds after errors
_SMALLEST = 256 << 10  # bytes of a request, however low the rate
_POLL = 0.05  # seconds between checks whether readers wait


class BackgroundFetchOptions(NamedTuple):
    """`limit_rate`: compressed bytes per second at most, None for no limit."""

    limit_rate: int | None = None


class RateLimit:
    """When bytes may be requested, so that on average there are no more than `rate` per second."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free_at = 0.0

    def delay(self, size: int, now: float) -> float:
        """Return the seconds to wait before `size` bytes are requested; they count from then on."""
        if not self._rate:
            return 0.0
        begin = max(now, self._free_at)
        self._free_at = begin + size / self._rate
        return begin - now


class Clock:
    """The time, and sleeps that `stop` ends."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def now(self) -> float:
        """Return the monotonic time in seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> bool:
        """Sleep; return False once `stop` has been called."""
        return not self._stopped.wait(seconds)

    def stop(self) -> None:
        """End all sleeps."""
        self._stopped.set()


class BackgroundFetch:
    """Fetches all missing spans, those that will be needed first; then its thread ends.

    `touches` are the (layer, span) of an access profile, in order; then come the layers of which readers have
    used most. After an error it pauses, longer each time.
    """

    def __init__(
        self,
        layers: Sequence[LayerContent],
        touches: Sequence[tuple[int, int]],
        options: BackgroundFetchOptions,
        clock: Clock | None = None,
    ) -> None:
        self._layers = layers
        self._touches = touches
        self._clock = clock or Clock()
        self._rate_limit = RateLimit(options.limit_rate)
        largest = max(_SMALLEST, min(SIZES.largest, options.limit_rate or SIZES.largest))
        self._sizes = SIZES._replace(largest=largest)
        self._errors = 0  # in a row
        self._state = "waiting"
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin in a thread."""
        self._thread = try_thread(self.run, "imgfs-fill")

    def stop(self) -> None:
        """Stop, and wait for the thread."""
        self._clock.stop()
        if self._thread:
            self._thread.join()

    def snapshot(self) -> FillStatus:
        """Return the state, and how many compressed bytes are still missing."""
        from imgfs.status import FillStatus  # here: only a mount has a status

        left = sum(sum(map(layer.table.size_of, layer.missing())) for layer in self._layers)
        return FillStatus(self._state, left)

    def run(self) -> None:
        """Fetch until nothing is missing that can be fetched, or `stop` is called."""
        try:
            while self._fetch_once():
                pass
        except ImgfsError as error:
            self._state = f"stopped: {error}"

    def _fetch_once(self) -> bool:
        """Request all missing spans once; return True if some failed and are worth another round."""
        under_way: deque[Future[None]] = deque()
        again = False
        for number, request in self._requests():
            if not self._wait_for_turn(request.end - request.start):
                return False
            under_way += self._layers[number].fetch_in_background([request], Priority.BACKGROUND, Cause.FILL)
            while len(under_way) >= _IN_FLIGHT:
                again |= self._has_failed(under_way.popleft())
        for future in under_way:
            again |= self._has_failed(future)
        if not again:
            self._state = "done"
        return again and self._clock.sleep(0)

    def _requests(self) -> Iterator[tuple[int, Request]]:
        tables = [layer.table for layer in self._layers]
        absent = {(number, span) for number, layer in enumerate(self._layers) for span in layer.missing()}
        needed = [touch for touch in self._touches if touch in absent]
        yield from waves(needed, tables, first=self._sizes.largest, sizes=self._sizes)
        by_use = sorted(enumerate(self._layers), key=lambda pair: -pair[1].counts.needed)
        for number, layer in by_use:
            for request in requests_for(layer.missing(), layer.table, self._sizes):
                yield number, request

    def _wait_for_turn(self, size: int) -> bool:
        """Wait until `size` more bytes may be requested; False once `stop` has been called."""
        if not self._clock.sleep(self._rate_limit.delay(size, self._clock.now())):
            return False
        while any(layer.fetch_pool.quiet_for() < _QUIET for layer in self._layers):
            self._state = "readers first"
            if not self._clock.sleep(_POLL):
                return False
        self._state = "running"
        return True

    def _has_failed(self, future: Future[None]) -> bool:
        """Wait for a request; True if it failed and may be retried. Raises StoreError: the disk is full."""
        while not future.done() and self._clock.sleep(0):
            wait_for([future], timeout=_POLL)
        error = future.exception() if future.done() else None
        if isinstance(error, StoreError):
            raise error
        if not isinstance(error, Unavailable):  # damage stays damage
            self._errors = 0
            return False
        self._errors += 1
        self._state = f"pausing: {error}"
        self._clock.sleep(min(_LONGEST_PAUSE, 2.0 ** min(self._errors, 6) / 2))
        return True
