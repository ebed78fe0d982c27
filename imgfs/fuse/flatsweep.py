"""Which files of the image are being read, told from the reads of its flat files.

Readers of whole trees are noticed by the files they open (`content.treewalk`), but of those a file system of the
kernel's says nothing. Only who reads piece after piece of a layer, each a little further on, may be one: then
the places of all files are read out of the tree, once, and from then on reads are told as the files they are
of.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from imgfs.errors import ImgfsError
from imgfs.tree.reader import Tree

_NEAR = 1 << 20  # bytes from the end of one read to the next: what is between was not read, or read before
_EVIDENCE = 16  # such steps, less what speaks against it
_RECENT = 64  # reads that are told afterwards


class _Places:
    """Where the files of one layer begin; those out of the order of their inos are left out."""

    def __init__(self) -> None:
        self.starts, self.inos = array("Q"), array("Q")

    def add(self, flat: int, ino: int) -> None:
        if not self.starts or flat > self.starts[-1]:
            self.starts.append(flat)
            self.inos.append(ino)

    def file_at(self, flat: int) -> int:
        """The ino of the file that begins there, or last before; 0 if none does."""
        number = bisect_right(self.starts, flat)
        return self.inos[number - 1] if number else 0


class FlatReads:
    """Tells `opened` the inos of files whose bytes are read, as soon as that may be of use.

    All but the reading of the tree is for one thread.
    """

    def __init__(self, tree: Tree, layers: int, opened: Callable[[int], None]) -> None:
        self._tree = tree
        self._opened = opened
        self._ends = [0] * layers  # of the last read of each
        self._evidence = 0
        self._recent: deque[tuple[int, int]] = deque(maxlen=_RECENT)
        self._places: list[_Places] = []
        self._thread: threading.Thread | None = None
        self._last = 0

    def read(self, layer: int, offset: int, length: int) -> None:
        """Note a read of a flat file. Costs next to nothing."""
        if self._places:
            while self._recent:
                self._tell(*self._recent.popleft())
            self._tell(layer, offset)
            return
        step = offset - self._ends[layer]
        self._ends[layer] = offset + length
        if step:
            self._recent.append((layer, offset))
            self._evidence = self._evidence + 1 if 0 < step <= _NEAR else self._evidence // 2
        if self._evidence >= _EVIDENCE and self._thread is None:
            self._thread = threading.Thread(target=self._load, name="imgfs-places", daemon=True)
            self._thread.start()

    def _tell(self, layer: int, offset: int) -> None:
        ino = self._places[layer].file_at(offset)
        if ino and ino != self._last:
            self._last = ino
            self._opened(ino)

    def _load(self) -> None:
        places = [_Places() for _ in self._ends]
        with suppress(ImgfsError, IndexError, OverflowError):  # of a damaged tree the reader will hear
            for layer, flat, ino in self._tree.placed():
                places[layer].add(flat, ino)
        self._places = places
