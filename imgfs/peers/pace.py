"""How long the registry takes for a request, and so how long peers may: bounded, with bounded extra bytes.

A peer that has taken as long as the registry would have (19 times of 20, for as many bytes) is joined by a
request to the registry: the first of both brings a span. So a bad peer makes a read about twice as
long as it is without peers, at worst. What the registry sends for nothing is bounded: an allowance, of which
each such request takes its bytes, and which grows with what peers bring. Without it peers are given up at
the bound.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_KEPT = 64  # requests
_QUANTILE = 0.95
_FEW = 8  # requests: as long as there are no more, those that lack count as
_USUAL = (1.0, 1 / 25e6)  # seconds, and for each byte: few are slower
_LEAST = 0.05  # seconds: what a busy machine takes for nothing
_ALLOWED = 8 << 20  # bytes that may be sent for nothing at first
IN_VAIN = 6.0  # seconds: two answers that do not come
_PROMPT = 0.25  # seconds in which one that has nothing may say so
_GROWTH = 0.05  # of what peers bring, that may be


class RegistryPace:
    """What requests to the registry took, and what may be asked of it for nothing. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._took: deque[tuple[float, float]] = deque(maxlen=_KEPT)  # seconds, and for each byte beyond
        self._allowance = float(_ALLOWED)

    def note(self, size: int, first: float, whole: float) -> None:
        """Note a request of `size` bytes: seconds until its first ones were here, and until the last."""
        with self._lock:
            self._took.append((first, (whole - first) / max(1, size)))

    def patience(self, size: int) -> float:
        """Return the seconds in which the registry brings `size` bytes, 19 times of 20."""
        with self._lock:
            took = [*self._took, *[_USUAL] * (_FEW - len(self._took))]
        expected = sorted(first + size * each for first, each in took)
        return max(_LEAST, expected[int(_QUANTILE * (len(expected) - 1) + 0.5)])

    def allow(self, size: int) -> bool:
        """Return True if the registry may be asked for `size` bytes that a peer may yet bring; they count."""
        with self._lock:
            if size > self._allowance:
                return False
            self._allowance -= size
            return True

    def spared(self, size: int) -> None:
        """Note that peers have brought so many bytes, or that the registry has sent them for good."""
        with self._lock:
            self._allowance = min(_ALLOWED, self._allowance + size)

    def brought(self, size: int) -> None:
        """Note that peers have brought so many bytes."""
        self.spared(int(size * _GROWTH))


class PeerWait:
    """A wait of so many `seconds` at most for peers."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.is_worth_it = False

    def was_worth_it(self) -> None:
        """Say that a peer has what was asked for."""
        self.is_worth_it = True


class PeerPatience:
    """How long peers are waited for in vain, all waits together, until one has something. Safe in threads.

    Then they are still asked, and not waited for: the next read knows what they have said meanwhile.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._in_vain = 0.0

    def left(self, most: float) -> float:
        """Return the seconds that a wait may take, of the `most` that it would."""
        return min(most, max(0.0, IN_VAIN - self._in_vain))

    @contextmanager
    def waits(self, most: float) -> Iterator[PeerWait]:
        """Wait within the block, `most` seconds or fewer, and note what came of it."""
        waiting, began = PeerWait(self.left(most)), self._clock()
        try:
            yield waiting
        finally:
            took = self._clock() - began
            with self._lock:
                if waiting.is_worth_it:
                    self._in_vain = 0.0
                elif took > _PROMPT:
                    self._in_vain += took
