"""Signals passed on to another process; those that come before there is one are kept for it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

_PASSED_ON = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCONT,
)
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


class Relay(contextlib.AbstractContextManager["Relay"]):
    """Catches signals while it is entered. `orphaned` is called for a SIGTERM once the parent has died."""

    def __init__(self, orphaned: Callable[[], None] | None = None) -> None:
        self._target: int | None = None
        self._kept: list[int] = []
        self.ending: int | None = None  # the first signal caught that asks for an end
        self._before: dict[int, object] = {}
        self._parent = os.getppid()
        self._orphaned = orphaned

    def __enter__(self) -> Relay:
        for number in _PASSED_ON:
            self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what it gave us

    @contextlib.contextmanager
    def to(self, pid: int) -> Iterator[None]:
        """Pass on to a child of ours, what has been kept first; after the block nothing is."""
        fd = os.pidfd_open(pid)
        try:
            self._target = fd
            while self._kept:
                self._send(self._kept.pop(0))
            yield
        finally:
            self._target = None
            os.close(fd)

    def _caught(self, number: int, _: FrameType | None) -> None:
        if number in _ENDING and self.ending is None:
            self.ending = number
        if number == signal.SIGTERM and self._orphaned and os.getppid() != self._parent:
            self._orphaned()
        elif self._target is None:
            self._kept.append(number)
        else:
            self._send(number)

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._target or -1, number)
