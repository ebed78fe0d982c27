"""Paths inside a mounted image: symlinks are followed as a process chrooted to it would, never out of it.

No process of the image runs yet when these are used, so what has been looked at does not change. Whether a
container's command is there, imgfs says in one line before a runtime fails in its own words.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imgfs.errors import MountError
from imgfs.owned.opening import open_regular
from imgfs.runtime.request import ContainerRequest

if TYPE_CHECKING:
    from imgfs.runtime.spec import RuntimeConfig

_LINKS = 40  # symlinks in one path, as many as the kernel follows
_LARGEST = 4 << 20  # bytes of a file that is read as a whole
# What podman and docker end with when no command of the container's has (docker-run(1), "Exit Status").
NOT_EXECUTABLE, NOT_FOUND = 126, 127
_AFTER_INIT = 2  # words: the init, and --


class Rootfs(NamedTuple):
    """The directory an image is mounted at."""

    top: Path

    def host_path(self, path: str) -> Path:
        """Return where `path` of the image is on this side, itself no symlink.

        What is missing stays as it is.

        Raises OSError, ELOOP if its symlinks go in circles.
        """
        return self.top / self.resolve(path)[1:]

    def resolve(self, path: str, covered: Collection[str] = ()) -> str:
        """Return `path` in the image without symlinks; what is missing, or below a `covered` place, stays."""
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
        """Return a small regular file, or nothing if there is no such file.

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
        """Return the kind and permission bits of what is there, None if nothing is."""
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
    """Return the names in a path, the first last."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


class Refused(MountError):
    """A container that cannot be started; `code` is what podman ends with then."""

    def __init__(self, message: str, code: int = NOT_EXECUTABLE) -> None:
        super().__init__(message)
        self.code = code


def check_command(
    rootfs: Rootfs, config: RuntimeConfig, request: ContainerRequest, *, is_covered: bool = False
) -> None:
    """Raise Refused if the command of a config.json cannot be run.

    With something mounted over the image, that is not known before it is. `is_covered`: something is that the
    request does not name.
    """
    if request.binds or request.tmpfs or is_covered:
        return
    command = config["process"]["args"][_AFTER_INIT if request.init else 0]
    modes = [
        rootfs.mode(path)
        for path in command_places(command, config["process"]["cwd"], config["process"]["env"])
    ]
    check_modes(command, modes, "image")


def check_modes(command: str, modes: Sequence[int | None], where: str) -> None:
    """Raise Refused if a command cannot be run: `modes` are those of its `command_places`, None: no file."""
    found = [mode for mode in modes if mode is not None]
    if any(stat.S_ISREG(mode) and mode & 0o111 for mode in found):
        return
    if not found or "/" not in command:
        raise Refused(f"there is no command {command!r} in the {where}", NOT_FOUND)
    what = "is a directory" if stat.S_ISDIR(found[0]) else "is not executable"
    raise Refused(f"the command {command!r} {what}")


def command_places(command: str, cwd: str, env: Sequence[str]) -> Iterator[str]:
    """Yield where a command is looked for (execvp(3))."""
    if "/" in command:
        yield posixpath.join(cwd, command)
        return
    path = next((text for text in env if text.startswith("PATH=")), "PATH=")
    for directory in path.removeprefix("PATH=").split(":"):
        yield posixpath.join(cwd, directory, command)
