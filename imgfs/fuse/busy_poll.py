"""Waits for the next request: polls for some microseconds, while that pays, before the thread sleeps.

A program that works on many small files waits for each answer and asks again at once. If both sides sleep
while they wait, each request wakes two processors from idle: on a virtual machine that takes longer than the
answer, and more processor time than polling. On a busy machine the next request comes late: then only one
wait in some dozens begins by polling, to see whether that has changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeAlias

_AWAKE = 100e-6  # seconds: what such a program, and waking it, takes between two requests
_SELDOM = 63  # waits, at most, that are slept through after others have been in vain

Ready: TypeAlias = list[tuple[int, int]]  # descriptors and their events, as poll(2) has them


class BusyPoll:
    """Waits by `poll`, which takes milliseconds; sleeps at once where there is one processor only."""

    def __init__(self, poll: Callable[[float | None], Ready]) -> None:
        self._poll = poll
        self._is_alone = len(os.sched_getaffinity(0)) == 1
        self._penalty = 0  # waits to be slept through because the last that began awake was in vain
        self._asleep = 0  # of them, those that are left

    def wait(self, patience: float | None) -> Ready:
        """Return what is ready within so many milliseconds; None: wait until something is."""
        return self._poll(patience) if self._sleeps() else self._look() or self._poll(patience)

    def _sleeps(self) -> bool:
        if self._is_alone:
            return True
        if self._asleep:
            self._asleep -= 1
            return True
        return False

    def _look(self) -> Ready:
        """Poll for _AWAKE, and note whether it was of use; a request that was there at once tells nothing."""
        if found := self._poll(0):
            return found
        until = time.monotonic() + _AWAKE
        while time.monotonic() < until:
            if found := self._poll(0):
                self._penalty //= 2
                return found
        self._asleep = self._penalty = min(_SELDOM, 2 * self._penalty + 1)
        return []
