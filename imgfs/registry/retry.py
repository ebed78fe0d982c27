"""When to try again: often enough to survive a bad minute, seldom enough never to hang."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from imgfs.errors import ImgfsError, IntegrityError, RegistryError, Unavailable

_MAX_DELAY = 8.0  # seconds
_DAMAGED = 2  # damaged answers after which no other try is made
_WORTHWHILE = 0.1  # of the deadline, or a second: with less of it left, another try is not worth it
# bytes of a blob within the deadline that count as progress: a trickle is a hang, too (of 30 s: 2 kB/s)
_PROGRESS = 64 << 10
# bytes of a document that are worth another second: 8 MiB have the deadline and 128 s at most (64 kB/s)
_SECONDS_WORTH = 64 << 10


class Timeouts(NamedTuple):
    """How long to wait, in seconds.

    `connect` bounds a connection, and again what has to be said before the first request (a proxy, TLS);
    `read` whatever else brings no bytes of a body: the head of an answer with all that comes before it, the
    lines of chunks, trailers, a pause. `deadline` bounds a document as a whole, but for a second more for
    every 64 KiB of it, and a blob without progress. `backoff` is the first pause before a request is sent
    again. `tries` is how often it is sent at most, without progress in between. `helper` is for a program
    that keeps credentials.
    """

    connect: float = 5.0
    read: float = 10.0
    deadline: float = 30.0
    backoff: float = 0.25
    tries: int = 6
    helper: float = 30.0  # some ask a cloud's token service


class Busy(Unavailable):
    """429 or 503: the registry asks to come back in `after` seconds."""

    def __init__(
        self, message: str, *, after: float, status: int | None, code: str | None, url: str | None
    ) -> None:
        super().__init__(message, status=status, code=code, url=url)
        self.after = after


class Patience:
    """Bounds the tries for one thing: so many, within a deadline, each after a longer pause.

    `closed` cuts every pause short. `noted` is told of every try that failed. So many
    `refusals`, answers with an error, end the tries early.
    """

    def __init__(
        self,
        timeouts: Timeouts,
        closed: threading.Event,
        noted: Callable[[ImgfsError], None] = lambda error: None,  # noqa: ARG005
        *,
        refusals: int | None = None,
    ) -> None:
        self._timeouts = timeouts
        self._refusals_left = refusals
        self._closed = closed
        self._noted = noted
        self._damaged = 0
        self._restart()

    def _restart(self) -> None:
        self._tries = 0
        self._bytes = 0
        self._grown = 0
        self._ends = time.monotonic() + self._timeouts.deadline

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._ends

    @property
    def left(self) -> float:
        """The seconds until the deadline, that a step may take; not quite nothing if it has passed."""
        return max(self._ends - time.monotonic(), 0.05)

    def progressed(self, count: int) -> None:
        """Note `count` new bytes; enough of them, and the tries and the deadline begin anew."""
        self._bytes += count
        if self._bytes >= _PROGRESS:
            self._restart()

    def grown(self, size: int) -> None:
        """Note that a document has `size` bytes by now: large ones may take longer, each part of one once."""
        seconds = size // _SECONDS_WORTH
        self._ends += max(0, seconds - self._grown)
        self._grown = max(seconds, self._grown)

    def suspend(self, seconds: float) -> None:
        """Do not count `seconds` in which no request was under way."""
        self._ends += seconds

    def pause(self, error: ImgfsError) -> None:
        """Wait before the next try; raises `error` if there is to be none."""
        self._noted(error)
        self._tries += 1
        self._damaged += isinstance(error, IntegrityError)
        if self._refusals_left and isinstance(error, RegistryError) and error.status is not None:
            self._refusals_left -= 1
        delay = self._delay(error)
        enough = self._tries >= self._timeouts.tries or self._damaged > _DAMAGED or self._refusals_left == 0
        least = min(1.0, _WORTHWHILE * self._timeouts.deadline)
        if enough or time.monotonic() + delay + least >= self._ends or self._closed.wait(delay):
            raise error

    def _delay(self, error: ImgfsError) -> float:
        growing = min(self._timeouts.backoff * (1 << self._tries) / 2, _MAX_DELAY)
        jittered: float = growing * random.uniform(0.5, 1.5)  # so that a crowd does not come back as one
        return max(jittered, error.after) if isinstance(error, Busy) else jittered


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that `Retry-After` asks for, 0 if it does not (RFC 9110, 10.2.3)."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
