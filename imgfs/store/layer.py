"""A layer's directory in the store: index, flat layer, partial download and locks."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain
from pathlib import Path

from imgfs.oci.descriptor import Digest
from imgfs.store import partial
from imgfs.store.atomic import (
    TEMPORARY,
    atomic_write,
    disk_usage,
    is_held,
    locked,
    locked_if_free,
    stat_existing,
    store_errors,
    sweep_temporaries,
)
from imgfs.store.checksum import ChecksumCache, write_checksum
from imgfs.store.flat import FlatLayer, sweep_pins
from imgfs.store.flat_files import count_present, drop, read_shape
from imgfs.store.partial import PartialBlob
from imgfs.store.staging import SUFFIX, FlatWriter
from imgfs.store.times import moment_of

LOCKS = ("lock", "users", "evicted")  # files that are only locked, or only have a time
_BYTES = ("flat", *partial.NAMES)  # what can be fetched again as it is needed
_FETCHED = ("users", "presence", "flat")  # whose times say when the layer was last used


def _ignore(_count: int) -> None:
    pass


def _unlimited(_count: int) -> bool:
    return True


class StoredLayer:
    """A layer's directory in the store.

    `note_written` is called with the number of bytes of each write; `admits` decides before an index is
    imported whether its size fits the store's limit.
    """

    def __init__(
        self,
        directory: Path,
        digest: Digest,
        checksums: ChecksumCache | None = None,
        note_written: Callable[[int], None] = _ignore,
        admits: Callable[[int], bool] = _unlimited,
    ) -> None:
        self.directory = directory
        self.digest = digest
        self._checksums = checksums or ChecksumCache()
        self.note_written = note_written
        self.admits = admits

    @property
    def index_file(self) -> Path:
        """Return the path of its index, which may not exist."""
        return self.directory / "index"

    @property
    def index(self) -> Path | None:
        """Return the path of its index, None if there is none or it is known to be damaged."""
        return self.index_file if self._checksums.is_intact(self.index_file) else None

    @contextmanager
    def new_index(self) -> Iterator[Path]:
        """Yield a path to write the index to; it becomes `index` if the block succeeds."""
        with atomic_write(self.index_file) as path:
            yield path
            write_checksum(path)

    def flat_writer(self, *, stays: bool = False) -> FlatWriter:
        """Begin a new flat layer, which a scan writes under `lock`; the present one may stay until then."""
        return FlatWriter(self.directory, self.note_written, stays=stays)

    def drop_flat(self) -> None:
        """Remove its cached bytes; processes that have them open keep them."""
        with store_errors(self.directory):
            drop(self.directory)

    def part(self, size: int) -> PartialBlob:
        """Open the partial download of its blob of `size` bytes, which goes on under `lock`."""
        return PartialBlob(self.directory, size, self.note_written)

    def drop_part(self) -> None:
        """Remove its partial download."""
        with store_errors(self.directory):
            for name in partial.NAMES:
                (self.directory / name).unlink(missing_ok=True)

    def partial(self) -> int:
        """Return the bytes of disk that its partial download takes; 0 if there is none."""
        return disk_usage(self._files(partial.NAMES))

    def free(self) -> int:
        """Return the bytes of disk that are free for it. Raises StoreError."""
        with store_errors(self.directory):
            found = os.statvfs(self.directory)
        return found.f_bavail * found.f_frsize

    @property
    def flat_file(self) -> Path:
        """Return the path of its flat layer, which may not exist."""
        return self.directory / "flat"

    def has_flat(self) -> bool:
        """Return True if any of its flat layer may be cached."""
        return self.flat_file.exists() and (self.directory / "presence").exists()

    def flat(self, *, size: int, spans: int, binding: bytes | None = None) -> FlatLayer:
        """Open its flat layer; marks of an index of another `binding` do not count."""
        return FlatLayer(
            self.directory, size=size, spans=spans, binding=binding, note_written=self.note_written
        )

    def count_present(self, *, size: int, spans: int, binding: bytes) -> int:
        """Return how many spans of its flat layer are present, by its files alone. Raises StoreError."""
        with store_errors(self.directory):
            return count_present(self.directory, size=size, spans=spans, binding=binding)

    def evict(self) -> int:
        """Remove what can be fetched again; return the bytes of disk freed. Mounts may go on using the layer.

        A layer that is being scanned or pulled is left as it is.
        """
        with locked_if_free(self.directory / "lock") as is_locked, store_errors(self.directory):
            if not is_locked:
                return 0
            with suppress(OSError):  # no inode may be left
                (self.directory / "evicted").touch(mode=0o600)
            freed = self.partial()
            self.drop_part()
            sweep_temporaries(self.directory)
            return freed + self._evict_flat()

    def _evict_flat(self) -> int:
        """Evict the flat layer, without looking at its index; one without a valid map is removed."""
        sweep_pins(self.directory)
        taken = disk_usage([self.flat_file])
        with self._reopened() as flat:
            if flat:
                return flat.evict()
        self.drop_flat()
        return taken

    @contextmanager
    def _reopened(self) -> Iterator[FlatLayer | None]:
        """Open the flat layer by its own map; None if there is no valid one."""
        shape = read_shape(self.directory)
        if shape is None or not self.flat_file.exists():
            yield None
            return
        with closing(self.flat(spans=shape[0], size=shape[1])) as flat:
            yield flat

    def forget(self, numbers: Iterable[int]) -> None:
        """Mark some spans of its flat layer absent: their bytes are wrong. Raises StoreError."""
        with self.lock(), store_errors(self.directory), self._reopened() as flat:
            if flat:
                flat.forget(numbers)
            else:
                self.drop_flat()

    @contextmanager
    def lock(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Lock the layer for a scan or removal; `on_wait` is called if another process holds the lock."""
        with locked(self.directory / "lock", fcntl.LOCK_EX, on_wait):
            yield

    def is_locked(self) -> bool:
        """Return True while a process scans it."""
        return is_held(self.directory / "lock")

    @contextmanager
    def use(self) -> Iterator[int]:
        """Mark the layer as in use by this process within the block; yields the lock's descriptor."""
        users = self.directory / "users"
        with locked(users, fcntl.LOCK_SH) as lock:
            with store_errors(users):
                os.utime(users)
            yield lock

    def in_use(self) -> bool:
        """Return True if any process uses it."""
        return is_held(self.directory / "users")

    def last_used(self) -> float:
        """Return when it was last opened or fetched, in seconds since the epoch; 0.0 if never, or unknown."""
        return max(map(moment_of, stat_existing(self._files(_FETCHED))), default=0.0)

    def last_evicted(self) -> float:
        """Return when `evict` was last called, in seconds since the epoch; 0.0 if never, or unknown."""
        return max(map(moment_of, stat_existing(self._files(("evicted",)))), default=0.0)

    def refute(self, origin: str) -> None:
        """Remove it all, and record that the index that `origin` vouches for is wrong."""
        self.remove()
        with store_errors(self.directory):
            (self.directory / "refuted").write_text(origin)

    def is_refuted(self, origin: str) -> bool:
        """Return True if that has been recorded; the record lasts until the layer is removed."""
        with store_errors(self.directory):
            try:
                return (self.directory / "refuted").read_text(errors="replace") == origin
            except FileNotFoundError:
                return False

    def remove(self) -> None:
        """Remove it all; processes that have its files open keep them.

        The lock files stay: another process may be waiting for one.
        """
        with store_errors(self.directory):
            drop(self.directory)
            for path in self.directory.iterdir():
                if path.name not in LOCKS:
                    path.unlink(missing_ok=True)

    def remove_if_free(self) -> None:
        """Remove it all, unless it is being scanned or pulled."""
        with locked_if_free(self.directory / "lock") as is_locked:
            if is_locked:
                self.remove()

    def disk_usage(self) -> int:
        """Return the bytes of disk it takes."""
        return disk_usage(self.directory.glob("*"))

    def cached(self) -> int:
        """Return the bytes of disk that `evict` would free, if `is_held` is False."""
        return disk_usage(chain(self._files(_BYTES), self.directory.glob(f"{TEMPORARY}*{SUFFIX}")))

    def is_held(self) -> bool:
        """Return True if `evict` would free nothing: it is being scanned, or the kernel reads its bytes."""
        return self.is_locked() or (
            any(stat.st_nlink > 1 for stat in stat_existing(self._files(("flat",)))) and self.in_use()
        )

    def _files(self, names: Iterable[str]) -> Iterator[Path]:
        return (self.directory / name for name in names)
