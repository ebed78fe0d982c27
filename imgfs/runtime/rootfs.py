"""Paths inside a mounted image: symlinks are followed as a process chrooted to it would, never out of it.

No process of the image runs yet when these are used, so what has been looked at does not change.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from imgfs.owned.regular import open_regular

_LINKS = 40  # symlinks in one path, as many as the kernel follows
_LARGEST = 4 << 20  # bytes of a file that is read as a whole


@dataclass(frozen=True, slots=True)
class Rootfs:
    """The directory an image is mounted at."""

    top: Path

    def host_path(self, path: str) -> Path:
        """Where `path` of the image is on this side, itself no symlink; what is missing stays as it is.

        Raises OSError, ELOOP if its symlinks go in circles.
        """
        return self.top / self.resolve(path)[1:]

    def resolve(self, path: str, covered: Collection[str] = ()) -> str:
        """The same in the image, from its root; what is below a `covered` place stays as it is, too."""
        left, found, links = _parts(path), list[str](), 0
        while left:
            part = left.pop()
            if "/" + "/".join(found) in covered:
                found = [*found, part] if part != ".." else found[:-1]
                continue
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
        return "/" + "/".join(found)

    def read(self, path: str) -> bytes:
        """A small regular file, or nothing if there is no such file.

        Raises OSError, also for what is no regular file or a larger one.
        """
        try:
            with open_regular(self.host_path(path), follow=False) as file:
                body = file.read(_LARGEST + 1)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        if len(body) > _LARGEST:
            raise OSError(errno.EFBIG, f"it is larger than {_LARGEST >> 20} MiB", path)
        return body

    def mode(self, path: str) -> int | None:
        """The kind and permission bits of what is there, None if nothing is."""
        try:
            return os.lstat(self.host_path(path)).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None

    def make_directory(self, path: str, owner: tuple[int, int] | None) -> None:
        """Have a directory there; a new one belongs to `owner`, a uid and a gid, its new parents to root."""
        place = self.host_path(path)
        if place.is_dir():
            return
        place.mkdir(mode=0o755, parents=True)
        if owner:
            os.chown(place, *owner)

    def make_file(self, path: str) -> None:
        """Make an empty file there, and its parents, of root's."""
        place = self.host_path(path)
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))

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
