"""A layer's place in the store: its index, its flat layer, its blob on the way, and its locks."""

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
from imgfs.store.flat import FlatLayer
from imgfs.store.flatwriter import SUFFIX, FlatWriter
from imgfs.store.partial import PartialBlob
from imgfs.store.pin import sweep_pins
from imgfs.store.presence import drop, read_shape

LOCKS = ("lock", "users", "evicted")  # files that are only locked, or only have a time
_BYTES = ("flat", *partial.NAMES)  # what can be fetched again as it is needed
_FETCHED = ("users", "presence", "flat")  # whose times say when the layer was last used


def _unnoticed(_count: int) -> None:
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
        note_written: Callable[[int], None] = _unnoticed,
        admits: Callable[[int], bool] = _unlimited,
    ) -> None:
        self.directory = directory
        self.digest = digest
        self._checksums = checksums or ChecksumCache()
        self.note_written = note_written
        self.admits = admits

    @property
    def index_file(self) -> Path:
        """Where its index is, if it is anywhere."""
        return self.directory / "index"

    @property
    def index(self) -> Path | None:
        """Its index, if it is here and not seen to be damaged."""
        return self.index_file if self._checksums.is_intact(self.index_file) else None

    @contextmanager
    def new_index(self) -> Iterator[Path]:
        """A path to write the index to; it is `index` once the block ends without an error."""
        with atomic_write(self.index_file) as path:
            yield path
            write_checksum(path)

    def flat_writer(self, *, stays: bool = False) -> FlatWriter:
        """A fresh flat layer, to be written by a scan under `lock`, until whose end the old one may stay."""
        return FlatWriter(self.directory, self.note_written, stays=stays)

    def drop_flat(self) -> None:
        """Forget what is cached of it; whoever has that open keeps it."""
        with store_errors(self.directory):
            drop(self.directory)

    def part(self, size: int) -> PartialBlob:
        """What is here of its blob of `size` bytes, which is being downloaded under `lock`."""
        return PartialBlob(self.directory, size)

    def drop_part(self) -> None:
        """Forget what has been downloaded of its blob."""
        with store_errors(self.directory):
            for name in partial.NAMES:
                (self.directory / name).unlink(missing_ok=True)

    @property
    def flat_file(self) -> Path:
        """Where its flat layer is, if it is anywhere."""
        return self.directory / "flat"

    def has_flat(self) -> bool:
        """Whether anything of its flat layer may be here."""
        return self.flat_file.exists() and (self.directory / "presence").exists()

    def flat(self, *, size: int, spans: int, binding: bytes | None = None) -> FlatLayer:
        """Its flat layer; of what was verified by another than `binding` stands for, nothing."""
        return FlatLayer(
            self.directory, size=size, spans=spans, binding=binding, note_written=self.note_written
        )

    def evict(self) -> int:
        """Drop what can be fetched again; returns the bytes of disk freed. Mounts may go on using the layer.

        One that is being scanned or pulled at this moment is left as it is.
        """
        with locked_if_free(self.directory / "lock") as mine, store_errors(self.directory):
            if not mine:
                return 0
            with suppress(OSError):  # no inode may be left
                (self.directory / "evicted").touch(mode=0o600)
            freed = disk_usage(self._files(partial.NAMES))
            self.drop_part()
            sweep_temporaries(self.directory)
            return freed + self._evict_flat()

    def _evict_flat(self) -> int:
        """Evict the flat layer, whatever its index says it is; one whose map makes no sense is removed."""
        sweep_pins(self.directory)
        taken = disk_usage([self.flat_file])
        with self._reopened() as flat:
            if flat:
                return flat.evict()
        self.drop_flat()
        return taken

    @contextmanager
    def _reopened(self) -> Iterator[FlatLayer | None]:
        """The flat layer as its own map says, if that is here and makes sense."""
        shape = read_shape(self.directory)
        if shape is None or not self.flat_file.exists():
            yield None
            return
        with closing(self.flat(spans=shape[0], size=shape[1])) as flat:
            yield flat

    def forget(self, numbers: Iterable[int]) -> None:
        """Have some spans of its flat layer count as not there: their bytes are wrong. Raises StoreError."""
        with self.lock(), store_errors(self.directory), self._reopened() as flat:
            if flat:
                flat.forget(numbers)
            else:
                self.drop_flat()

    @contextmanager
    def lock(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Be the only one to scan or remove this layer; `on_wait` is called if another process is at it."""
        with locked(self.directory / "lock", fcntl.LOCK_EX, on_wait):
            yield

    def is_locked(self) -> bool:
        """Whether some process scans it right now."""
        return is_held(self.directory / "lock")

    @contextmanager
    def use(self) -> Iterator[None]:
        """Say that this process reads the layer, for as long as the block lasts."""
        users = self.directory / "users"
        with locked(users, fcntl.LOCK_SH):
            with store_errors(users):
                os.utime(users)
            yield

    def in_use(self) -> bool:
        """Whether any process has said `use` and not ended."""
        return is_held(self.directory / "users")

    def last_used(self) -> float:
        """When it was last opened or fetched from, in seconds since the epoch; 0.0 if never."""
        return max((found.st_mtime for found in stat_existing(self._files(_FETCHED))), default=0.0)

    def last_evicted(self) -> float:
        """When `evict` was last called, in seconds since the epoch; 0.0 if never."""
        return max((found.st_mtime for found in stat_existing(self._files(("evicted",)))), default=0.0)

    def refute(self, origin: str) -> None:
        """Remove it all, and note that what `origin` says of the layer is wrong."""
        self.remove()
        with store_errors(self.directory):
            (self.directory / "refuted").write_text(origin)

    def is_refuted(self, origin: str) -> bool:
        """Whether that has been noted; until the layer is removed."""
        with store_errors(self.directory):
            try:
                return (self.directory / "refuted").read_text(errors="replace") == origin
            except FileNotFoundError:
                return False

    def remove(self) -> None:
        """Remove it all; whoever has its files open keeps them until it closes them.

        Only what the locks need stays: another process may be waiting for one.
        """
        with store_errors(self.directory):
            drop(self.directory)
            for path in self.directory.iterdir():
                if path.name not in LOCKS:
                    path.unlink(missing_ok=True)

    def disk_usage(self) -> int:
        """Bytes of disk it takes."""
        return disk_usage(self.directory.glob("*"))

    def cached(self) -> int:
        """Bytes of disk that `evict` would free, if nobody holds them."""
        return disk_usage(chain(self._files(_BYTES), self.directory.glob(f"{TEMPORARY}*{SUFFIX}")))

    def is_held(self) -> bool:
        """Whether `evict` would free nothing: it is being scanned, or the kernel reads its bytes."""
        return self.is_locked() or (
            any(found.st_nlink > 1 for found in stat_existing(self._files(("flat",)))) and self.in_use()
        )

    def _files(self, names: Iterable[str]) -> Iterator[Path]:
        return (self.directory / name for name in names)
