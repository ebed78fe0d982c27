"""A scratch on disk: `upper` and `work` as overlayfs knows them, what image they belong to, and a lock.

A scratch is kept under a name in the store, or in any directory, or made for one mount and removed with it.
One that overlayfs or fuse-overlayfs has made is taken up as it is; they leave imgfs's `scratch.json` alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imgfs.errors import MountError
from imgfs.overlay import fdtree
from imgfs.overlay.fdtree import REMOVED, remove_tree, set_aside
from imgfs.overlay.scratch_dir import (
    ASIDE,
    CTIMES,
    DESCRIPTION,
    LOCK,
    Lock,
    holder_of,
    is_at_work,
    opened_scratch_directory,
    overlayfs_over,
    read_base,
)
from imgfs.overlay.scratch_dir import ScratchBase as ScratchBase
from imgfs.owned.inheritance import LockInheritance

SetUse = Callable[[str], None]  # is given what a scratch is used for

UNFINISHED = ".upper"  # what `upper` is called until it is complete
UPPER_ASIDE = ".upper-"  # begins the name of one that a container's user has made aside


@dataclass(frozen=True, slots=True)
class Scratch:
    """A scratch in `directory`; `name` is what people call it, `volatile` one that goes with its mount."""

    directory: Path
    name: str
    volatile: bool = False

    @property
    def upper(self) -> Path:
        """The upper directory."""
        return self.directory / "upper"

    @property
    def work(self) -> Path:
        """The work directory, on the same file system."""
        return self.directory / "work"

    @property
    def is_shared(self) -> bool:
        """Whether other programs may mount it, who expect whole files."""
        return "/" in self.name and not self.volatile

    def exists(self) -> bool:
        """Return whether there is such a scratch."""
        return self.upper.is_dir() or (self.directory / DESCRIPTION).exists()

    def base(self) -> ScratchBase | None:
        """Return what it lies on, if imgfs has ever mounted it; raises StoreError."""
        return read_base(self.directory)

    def check(self, base: ScratchBase) -> None:
        """Raise MountError if the scratch lies on another image."""
        found = self.base() if self.upper.is_dir() else None  # without changes it may lie on any
        if found and (found.digest, found.layers) != (base.digest, base.layers):
            layers = f" up to layer {found.layers}" if found.digest == base.digest else ""
            raise MountError(
                f"scratch {self.name} was made on {found.reference}, {found.digest}{layers}: mount that, "
                f"or begin anew with: imgfs scratch reset {self.name}"
            )

    @contextlib.contextmanager
    def locked(self, use: str, inheritance: LockInheritance | None = None) -> Iterator[SetUse]:
        """Be the only one to change it; raises MountError saying what the other one uses it for.

        Gives what tells others that it is used for something else. A lock by `inheritance` is held already.
        """
        is_inherited = inheritance is not None and inheritance.fd >= 0
        with opened_scratch_directory(self.directory) as fd:
            lock = Lock(self.directory, fd, inheritance)
            try:
                if other := lock.take(is_at_work):
                    raise MountError(f"scratch {self.name} is in use: {other}")
                if (at := overlayfs_over(self.upper)) and not is_inherited:
                    raise MountError(f"scratch {self.name} is in use: mounted at {at} by overlayfs")
                lock.set_use(use)
                yield lock.set_use
            finally:
                lock.close()

    def holder(self) -> str | None:
        """Return what it is used for right now, if it is."""
        return holder_of(self.directory)

    def reset(self) -> None:
        """Throw all changes away; raises MountError if it is in use."""
        with self.locked("being reset"):
            self._throw_away()

    def _throw_away(self) -> None:
        """Remove the changes: first their names, all at once, so that a killed process leaves no half.

        What processes killed before have left goes, too.
        """
        for part in (self.work, self.upper):
            set_aside(part)
        for begin in (REMOVED, ASIDE, UPPER_ASIDE):
            for left in self.directory.glob(f"{begin}*"):
                remove_tree(left)
        for part in (self.work, self.upper):  # which a full disk has not let be renamed
            remove_tree(part)

    def disk_usage(self) -> int:
        """Return how many bytes of disk the changes take."""
        return fdtree.disk_usage(self.upper)[0]

    def remove(self) -> None:
        """Remove all of it that imgfs has made."""
        self._throw_away()
        remove_tree(self.directory / UNFINISHED)
        for name in (DESCRIPTION, LOCK, CTIMES):
            (self.directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other files are kept there
            self.directory.rmdir()
