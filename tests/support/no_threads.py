"""A system that starts no further thread, for this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TOO_LARGE = 1 << 47  # bytes: all that a process can address, so that no stack of this size has room


@contextmanager
def no_threads() -> Iterator[None]:
    """Have the kernel refuse every thread within the block (pthread_create(3), EAGAIN)."""
    before = threading.stack_size(_TOO_LARGE)
    try:
        yield
    finally:
        threading.stack_size(before)
