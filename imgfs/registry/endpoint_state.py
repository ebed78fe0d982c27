"""The state of each endpoint of a repository: its back-off, its record for `imgfs status`, its clients.

An endpoint that fails is left alone, each time for twice as long; then one request probes it first.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from imgfs.errors import ImgfsError, IntegrityError, RegistryError, Unavailable
from imgfs.oci.descriptor import Digest
from imgfs.registry.client import Client
from imgfs.registry.endpoint import RegistryEndpoint
from imgfs.registry.retry import Busy, Timeouts
from imgfs.registry.urls import redact

if TYPE_CHECKING:
    from imgfs.status import EndpointStatus

_FIRST_BACK_OFF, _MAX_BACK_OFF = 1.0, 60.0  # seconds
_MAX_RETRY_AFTER = 300.0  # seconds
_MAX_TEXT = 300


class EndpointState:
    """The back-off and the record of one endpoint, shown as `name`. Safe in threads.

    `clock` counts the seconds of the back-off, `calendar` those since the epoch.
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
        self._last: weakref.ref[ImgfsError] | None = None  # a strong reference would keep sockets alive
        self._text: str | None = None
        self._back_off = 0.0
        self._until = -math.inf
        self._probed = False

    def admit(self) -> bool:
        """Return True if a request may be sent. After a back-off one alone may, until its `release`."""
        with self._lock:
            if not self._back_off:
                return True
            if self._probed or self._clock() < self._until:
                return False
            self._probed = True
            return True

    def release(self) -> None:
        """End the request that `admit` let through, whatever came of it."""
        with self._lock:
            self._probed = False

    def worked(self) -> None:
        """Note a good answer: the back-off ends."""
        with self._lock:
            self._since, self._tries, self._back_off, self._probed = None, 0, 0.0, False

    def noted(self, error: ImgfsError) -> None:
        """Note a failed try. The same error object counts once."""
        with self._lock:
            if self._last and error is self._last() and self._since is not None:
                return
            self._since = self._calendar() if self._since is None else self._since
            self._tries += 1
            self._last, self._text = weakref.ref(error), str(error)[:_MAX_TEXT]

    def back_off(self, error: ImgfsError) -> None:
        """Begin or extend the back-off after the tries have ended. Several calls at once count as one."""
        with self._lock:
            self._probed = False
            if self._clock() < self._until and self._back_off:
                return
            self._back_off = min(self._back_off * 2, _MAX_BACK_OFF) or _FIRST_BACK_OFF
            retry_after = min(error.after, _MAX_RETRY_AFTER) if isinstance(error, Busy) else 0.0
            self._until = self._clock() + max(self._back_off, retry_after)

    def report(self) -> EndpointStatus:
        """Return the record: `state` is "ok" or "failing", times are in seconds since the epoch.

        `error` is the last one, however long ago; `tries` those that failed one after the other;
        `left_alone_until` is None if it is asked whenever there is something to ask.
        """
        from imgfs.status import EndpointStatus  # here: the commands that look at an image report nothing

        with self._lock:
            backing_off = self._back_off > 0 and self._until > self._clock()
            until = self._calendar() + self._until - self._clock() if backing_off else None
            return EndpointStatus(
                endpoint=self._name,
                state="ok" if self._since is None else "failing",
                since=self._since,
                error=self._text,
                tries=self._tries,
                left_alone_until=until,
            )


_CONNECT, _READ, _DEADLINE = 2.0, 5.0, 10.0  # seconds for an endpoint that is not the last
_BRIEF = 160  # characters of an error beside another


class Candidate:
    """An endpoint with its clients, its state, and the blobs it lacks until when (negative cache)."""

    def __init__(
        self,
        endpoint: RegistryEndpoint,
        connect: Callable[[RegistryEndpoint, EndpointState, bool], Client],
        clock: Callable[[], float],
    ) -> None:
        self.endpoint = endpoint
        self.state = EndpointState(redact(endpoint.url), clock=clock)
        self.missing_until: dict[Digest, float] = {}
        self._connect = connect
        self._clients: dict[bool, Client] = {}
        self._lock = threading.Lock()

    def client(self, is_last: bool) -> Client:
        """Return the client of the endpoint, with the full time-outs only if it is the last."""
        with self._lock:
            if is_last not in self._clients:
                self._clients[is_last] = self._connect(self.endpoint, self.state, is_last)
            return self._clients[is_last]

    def clients(self) -> list[Client]:
        """Return the clients made so far."""
        with self._lock:
            return list(self._clients.values())


class Attempts:
    """The errors of the endpoints tried for one read."""

    def __init__(self) -> None:
        self._errors: list[tuple[RegistryEndpoint, ImgfsError]] = []

    @property
    def is_passing(self) -> bool:
        """Return True if the latest error may pass, or not occur elsewhere."""
        return isinstance(self._errors[-1][1], Unavailable | IntegrityError)

    def add(self, candidate: Candidate, error: ImgfsError) -> None:
        """Note an error."""
        self._errors.append((candidate.endpoint, error))

    def error(self) -> ImgfsError:
        """Return the error of the registry itself, one with a status first, and the others in brief."""
        own = max(self._errors, key=lambda tried: (not tried[0].is_mirror, _status(tried[1]) is not None))
        others = "; ".join(_brief(*tried) for tried in self._errors if tried is not own)
        error = own[1]
        if not others or not isinstance(error, RegistryError):
            return error
        kind = Unavailable if isinstance(error, Unavailable) else type(error)
        combined = kind(
            f"{error} (also tried: {others})", status=error.status, code=error.code, url=error.url
        )
        combined.__cause__ = error
        return combined


def short_timeouts(timeouts: Timeouts) -> Timeouts:
    """Return the time-outs for an endpoint that is not the last: one try, and a few seconds."""
    return replace(
        timeouts,
        connect=min(timeouts.connect, _CONNECT),
        read=min(timeouts.read, _READ),
        deadline=min(timeouts.deadline, _DEADLINE),
        tries=1,
    )


def _status(error: ImgfsError) -> int | None:
    return error.status if isinstance(error, RegistryError) else None


def _brief(endpoint: RegistryEndpoint, error: ImgfsError) -> str:
    """An error in a few words, beside another of the same read."""
    url = getattr(error, "url", None) or ""
    return f"{redact(endpoint.url)}: {str(error).removeprefix(f'{url}: ')[:_BRIEF]}"
