"""How the next request is waited for: awake where that pays, asleep where it does not."""

from __future__ import annotations

import itertools
import os
from types import SimpleNamespace

import pytest

from imgfs.fuse import busy_poll
from imgfs.fuse.busy_poll import BusyPoll, Ready

REQUEST = [(3, 1)]


class Kernel:
    """Has the next request after so many looks, or only for a thread that sleeps."""

    def __init__(self) -> None:
        self.comes_after: int | None = None
        self._looks = 0

    def poll(self, patience: float | None) -> Ready:
        self._looks += 1
        return [] if patience == 0 and self._looks != self.comes_after else REQUEST

    def looks(self, wait: BusyPoll) -> int:
        """How often it is asked until it has a request."""
        self._looks = 0
        assert wait.wait(None) == REQUEST
        return self._looks


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    ticks = itertools.count()
    monkeypatch.setattr(busy_poll, "time", SimpleNamespace(monotonic=lambda: next(ticks) * 5e-6))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    return Kernel()


def test_a_request_that_comes_soon_is_waited_for_awake(kernel: Kernel) -> None:
    wait, kernel.comes_after = BusyPoll(kernel.poll), 3
    assert [kernel.looks(wait) for _ in range(50)] == [3] * 50


def test_staying_awake_in_vain_becomes_rare(kernel: Kernel) -> None:
    wait = BusyPoll(kernel.poll)
    looks = [kernel.looks(wait) for _ in range(400)]
    assert sum(count > 1 for count in looks) == 11  # after 1, 3, 7, 15, 31 waits asleep, then every 63
    kernel.comes_after = 2
    assert [kernel.looks(wait) for _ in range(100)][-37:] == [2] * 37


def test_with_one_processor_it_sleeps_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1})
    kernel = Kernel()
    wait, kernel.comes_after = BusyPoll(kernel.poll), 3
    assert [kernel.looks(wait) for _ in range(5)] == [1] * 5
