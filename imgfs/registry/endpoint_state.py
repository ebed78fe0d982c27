"""One endpoint among several that may be asked, and what became of those that were.

How it goes with one place that is asked: what a status tells of it, and whether to ask it now.

A place that fails is left alone, each time for twice as long, and then asked by one request first.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from imgfs.errors import ImgfsError, IntegrityError, RegistryError, Unavailable
from imgfs.oci.descriptor import Digest
from imgfs.registry.client import Client
from imgfs.registry.endpoint import Endpoint
from imgfs.registry.retry import Busy, Timeouts
from imgfs.registry.urls import redact

_FIRST_REST, _LONGEST_REST = 1.0, 60.0  # seconds
_LONGEST_WISH = 300.0  # seconds of Retry-After that are granted
_MAX_TEXT = 300


class Health:
    """The record of one place, which people know as `name`. Safe in threads.

    `clock` counts the seconds of rests, `calendar` those since the epoch.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        calendar: Callable[[], float] = time.time,
    ) -> None:
        self._name = name
        self._clock = clock
        self._calendar = calendar
        self._lock = threading.Lock()
        self._since: float | None = None  # when it began to fail
        self._tries = 0
        self._last: weakref.ref[ImgfsError] | None = None  # itself would keep sockets alive
        self._text: str | None = None
        self._rest = 0.0
        self._until = -math.inf
        self._probed = False

    def admit(self) -> bool:
        """Whether a request may go there now. After a rest one may, and no other until it is `release`d."""
        with self._lock:
            if not self._rest:
                return True
            if self._probed or self._clock() < self._until:
                return False
            self._probed = True
            return True

    def release(self) -> None:
        """The request that was admitted has come to an end, whichever."""
        with self._lock:
            self._probed = False

    def worked(self) -> None:
        """There was a good answer."""
        with self._lock:
            self._since, self._tries, self._rest, self._probed = None, 0, 0.0, False

    def noted(self, error: ImgfsError) -> None:
        """A try failed. The same error may be told several times, and counts once."""
        with self._lock:
            if self._last and error is self._last() and self._since is not None:
                return
            self._since = self._calendar() if self._since is None else self._since
            self._tries += 1
            self._last, self._text = weakref.ref(error), str(error)[:_MAX_TEXT]

    def rests(self, error: ImgfsError) -> None:
        """Leave it alone for a while: it has been given up for this time. Several at once count as one."""
        with self._lock:
            self._probed = False
            if self._clock() < self._until and self._rest:
                return
            self._rest = min(self._rest * 2, _LONGEST_REST) or _FIRST_REST
            wished = min(error.after, _LONGEST_WISH) if isinstance(error, Busy) else 0.0
            self._until = self._clock() + max(self._rest, wished)

    def told(self) -> dict[str, Any]:
        """The record: `state` is "ok" or "failing", times are in seconds since the epoch.

        `error` is the last one, however long ago; `tries` those that failed one after the other;
        `left_alone_until` is None if it is asked whenever there is something to ask.
        """
        with self._lock:
            resting = self._rest > 0 and self._until > self._clock()
            until = self._calendar() + self._until - self._clock() if resting else None
            return {
                "endpoint": self._name,
                "state": "ok" if self._since is None else "failing",
                "since": self._since,
                "error": self._text,
                "tries": self._tries,
                "left_alone_until": until,
            }


_CONNECT, _READ, _DEADLINE = 2.0, 5.0, 10.0  # seconds for one that has another behind it
_BRIEF = 160  # characters of an error beside another


class Candidate:
    """An endpoint, what speaks to it, how it goes there, and until when it is known to lack what."""

    def __init__(
        self,
        endpoint: Endpoint,
        connect: Callable[[Endpoint, Health, bool], Client],
        clock: Callable[[], float],
    ) -> None:
        self.endpoint = endpoint
        self.health = Health(redact(endpoint.url), clock=clock)
        self.lacks: dict[Digest, float] = {}
        self._connect = connect
        self._clients: dict[bool, Client] = {}
        self._lock = threading.Lock()

    def client(self, is_last: bool) -> Client:
        """What speaks to it, with patience only if there is no other endpoint."""
        with self._lock:
            if is_last not in self._clients:
                self._clients[is_last] = self._connect(self.endpoint, self.health, is_last)
            return self._clients[is_last]

    def clients(self) -> list[Client]:
        """All that has spoken to it."""
        with self._lock:
            return list(self._clients.values())


class Tried:
    """The errors of the endpoints that were asked for one thing."""

    def __init__(self) -> None:
        self._errors: list[tuple[Endpoint, ImgfsError]] = []

    @property
    def is_passing(self) -> bool:
        """Whether the latest is one that others need not share."""
        return isinstance(self._errors[-1][1], Unavailable | IntegrityError)

    def add(self, place: Candidate, error: ImgfsError) -> None:
        """Note an error."""
        self._errors.append((place.endpoint, error))

    def told(self) -> ImgfsError:
        """The registry's own error, rather one that it answered with, and in brief those of the others."""
        own = max(self._errors, key=lambda tried: (not tried[0].is_mirror, _status(tried[1]) is not None))
        others = "; ".join(_brief(*tried) for tried in self._errors if tried is not own)
        error = own[1]
        if not others or not isinstance(error, RegistryError):
            return error
        kind = Unavailable if isinstance(error, Unavailable) else type(error)
        told = kind(f"{error} (also tried: {others})", status=error.status, code=error.code, url=error.url)
        told.__cause__ = error
        return told


def hurried(timeouts: Timeouts) -> Timeouts:
    """The timeouts for an endpoint that has another behind it: one try, and not for long."""
    return replace(
        timeouts,
        connect=min(timeouts.connect, _CONNECT),
        read=min(timeouts.read, _READ),
        deadline=min(timeouts.deadline, _DEADLINE),
        tries=1,
    )


def _status(error: ImgfsError) -> int | None:
    return error.status if isinstance(error, RegistryError) else None


def _brief(endpoint: Endpoint, error: ImgfsError) -> str:
    """An error in a few words, beside another of the same read."""
    url = getattr(error, "url", None) or ""
    return f"{redact(endpoint.url)}: {str(error).removeprefix(f'{url}: ')[:_BRIEF]}"
