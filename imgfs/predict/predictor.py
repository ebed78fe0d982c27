"""Makes guesses when files are read that are not here, and fetches what they want, in a thread of its own.

Readers never wait for it: it takes what it is told from a queue, and its requests have a lower priority than
theirs. What they may fetch is bounded (`predict.wants`). It rests after a failure, and when all is here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from queue import SimpleQueue

from imgfs.content.content import segments_of
from imgfs.content.layer import LayerContent
from imgfs.content.scheduler import Priority
from imgfs.content.stats import Cause
from imgfs.errors import ImgfsError
from imgfs.predict import nodejs, python
from imgfs.predict.files import FilesByPath
from imgfs.predict.guess import LARGEST_LOOK, Also, Guess, Look, Rank, Want, Watch
from imgfs.predict.libraries import Libraries, is_linked
from imgfs.predict.nodejs import NodeModules
from imgfs.predict.python import PythonModules
from imgfs.predict.wants import Span, Wants
from imgfs.starting import try_thread
from imgfs.tree.reader import Tree

_GUESSES = 4096  # for one mount
_MISSED = 20_000  # files that are looked at: no program reads more when it starts
_BACKLOG = 256  # files that wait to be looked at, at most
_REST = 30.0  # seconds without guesses after a request that failed
_HERE_AND_THERE = 6  # spans of a large file that are read before all of it is wanted, and a third of it


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
        self._layers = layers
        self._tree = tree
        self._files = FilesByPath(tree)
        self._libraries = Libraries(self._files)
        self._python = PythonModules(self._files, self._libraries)
        self._nodejs = NodeModules(self._files)
        self._events: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._seen: set[int] = set()
        self._is_over = False
        self._made: set[tuple[str, int]] = set()
        self._begun: deque[Guess] = deque()
        self._postponed: deque[Guess] = deque()
        self._wants = Wants(layers, self._request_ended, is_replayed=is_replayed)
        self._lock = threading.Lock()  # guards `_Awaited.left`, which threads that fetch count
        self._rests_until = 0.0
        self._watched: dict[Span, _Watched] = {}

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread = try_thread(self._run, "imgfs-predict")
        self._is_over = self._thread is None

    def stop(self) -> None:
        """Stop, and wait for the thread."""
        self._is_over = True
        self._events.put(None)
        if self._thread:
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
        self._wants.fetch()
        while self._postponed and self._wants.has_room_for_last:
            self._go_on(self._postponed.popleft())
            self._wants.fetch()

    def _request_ended(self, has_failed: bool) -> None:
        """Have the thread rest, or go on with what is wanted. Called in a thread that fetches."""
        if has_failed:
            self._events.put(self._rest)
        elif self._postponed or not self._wants.is_empty:
            self._events.put(_nothing)

    def _rest(self) -> None:
        """Guess at nothing for a while: a request has failed."""
        self._rests_until = time.monotonic() + _REST
        self._wants.clear()

    def _follow(self, ino: int) -> None:
        """Begin the guesses that follow from a file that is read."""
        if len(self._seen) > _MISSED or all(layer.is_complete() for layer in self._layers):
            self._is_over = True
        node = self._files.node(ino)
        if node is None or self._is_over or time.monotonic() < self._rests_until:
            return
        name = self._files.name(ino)
        if not is_linked(name, node) and not name.endswith((*python.SUFFIXES, *nodejs.SUFFIXES)):
            return  # before its path is looked for: for the first one all names are read
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
                    self._wants.add(self._spans(step.ino, step.start, step.end), step.rank, step.cause)
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
        """Fetch what a guess must see; then it goes on. It ends if that is more than guesses may cost."""
        if not self._wants.may_look:
            return
        spans = self._spans(look.ino, look.start, min(look.end, look.start + LARGEST_LOOK))
        layers = {layer for layer, _ in spans}
        self._wants.note_requested(spans)
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

    def _watch(self, watch: Watch) -> None:
        spans = self._wants.not_queued(self._spans(watch.ino, watch.start, watch.end))
        watched = _Watched(spans, watch.cause)
        self._watched |= dict.fromkeys(spans, watched)

    def _read_watched(self, span: Span) -> None:
        """Count that a watched file is read somewhere; want all of it if that was not the first time."""
        watched = self._watched.pop(span, None)
        if watched is None:
            return
        watched.left -= 1
        if not watched.left:
            self._wants.add(watched.spans, Rank.SOON, watched.cause)
            for each in watched.spans:
                self._watched.pop(each, None)


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
