"""How fast the machine itself is, by work that is the same everywhere: figures of two can be compared."""

from __future__ import annotations

import hashlib
import random
import statistics
import time
import zlib
from collections.abc import Callable

from scripts.benchmark.report import Table

_TIMES = 5
_ADDITIONS = 2_000_000
_BYTES = 32 << 20


def machine() -> Table:
    """Measure the interpreter, zlib and SHA-256 on one core: medians of five."""
    chance = random.Random(1)
    text = b"".join(b"%x " % chance.getrandbits(20) for _ in range(_BYTES // 6))[:_BYTES]
    packed = zlib.compress(text, 6)
    table = Table("The machine itself, one core", ("work", "a second"))
    table.add("additions in a loop of Python, millions", _ADDITIONS / _median(_add) / 1e6)
    table.add("MB inflated by Python's zlib", len(text) / _median(lambda: zlib.decompress(packed)) / 1e6)
    table.add("MB hashed by SHA-256", len(text) / _median(lambda: hashlib.sha256(text).digest()) / 1e6)
    return table


def _add() -> None:
    total = 0
    for number in range(_ADDITIONS):
        total += number


def _median(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    taken = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
