"""Checks before a mount: the directory, /dev/fuse, fusermount3, the user's account.

The rule: the image is mounted on the directory that was checked. Its path may lead elsewhere by then, if
another user owns a directory above it: so it is compared by device and inode, and what is mounted on is the
open directory, not the path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import MountError
from imgfs.mounts.table import Mount, mount_at

_MTAB = "/etc/mtab"  # fusermount3 reads whose a mount is in it before it unmounts (util/fusermount.c)
_held: list[int] = []  # directories that are to be mounted on


class DirectoryId(NamedTuple):
    """A directory, as long as it is open anywhere: its device and inode number."""

    device: int
    inode: int


@contextmanager
def checked_mountpoint(path: Path, *, nonempty: bool) -> Iterator[DirectoryId]:
    """Check what `check_mountable` does, and hold the directory open until it is mounted on.

    Processes that are forked meanwhile do not hold it.
    """
    fd = _open(path)
    _held.append(fd)
    try:
        _check_directory(path, fd, nonempty)
        _check_machine()
        yield _id(fd)
    finally:
        if fd in _held:
            _held.remove(fd)
            os.close(fd)


def _let_go() -> None:
    """Close what is held, in a forked process: a daemon would keep the file system below its mount busy."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


def check_mountable(mountpoint: Path, *, nonempty: bool) -> None:
    """Raise MountError, saying what to do, if `mountpoint` cannot be mounted on."""
    with checked_mountpoint(mountpoint, nonempty=nonempty):
        pass


def open_mountpoint(path: Path, checked: DirectoryId | None) -> int:
    """Open the directory to mount on (O_PATH). Raises MountError if it is not the one that was `checked`."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}") from error
    if checked and _id(fd) != checked:
        os.close(fd)
        raise MountError(f"{path}: leads to another directory than a moment ago: nothing is mounted")
    return fd


def _id(fd: int) -> DirectoryId:
    found = os.fstat(fd)
    return DirectoryId(found.st_dev, found.st_ino)


def _check_machine() -> None:
    if not os.path.exists("/dev/fuse"):
        raise MountError(
            "/dev/fuse is missing: load the kernel's fuse module (modprobe fuse), or give this container the "
            "device (--device /dev/fuse)"
        )
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountError(
            "/dev/fuse: you may not open it: as root, chmod 0666 /dev/fuse, as distributions have it"
        )
    if os.geteuid():
        _check_fusermount()
        _check_account(os.geteuid())


def _check_fusermount() -> None:
    """Raise MountError if fusermount3, which mounts for users but root, or what it needs is not there."""
    import shutil

    if shutil.which("fusermount3") is None:
        raise MountError("fusermount3 is not installed (Debian: apt install fuse3)")
    if not os.path.exists(_MTAB):
        todo = f"as root, ln -s /proc/self/mounts {_MTAB}"
        raise MountError(f"there is no {_MTAB}, without which fusermount3 unmounts nothing: {todo}")


def _check_account(uid: int) -> None:
    """Raise MountError if the user has no name, which fusermount3 looks up."""
    import pwd

    try:
        pwd.getpwuid(uid)
    except KeyError as error:
        raise MountError(
            f"uid {uid} has no entry in /etc/passwd, without which fusermount3 mounts nothing"
        ) from error


def _open(path: Path) -> int:
    """Open a directory that nothing is in the way of. Raises MountError."""
    mounted = mount_at(path)
    if mounted and (
        mounted.is_imgfs or mounted.filesystem.startswith("fuse")
    ):  # may be dead: do not touch it
        raise MountError(f"{path}: {mounted.name} is mounted here already{_what_to_do(mounted)}")
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MountError(f"{path}: no such directory: create it first (mkdir {path})") from error
    except NotADirectoryError as error:
        raise MountError(f"{path}: not a directory") from error
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}") from error


def _check_directory(path: Path, fd: int, nonempty: bool) -> None:
    """Raise MountError if an open directory must not be covered by this user."""
    try:
        names = os.listdir(fd)
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}") from error
    if names and not nonempty:
        raise MountError(f"{path}: not empty: what is in it would be hidden (-o nonempty to do it)")
    if os.geteuid() and not os.access(path, os.W_OK):
        raise MountError(f"{path}: you may not write to it, so you may not mount on it")


def _what_to_do(mounted: Mount) -> str:
    """Return what to do about a mount that is in the way; its daemon may be dead, or not answer."""
    if mounted.is_imgfs:
        from imgfs.mounts.status_client import DaemonDead, DaemonSilent, read_status

        try:
            read_status(mounted)
        except DaemonSilent as error:
            return f", and {error.why}"
        except DaemonDead:
            return f", and its daemon has died: imgfs umount {mounted.mountpoint}"
        except MountError:
            pass
    return f" (imgfs umount {mounted.mountpoint})"
