"""Atomic writes (a temporary file, synced, renamed), locks by flock(2), and disk errors as StoreError."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imgfs.errors import StoreError
from imgfs.owned.opening import open_owned_file
from imgfs.owned.writing import explained, new_file, os_errors, sweep, try_lock

TEMPORARY = ".new-"  # prefix of the names of temporary files


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, synced and renamed to it if the block succeeds, else removed.

    It is an empty file, locked by this process (`owned`): the block fills it, and does not replace it.
    Temporary files that killed processes have left there are removed first.
    """
    with store_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep_temporaries(path.parent)
        held = new_file(path.parent, TEMPORARY, f"-{path.name}"[:200])
        try:
            with _sqlite_errors(path, held.path):  # while it takes the room still that was too little
                yield held.path
            _sync(held.path)
            held.path.rename(path)
        except BaseException as error:
            held.path.unlink(missing_ok=True)
            if isinstance(error, OSError) and str(error.filename) == str(held.path):  # whose name is made up
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise
        finally:
            held.release()


def sweep_temporaries(directory: Path) -> None:
    """Remove the temporary files in a directory that no process holds any more."""
    sweep(directory, TEMPORARY, Path.unlink)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(path: Path, mode: int, on_wait: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold a lock on `path`, `fcntl.LOCK_EX` or `LOCK_SH`; `on_wait` is called before it is waited for.

    Yields its descriptor: it is held for as long as any process has that open (flock(2)).
    """
    with store_errors(path):
        fd = open_owned_file(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(fd, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(fd, mode)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock on `path` if no other process does; yields whether it is held."""
    with store_errors(path):
        fd = open_owned_file(path, os.O_RDWR | os.O_CREAT)
    try:
        yield try_lock(fd)
    finally:
        os.close(fd)


def is_held(path: Path) -> bool:
    """Return True if any process holds a lock on `path`. Raises StoreError."""
    try:
        fd = open_owned_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Raise StoreError where the block raises OSError, or sqlite3.Error: SQLite's when the disk is full."""
    with os_errors(path), _sqlite_errors(path, path):
        yield


@contextmanager
def _sqlite_errors(path: Path, file: Path) -> Iterator[None]:
    """Raise StoreError, naming `path`, where the block raises sqlite3.Error when it writes to `file`."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {explained(error, file)}") from error


def disk_usage(paths: Iterable[Path]) -> int:
    """Return the bytes of disk that those of the files take that exist; a pinned file counts once."""
    return sum({stat.st_ino: stat.st_blocks * 512 for stat in stat_existing(paths)}.values())


def stat_existing(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    """Yield the stat results of those of the files that exist."""
    for path in paths:
        with suppress(FileNotFoundError):  # removed meanwhile
            yield path.stat()


def boot_id() -> bytes:
    """Return 16 bytes that change with every boot; random ones if the kernel does not tell."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        return bytes.fromhex(text.strip().replace("-", ""))
    except (OSError, ValueError):
        return os.urandom(16)
