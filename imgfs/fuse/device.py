"""The open /dev/fuse of a mount: libfuse mounts and unmounts; imgfs reads and writes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from imgfs.errors import MountError

_OPEN = "/proc/self/fd"


def device_of(mount: Callable[[], None]) -> int:
    """Return the descriptor of /dev/fuse that `mount` opens. Raises MountError if it opens none."""
    before = _devices()
    mount()
    opened = _devices() - before
    if not opened:
        raise MountError("libfuse has mounted, but has not opened /dev/fuse")
    return opened.pop()


def _devices() -> set[int]:
    found = set()
    for name in os.listdir(_OPEN):
        with suppress(FileNotFoundError):  # the directory's own
            if os.readlink(f"{_OPEN}/{name}") == "/dev/fuse":
                found.add(int(name))
    return found
