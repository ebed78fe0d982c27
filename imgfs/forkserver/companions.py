"""Processes beside the server: forked from it, started again when they end, and gone with it.

One that ends with 0 has nothing to do any more, and is to begin anew.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from imgfs.errors import describe

log = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds before a process that has ended is started again


class Companion:
    """A process that runs `work` for as long as the server lives; `name` says in the log what it is for."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._name = name
        self._work = work
        self._pid = 0
        self._due = 0.0  # when it is to be started, by time.monotonic

    def start(self, fork: Callable[[Callable[[], object]], int]) -> float | None:
        """Start it by `fork` if it does not run; return in how many seconds it is to be, None if it runs."""
        if self._pid:
            return None
        wait = self._due - time.monotonic()
        if wait > 0:
            return wait
        try:
            self._pid = fork(self._work)
        except OSError as error:
            log.warning("%s cannot be started: %s", self._name, describe(error))
            self._due = time.monotonic() + _PAUSE
            return _PAUSE
        return None

    def has_ended(self, pid: int, status: int) -> bool:
        """Note the end of a process, if it was this one."""
        if pid != self._pid:
            return False
        code = os.waitstatus_to_exitcode(status)
        self._pid, self._due = 0, time.monotonic()
        if code:
            log.warning("%s has ended (%d): it is started again", self._name, code)
            self._due += _PAUSE
        return True

    def stop(self) -> None:
        """Have it end."""
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
