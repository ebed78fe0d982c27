"""Signals passed on to another process; those that come before there is one are kept for it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from imgfs.forkserver.relaying import WakeUps, relayed_signals

_REAL_TIME = re.compile(r"RTMIN(?:\+(\d{1,2}))?|RTMAX(?:-(\d{1,2}))?")
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


class Ended(Exception):
    """A signal asks for an end."""


class SignalRelay(contextlib.AbstractContextManager["SignalRelay"]):
    """Catches signals while it is entered, but for those that are ignored, as after nohup(1).

    `orphaned` is called for a SIGTERM once the parent has died, and for a SIGHUP once the terminal has gone:
    no caller is left to end what goes on in spite of it. `sigterm_caught` is called after any other SIGTERM.
    """

    def __init__(
        self, orphaned: Callable[[], None] | None = None, sigterm_caught: Callable[[], None] | None = None
    ) -> None:
        self._target: int | None = None
        self._kept: list[int] = []
        self.ending: int | None = None  # the first signal caught that asks for an end
        self.ending_caught: Callable[[], None] | None = None  # called for that one
        self._before: dict[int, object] = {}
        self._parent = os.getppid()
        self._orphaned = orphaned
        self._sigterm_caught = sigterm_caught
        self.resized: Callable[[], None] | None = None  # called for a SIGWINCH
        self._terminals = [fd for fd in (0, 1, 2) if os.isatty(fd)]

    def __enter__(self) -> SignalRelay:
        self._woken = WakeUps()
        for number in relayed_signals():
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what it gave us
        self._woken.close()

    @contextlib.contextmanager
    def ends_work(self) -> Iterator[None]:
        """Have a signal that asks for an end raise Ended in the block, which may take as long as it likes."""

        def end() -> None:
            raise Ended

        before, self.ending_caught = self.ending_caught, end
        try:
            if self.ending:
                end()
            yield
        finally:
            self.ending_caught = before

    @contextlib.contextmanager
    def to(self, pid: int) -> Iterator[None]:
        """Pass signals on to a child process, those that were kept first, until the block ends."""
        fd = os.pidfd_open(pid)
        try:
            self._target = fd
            while self._kept:
                self._send(self._kept.pop(0))
            yield
        finally:
            self._target = None
            os.close(fd)

    def wait_for_end(self, *others: int) -> list[int]:
        """Wait until the process that signals are passed to has ended, or one of `others` can be read.

        Returns those that can.
        """
        assert self._target is not None  # only inside `to`
        while True:
            ready = select.select([self._woken.fd, self._target, *others], [], [])[0]
            if self._woken.fd in ready:
                self._woken.clear()
            if ready != [self._woken.fd]:
                return [fd for fd in ready if fd in others]

    def _caught(self, number: int, _: FrameType | None) -> None:
        if number in _ENDING and self.ending is None:
            self.ending = number
            if self.ending_caught:
                self.ending_caught()
        if number == signal.SIGWINCH and self.resized:
            self.resized()
        if self._orphaned and self._is_alone(number):
            self._orphaned()
            return
        if self._target is None:
            self._kept.append(number)
        else:
            self._send(number)
        if number == signal.SIGTERM and self._sigterm_caught:
            self._sigterm_caught()

    def _is_alone(self, number: int) -> bool:
        """Return True if a signal says that the process or terminal that started this is gone."""
        if number == signal.SIGHUP:
            return bool(self._terminals) and not any(map(os.isatty, self._terminals))
        return number == signal.SIGTERM and os.getppid() != self._parent

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._target or -1, number)


def signal_number(text: str) -> int:
    """Return a stop signal by its name or number (image-spec config.md), SIGTERM if it is none of either."""
    return find_signal(text) or signal.SIGTERM


def find_signal(text: str) -> int | None:
    """Return a signal by its name, SIG before it or not, or its number, None for anything else."""
    name = text.upper().removeprefix("SIG")
    if name.isascii() and name.isdecimal():
        return int(name[:4]) if 0 < int(name[:4]) < signal.NSIG else None
    match = _REAL_TIME.fullmatch(name)
    if match:
        first = signal.SIGRTMIN + int(match[1] or 0)
        number = first if "MIN" in name else signal.SIGRTMAX - int(match[2] or 0)
        return number if number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1) else None
    found = getattr(signal, f"SIG{name}", None)
    return int(found) if isinstance(found, signal.Signals) else None
