"""How long tests wait: for conditions, up to generous limits that grow with how busy the machine is.

A limit is written in seconds of a machine that does nothing else; `allowed` makes seconds of this one of
them, by the time that a little work takes here and now. So a test that asks whether a time-out was waited
for is as strict as it can be where the machine is quiet, and does not fail beside a busy compiler.
"""

from __future__ import annotations

import functools
import statistics
import time

REFERENCE = 0.022  # seconds that `_work` took where the limits were written, with nothing beside it
MOST = 20.0  # times as slow: beyond that nothing is expected of a machine
_AGE = 10.0  # seconds for which a measurement is believed


def allowed(seconds: float) -> float:
    """Return the limit to set here where `seconds` is one for a quiet machine: never less."""
    return seconds * slowness(int(time.monotonic() / _AGE))


@functools.lru_cache(maxsize=1)
def slowness(_moment: int = 0) -> float:
    """Return how many times longer than REFERENCE the work takes: at least 1."""
    found = statistics.median(_work() for _ in range(3))
    return min(max(1.0, found / REFERENCE), MOST)


def _work() -> float:
    began = time.monotonic()
    sum(number * number for number in range(500_000))
    return time.monotonic() - began
