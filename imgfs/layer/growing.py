"""A layer's entries while a scan still finds them: so that layers are merged while they are downloaded.

What they say is not verified yet, and a later entry may change how the earlier ones are to be merged: then
the index is `Withdrawn`, and what was made of it is thrown away. The layer is merged again once it is whole.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from imgfs.layer.entry import Entry
from imgfs.layer.index import DAMAGE, SELECT_ENTRY, LayerIndex, entry_of
from imgfs.layer.schema import Summary
from imgfs.layer.sqlite import file_uri

_POLL = 0.05  # seconds between looks at what has been written
_BATCH = 1000  # entries that are read at once


class Withdrawn(Exception):
    """What a growing index has said does not count."""


class LayerEntries(Protocol):
    """What a merge reads of a layer (see `layer.index.LayerIndex`)."""

    @property
    def summary(self) -> Summary:
        """The layer as a whole."""

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, in the layer's own order."""

    def whiteout_candidates(self) -> Iterator[Entry]:
        """Yield the entries with `.wh.` anywhere in their path, in order."""

    def hardlinks(self) -> Iterator[Entry]:
        """Yield the hard links, in order."""

    def directories(self) -> Iterator[bytes]:
        """Yield the paths of the layer's own directory entries."""


class GrowingIndex:
    """The index at `path` that a scan is writing (`IndexWriter`, shared), for one thread that merges.

    Another thread calls `complete` or `withdraw`. A method that needs all of it waits until then.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._settled = threading.Event()
        self._whole: LayerIndex | None = None

    def complete(self, index: LayerIndex) -> None:
        """Note that all of it has been written, and verified: it is `index`."""
        self._whole = index
        self._settled.set()

    def withdraw(self) -> None:
        """Note that nothing of it counts, unless it is complete."""
        self._settled.set()

    @property
    def is_complete(self) -> bool:
        """Return True if it is whole, and verified."""
        return self._whole is not None

    @property
    def summary(self) -> Summary:
        """Wait for the summary. Raises Withdrawn."""
        return self._wait().summary

    def entries(self) -> Iterator[Entry]:
        """Yield all entries as they come. Raises Withdrawn."""
        count = 0
        while not self._settled.wait(_POLL):
            while found := self._written(count):
                yield from found
                count += len(found)
        yield from self._wait().entries(count)

    def whiteout_candidates(self) -> Iterator[Entry]:
        """Wait for the entries with `.wh.` in their path. Raises Withdrawn."""
        return self._wait().whiteout_candidates()

    def hardlinks(self) -> Iterator[Entry]:
        """Wait for the hard links. Raises Withdrawn."""
        return self._wait().hardlinks()

    def directories(self) -> Iterator[bytes]:
        """Wait for the paths of the layer's own directory entries. Raises Withdrawn."""
        return self._wait().directories()

    def _wait(self) -> LayerIndex:
        self._settled.wait()
        if self._whole is None:
            raise Withdrawn
        return self._whole

    def _written(self, count: int) -> list[Entry]:
        """Return entries that have been written behind the first `count`; none if it cannot be said now."""
        query = f"{SELECT_ENTRY} WHERE seq > ? ORDER BY seq LIMIT {_BATCH}"
        with suppress(*DAMAGE):
            with closing(sqlite3.connect(f"{file_uri(self._path)}?mode=ro", timeout=0, uri=True)) as db:
                rows = db.execute(query, (count,)).fetchall()  # all at once: the scan waits for it
            return list(map(entry_of, rows))
        return []


@contextmanager
def growing_index(path: Path) -> Iterator[GrowingIndex]:
    """An index that is withdrawn at the end of the block, unless it is complete by then."""
    index = GrowingIndex(path)
    try:
        yield index
    finally:
        index.withdraw()
