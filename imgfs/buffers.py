"""Buffers that are large, and often never used: each mount's daemon has some."""

from __future__ import annotations

import mmap


def buffer(size: int) -> memoryview:
    """Return so many bytes that are zero, and take memory only where they have been written to."""
    return memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE))
