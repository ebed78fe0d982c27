"""What guesses want, the most urgent first: requested bit by bit, and no more of it than is worth it.

A request is of 1 MiB at most, and so many are under way as keep the link busy: what is wanted later may be
more urgent, and a reader's next miss shares the link with them. In all so many compressed bytes are wanted,
and a multiple of those that readers have used of what has come before; and as many more are fetched for
guesses to go on, since an image may have them look at all of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from heapq import heappop, heappush
from typing import NamedTuple

from imgfs.content.layer import LayerContent
from imgfs.content.requests import SIZES, requests_for
from imgfs.content.scheduler import Priority
from imgfs.content.stats import Cause
from imgfs.predict.guess import Rank

Span = tuple[int, int]  # layer, number

_CAUSES = (Cause.LIBRARY, Cause.MODULE)
_FIRST = 24 << 20  # compressed bytes that may be fetched before any of them is used
_BESIDE_PROFILE = 1 << 20  # where a profile is replayed, which knows better,
_FACTOR = 2  # and for each byte used so many more
_WINDOW = 0.1  # seconds of the link that are requested at once,
_SMALLEST, _LARGEST = 2 << 20, 8 << 20  # within these compressed bytes
REQUEST = 1 << 20  # compressed bytes of one request
_STALE = 10.0  # seconds after which what was wanted, and could not be fetched, is not any more


class _Wanted(NamedTuple):
    """A span in the queue: the lowest is fetched next."""

    rank: Rank
    serial: int
    layer: int
    span: int
    cause: Cause
    since: float


class Wants:
    """The queue of wanted spans of an image's layers. All but `_settle` is for one thread.

    `ended` is called in a thread that fetches, when a request has failed (with True), or when there is room
    for more.
    """

    def __init__(
        self, layers: Sequence[LayerContent], ended: Callable[[bool], None], *, is_replayed: bool
    ) -> None:
        self.first = _BESIDE_PROFILE if is_replayed else _FIRST
        self.requested = 0  # compressed bytes, so far
        self._layers = layers
        self._ended = ended
        self._queue: list[_Wanted] = []
        self._queued: dict[Span, Rank] = {}  # the best that each has been in the queue with
        self._serial = 0
        self._under_way = 0  # compressed bytes, guarded by
        self._lock = threading.Lock()

    def add(self, spans: Sequence[Span], rank: Rank, cause: Cause) -> None:
        """Queue those spans that have not been queued before, or less urgently."""
        now = time.monotonic()
        for span in spans:
            if rank < self._queued.get(span, len(Rank)):
                self._queued[span] = rank
                self._serial += 1
                heappush(self._queue, _Wanted(rank, self._serial, *span, cause, now))

    def note_requested(self, spans: Sequence[Span]) -> None:
        """Count spans that are requested otherwise, at once."""
        self._queued |= dict.fromkeys(spans, Rank.NOW)
        self.requested += sum(map(self._size_of, spans))

    def not_queued(self, spans: Sequence[Span]) -> list[Span]:
        """Return those spans that have never been wanted."""
        return [span for span in spans if span not in self._queued]

    def clear(self) -> None:
        """Want nothing any more."""
        self._queue = []

    @property
    def is_empty(self) -> bool:
        """Return True if nothing is wanted."""
        return not self._queue

    @property
    def may_look(self) -> bool:
        """Return True if guesses may have something fetched that they must see."""
        return self.requested < self._most() + self.first

    @property
    def has_room_for_last(self) -> bool:
        """Return True if nothing is wanted, and little is under way."""
        return not self._queue and self._under_way < self._window()

    def fetch(self) -> None:
        """Request what is wanted most, as much as may be under way and as is worth it."""
        while self._queue and self._under_way < self._window() and self.requested < self._most():
            layer, cause = self._queue[0].layer, self._queue[0].cause
            content, batch = self._layers[layer], list(self._batch(layer, cause))
            for request in requests_for(batch, content.table, SIZES._replace(largest=REQUEST)):
                size = request.end - request.start
                self.requested += size
                for future in content.fetch_in_background([request], Priority.GUESS, cause)[:1]:
                    with self._lock:
                        self._under_way += size
                    future.add_done_callback(partial(self._settle, size))

    def _batch(self, layer: int, cause: Cause) -> Iterator[int]:
        """Take the next spans, as many as one request may have, if they are of one layer and cause."""
        size, now = 0, time.monotonic()
        while self._queue and size < REQUEST:
            if (self._queue[0].layer, self._queue[0].cause) != (layer, cause):
                return
            wanted = heappop(self._queue)
            if now - wanted.since < _STALE and self._layers[layer].is_missing(wanted.span):
                size += self._size_of((layer, wanted.span))
                yield wanted.span

    def _settle(self, size: int, future: Future[None]) -> None:
        """Note that a request has ended, in the thread that made it."""
        with self._lock:
            self._under_way -= size
            has_room = self._under_way <= self._window() // 2
        has_failed = future.exception() is not None
        if has_failed or has_room:
            self._ended(has_failed)

    def _most(self) -> int:
        """Return the compressed bytes that may be requested, by what readers have used of them."""
        used = sum(layer.counts.brought(cause).bytes_used for layer in self._layers for cause in _CAUSES)
        return self.first + (1 + _FACTOR) * used

    def _window(self) -> int:
        """Return the compressed bytes that may be under way: the link is to be busy, and no more."""
        speed = self._layers[0].fetch_pool.meter.speed() if self._layers else 0
        return min(_LARGEST, max(_SMALLEST, int(speed * _WINDOW)))

    def _size_of(self, span: Span) -> int:
        return self._layers[span[0]].table.size_of(span[1])
