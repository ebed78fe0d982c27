"""Where a scratch over an image can be mounted: by imgfs, and by the kernel's overlayfs.

Both keep it as `scratch`/upper and `scratch`/work, so one can take over what the other has left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Protocol

from tests.support.mounted import Imgfs, is_alive, until
from tests.support.scratch_image import Base

WHOLE = "index=on,redirect_dir=on,xino=on"  # overlayfs behaves as POSIX asks (kernel, overlayfs.rst)


class Place(Protocol):
    """A mounted scratch; it can be mounted again."""

    @property
    def root(self) -> Path:
        """The mounted tree."""
        ...

    @property
    def counts_directories(self) -> bool:
        """Whether a directory's nlink tells the number of its subdirectories."""
        ...

    @property
    def keeps_directory_numbers(self) -> bool:
        """Whether a moved directory of the image has the same st_ino when the scratch is mounted again."""
        ...

    @property
    def knows_unlinked(self) -> bool:
        """Whether a file that is open and has no name any more always says so."""
        ...

    @property
    def keeps_time_when_opened(self) -> bool:
        """Whether opening a file for writing never changes its modification time."""
        ...

    def mount(self) -> None:
        """Mount, with the same scratch as before."""
        ...

    def umount(self) -> None:
        """Unmount."""
        ...

    def crash(self) -> None:
        """End the mount as if who serves it died, whatever is open."""
        ...


class Overlayfs:
    """A scratch of the kernel's, over the image's tree."""

    counts_directories = False
    keeps_directory_numbers = True
    keeps_time_when_opened = True
    knows_unlinked = False

    def __init__(self, base: Base, scratch: Path, root: Path, options: str = WHOLE) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        prepare(base, scratch)
        self._options = ",".join(filter(None, [options, layers(base, scratch)]))
        self.mount()

    def mount(self) -> None:
        until(self._can_mount, "overlayfs has mounted")  # not while any namespace still has the last mount

    def _can_mount(self) -> bool:
        words = ["mount", "-t", "overlay", "overlay", "-o", self._options, str(self.root)]
        return subprocess.run(words, check=False).returncode == 0

    def umount(self) -> None:
        subprocess.run(["umount", self.root], check=True)

    def crash(self) -> None:
        subprocess.run(["umount", "-l", self.root], check=True)


class Scratch:
    """A scratch of imgfs; by the kernel it is overlayfs's, of which that is so."""

    keeps_directory_numbers = True

    def __init__(self, imgfs: Imgfs, base: Base, scratch: Path, root: Path) -> None:
        self.root = root
        self._imgfs = imgfs
        self._options = ("--rw", "--scratch", str(scratch))
        self._reference = base.reference
        root.mkdir(exist_ok=True)
        by_fuse = imgfs.driver == "fuse"
        self.counts_directories = self.knows_unlinked = self.keeps_time_when_opened = by_fuse
        self.mount()

    def mount(self) -> None:
        self._imgfs.mount(self._reference, *self._options, at=self.root)

    def umount(self) -> None:
        self._imgfs.umount(self.root)

    def crash(self) -> None:
        pid = self._imgfs.pid(self.root)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_alive(pid), "the daemon is dead")
        subprocess.run(["umount", "-l", self.root], check=True)
        self._imgfs.gone(self.root)


def layers(base: Base, scratch: Path) -> str:
    """Return the mount options that say what is where."""
    return f"lowerdir={base.tree},upperdir={scratch}/upper,workdir={scratch}/work"


def prepare(base: Base, scratch: Path, owner: tuple[int, int] = (0, 0)) -> None:
    """Make the directories overlayfs wants; the upper one's attributes are the tree's root's: they show."""
    for path in (scratch, scratch / "work", scratch / "upper"):
        if not path.exists():
            path.mkdir()
            shutil.copystat(base.tree, path)
            os.chown(path, *owner)
