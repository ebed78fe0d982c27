"""Paths inside a mounted image: symlinks are followed as a process chrooted to it would, never out of it.

Nothing of the image runs yet when these are used, so nobody changes what has been looked at.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

_LINKS = 40  # symlinks in one path, as many as the kernel follows
_LARGEST = 4 << 20  # bytes of a file that is read as a whole


@dataclass(frozen=True, slots=True)
class Rootfs:
    """The directory an image is mounted at."""

    top: Path

    def resolve(self, path: str) -> Path:
        """Where `path` of the image is on this side, itself no symlink; what is missing stays as it is.

        Raises OSError, ELOOP if its symlinks go in circles.
        """
        left, found, links = _parts(path), list[str](), 0
        while left:
            part = left.pop()
            if part == "..":
                del found[-1:]
                continue
            target = self._link([*found, part])
            if target is None:
                found.append(part)
                continue
            links += 1
            if links > _LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            found = [] if target.startswith("/") else found
            left += _parts(target)
        return self.top.joinpath(*found)

    def read(self, path: str) -> bytes:
        """A small regular file, or nothing if there is no such file; raises OSError."""
        try:
            fd = os.open(self.resolve(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        with open(fd, "rb") as file:
            return file.read(_LARGEST) if stat.S_ISREG(os.fstat(fd).st_mode) else b""

    def mode(self, path: str) -> int | None:
        """The kind and permission bits of what is there, None if nothing is."""
        try:
            return os.lstat(self.resolve(path)).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None

    def make_directory(self, path: str, owner: tuple[int, int] | None) -> None:
        """Have a directory there; a new one belongs to `owner`, a uid and a gid, its new parents to root."""
        place = self.resolve(path)
        if place.is_dir():
            return
        place.mkdir(mode=0o755, parents=True)
        if owner:
            os.chown(place, *owner)

    def _link(self, parts: list[str]) -> str | None:
        try:
            return os.readlink(self.top.joinpath(*parts))
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return None
            raise


def _parts(path: str) -> list[str]:
    """The names in a path, the first last."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]
