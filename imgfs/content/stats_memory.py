"""The memory that a mount counts in: that of a mount whose daemon may be killed outlives it.

It is a file (memfd_create(2)) that all processes of the mount map, one after the other, and during a
hand-over two at once. Each count is a word, written by one store: a process that is killed leaves all of them
whole. What is kept by several words says by the last one written whether they are complete.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
from collections.abc import Sequence

WORD = 8  # bytes
_FORMAT = 1  # of all that is kept by words, by whichever module
_HEAD = 32  # bytes: what the memory is divided for


class StatsMemory:
    """Zeros in `parts` of so many bytes each, or what another process has left in them in `file`.

    That is so if it has used it for the same `purpose`, with the same parts; another version may have not.
    """

    def __init__(self, parts: Sequence[int], file: int = -1, purpose: str = "") -> None:
        starts = [_HEAD]
        for size in parts:
            starts.append(starts[-1] + -(-size // WORD) * WORD)
        if file >= 0 and os.fstat(file).st_size < starts[-1]:
            os.truncate(file, starts[-1])
        mapped = mmap.mmap(file, starts[-1])
        head = hashlib.sha256(repr((_FORMAT, purpose, starts)).encode()).digest()
        if file >= 0 and mapped[:_HEAD] != head:
            mapped.madvise(mmap.MADV_REMOVE)  # to zeros, of which none takes memory
            mapped[:_HEAD] = head
        whole = memoryview(mapped)
        self.parts = [whole[start:end] for start, end in itertools.pairwise(starts)]


def words_of(memory: memoryview | None, count: int) -> memoryview:
    """Return the first `count` words of a part, or of memory of its own."""
    room = memoryview(bytearray(count * WORD)) if memory is None else memory[: count * WORD]
    return room.cast("q")
