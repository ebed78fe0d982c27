"""What happens before the Nth change to a disk; in a process of its own, as audit hooks stay for ever."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from imgfs.overlay.node import At
from imgfs.overlay.upper import Upper

CHANGING = {
    "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.removexattr", "os.rename", "os.rmdir",
    "os.setxattr", "os.symlink", "os.truncate", "os.utime",
}  # fmt: skip
NEEDING_ROOM = {"os.link", "os.mkdir", "os.rename", "os.setxattr", "os.symlink"}  # what a full disk refuses


class Fuse:
    """Does something before the Nth change since it was lit; `renameat2` and `mknod` are not audited."""

    def __init__(self, steps: int, events: set[str], blow: Callable[[], None]) -> None:
        self.left = 0
        self._events = events
        self._steps = steps
        self._blow = blow
        sys.addaudithook(self._hear)

    def light(self) -> None:
        self.left = self._steps

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            self._blow()

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in self._events or (event == "open" and _creates(arguments)):
            self.burn()


def _creates(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & os.O_CREAT)


class FusedUpper(Upper):
    """An upper directory whose changes that Python does not audit burn a fuse, too."""

    fuse: Fuse

    def rename(self, source: At, target: At, flags: int = 0) -> None:
        self.fuse.burn()
        super().rename(source, target, flags)

    def whiteout(self, at: At) -> None:
        self.fuse.burn()
        super().whiteout(at)
