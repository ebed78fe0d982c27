"""Writing to files: all bytes or an error; and temporary files and directories that a living process holds.

Those left by killed processes are swept. The rule: the owner is alive as long as the file or directory is
locked (flock(2)); it is never looked up by its pid, which means nothing in another PID namespace. The lock is
on the file itself, whose name is random:

    make      create it, lock it, and check that its name still leads to it: else a sweep came in between,
              and it is made again under another name
    sweep     lock it without waiting: only the process that gets the lock removes it

A lock ends with the last descriptor of the open file, so a killed process holds nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import StoreError, describe
from imgfs.owned.opening import random_name

_MODE = 0o666  # of a file that a user has named: what is left of it by the umask
_TRIES = 100  # at making one that no sweep removes before it is locked
_PAGE = 4096  # bytes of a page of SQLite's
_OF_DISK = (10, 13)  # SQLITE_IOERR and SQLITE_FULL (sqlite.org/rescode.html)
_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT)  # of a file system without files that have no name
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANY = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@contextmanager
def os_errors(path: Path | str) -> Iterator[None]:
    """Raise StoreError, naming the file, where the block raises OSError; `path` if the error names none."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror or error}") from error


def explained(error: Exception, path: Path) -> str:
    """Return why the file at `path` cannot be written, for a person.

    SQLite says "disk I/O error" of a quota, of a limit for files, of a disk that has become read-only or has
    failed: so the disk is asked to take one more page, and says which.
    """
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _OF_DISK:
        try:
            _write_page_beside(path)
        except OSError as refused:
            if refused.errno not in _NAMELESS:
                return describe(refused)
    return describe(error)


def _write_page_beside(path: Path) -> None:
    """Write a page to a file without a name, where the one at `path` ends in its own. Raises OSError."""
    end = path.stat().st_size if path.exists() else 0
    fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, bytes(_PAGE), end)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, body: bytes | memoryview) -> None:
    """Write all of `body` at the descriptor's position: write(2) may write less. Raises OSError."""
    left = memoryview(body)
    while left:
        left = left[os.write(fd, left) :]


def pwrite_all(fd: int, body: bytes | memoryview, offset: int) -> None:
    """Write all of `body` at `offset`, likewise. Raises OSError."""
    left = memoryview(body)
    while left:
        count = os.pwrite(fd, left, offset)
        left, offset = left[count:], offset + count


def copy_range(source: int, offset: int, target: int, at: int, length: int) -> int:
    """Copy bytes between open files without reading them; return how many: fewer where `source` ends.

    By reference where the file system can (copy_file_range(2)). Raises OSError.
    """
    copied = 0
    while copied < length:
        count = os.copy_file_range(source, target, length - copied, offset + copied, at + copied)
        if count == 0:
            break
        copied += count
    return copied


def sync_directory(path: Path) -> None:
    """Get the names in a directory to the disk (fsync(2)). Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that have nothing to sync
            raise
    finally:
        os.close(fd)


class HeldPath(NamedTuple):
    """A new file or directory at `path`, held by the open `fd`: it may be renamed, and stays held."""

    path: Path
    fd: int

    def release(self) -> None:
        """Unlock it: from now on a sweep removes it, if it has its name still."""
        os.close(self.fd)

    def put_in_place(self, path: Path) -> None:
        """Have a complete file replace what is at `path`, on the disk, and release it. Raises OSError."""
        os.fchmod(self.fd, _MODE & ~_umask())
        os.fsync(self.fd)
        self.path.rename(path)
        sync_directory(path.parent)
        self.release()


def new_directory(parent: Path, prefix: str) -> HeldPath:
    """Make a directory, mode 0700, that a sweep of `prefix` leaves alone until released. Raises OSError."""

    def make(path: Path) -> int:
        path.mkdir(mode=0o700)
        return os.open(path, _DIRECTORY)

    return _make(parent, prefix, "", make)


def new_file(parent: Path, prefix: str, suffix: str = "") -> HeldPath:
    """Make an empty file, mode 0600, likewise. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return _make(parent, prefix, suffix, lambda path: os.open(path, flags, 0o600))


def _make(parent: Path, prefix: str, suffix: str, make: Callable[[Path], int]) -> HeldPath:
    for _ in range(_TRIES):
        path = parent / f"{random_name(prefix)}{suffix}"
        try:
            fd = make(path)
        except (FileNotFoundError, FileExistsError):  # swept before it was open
            pass
        except OSError as error:  # of the directory: a name that is made up says nothing
            raise OSError(error.errno, error.strerror, str(parent)) from error
        else:
            if try_lock(fd) and leads_to(path, fd):
                return HeldPath(path, fd)
            os.close(fd)
        if not parent.is_dir():
            break
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(parent))


def sweep(parent: Path, prefix: str, remove: Callable[[Path], None]) -> None:
    """Remove all files and directories in `parent` whose name begins with `prefix` and that no process holds.

    `remove` is called while the lock is held; what it fails to remove stays for the next sweep.
    """
    for left in parent.glob(f"{prefix}*"):
        with suppress(OSError):  # removed meanwhile, or another user's
            fd = os.open(left, _ANY)
            try:
                if try_lock(fd) and leads_to(left, fd):
                    remove(left)
            finally:
                os.close(fd)


def try_lock(fd: int) -> bool:
    """Lock an open file exclusively (flock(2)) until it is closed; False if it is locked already."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def leads_to(path: Path, fd: int) -> bool:
    """Return True if `path` is still a name of the open file `fd`."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(fd))
    return False


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it; /proc tells it otherwise."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o077
