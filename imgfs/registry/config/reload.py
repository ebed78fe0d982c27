"""Files that say how to ask a registry, read again when they have changed: mounts outlive what they say.

Reading the fields of a TOML file strictly: the right type, or UsageError with the file and the key.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, NamedTuple, NoReturn, TypeVar

from imgfs.errors import UsageError


class Table(NamedTuple):
    """A table of the file `path`; `at` is its own key with a dot, "" for the file's root."""

    path: Path
    at: str
    fields: dict[str, object]

    @classmethod
    def parse(cls, path: Path, body: bytes) -> Table:
        """Return a whole file; raises UsageError if it is not UTF-8, not TOML or nested too deep."""
        try:
            return cls(path, "", tomllib.loads(body.decode()))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}: not TOML: {' '.join(str(error).split())[:200]}") from error

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise UsageError about the field `name`."""
        key = f"{self.at}{name}"[:200]
        raise UsageError(f"{self.path}: {key if key.isprintable() else repr(key)}: {why}")

    def text(self, name: str, default: str = "") -> str:
        """Return a string."""
        value = self.fields.get(name, default)
        if not isinstance(value, str) or not value.isprintable():
            self.refuse(name, "expected a string without control characters")
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean, false if absent."""
        value = self.fields.get(name, False)
        if not isinstance(value, bool):
            self.refuse(name, "expected true or false")
        return value

    def values(self, name: str) -> list[object]:
        """Return an array, empty if absent."""
        value = self.fields.get(name, [])
        if not isinstance(value, list):
            self.refuse(name, "expected an array")
        return value

    def texts(self, name: str) -> list[str]:
        """Return an array of strings, empty if absent."""
        values = self.values(name)
        texts = [value for value in values if isinstance(value, str) and value.isprintable()]
        if len(texts) < len(values):
            self.refuse(name, "expected strings without control characters")
        return texts

    def table(self, name: str) -> Table:
        """Return a table, empty if absent."""
        return self._below(name, self.fields.get(name, {}))

    def tables(self, name: str) -> Iterator[Table]:
        """Yield an array of tables, empty if absent."""
        for number, value in enumerate(self.values(name)):
            yield self._below(f"{name}[{number}]", value)

    def _below(self, name: str, value: object) -> Table:
        if not isinstance(value, dict):
            self.refuse(name, "expected a table")
        return Table(self.path, f"{self.at}{name}.", value)


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
        """Return how a file or directory is now, None if it cannot be seen."""
        return self._noted.setdefault(path, _stamp(path))  # before it is read: what happens then is noticed

    def read(self, path: Path) -> bytes | None:
        """Return a whole file, at most 4 MiB, None if it is not there; raises UsageError naming it."""
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
        """Return what is in a directory, sorted; nothing if it is not there, or not for this user to see."""
        self.stamp(directory)
        try:
            return sorted(os.listdir(directory))
        except OSError as error:
            if error.errno in (*_MISSING, errno.EACCES):
                return []
            raise UsageError(f"{directory}: cannot be read: {error.strerror}") from error

    def unchanged(self) -> bool:
        """Return whether everything still is as it was noted."""
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
        """Return what the files say. Raises UsageError if they never made sense.

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
