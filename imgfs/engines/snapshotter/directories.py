"""The directories of snapshots that are not mounted: `ID/fs`, an upper directory, and overlayfs's `ID/work`.

Those of containerd's overlayfs snapshotter look the same (plugins/snapshots/overlay). A directory without a
row belongs to nothing: what is removed goes in a sweep, and so does what a killed process has left.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from imgfs.engines.snapshotter.rows import Snapshot, SnapshotKind, SnapshotUsage
from imgfs.errors import StoreError
from imgfs.overlay.fdtree import REMOVED, disk_usage, remove_tree
from imgfs.owned.writing import os_errors

_ASIDE = "removed-"


class SnapshotDirectories:
    """The directories below `place`."""

    def __init__(self, place: Path) -> None:
        self._place = place
        with os_errors(place):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)

    def upper(self, snapshot: Snapshot) -> Path:
        """Return where a snapshot's own files are."""
        return self._place / str(snapshot.id) / "fs"

    def work(self, snapshot: Snapshot) -> Path:
        """Return overlayfs's work directory of an active snapshot."""
        return self._place / str(snapshot.id) / "work"

    def make(self, snapshot: Snapshot, below: Path | None, owner: tuple[int, int] | None) -> None:
        """Make a new snapshot's directories.

        The root of what overlayfs shows has the upper directory's owner and mode: those of the root `below`,
        if there is one, or else `owner`, who is root in the container.
        """
        upper = self.upper(snapshot)
        with os_errors(upper):
            remove_tree(upper.parent)  # of a row that a crash has taken back
            upper.mkdir(mode=0o755, parents=True)
            if snapshot.kind == SnapshotKind.ACTIVE:
                self.work(snapshot).mkdir(mode=0o711)
            found = below.stat() if below else None
            if owner := owner or ((found.st_uid, found.st_gid) if found else None):
                os.chown(upper, *owner)
            os.chmod(upper, found.st_mode & 0o7777 if found else 0o755)

    def usage(self, snapshot: Snapshot) -> SnapshotUsage:
        """Sum what a snapshot's own files take of the disk; a file with several names counts once."""
        return SnapshotUsage(*disk_usage(self.upper(snapshot)))

    def set_aside(self, belongs: Callable[[int], bool]) -> None:
        """Rename the directories whose ids belong to no snapshot: their numbers are free then."""
        for name in self._names():
            if name.isdecimal() and not belongs(int(name)):
                with os_errors(self._place):
                    os.rename(self._place / name, self._place / f"{_ASIDE}{time.time_ns():x}-{name}")

    def remove_aside(self) -> None:
        """Remove what was set aside, as deep as a container has made it; of what cannot go the rest goes."""
        for name in self._names():
            if name.startswith((_ASIDE, REMOVED)):
                with suppress(StoreError):
                    remove_tree(self._place / name)

    def _names(self) -> list[str]:
        with os_errors(self._place):
            return os.listdir(self._place)
