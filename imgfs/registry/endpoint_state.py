"""The state of an endpoint, a registry's or a peer: its back-off, and its record for `imgfs status`.

An endpoint that fails is left alone, each time for twice as long.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from imgfs.errors import ImgfsError
from imgfs.registry.retry import Busy

if TYPE_CHECKING:
    from imgfs.status import EndpointStatus

_MAX_RETRY_AFTER = 300.0  # seconds
_MAX_TEXT = 300


class BackOff(NamedTuple):
    """For how many seconds an endpoint that fails is left alone, the first time and at most."""

    first: float
    most: float


_OF_REGISTRIES = BackOff(1.0, 60.0)


class EndpointState:
    """The back-off, within `limits`, and the record of one endpoint, shown as `name`. Safe in threads.

    `clock` counts the seconds of the back-off, `calendar` those since the epoch.
    """

    def __init__(
        self,
        name: str,
        *,
        limits: BackOff = _OF_REGISTRIES,
        clock: Callable[[], float] = time.monotonic,
        calendar: Callable[[], float] = time.time,
    ) -> None:
        self._name = name
        self._limits = limits
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

    def is_left_alone(self) -> bool:
        """Return True during a back-off."""
        with self._lock:
            return self._back_off > 0 and self._clock() < self._until

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
            self._back_off = min(self._back_off * 2, self._limits.most) or self._limits.first
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
