"""How pyfuse3's workers take turns at waiting for the kernel's next request.

Most requests are answered within some microseconds and without waiting for anything. To go through trio's
scheduler for each, as pyfuse3 does, costs more than the answer: the lock that one worker waits in is handed
to the next, and the wait is registered anew. Here the worker that has answered takes its next turn at once,
and asks the kernel itself whether there is a request, or comes one within a millisecond. Only if not, or
after many requests, does it wait in trio, where everything else gets its turn. A worker that is held up in
the middle of a request, by a thread it waits for, leaves its turn to another.

pyfuse3 finds both, the lock and the wait, in its global `trio`: `take_turns` puts its own there.
"""

from __future__ import annotations

import select
from typing import Any

import pyfuse3
import trio

IN_BACKGROUND = 512  # reads past its cache that the kernel may have under way; of itself it allows 12
WORKERS = 99  # requests answered at once by workers that are kept, as pyfuse3 has it,
MOST_WORKERS = 2 * IN_BACKGROUND  # and at most: what is held up for a registry must not hold up the rest
_MOST = 256  # requests in a row without a look at anything else
_PATIENCE = 1  # milliseconds to wait for a request outside of trio, while nobody waits for anything else


class _Turn:
    """A lock that goes back to whoever had it, unless that one is held up."""

    def __init__(self) -> None:
        self.held_up = 0  # workers that have let go of it and not come back
        self._taken = False
        self._called = False  # whether one of those that wait has been called
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        self.held_up = max(0, self.held_up - 1)
        while self._taken:
            await self._waiting.park()
            self._called = False
        self._taken = True

    async def __aexit__(self, *_: object) -> None:
        self.held_up += 1
        self._taken = False
        if self._waiting and not self._called:  # runs once the caller waits for something
            self._called = True
            self._waiting.unpark()


class _Lowlevel:
    """`trio.lowlevel`, but for the wait."""

    def __init__(self, turn: _Turn) -> None:
        self._turn = turn
        self._poll = select.poll()
        self._fd = -1
        self._row = 0  # requests since the last look at anything else

    async def wait_readable(self, fd: int) -> None:
        """Return when the kernel has a request."""
        if fd != self._fd:
            self._fd = fd
            self._poll.register(fd, select.POLLIN)
        self._row += 1
        if self._row < _MOST and self._poll.poll(0 if self._turn.held_up else _PATIENCE):
            return
        self._row = 0
        await trio.lowlevel.wait_readable(fd)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)


class _Trio:
    """`trio` as pyfuse3's main loop is to see it."""

    def __init__(self) -> None:
        self._turn = _Turn()
        self.lowlevel = _Lowlevel(self._turn)

    def Lock(self) -> _Turn:  # noqa: N802  (trio's name)
        """What one worker at a time holds while it waits."""
        return self._turn

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def take_turns() -> None:
    """Have the main loop that begins after this take turns."""
    pyfuse3.trio = _Trio()  # type: ignore[attr-defined]
