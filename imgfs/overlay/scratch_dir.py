"""Whose a scratch is, what it lies on, and who is at work on it: its directory, its description, its lock.

A scratch may be in any directory that is named, so nothing in it is trusted before it has been looked
at (`owned`): the directory is this user's or root's, and no other user may write to it; no symbolic link in
it is followed; lock and description are regular files with one name. What is written aside has a name that
cannot be foreseen.

The lock says in words what its holder does. After an unmount by umount(8) the daemon has work to do still:
the kernel does not wait for it (FUSE_DESTROY is waited for with block devices only, fs/fuse/inode.c). So it
says that it is `ENDING`, and who wants the scratch next waits for its end. Overlayfs takes no lock that
others see: whether it has an upper directory mounted is looked up in mountinfo (proc(5)).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import ImgfsError, StoreError, is_full
from imgfs.oci.descriptor import Digest
from imgfs.overlay.ctimes import LARGEST, ShownCtimes
from imgfs.owned.inheritance import LockInheritance
from imgfs.owned.opening import (
    check_owned,
    open_owned_directory,
    open_owned_file,
    random_name,
    read_owned_file,
)
from imgfs.owned.writing import leads_to

log = logging.getLogger(__name__)

DESCRIPTION, LOCK, CTIMES = "scratch.json", "lock", "ctimes"
ENDING = "being completed after its unmounting"
ASIDE = ".scratch.json-"  # begins the name of a description that is being written
_PAUSE = 0.02  # seconds between looks at a lock
_BRIEFLY = 0.1  # seconds that a process which only looks may hold a lock
_UNSEEN = 3.0  # seconds for a daemon whose mount is not seen to say that it is ending,
_ENDING = 600.0  # and for one that is, which may have files to complete, to have ended
_MOUNTED = re.compile(r"mounted at (.*) \(pid \d+\)$", re.DOTALL)  # what a daemon says
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class ScratchBase(NamedTuple):
    """What a scratch lies on: the image `digest` (a manifest's), its first `layers` layers."""

    reference: str
    digest: str
    layers: int


def open_scratch_directory(directory: Path) -> int:
    """Return a scratch's directory, open, if it is this user's own alone; raises StoreError."""
    fd = open_owned_directory(directory)
    try:
        found = os.fstat(fd)
        check_owned(directory, _unsticky(found))
        for name in ("upper", "work"):
            _check_no_link(directory, name, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _unsticky(found: os.stat_result) -> os.stat_result:
    """Drop the sticky bit of a status: where others make files, they could make `upper` first."""
    return os.stat_result((found.st_mode & ~stat.S_ISVTX, *found[1:]))


def _check_no_link(directory: Path, name: str, fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            raise StoreError(f"{directory / name}: a symbolic link, which is not followed")


def read_base(directory: Path) -> ScratchBase | None:
    """Return what a scratch lies on, if imgfs has ever mounted it; raises StoreError."""
    path = directory / DESCRIPTION
    if not directory.exists():
        return None
    fd = open_scratch_directory(directory)
    try:
        fields = json.loads(read_owned_file(path, directory=fd))
        return ScratchBase(
            str(fields["reference"]), str(Digest.parse(fields["digest"])), int(fields["layers"])
        )
    except FileNotFoundError:
        return None
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, ImgfsError, RecursionError) as error:
        raise StoreError(f"{path}: damaged; remove it to take the scratch up anew") from error
    finally:
        os.close(fd)


def write_base(directory: Path, fd: int, base: ScratchBase) -> None:
    """Write down what a scratch lies on, if that is not there; `fd` is its directory. Raises OSError.

    On a full disk a description of the same image by another name stays: the scratch can be emptied then.
    """
    found = read_base(directory)
    if found == base:
        return
    aside = random_name(ASIDE)
    try:
        with open(_new_file(aside, fd), "wb") as file:
            file.write(json.dumps(base._asdict()).encode())
        os.rename(aside, DESCRIPTION, src_dir_fd=fd, dst_dir_fd=fd)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside, dir_fd=fd)
        is_same = found and (found.digest, found.layers) == (base.digest, base.layers)
        if not is_same or not is_full(error):
            raise
        log.info("%s stays as it is: %s", directory / DESCRIPTION, error.strerror)


def read_ctimes(directory: Path, fd: int) -> ShownCtimes:
    """Return the times of change that the last mount of a scratch has shown; `fd` is its directory."""
    try:
        return ShownCtimes.load(read_owned_file(directory / CTIMES, directory=fd, largest=LARGEST))
    except (FileNotFoundError, StoreError):
        return ShownCtimes()


def write_ctimes(fd: int, ctimes: ShownCtimes) -> None:
    """Keep them for the next; not on a full disk."""
    aside = random_name(ASIDE)
    with contextlib.suppress(OSError):
        try:
            with open(_new_file(aside, fd), "wb") as file:
                file.write(ctimes.dump())
            os.rename(aside, CTIMES, src_dir_fd=fd, dst_dir_fd=fd)
        except OSError:
            os.unlink(aside, dir_fd=fd)


def _new_file(name: str, fd: int) -> int:
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=fd)


