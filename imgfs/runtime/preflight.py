"""Is a container's command there? imgfs says so in one line before a runtime fails in its own words."""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from imgfs.errors import MountError
from imgfs.runtime.request import ContainerRequest
from imgfs.runtime.rootfs import Rootfs

# What podman and docker end with when no command of the container's has (docker-run(1), "Exit Status").
NOT_EXECUTABLE, NOT_FOUND = 126, 127
_AFTER_INIT = 2  # words: the init, and --


class Refused(MountError):
    """A container that cannot be started; `code` is what podman ends with then."""

    def __init__(self, message: str, code: int = NOT_EXECUTABLE) -> None:
        super().__init__(message)
        self.code = code


def check_command(rootfs: Rootfs, config: Mapping[str, Any], request: ContainerRequest) -> None:
    """Raise Refused if the command of a config.json cannot be run.

    With something mounted over the image, that is not known before it is.
    """
    if request.binds or request.tmpfs:
        return
    command = config["process"]["args"][_AFTER_INIT if request.init else 0]
    modes = [rootfs.mode(path) for path in _places(command, config)]
    found = [mode for mode in modes if mode is not None]
    if any(stat.S_ISREG(mode) and mode & 0o111 for mode in found):
        return
    if not found or "/" not in command:
        raise Refused(f"there is no command {command!r} in the image", NOT_FOUND)
    what = "is a directory" if stat.S_ISDIR(found[0]) else "is not executable"
    raise Refused(f"the command {command!r} {what}")


def _places(command: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Where the command is looked for (execvp(3))."""
    cwd = config["process"]["cwd"]
    if "/" in command:
        yield posixpath.join(cwd, command)
        return
    path = next((text for text in config["process"]["env"] if text.startswith("PATH=")), "PATH=")
    for directory in path.removeprefix("PATH=").split(":"):
        yield posixpath.join(cwd, directory, command)
