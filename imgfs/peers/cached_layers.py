"""What of the store is served to peers: flat layers, by their names, as far as they are present, and how
their blobs are cut, by the digests of those.

A layer is found by the index that the store has of it now, and only if that is the one its bytes were
verified by. It is opened for a while: files that have been replaced meanwhile are let go of soon. Nothing
here keeps a layer in the store, or counts as its use.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise

from imgfs.errors import StoreError
from imgfs.layer.index import LayerIndex
from imgfs.oci.descriptor import Digest
from imgfs.peers.flat_name import FlatName
from imgfs.peers.layer_spans import format_spans
from imgfs.peers.lent import Lent
from imgfs.peers.presence import Presence
from imgfs.store.flat import FlatLayer
from imgfs.store.flat_files import PRESENT, read_shape
from imgfs.store.layer import StoredLayer
from imgfs.store.store import Store

_PIECE = 1 << 20  # bytes that are read at once
_OPEN = 32  # layers
_STAYS = 10.0  # seconds for which one is open
_LOOK = 2.0  # seconds between two looks at all of the store's layers


class PresentLayer:
    """An open flat layer: `starts` are where its spans begin, and its end."""

    def __init__(self, flat: FlatLayer, starts: list[int]) -> None:
        self.size = flat.size
        self._flat = flat
        self._starts = starts

    def presence(self) -> Presence:
        """Return what of it is present."""
        marks = self._flat.marks(0, len(self._starts) - 2)
        bounds = zip(pairwise(self._starts), marks, strict=True)
        return Presence.of_spans(range_ for range_, mark in bounds if mark & PRESENT)

    def has(self, start: int, end: int) -> bool:
        """Return True if all of a range is present: by its own spans, however many the layer has."""
        first, last = self._holding(start, end)
        return first >= 0 and all(mark & PRESENT for mark in self._flat.marks(first, last))

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes `[start, end)` as long as they are present; it ends early if they are no more."""
        for at in range(start, end, _PIECE):
            length = min(_PIECE, end - at)
            first, last = self._holding(at, at + length)
            body = self._flat.read(at, length, self._flat.marks(first, last), first)
            if body is None:
                return
            yield body

    def _holding(self, start: int, end: int) -> tuple[int, int]:
        return bisect_right(self._starts, start) - 1, bisect_left(self._starts, end) - 1

    def close(self) -> None:
        """Close its files."""
        self._flat.close()


class CachedLayers:
    """The flat layers of a store, by name. Safe in threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._open: OrderedDict[FlatName, tuple[float, Lent[PresentLayer]]] = OrderedDict()
        self._named: dict[FlatName, dict[str, StoredLayer]] = {}  # blobs that decode to the same
        self._seen: dict[str, tuple[int, int, int]] = {}  # stamps of the indexes that have been read
        self._looked = -_LOOK

    def find(self, name: FlatName) -> Lent[PresentLayer] | None:
        """Return an open layer, to be used in a `with`; None if the store has nothing of it."""
        with self._lock:
            self._drop_old()
            if name not in self._open:
                layer = self._opened(name)
                if layer is None:
                    self._look()
                    layer = self._opened(name)
                if layer is None:
                    return None
                self._open[name] = time.monotonic(), Lent(layer)
            return self._open[name][1].take()

    def spans(self, digest: Digest) -> bytes | None:
        """Return how a blob is cut, as it is told; None if this store has not scanned it."""
        try:
            layer = self._store.find_layer(digest)
            path = layer.index if layer else None
            if path is None:
                return None
            with LayerIndex(path) as index:
                return format_spans(index)
        except StoreError:  # removed meanwhile, of another format, or damaged
            return None

    def close(self) -> None:
        """Close all layers that are not in use."""
        with self._lock:
            for _, layer in self._open.values():
                layer.drop()
            self._open.clear()

    def _opened(self, name: FlatName) -> PresentLayer | None:
        tried = (_opened(stored, name) for stored in self._named.get(name, {}).values())
        return next((layer for layer in tried if layer), None)

    def _drop_old(self) -> None:
        now = time.monotonic()
        while self._open:
            name, (since, layer) = next(iter(self._open.items()))
            if now - since < _STAYS and len(self._open) < _OPEN:
                return
            del self._open[name]
            layer.drop()

    def _look(self) -> None:
        """Read the names of layers whose indexes are new."""
        if time.monotonic() - self._looked < _LOOK:
            return
        for stored in self._store.layers():
            try:
                found = os.stat(stored.index_file)
                stamp = found.st_ino, found.st_mtime_ns, found.st_size
                if self._seen.get(str(stored.digest)) == stamp:
                    continue
                path = stored.index
                if path is not None:
                    with LayerIndex(path) as index:
                        named = self._named.setdefault(FlatName.of(index.summary), {})
                        named[str(stored.digest)] = stored
            except (OSError, StoreError):  # removed meanwhile, of another format, or damaged
                continue
            self._seen[str(stored.digest)] = stamp
        self._looked = time.monotonic()


def _opened(stored: StoredLayer, name: FlatName) -> PresentLayer | None:
    """Open a layer, if its index still is of that name and verified its bytes; else None."""
    try:
        path, shape = stored.index, read_shape(stored.directory)
        if path is None or shape is None or not stored.flat_file.exists():
            return None
        with LayerIndex(path) as index:
            starts = [start for start, _, _, _ in index.bounds()]
            size = index.summary.flat_size
            if FlatName.of(index.summary) != name or shape != (len(starts), size) or not starts:
                return None
            binding = index.binding()
        flat = stored.flat(size=size, spans=len(starts))
    except (OSError, StoreError):
        return None
    if not flat.is_bound_to(binding):
        flat.close()
        return None
    return PresentLayer(flat, [*starts, size])
