"""The limit of a store: how many bytes of disk its layers' bytes may take, whichever process fetches them.

    limit        the number of bytes, as text; without the file there is none
    limit.lock   held by the process that evicts

It is kept by those who write. A process that has written a share of the limit looks at what all layers take;
if that is too much, it evicts whole layers until there is room again: those that were used longest ago first,
and those that are mounted only when nothing else is left. Readers of what was evicted fetch it again.
Indexes and trees count, too, but are not evicted: cached bytes have what they leave, at least an eighth of
the limit. An index or tree made elsewhere is not imported if it takes over half of it (`StoreLimit.admits`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import ImgfsError, StoreError, describe
from imgfs.owned.opening import read_owned_file
from imgfs.store.atomic import atomic_write, locked_if_free, store_errors
from imgfs.store.layer import StoredLayer

log = logging.getLogger(__name__)

_SHARE = 16  # a process may write this part of the limit until it looks,
_MOST = 256 << 20  # bytes at the most,
_UNLIMITED = 1 << 20  # and so much until it looks again for a limit, where there was none
_REST = 1.0  # seconds for which a mounted layer is not evicted again: its readers get on, come what may
_ROOM = 8  # this part of the limit is free after an eviction, and for bytes, whatever else there is
_AT_ONCE = 2  # this part of the limit may be taken by an index or tree of others


class CachedLayer(NamedTuple):
    """A layer of which `size` bytes of disk could be had back; `last_used` in seconds since the epoch."""

    layer: StoredLayer
    size: int
    last_used: float
    in_use: bool


def cached(layers: Iterable[StoredLayer]) -> list[CachedLayer]:
    """What the bytes of layers take, in the order in which they would go: first what is used least."""
    found = [CachedLayer(layer, layer.cached(), layer.last_used(), layer.in_use()) for layer in layers]
    return sorted(found, key=lambda one: (one.in_use, one.last_used))


def first_to_evict(found: Iterable[CachedLayer], excess: int) -> Iterator[CachedLayer]:
    """The first of `found` that have bytes, as many as it takes to have `excess` back."""
    for one in found:
        if excess <= 0:
            return
        if one.size:
            excess -= one.size
            yield one


def _may_go(one: CachedLayer) -> bool:
    """Whether evicting it frees anything, and is no end to those who read it at this moment."""
    is_resting = one.in_use and time.time() - one.layer.last_evicted() < _REST
    return not is_resting and not one.layer.is_held()


class StoreLimit:
    """The limit of the store at `root`, which has these `layers`, and bytes that are `kept` whatever comes.

    Any thread may use it.
    """

    def __init__(
        self,
        root: Path,
        layers: Callable[[], Iterator[StoredLayer]],
        kept: Callable[[], int] = lambda: 0,
    ) -> None:
        self._path = root / "limit"
        self._layers = layers
        self._kept = kept
        self._unseen = 0  # bytes written since the last look; about, as threads may count at once
        self._step = 0
        self._is_over = False  # after the last eviction, still
        self._thread: threading.Thread | None = None

    def read(self) -> int | None:
        """The limit in bytes, None if there is none. Raises StoreError."""
        with store_errors(self._path):
            try:
                text = read_owned_file(self._path).decode(errors="replace")[:30].strip()
            except FileNotFoundError:
                return None
        if not (text.isascii() and text.isdecimal()):
            raise StoreError(f"{self._path}: {text!r} is no number of bytes; set it with imgfs store limit")
        return int(text)

    def put(self, count: int | None) -> None:
        """Set it, for every process, or remove it. Raises StoreError."""
        if count is not None:
            with atomic_write(self._path) as path:
                path.write_text(f"{count}\n")
            return
        with store_errors(self._path):
            self._path.unlink(missing_ok=True)

    def admits(self, count: int) -> bool:
        """Whether an index or tree of others that takes so many bytes may be taken in. Raises StoreError."""
        limit = self.read()
        return limit is None or count <= limit // _AT_ONCE

    def note_written(self, count: int) -> None:
        """Note that so many bytes have been written; has the limit kept, in another thread, now and then."""
        self._unseen += count
        if self._unseen < self._step or (self._thread and self._thread.is_alive()):
            return
        self._unseen, self._step = 0, _UNLIMITED
        if os.path.exists(self._path):  # which raises nothing: whoever writes is not to be stopped
            self._thread = threading.Thread(target=self._keep, name="imgfs-limit", daemon=True)
            self._thread.start()

    def _keep(self) -> None:
        try:
            self.keep()
            while self._is_over or self._unseen >= self._step:
                if self._is_over:  # what is left rests, or is being scanned
                    time.sleep(_REST)
                self._unseen = 0
                self.keep()
        except (ImgfsError, OSError) as error:
            log.warning("the store's limit is not kept: %s", describe(error))

    def keep(self) -> int:
        """Evict what is too much; returns the bytes of disk freed. Raises StoreError."""
        limit = self.read()
        if limit is None:
            return 0
        self._step = min(_MOST, limit // _SHARE)
        with locked_if_free(self._path.with_name("limit.lock")) as mine:
            self._is_over = False
            return self._evict(limit) if mine else 0

    def _evict(self, limit: int) -> int:
        found = [one for one in cached(self._layers()) if one.size]
        taken = sum(one.size for one in found)
        limit = max(limit - self._kept(), limit // _ROOM)
        if taken <= limit:
            return 0
        free = (one for one in found if _may_go(one))
        victims = list(first_to_evict(free, taken - limit + limit // _ROOM))
        freed = sum(one.layer.evict() for one in victims)
        self._is_over = taken - freed > limit
        if victims:
            log.info(
                "the store's layers take %d bytes of %d: evicted %d layers, %d of them mounted, of %d bytes",
                *(taken, limit, len(victims), sum(one.in_use for one in victims), freed),
            )
        return freed
