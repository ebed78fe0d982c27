"""The limit of a store: how many bytes of disk its layers' bytes may take, whichever process fetches them.

    limit        the number of bytes, as text, or a share of the disk (`80%`); without the file there is none
    limit.lock   held by the process that evicts

Writers keep it. A process that has written a share of the limit adds up what all layers take;
if that is too much, it evicts whole layers until there is room again: those that were used longest ago first,
and those that are mounted only when nothing else is left. Readers of what was evicted fetch it again.
Indexes and trees count, too, but are not evicted: cached bytes have what they leave, at least an eighth of
the limit. Of a share of the disk `store.disk_share` says what has to go. An index or tree made elsewhere is
not imported if it takes over half of the limit (`StoreLimit.admits`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imgfs.errors import ImgfsError, StoreError, describe
from imgfs.owned.opening import read_owned_file
from imgfs.starting import try_thread
from imgfs.store.atomic import atomic_write, locked_if_free, store_errors
from imgfs.store.layer import StoredLayer

if TYPE_CHECKING:
    from imgfs.store.disk_share import DiskUse

log = logging.getLogger(__name__)

_SHARE = 16  # a process may write this part of the limit until it checks,
_MOST = 256 << 20  # bytes at the most,
_UNLIMITED = 1 << 20  # and so much until it checks again for a limit, where there was none
_BACK_OFF = 1.0  # seconds for which a mounted layer is not evicted again: its readers must make progress
_ROOM = 8  # this part of the limit is free after an eviction, and left to bytes by indexes and trees
_IMPORTED = 2  # this part of the limit may be taken by one imported index or tree
LEAST = 64 * 10**6  # bytes of a limit: with less, readers would fetch the same again and again


class CachedLayer(NamedTuple):
    """A layer of which `size` bytes of disk could be freed; `last_used` in seconds since the epoch."""

    layer: StoredLayer
    size: int
    last_used: float
    in_use: bool


def cached(layers: Iterable[StoredLayer]) -> list[CachedLayer]:
    """Return what the bytes of layers take, in the order of eviction: unmounted first, then oldest use."""
    caches = [CachedLayer(layer, layer.cached(), layer.last_used(), layer.in_use()) for layer in layers]
    return sorted(caches, key=lambda layer: (layer.in_use, layer.last_used))


def first_to_evict(layers: Iterable[CachedLayer], excess: int) -> Iterator[CachedLayer]:
    """Yield the first of `layers` that have bytes, as many as it takes to free `excess` bytes."""
    for layer in layers:
        if excess <= 0:
            return
        if layer.size:
            excess -= layer.size
            yield layer


def _may_evict(cached_layer: CachedLayer) -> bool:
    """Return True if evicting it frees bytes, and its readers have had time since the last eviction."""
    layer = cached_layer.layer
    backs_off = cached_layer.in_use and time.time() - layer.last_evicted() < _BACK_OFF
    return not backs_off and not layer.is_held()


class StoreLimit:
    """The limit of the store at `root`, which has these `layers`, and `kept` bytes that are never evicted.

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
        self._unseen = 0  # bytes written since the last check; about, as threads count without a lock
        self._step = 0
        self._is_over = False  # after the last eviction, still
        self._thread: threading.Thread | None = None

    def __getstate__(self) -> dict[str, object]:
        """Return what another process has of it: a store goes to a mount's daemon, its thread does not."""
        return {**self.__dict__, "_thread": None}

    def read(self) -> int | None:
        """Return the limit in bytes, None if there is none; of a share what that is. Raises StoreError."""
        text = self._text()
        return None if text is None else self._bytes(text)

    def share(self) -> int | None:
        """Return the share of the disk in per cent, None if the limit is none. Raises StoreError."""
        return _percent(self._text() or "")

    def _bytes(self, text: str) -> int:
        if percent := _percent(text):
            return self._disk().capacity * percent // 100
        if not (text.isascii() and text.isdecimal()):
            raise StoreError(
                f"{self._path}: {text!r} is not a number of bytes; set it with imgfs store limit"
            )
        return int(text)

    def _disk(self) -> DiskUse:
        from imgfs.store.disk_share import disk_use  # here and below: few stores have a share

        with store_errors(self._path):
            return disk_use(self._path.parent)

    def _text(self) -> str | None:
        with store_errors(self._path):
            try:
                return read_owned_file(self._path).decode(errors="replace")[:30].strip()
            except FileNotFoundError:
                return None

    def put(self, count: int | None) -> None:
        """Set it, for every process, or remove it. Raises StoreError."""
        if count is not None:
            self._write(f"{count}")
            return
        with store_errors(self._path):
            self._path.unlink(missing_ok=True)

    def put_share(self, percent: int) -> None:
        """Set it to so many per cent of the disk, from 1 to 99. Raises StoreError."""
        self._write(f"{percent}%")

    def _write(self, text: str) -> None:
        with atomic_write(self._path) as path:
            path.write_text(f"{text}\n")

    def admits(self, count: int) -> bool:
        """Return True if an index or tree of so many bytes may be imported. Raises StoreError."""
        limit = self.read()
        return limit is None or count <= limit // _IMPORTED

    def note_written(self, count: int) -> None:
        """Count bytes written; now and then, check the limit in another thread."""
        self._unseen += count
        if self._unseen < self._step or (self._thread and self._thread.is_alive()):
            return
        step, self._unseen, self._step = self._step, 0, _UNLIMITED
        if os.path.exists(self._path):  # which raises nothing: a writer must not fail for it
            self._thread = try_thread(self._keep, "imgfs-limit")
            if self._thread is None:
                self._step = step  # the next writer tries again

    def _keep(self) -> None:
        try:
            self.keep()
            while self._is_over or self._unseen >= self._step:
                if self._is_over:  # what is left backs off, or is being scanned
                    time.sleep(_BACK_OFF)
                self._unseen = 0
                self.keep()
        except (ImgfsError, OSError) as error:
            log.warning("the store's limit is not kept: %s", describe(error))

    def keep(self) -> int:
        """Evict what exceeds the limit; return the bytes of disk freed. Raises StoreError."""
        text = self._text()
        if text is None:
            return 0
        limit, percent = self._bytes(text), _percent(text)
        self._step = min(_MOST, limit // _SHARE)
        with locked_if_free(self._path.with_name("limit.lock")) as is_locked:
            self._is_over = False
            if not is_locked:
                return 0
            return self._evict_above(percent) if percent else self._evict(limit)

    def _evict(self, limit: int) -> int:
        caches = [layer for layer in cached(self._layers()) if layer.size]
        taken = sum(layer.size for layer in caches)
        limit = max(limit - self._kept(), limit // _ROOM)
        if taken <= limit:
            return 0
        free = (layer for layer in caches if _may_evict(layer))
        freed = _evicted(first_to_evict(free, taken - limit + limit // _ROOM), taken)
        self._is_over = taken - freed > limit
        return freed

    def _evict_above(self, percent: int) -> int:
        """Evict until the disk is within its share, or nothing is left to evict.

        What is mounted keeps `LEAST` bytes: where others fill the disk, its readers have to make progress.
        """
        from imgfs.store.disk_share import excess_of

        excess = excess_of(self._disk(), percent)
        if not excess.idle:
            return 0
        caches = [layer for layer in cached(self._layers()) if layer.size]
        free = [layer for layer in caches if _may_evict(layer)]
        taken = sum(layer.size for layer in caches)
        freed = _evicted(first_to_evict((one for one in free if not one.in_use), excess.idle), taken)
        left = min(excess.mounted - freed, taken - freed - LEAST)
        freed += _evicted(first_to_evict((one for one in free if one.in_use), left), taken)
        self._is_over = min(excess.mounted - freed, taken - freed - LEAST) > 0
        return freed


def _percent(text: str) -> int | None:
    """Return the share that a limit's text says, None if it says none."""
    number = text.removesuffix("%")
    is_share = number != text and number.isascii() and number.isdecimal() and 0 < int(number) < 100
    return int(number) if is_share else None


def _evicted(chosen: Iterable[CachedLayer], taken: int) -> int:
    """Evict layers, of all that take so many bytes; return the bytes of disk freed."""
    victims = list(chosen)
    freed = sum(victim.layer.evict() for victim in victims)
    if victims:
        log.info(
            "the store's layers take %d bytes: evicted %d layers, %d of them mounted, of %d bytes",
            *(taken, len(victims), sum(victim.in_use for victim in victims), freed),
        )
    return freed