class Lock:
    """A scratch's lock, open: the file `lock` in its directory `fd`. Raises StoreError."""

    def __init__(self, directory: Path, fd: int, inheritance: LockInheritance | None = None) -> None:
        self._path = directory / LOCK
        self._directory = fd
        self._inheritance = inheritance
        if inheritance and inheritance.fd >= 0:
            self._fd = inheritance.fd
            return
        self._open()

    def _open(self) -> None:
        try:
            self._fd = open_owned_file(self._path, os.O_RDWR | os.O_CREAT, directory=self._directory)
        except FileNotFoundError as error:
            raise StoreError(f"{self._path.parent}: the scratch has been removed meanwhile") from error
        if self._inheritance:
            self._inheritance.fd = self._fd

    def take(self, is_seen: Callable[[str], bool]) -> str | None:
        """Take the lock; return what its holder says if another process keeps it.

        `is_seen` tells of what a holder says whether it is at work where this process can see that.
        """
        began = time.monotonic()
        while not self._try():
            waited, said = time.monotonic() - began, self._use()
            patience = _BRIEFLY if is_seen(said) else _UNSEEN
            if waited > (_ENDING if said.startswith(ENDING) else patience):
                return said or "by another process"
            time.sleep(_PAUSE)
        return None

    def set_use(self, use: str) -> None:
        """Tell what it is held for: not on a disk that is full, or has become read-only, or has failed."""
        said = use.encode(errors="replace")
        try:
            os.pwrite(self._fd, said, 0)
            os.ftruncate(self._fd, len(said))
        except OSError as error:
            log.info("%s does not say what it is held for: %s", self._path, error.strerror)

    def close(self) -> None:
        """Let go of it: the driver that is tried next opens its own."""
        os.close(self._fd)
        if self._inheritance:
            self._inheritance.fd = -1

    def _try(self) -> bool:
        """Lock the file that has the lock's name: its holder before may have removed the one that is open."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if leads_to(self._path, self._fd):
            return True
        self.close()
        self._open()
        return False

    def _use(self) -> str:
        return os.pread(self._fd, 4096, 0).decode(errors="replace")


def holder_of(directory: Path) -> str | None:
    """Return what a scratch is used for right now, if it is."""
    try:
        fd = open_owned_file(directory / LOCK, os.O_RDONLY)
    except (FileNotFoundError, StoreError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 4096, 0).decode(errors="replace")
    finally:
        os.close(fd)
    return None


@contextlib.contextmanager
def opened_scratch_directory(directory: Path) -> Iterator[int]:
    """Open a scratch's directory for a block, as `open_scratch_directory` does, and close it."""
    fd = open_scratch_directory(directory)
    try:
        yield fd
    finally:
        os.close(fd)


def overlayfs_over(upper: Path) -> str | None:
    """Return where overlayfs is mounted over `upper`, if it is and this process sees it."""
    wanted = b"upperdir=" + os.fsencode(os.path.realpath(upper))
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            fields = line.split()
            if b"overlay" in fields and wanted in map(_unescaped, fields[-1].split(b",")):
                return os.fsdecode(_unescaped(fields[4]))
    return None


def is_at_work(said: str) -> bool:
    """Return whether the holder of a scratch's lock is at work: its mount is seen, or it says it has none."""
    mount = _MOUNTED.match(said)
    return mount is None or _is_mounted_at(os.fsencode(mount[1]))


def _is_mounted_at(path: bytes) -> bool:
    with open("/proc/self/mountinfo", "rb") as lines:
        return any(_unescaped(line.split()[4]) == path for line in lines)


def _unescaped(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda octal: bytes((int(octal[1], 8),)), field)
