"""Directory trees of any depth, where a path may be too long for the kernel and recursion for Python."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from imgfs.errors import StoreError, is_full
from imgfs.owned.opening import random_name
from imgfs.owned.writing import os_errors

_BLOCK = 512  # bytes: the unit of st_blocks (stat(2))
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
Spare = Callable[[], tuple[int, bytes]]
"""Gives (directory, name) of places on the same file system where nothing is yet."""
REMOVED = ".removed-"  # begins the names of what is on its way out


def walk(directory: int) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (descriptor, names of all that is no directory) of a directory and all below it, parents first.

    A descriptor is good until the next one comes: one is open, however deep the tree is. A directory that
    vanishes meanwhile is left out. Raises OSError, ESTALE if one was moved away while this was in it.
    """
    fd = os.open(b"/proc/self/fd/%d" % directory, _DIRECTORY & ~os.O_NOFOLLOW)
    above: list[tuple[os.stat_result, list[bytes]]] = []  # what each is, and the directories it has still
    try:
        names, ahead = _contents(fd)
        yield fd, names
        while ahead or above:
            status = os.fstat(fd)
            if ahead:
                try:
                    fd = _go(fd, ahead.pop())
                except (FileNotFoundError, NotADirectoryError):
                    continue
                above.append((status, ahead))
                names, ahead = _contents(fd)
                yield fd, names
                continue
            fd = _go(fd, b"..")
            status, ahead = above.pop()
            if not os.path.samestat(os.fstat(fd), status):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    finally:
        os.close(fd)


def _go(fd: int, name: bytes) -> int:
    """Open `name`, a directory in the open directory `fd` or its parent (`..`), and close `fd`."""
    there = os.open(name, _DIRECTORY, dir_fd=fd)
    os.close(fd)
    return there


def disk_usage(directory: Path) -> tuple[int, int]:
    """Return what a directory and everything in it take: bytes of disk, and inodes. Raises StoreError.

    A file with several names counts once. A program may change it meanwhile: what vanishes is left out, and
    the rest is, too, where the directory moves that is being looked at.
    """
    blocks: dict[tuple[int, int], int] = {}
    with os_errors(directory), opened_directory(directory) as fd:
        for found in () if fd is None else _statuses(fd):
            blocks[found.st_dev, found.st_ino] = found.st_blocks
    return sum(blocks.values()) * _BLOCK, len(blocks)


def _statuses(top: int) -> Iterator[os.stat_result]:
    try:
        for directory, names in walk(top):
            yield os.fstat(directory)
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    yield os.lstat(name, dir_fd=directory)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise


def remove(directory: int, name: bytes, spare: Spare) -> None:
    """Remove a file, or a directory with all below it, if it is there; raises OSError.

    Directories in it are moved to spare places first, so that neither depth nor modes matter.
    """
    ahead = [(directory, name)]
    while ahead:
        place = ahead.pop()
        if not _unlink(*place) and not _rmdir(*place):
            _empty(*place, spare, ahead)
            os.rmdir(place[1], dir_fd=place[0])


def spares(directory: int, prefix: bytes) -> Spare:
    """Spare places in a directory, named by a prefix that nothing else there has."""
    numbers = itertools.count()
    return lambda: (directory, prefix + b"%d" % next(numbers))


def _contents(fd: int) -> tuple[list[bytes], list[bytes]]:
    names: list[bytes] = []
    directories: list[bytes] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(fd) as entries:  # it was removed meanwhile
        for entry in entries:
            kind = directories if entry.is_dir(follow_symlinks=False) else names
            kind.append(os.fsencode(entry.name))
    return names, directories


def _unlink(directory: int, name: bytes) -> bool:
    """Remove what is no directory; whether it is gone."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
        return False
    return True


def _rmdir(directory: int, name: bytes) -> bool:
    """Remove a directory in which there is nothing; whether it is gone."""
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _empty(directory: int, name: bytes, spare: Spare, ahead: list[tuple[int, bytes]]) -> None:
    """Empty a directory; those in it go to spare places, to be removed after it."""
    os.chmod(name, 0o700, dir_fd=directory)
    fd = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        for inside in map(os.fsencode, os.listdir(fd)):
            if not _unlink(fd, inside):
                place = spare()
                os.chmod(inside, 0o700, dir_fd=fd)
                os.rename(inside, place[1], src_dir_fd=fd, dst_dir_fd=place[0])
                ahead.append(place)
    finally:
        os.close(fd)


def make_directory(path: Path, mode: int) -> None:
    """Make a directory if there is none; raises NotADirectoryError for anything else in its place."""
    try:
        path.mkdir(mode=mode, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error


def set_aside(path: Path) -> None:
    """Give a directory, if it is there, a name that says that it is on its way out; not on a full disk."""
    try:
        path.rename(path.with_name(random_name(REMOVED)))
    except FileNotFoundError:
        pass
    except OSError as error:
        if not is_full(error):
            raise StoreError(f"{path}: {error.strerror}") from error


def remove_tree(path: Path) -> None:
    """Remove a directory with all below it, whatever the modes in it."""
    with opened_directory(path.parent) as fd, os_errors(path):
        if fd is not None:
            spare = spares(fd, f"{random_name(REMOVED)}-".encode())
            remove(fd, os.fsencode(path.name), spare)


def empty_directory(path: Path) -> None:
    """Remove all that is in a directory, likewise: what is on its way out stays in it until it is gone."""
    with os_errors(path):
        for name in os.listdir(path):
            remove_tree(path / name)


@contextlib.contextmanager
def opened_directory(path: Path) -> Iterator[int | None]:
    """A descriptor of a directory, None if it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
