"""What of the store is sent to peers while it is downloaded: blobs, as far as this machine has fetched them.

A download is another process's. Its files are opened for a peer that asks for them, and stay so for a while
after the last question: a peer that is behind still gets what it needs when it is over and they are removed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from imgfs.oci.descriptor import Digest
from imgfs.peers.arriving import Arriving
from imgfs.peers.lent import Lent
from imgfs.store.partial import CLAIMED, FETCHED, UNIT, PartialReader
from imgfs.store.store import Store

_OPEN = 64  # downloads
_STAYS = 10.0  # seconds for which one is open that is not asked for
_STAYS_REMOVED = 120.0  # seconds for which a removed one takes room on the disk, however it is asked for
_LOOK = 0.02  # seconds between two looks for more bytes
_AWAITED = 10.0  # seconds that more bytes are waited for: peers wait less


class _Opened(NamedTuple):
    """A download: when it was last asked for, and since when its files are removed."""

    lent: Lent[PartialReader]
    reader: PartialReader
    asked: float
    removed: float | None = None


class ArrivingBlobs:
    """The downloads of a store. Safe in threads."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[Digest, _Opened] = {}

    def find(self, digest: Digest) -> Lent[PartialReader] | None:
        """Return a download, to be used in a `with`; None if there is none. Raises StoreError."""
        with self._lock:
            found = self._open.get(digest)
            if found and not found.reader.is_removed() and not found.reader.is_current():
                self._drop(digest)
                found = None
            if found is None or found.removed is not None:
                found = self._begun(digest) or found
            if found is None:
                return None
            self._open[digest] = found._replace(asked=self._clock())
            return found.lent.take()

    def tidy(self) -> None:
        """Close those that are not asked for any more, or have been removed too long ago."""
        with self._lock:
            now = self._clock()
            for digest, found in list(self._open.items()):
                removed = found.removed
                if removed is None and found.reader.is_removed():
                    removed = now
                    self._open[digest] = found._replace(removed=now)
                if now - found.asked > _STAYS or (removed is not None and now - removed > _STAYS_REMOVED):
                    self._drop(digest)

    def close(self) -> None:
        """Close all that are not in use."""
        with self._lock:
            for digest in list(self._open):
                self._drop(digest)

    def _begun(self, digest: Digest) -> _Opened | None:
        """Open the download that there is now in the place of another, if there is one."""
        if digest not in self._open and len(self._open) >= _OPEN:
            return None
        layer = self._store.find_layer(digest)
        if layer is None:
            return None
        try:
            reader = PartialReader(layer.directory)
        except FileNotFoundError:
            return None
        self._drop(digest)
        return _Opened(Lent(reader), reader, self._clock())

    def _drop(self, digest: Digest) -> None:
        if found := self._open.pop(digest, None):
            found.lent.drop()


def told(part: PartialReader) -> Arriving:
    """Return what is told of a download. Raises StoreError."""
    return Arriving.of_marks(part.name, part.is_growing(), part.marks(), part.size)


def bytes_of(part: PartialReader, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes `[start, end)` of a download, which may grow, as they come. Raises StoreError.

    They end early where what is next is not about to be fetched.
    """
    unit, after = start // UNIT, -(-end // UNIT)
    waits_until = time.monotonic() + _AWAITED
    while unit < after:
        marks = part.marks(unit, after)
        count = len(marks) - len(marks.lstrip(bytes([FETCHED])))
        if count:
            for at in range(unit, unit + count):
                yield part.read(max(start, at * UNIT), min(end, (at + 1) * UNIT))
            unit += count
            waits_until = time.monotonic() + _AWAITED
        elif marks[:1] != bytes([CLAIMED]) or time.monotonic() > waits_until or not part.is_growing():
            return
        else:
            time.sleep(_LOOK)
