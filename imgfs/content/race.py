"""Spans from peers, and, if that takes longer than the registry would have, from the registry at once.

Each side runs in a thread of its own, so that none is waited for that has stopped to answer. Both write to
the flat layer what they have verified: it is the same. A side that has lost ends at its next bytes.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import partial

from imgfs.content.storing import SpanOutcome
from imgfs.errors import LimitReached, Unavailable
from imgfs.parallel import begun
from imgfs.peers.pace import RegistryPace

log = logging.getLogger(__name__)


class Overtaken(Unavailable):
    """Another side has brought it."""


class Side:
    """One way to fetch spans, `fetch`, begun in a thread; it calls `check` before it waits for more bytes.

    Raises LimitReached.
    """

    def __init__(self, name: str, fetch: Fetch, numbers: list[int], outcomes: Outcomes) -> None:
        self.name = name
        self.on_lost: Callable[[], None] = lambda: None  # set by `fetch`: what is told when it has lost
        self._is_lost = False
        begun(partial(self._run, fetch, list(numbers), outcomes), f"imgfs-{name}")

    def check(self) -> None:
        """Raise Overtaken once it has lost."""
        if self._is_lost:
            raise Overtaken("another has brought it")

    def lose(self) -> None:
        """Have it end."""
        self._is_lost = True
        self.on_lost()

    def _run(self, fetch: Fetch, numbers: list[int], outcomes: Outcomes) -> None:
        try:
            for outcome in fetch(numbers, self):
                outcomes.put((self, outcome))
        except Exception as error:  # noqa: BLE001  (what it has not brought is asked for again, or elsewhere)
            log.debug("%s: %s", self.name, error)
        finally:
            outcomes.put((self, None))


Outcomes = queue.SimpleQueue[tuple[Side, SpanOutcome | None]]
Fetch = Callable[[list[int], Side], Iterator[SpanOutcome]]


def checked(chunks: Iterator[bytes], side: Side) -> Generator[bytes, None, None]:
    """Yield the chunks as long as the side has not lost."""
    for chunk in chunks:
        side.check()
        yield chunk


def watched(
    chunks: Iterator[bytes], size: int, pace: RegistryPace, side: Side | None
) -> Generator[bytes, None, None]:
    """Yield the chunks of a request of `size` bytes, as `checked` does; note how long they take."""
    began = time.monotonic()
    first = 0.0
    for chunk in checked(chunks, side) if side else chunks:
        first = first or time.monotonic() - began
        yield chunk
    pace.note(size, first, time.monotonic() - began)


def race(
    left: list[int], peers: Fetch, registry: Fetch, patience: float, may_join: Callable[[list[int]], bool]
) -> Iterator[SpanOutcome]:
    """Yield what is brought of `left`, and remove it from it; each span once.

    The registry joins after `patience` seconds, if it `may_join`; else, or without threads, it is over then.
    """
    outcomes: Outcomes = queue.SimpleQueue()
    ends: float | None = time.monotonic() + patience
    running: list[Side] = []
    with suppress(LimitReached):
        running.append(Side("peers", peers, left, outcomes))
    winner: Side | None = None  # which brought the last span
    while left and running:
        try:
            side, outcome = outcomes.get(timeout=None if ends is None else max(0.0, ends - time.monotonic()))
        except queue.Empty:
            ends = None
            with suppress(LimitReached):
                if may_join(left):
                    running.append(Side("registry", registry, left, outcomes))
                    continue
            winner = None
            break
        if outcome is None:
            running.remove(side)
            continue
        numbers = [number for number in outcome.numbers if number in left]
        if numbers:
            winner = side
            left[:] = [number for number in left if number not in numbers]
            yield outcome._replace(numbers=numbers)
    for side in running:
        if side is not winner:
            side.lose()
