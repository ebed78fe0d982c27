"""Opening a directory or a file that could be another user's, or of another kind.

The rule: what this process opens, locks, reads as its own or writes to belongs to this user or to root, has
the kind that it should have, and cannot be put in its place by another user. It is looked at once it is open
(fstat(2)), so nothing can be exchanged in between, and no symbolic link is followed but the user's own.

    a directory   owned by this user or root; others may write to it only if it is sticky, where they can
                  neither rename nor remove what is not theirs (unlink(2), EPERM); members of a group may
                  write to it only if that is this user's own one, as a umask of 002 has it
    a file        owned likewise, and regular, with one name only: another name may be that of a file
                  elsewhere, which is not meant (link(2))
    a link        followed only as the last part of a directory's path, and only if this user or root made it

Directories further up are the choice of the user who named the path. So is the owner of a file that is only
read (`open_regular`), of any kind until it is looked at: no call waits, no device is touched, and no
descriptor is left open.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from imgfs.errors import StoreError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS = 8  # that are followed, one after another
_LARGEST = 1 << 20  # bytes of a file that is read whole
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a symbolic link",
}


def open_owned_directory(path: Path, *, make: bool = False) -> int:
    """Open a directory of this user's own, by the rule above; `make` it, mode 0700, if it is not there.

    Raises StoreError, also if it is not there.
    """
    try:
        if make:
            _make(path)
        fd = _open_directory(path, _LINKS)
    except OSError as error:
        raise StoreError(f"{path}: {_reason(error)}") from error
    try:
        check_owned(path, os.fstat(fd))
    except StoreError:
        os.close(fd)
        raise
    return fd


def open_owned_file(path: Path, flags: int, *, names: int | None = 1, directory: int | None = None) -> int:
    """Open a regular file of this user's own, by the rule above; made with mode 0600. `flags` as of open(2).

    It may have any number of names if `names` is None. `directory` is that of the file, if it is open: then
    the path serves only for messages. Raises StoreError, FileNotFoundError where it is not to be made.
    """
    name = path if directory is None else path.name
    try:  # no O_TRUNC before the owner is checked; O_NONBLOCK: do not wait for a FIFO
        kept = flags & ~os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        fd = os.open(name, kept, 0o600, dir_fd=directory)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: {_reason(error)}") from error
    try:
        check_owned(path, os.fstat(fd), is_directory=False, names=names)
        os.set_blocking(fd, True)
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
    except OSError as error:
        os.close(fd)
        raise StoreError(f"{path}: {_reason(error)}") from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_owned_file(
    path: Path, *, names: int | None = 1, directory: int | None = None, largest: int = _LARGEST
) -> bytes:
    """Read a file of this user's own. Raises FileNotFoundError, and StoreError if it is too large."""
    with open(open_owned_file(path, os.O_RDONLY, names=names, directory=directory), "rb") as file:
        try:
            body = file.read(largest + 1)
        except OSError as error:
            raise StoreError(f"{path}: {_reason(error)}") from error
    if len(body) > largest:
        raise StoreError(f"{path}: larger than {largest} bytes")
    return body


def follow_own_links(path: Path) -> Path:
    """Return the path that a path of symbolic links leads to, in the end, all of them this user's or root's.

    What is there is no link, or nothing. Raises StoreError for another user's link, and for too many of them.
    """
    try:
        for _ in range(_LINKS):
            if not path.is_symlink():
                return path
            path = path.parent / _own_link(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from error
    raise StoreError(f"{path}: too many symbolic links")


def check_owned(
    path: Path, found: os.stat_result, *, is_directory: bool = True, names: int | None = None
) -> None:
    """Raise StoreError unless an open file or directory is this user's own, by the rule above."""
    if found.st_uid not in (os.geteuid(), 0):
        raise StoreError(
            f"{path}: belongs to uid {found.st_uid}, not to you (uid {os.geteuid()}): "
            "run this as that user, or name another place"
        )
    if is_directory:
        if not stat.S_ISDIR(found.st_mode):
            raise StoreError(f"{path}: not a directory")
        _check_writers(path, found)
    elif not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{path}: not a regular file")
    elif names is not None and found.st_nlink > names:
        raise StoreError(f"{path}: a file with other names ({found.st_nlink} links): remove it")


def random_name(prefix: str) -> str:
    """Return an unpredictable name: 64 random bits after the prefix. Create it with O_EXCL."""
    return f"{prefix}{os.urandom(8).hex()}"


def _check_writers(path: Path, found: os.stat_result) -> None:
    foreign_group = found.st_mode & stat.S_IWGRP and found.st_gid != os.getegid()
    if (found.st_mode & stat.S_IWOTH or foreign_group) and not found.st_mode & stat.S_ISVTX:
        raise StoreError(
            f"{path}: other users may write to it: take that from them (chmod go-w), or name another place"
        )


def _make(path: Path) -> None:
    with contextlib.suppress(FileExistsError):  # what is in the way is refused by its kind when it is opened
        path.mkdir(mode=0o700, parents=True)


def _open_directory(path: Path, links: int) -> int:
    """Open a directory, through links that this user or root has made."""
    try:
        return os.open(path, _DIRECTORY)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR) or not path.is_symlink():
            raise
    target = _own_link(path)
    if not links:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return _open_directory(path.parent / target, links - 1)


def _own_link(path: Path) -> str:
    """Return the target of a symbolic link. Raises OSError if it is another user's."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        owner = os.fstat(fd).st_uid
        if owner not in (os.geteuid(), 0):
            raise PermissionError(errno.EPERM, f"a symbolic link of uid {owner}'s, which is not followed")
        return os.readlink("", dir_fd=fd)
    finally:
        os.close(fd)


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "a symbolic link, which is not followed"
    return error.strerror or str(error)


class NotRegular(OSError):
    """The path is not a regular file; `strerror` says what it is."""


def open_regular(path: Path, *, follow: bool = True) -> BufferedReader:
    """Open a regular file for reading, through a last symbolic link if `follow`.

    Raises OSError, NotRegular for other kinds.
    """
    _check(path, os.stat(path, follow_symlinks=follow))  # not opened at all: a device may act on that
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags)
    try:
        _check(path, os.fstat(fd))  # it may be another one by now
        os.set_blocking(fd, True)
        return open(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def kind(mode: int) -> str:
    """Return the kind of a file of this mode, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "a regular file")


def _check(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
        raise NotRegular(number, f"it is {kind(found.st_mode)}, not a regular file", str(path))
