"""Files that say how to ask a registry, read again when they have changed: mounts outlive what they say."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from imgfs.errors import UsageError

log = logging.getLogger(__name__)

T = TypeVar("T")
Stamp = tuple[int, int, int]  # inode, modification in ns, size

_LOOK_AGAIN = 1.0  # seconds
_MAX_FILE = 4 << 20
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


class Reader:
    """Reads files and directories, and notes how they were, or that they were not there."""

    def __init__(self) -> None:
        self._noted: dict[Path, Stamp | None] = {}

    def stamp(self, path: Path) -> Stamp | None:
        """How a file or directory is now, None if it cannot be seen."""
        return self._noted.setdefault(path, _stamp(path))  # before it is read: what happens then is noticed

    def read(self, path: Path) -> bytes | None:
        """A whole file, at most 4 MiB, None if it is not there; raises UsageError naming it."""
        self.stamp(path)
        try:
            with open(path, "rb", opener=_open) as file:
                body = file.read(_MAX_FILE + 1) or b""
        except OSError as error:
            if error.errno in _MISSING:
                return None
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
        if len(body) > _MAX_FILE:
            raise UsageError(f"{path}: larger than {_MAX_FILE} bytes")
        return body

    def names(self, directory: Path) -> list[str]:
        """What is in a directory, sorted; nothing if it is not there, or not for this user to see."""
        self.stamp(directory)
        try:
            return sorted(os.listdir(directory))
        except OSError as error:
            if error.errno in (*_MISSING, errno.EACCES):
                return []
            raise UsageError(f"{directory}: cannot be read: {error.strerror}") from error

    def unchanged(self) -> bool:
        """Whether everything still is as it was noted."""
        return all(_stamp(path) == noted for path, noted in self._noted.items())


class Watched(Generic[T]):
    """What `load` makes of files, made again when one of them changes. Safe in threads.

    The files are looked at once a second at most. While they say the same, it is the same object.
    """

    def __init__(self, load: Callable[[Reader], T], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._load = load
        self._clock = clock
        self._lock = threading.Lock()
        self._reader = Reader()
        self._loaded: tuple[T] | None = None
        self._looked = 0.0

    def value(self) -> T:
        """What the files say. Raises UsageError if they never made sense.

        If they no longer do, it is what they said before, and the log says why, once for every change.
        """
        with self._lock:
            if self._loaded is None:
                self._reader = Reader()
                self._loaded = (self._load(self._reader),)
            elif self._clock() - self._looked < _LOOK_AGAIN:
                return self._loaded[0]
            elif not self._reader.unchanged():
                self._loaded = self._reloaded(self._loaded)
            self._looked = self._clock()
            return self._loaded[0]

    def _reloaded(self, before: tuple[T]) -> tuple[T]:
        self._reader = Reader()
        try:
            now = (self._load(self._reader),)
        except UsageError as error:
            log.warning("%s; what it said before still holds", error)
            return before
        return before if now == before else now


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # not to wait for a writer, should it be a FIFO


def _stamp(path: Path) -> Stamp | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: NUL in a name
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
