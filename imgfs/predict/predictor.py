"""Makes guesses when files are read that are not here, and fetches what they want, in a thread of its own.

Readers never wait for it: it takes what it is told from a queue, and its requests have a lower priority than
theirs. What it fetches is bounded by what comes of it: so many compressed bytes, and a multiple of those that
readers have used of what it has fetched before. It rests after a failure, and when everything is here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import chain
from queue import SimpleQueue
from typing import NamedTuple

from imgfs.content.content import segments_of
from imgfs.content.layer import LayerContent
from imgfs.content.requests import SIZES, requests_for
from imgfs.content.scheduler import Priority
from imgfs.content.stats import Cause
from imgfs.errors import ImgfsError
from imgfs.predict.files import FilesByPath
from imgfs.predict.guess import LARGEST_LOOK, Also, Guess, Look, Rank, Want, Watch
from imgfs.predict.libraries import Libraries
from imgfs.predict.nodejs import NodeModules
from imgfs.predict.python import PythonModules
from imgfs.tree.reader import Tree

_CAUSES = (Cause.LIBRARY, Cause.MODULE)
_FIRST = 24 << 20  # compressed bytes that may be fetched before any of them is used
_BESIDE_PROFILE = 1 << 20  # where a profile is replayed, which knows better,
_FACTOR = 2  # and for each byte used so many more
_WINDOW = 0.1  # seconds of the link that are requested at once: what is wanted later may be more urgent,
_SMALLEST, _LARGEST = 2 << 20, 8 << 20  # within these compressed bytes
_REQUEST = 1 << 20  # compressed bytes of one request: a reader's next miss shares the link with it
_GUESSES = 4096  # for one mount
_MISSED = 20_000  # files that are looked at: no program reads more when it starts
_BACKLOG = 256  # files that wait to be looked at, at most
_REST = 30.0  # seconds without guesses after a request that failed
_STALE = 10.0  # seconds after which what was wanted, and could not be fetched, is not any more
_HERE_AND_THERE = 6  # spans of a large file that are read before all of it is wanted, and a third of it

Span = tuple[int, int]  # layer, number


class _Wanted(NamedTuple):
    """A span in the queue: the lowest is fetched next."""

    rank: Rank
    serial: int
    layer: int
    span: int
    cause: Cause
    since: float


class _Watched:
    """The spans of a large file, and how many more of them must be read before all are wanted."""

    def __init__(self, spans: Sequence[Span], cause: Cause) -> None:
        self.spans = spans
        self.cause = cause
        self.left = max(_HERE_AND_THERE, len(spans) // 3)


@dataclass
class _Awaited:
    """A guess that must see bytes of which so many spans are still to come."""

    look: Look
    guess: Guess
    left: int


class Predictor:
    """Follows the readers of an image (`content.Follower`) and fetches ahead of them what they need next.

    It is more careful if a profile `is_replayed`.
    """

    def __init__(self, layers: Sequence[LayerContent], tree: Tree, *, is_replayed: bool = False) -> None:
        self._first = _BESIDE_PROFILE if is_replayed else _FIRST
        self._layers = layers
        self._tree = tree
        self._files = FilesByPath(tree)
        self._libraries = Libraries(self._files)
        self._python = PythonModules(self._files, self._libraries)
        self._nodejs = NodeModules(self._files)
        self._events: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="imgfs-predict", daemon=True)
        self._seen: set[int] = set()
        self._is_over = False
        self._made: set[tuple[str, int]] = set()
        self._begun: deque[Guess] = deque()
        self._postponed: deque[Guess] = deque()
        self._queue: list[_Wanted] = []
        self._queued: dict[Span, Rank] = {}  # the best that each has been in the queue with
        self._serial = 0
        self._requested = self._under_way = 0  # compressed bytes
        self._lock = threading.Lock()  # guards what threads that fetch count: `_under_way`, `_Awaited`
        self._rests_until = 0.0
        self._watched: dict[Span, _Watched] = {}

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the thread."""
        self._is_over = True
        self._events.put(None)
        self._thread.join()

    def missed(self, ino: int) -> None:
        """Note that a file is read of which not all is here: cheap."""
        if not self._is_over and ino not in self._seen and self._events.qsize() < _BACKLOG:
            self._seen.add(ino)
            self._events.put(partial(self._follow, ino))

    def touched(self, layer: int, span: int) -> None:
        """Note that a span is read for the first time: cheap."""
        if (layer, span) in self._watched:
            self._events.put(partial(self._read_watched, (layer, span)))

    def _run(self) -> None:
        while event := self._events.get():
            try:
                event()
                self._guess_on()
            except (ImgfsError, OSError):  # a damaged tree is the reader's error
                self._begun.clear()

    def _guess_on(self) -> None:
        """Go on with all guesses that have begun, then fetch; what is ranked last comes alone."""
        while self._begun:
            self._go_on(self._begun.popleft())
        self._fetch_wanted()
        while self._postponed and not self._queue and self._under_way < self._window():
            self._go_on(self._postponed.popleft())
            self._fetch_wanted()

    def _follow(self, ino: int) -> None:
        """Begin the guesses that follow from a file that is read."""
        if len(self._seen) > _MISSED or all(layer.is_complete() for layer in self._layers):
            self._is_over = True
        node = self._files.node(ino)
        if node is None or self._is_over or time.monotonic() < self._rests_until:
            return
        path = self._files.path(ino)
        for also in chain(
            self._libraries.of_file(path, node),
            self._python.of_file(path),
            self._nodejs.of_file(path, node),
        ):
            self._begin(also)

    def _begin(self, also: Also) -> None:
        if also.key not in self._made and len(self._made) < _GUESSES:
            self._made.add(also.key)
            (self._postponed if also.rank is Rank.LATER else self._begun).append(also.guess)

    def _go_on(self, guess: Guess, seen: bytes | None = None) -> None:
        """Take a guess's steps until it has to see bytes that are not here."""
        for step in _steps(guess, seen, self._seen_now):
            match step:
                case Want():
                    self._want(self._spans(step.ino, step.start, step.end), step.rank, step.cause)
                case Also():
                    self._begin(step)
                case Watch():
                    self._watch(step)
                case Look():
                    self._fetch_for(step, guess)

    def _seen_now(self, look: Look) -> bytes | None:
        """Return the bytes of a file that a guess must see; None if they are not here."""
        layer, extents, size = self._tree.contents(look.ino)
        end = min(look.end, size, look.start + LARGEST_LOOK)
        if end <= look.start:
            return b""
        content, parts = self._layers[layer], []
        for flat, length in segments_of(extents, look.start, end - look.start):
            part = bytes(length) if flat is None else content.read_present(flat, length)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def _fetch_for(self, look: Look, guess: Guess) -> None:
        """Fetch what a guess must see; then it goes on."""
        spans = self._spans(look.ino, look.start, min(look.end, look.start + LARGEST_LOOK))
        layers = {layer for layer, _ in spans}
        self._queued |= dict.fromkeys(spans, Rank.NOW)
        self._requested += sum(self._size_of(span) for span in spans)
        awaited = [
            future
            for layer in layers
            for future in self._layers[layer].fetch_for(
                [span for number, span in spans if number == layer], Priority.READAHEAD, look.cause
            )
        ]
        again = _Awaited(look, guess, len(awaited))
        if not awaited:  # has come meanwhile
            self._look_again(look, guess)
        for future in awaited:
            future.add_done_callback(lambda _: self._arrived(again))

    def _arrived(self, awaited: _Awaited) -> None:
        """Have a guess go on once the last span that it must see is here. Called in a thread that fetches."""
        with self._lock:
            awaited.left -= 1
            is_last = not awaited.left
        if is_last:
            self._events.put(partial(self._look_again, awaited.look, awaited.guess))

    def _look_again(self, look: Look, guess: Guess) -> None:
        seen = self._seen_now(look)
        if seen is None:
            self._rest()
        self._go_on(guess, seen or b"")

    def _spans(self, ino: int, start: int, end: int) -> list[Span]:
        """Return the spans that hold a range of a file."""
        layer, extents, size = self._tree.contents(ino)
        start, end = max(0, start), min(end, size)
        found: list[Span] = []
        for flat, length in segments_of(extents, start, end - start) if start < end else ():
            if flat is not None:
                first, last = self._layers[layer].table.holding(flat, length)
                found += ((layer, span) for span in range(first, last + 1))
        return found

    def _want(self, spans: Sequence[Span], rank: Rank, cause: Cause) -> None:
        """Queue those spans that have not been queued before, or less urgently."""
        now = time.monotonic()
        for span in spans:
            if rank < self._queued.get(span, len(Rank)):
                self._queued[span] = rank
                self._serial += 1
                heappush(self._queue, _Wanted(rank, self._serial, *span, cause, now))

    def _watch(self, watch: Watch) -> None:
        spans = [span for span in self._spans(watch.ino, watch.start, watch.end) if span not in self._queued]
        watched = _Watched(spans, watch.cause)
        self._watched |= dict.fromkeys(spans, watched)

    def _read_watched(self, span: Span) -> None:
        """Count that a watched file is read somewhere; want all of it if that was not the first time."""
        watched = self._watched.pop(span, None)
        if watched is None:
            return
        watched.left -= 1
        if not watched.left:
            self._want(watched.spans, Rank.SOON, watched.cause)
            for each in watched.spans:
                self._watched.pop(each, None)

    def _fetch_wanted(self) -> None:
        """Request what is wanted most, as much as may be under way and as is worth it."""
        while self._queue and self._under_way < self._window() and self._is_worth_it():
            layer, cause = self._queue[0].layer, self._queue[0].cause
            content, batch = self._layers[layer], list(self._batch(layer, cause))
            for request in requests_for(batch, content.table, SIZES._replace(largest=_REQUEST)):
                size = request.end - request.start
                self._requested += size
                for future in content.fetch_in_background([request], Priority.GUESS, cause)[:1]:
                    with self._lock:
                        self._under_way += size
                    future.add_done_callback(partial(self._settle, size))

    def _batch(self, layer: int, cause: Cause) -> Iterator[int]:
        """Take the next spans, as many as one request may have, if they are of one layer and cause."""
        size, now = 0, time.monotonic()
        while self._queue and size < _REQUEST:
            if (self._queue[0].layer, self._queue[0].cause) != (layer, cause):
                return
            wanted = heappop(self._queue)
            if now - wanted.since < _STALE and self._layers[layer].is_missing(wanted.span):
                size += self._size_of((layer, wanted.span))
                yield wanted.span

    def _settle(self, size: int, future: Future[None]) -> None:
        """Note that a request has ended, in its thread; have more requested if that is wanted.

        To wake a thread costs more than all else here, so it is done only where there is something to do.
        """
        with self._lock:
            self._under_way -= size
            has_room = self._under_way <= self._window() // 2
        if future.exception() is not None:
            self._events.put(self._rest)
        elif has_room and (self._queue or self._postponed):
            self._events.put(_nothing)

    def _rest(self) -> None:
        """Guess at nothing for a while: a request has failed."""
        self._rests_until = time.monotonic() + _REST
        self._queue = []

    def _is_worth_it(self) -> bool:
        """Return True if what has been fetched, and was not used, is no more than it may be."""
        used = sum(layer.counts.brought(cause).bytes_used for layer in self._layers for cause in _CAUSES)
        return self._requested < self._first + (1 + _FACTOR) * used

    def _window(self) -> int:
        """Return the compressed bytes that may be under way: the link is to be busy, and no more."""
        speed = self._layers[0].fetch_pool.meter.speed() if self._layers else 0
        return min(_LARGEST, max(_SMALLEST, int(speed * _WINDOW)))

    def _size_of(self, span: Span) -> int:
        return self._layers[span[0]].table.size_of(span[1])


def _nothing() -> None:
    """Have the thread only look what may be requested."""


def _steps(
    guess: Guess, seen: bytes | None, look: Callable[[Look], bytes | None]
) -> Iterator[Want | Also | Watch | Look]:
    """Yield a guess's steps, but for looks at what is here; one at what is not is the last."""
    try:
        step = next(guess) if seen is None else guess.send(seen)
        while True:
            if isinstance(step, Look):
                found = look(step)
                if found is None:
                    yield step
                    return
                step = guess.send(found)
            else:
                yield step
                step = guess.send(b"")
    except StopIteration:
        return
