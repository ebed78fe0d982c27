"""Volumes with names, in the store: `volumes/NAME/_data`, shown in containers and kept when these go.

A container that runs has the volume's directory locked, shared; one that is kept names it in its record.
Either is a use, and a volume in use is not removed. As with podman a volume begins with what the first image
that it is mounted in has there; devices are left out (`runtime.volumes`), and it is mounted nosuid and nodev.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import MountError, UsageError
from imgfs.overlay.fdtree import empty_directory
from imgfs.owned.opening import open_owned_directory, open_owned_file
from imgfs.owned.writing import os_errors, try_lock
from imgfs.runtime.container_record import containers_in
from imgfs.runtime.request import Bind
from imgfs.runtime.volumes import fill

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_EMPTY = "empty"  # a file beside the data of a volume that has not been filled yet
_BEGUN = b"begun"  # what is in it from when that begins


class NamedVolume(NamedTuple):
    """A volume of a store."""

    directory: Path

    @property
    def name(self) -> str:
        """Its name."""
        return self.directory.name

    @property
    def data(self) -> Path:
        """What is shown in containers."""
        return self.directory / "_data"

    @property
    def created(self) -> float:
        """When it was made, in seconds since 1970."""
        return self.directory.stat().st_mtime

    @classmethod
    def make(cls, store_root: Path, name: str) -> NamedVolume:
        """Have a volume of that name; raises UsageError, StoreError."""
        check_volume_name(name)
        place = store_root / "volumes"
        made = cls(place / name)
        with os_errors(place):
            os.close(open_owned_directory(place, make=True))
            os.close(open_owned_directory(made.directory, make=True))
            if not made.data.exists():
                (made.directory / _EMPTY).touch(mode=0o600)
                made.data.mkdir(mode=0o755)
        return made

    def hold(self) -> int:
        """Lock it against removal, as long as the descriptor returned is open; raises StoreError."""
        fd = open_owned_directory(self.directory)
        fcntl.flock(fd, fcntl.LOCK_SH)
        return fd

    def fill(self, image: Path) -> None:
        """Begin with what an image has at a directory, unless it has begun; raises StoreError.

        One process at a time: what is copied into is no container's yet, which would change paths meanwhile.
        What a process has begun with and not finished, since it was killed, is begun anew.
        """
        mark = self.directory / _EMPTY
        try:
            fd = open_owned_file(mark, os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with os_errors(self.directory):
                if not mark.exists():
                    return
                if os.pread(fd, 1, 0):
                    empty_directory(self.data)
                if image.is_dir() and not any(self.data.iterdir()):
                    os.pwrite(fd, _BEGUN, 0)
                    fill(self.data, image)
                mark.unlink(missing_ok=True)
        finally:
            os.close(fd)

    def users(self, store_root: Path) -> list[str]:
        """Return the names of the containers that use it."""
        return [one.record.name for one in containers_in(store_root) if self.name in one.record.volumes]

    def remove(self, store_root: Path) -> None:
        """Remove it with all that is in it; raises MountError if it is in use, StoreError."""
        users = self.users(store_root)
        if users:
            raise MountError(f"volume {self.name} is being used by: {', '.join(users)}")
        fd = open_owned_directory(self.directory)
        try:
            if not try_lock(fd):
                raise MountError(f"volume {self.name} is being used by a container that is being started")
            with os_errors(self.directory):
                empty_directory(self.directory)
                self.directory.rmdir()
        finally:
            os.close(fd)


def check_volume_name(name: str) -> None:
    """Raise UsageError unless a volume can be called so."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a name for a volume (letters, digits, '_', '.', '-'; at most 128)")


def find_volume(store_root: Path, name: str) -> NamedVolume:
    """Return the volume of that name; raises MountError if there is none."""
    check_volume_name(name)
    found = NamedVolume(store_root / "volumes" / name)
    if not found.directory.is_dir():
        raise MountError(f"no such volume: {name}")
    return found


def volumes_in(store_root: Path) -> Iterator[NamedVolume]:
    """Yield the volumes of a store, by name."""
    place = store_root / "volumes"
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(place)):
            if _NAME.fullmatch(name):
                yield NamedVolume(place / name)


def placed(bind: Bind, store_root: Path) -> Bind:
    """Return a bind whose source is the volume it names, which this process holds from now on.

    Or as it is.
    """
    if not bind.volume:
        return bind
    volume = NamedVolume.make(store_root, bind.volume)
    volume.hold()
    return bind._replace(source=str(volume.data))
