"""Files of an image, written to a directory of this machine: owners, modes, times, links and attributes kept.

Everything is made by descriptors of directories that were opened without following links, and described by
those of the files: so nothing that is written is led elsewhere, by the image's names and symlinks, or by
another user who may change the directory meanwhile. What was there under a name is replaced, but a
directory, which is filled. A user cannot give files away, as with `cp -a`, or make devices: devices,
attributes and set-ID bits that are left out are reported.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import describe
from imgfs.image.files import Found, ImageFiles
from imgfs.owned.writing import write_all

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL = stat.S_ISUID | stat.S_ISGID


class _Level(NamedTuple):
    """A directory that is being written."""

    found: Found
    parent: os.stat_result
    children: Iterator[Found]


class _Written(NamedTuple):
    """A file of several names that has been written: the directory and the name it has, and which it is."""

    directory: str
    name: bytes
    status: os.stat_result


class Extraction:
    """Writes files of an image; `warns` is told of what cannot be kept, once for each file."""

    def __init__(self, files: ImageFiles, warns: Callable[[str], None]) -> None:
        self._files = files
        self._warns = warns
        self._first: dict[int, _Written] = {}  # of files with several names, by ino

    def write(self, top: Found, directory: Path, name: bytes) -> None:
        """Write a file, and what is below it, to a directory under a name. Raises OSError, naming a file."""
        with _opened(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            try:
                self._write(top, fd, name)
            except OSError as error:
                error.filename = error.filename or directory / os.fsdecode(name)
                raise

    def _write(self, top: Found, parent: int, name: bytes) -> None:
        """Write a file, or a directory of any depth, with one directory open at a time."""
        if not stat.S_ISDIR(top.node.mode):
            self._write_file(top, parent, name)
            return
        levels: list[_Level] = []
        at = os.dup(parent)
        try:
            at = self._enter(levels, top, at, name)
            while levels:
                child = next(levels[-1].children, None)
                if child is None:
                    at = self._leave(levels, at)
                elif stat.S_ISDIR(child.node.mode):
                    at = self._enter(levels, child, at, child.path.rpartition(b"/")[2])
                else:
                    self._write_file(child, at, child.path.rpartition(b"/")[2])
        finally:
            os.close(at)

    def _enter(self, levels: list[_Level], found: Found, parent: int, name: bytes) -> int:
        """Make a directory if there is none, and open it in place of its parent."""
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        levels.append(_Level(found, os.fstat(parent), iter(self._files.children(found))))
        os.close(parent)
        return fd

    def _leave(self, levels: list[_Level], fd: int) -> int:
        """Open a directory's parent in its place, and give the directory its attributes."""
        level = levels.pop()
        parent = os.open("..", _DIRECTORY, dir_fd=fd)
        if not os.path.samestat(os.fstat(parent), level.parent):
            os.close(parent)
            raise _moved(level.found)
        self._set_attributes(level.found, fd)
        os.close(fd)
        return parent

    def _write_file(self, found: Found, parent: int, name: bytes) -> None:
        mode = found.node.mode
        self._make_room(parent, name)
        if found.node.nlink > 1 and self._link(found, parent, name):
            return
        if stat.S_ISREG(mode):
            made = os.open(name, _NEW, 0o600, dir_fd=parent)
        else:
            if stat.S_ISLNK(mode):
                os.symlink(self._files.target(found) or b"", name, dir_fd=parent)
            elif not self._make_special(found, parent, name):
                return
            made = self._open_made(found, parent, name)
        with _opened(made) as fd:
            if stat.S_ISREG(mode):
                self._fill(found, fd)
            self._set_attributes(found, fd)
            if found.node.nlink > 1:
                self._note_first(found, parent, name, fd)

    def _open_made(self, found: Found, parent: int, name: bytes) -> int:
        """Open, as a place only, what was just made. Raises OSError if another user has exchanged it."""
        fd = os.open(name, _PLACE, dir_fd=parent)
        status = os.fstat(fd)
        if stat.S_IFMT(status.st_mode) == stat.S_IFMT(found.node.mode) and status.st_nlink == 1:
            return fd
        os.close(fd)
        raise _moved(found)

    def _note_first(self, found: Found, parent: int, name: bytes, fd: int) -> None:
        try:
            directory = os.readlink(f"/proc/self/fd/{parent}")
        except OSError as error:  # ENAMETOOLONG
            self._warn(found, "its other names become other files", error)
        else:
            self._first[found.node.ino] = _Written(directory, name, os.fstat(fd))

    def _fill(self, found: Found, fd: int) -> None:
        """Write a file's bytes, holes and pieces of zeros as holes."""
        for offset, piece in self._files.data(found):
            if piece.count(0) < len(piece):
                os.lseek(fd, offset, os.SEEK_SET)
                write_all(fd, piece)
        os.ftruncate(fd, found.node.size)

    def _link(self, found: Found, parent: int, name: bytes) -> bool:
        """Give a file that has been written another name; return False if it was not."""
        first = self._first.get(found.node.ino)
        if first is None:
            return False
        with (
            _opened(os.open(first.directory, _DIRECTORY)) as directory,
            _opened(os.open(first.name, _PLACE, dir_fd=directory)) as fd,
        ):
            if not os.path.samestat(os.fstat(fd), first.status):
                raise _moved(found)
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=parent)
        return True

    def _make_special(self, found: Found, parent: int, name: bytes) -> bool:
        try:
            os.mknod(name, stat.S_IFMT(found.node.mode) | 0o600, found.node.device, dir_fd=parent)
        except PermissionError as error:
            self._warn(found, "not written", error)
            return False
        return True

    def _make_room(self, parent: int, name: bytes) -> None:
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError) as error:
            raise OSError(errno.EISDIR, "a directory is in the way", os.fsdecode(name)) from error

    def _set_attributes(self, found: Found, fd: int) -> None:
        """Set owner, mode, attributes and time of an open file, in the order in which none undoes another."""
        node, path = found.node, f"/proc/self/fd/{fd}"  # what is open, even if only as a place
        mode = stat.S_IMODE(node.mode)
        try:
            os.chown(path, node.uid, node.gid)
        except PermissionError as error:
            if mode & _SPECIAL:  # they would give the rights of another owner than the image's
                mode &= ~_SPECIAL
                self._warn(found, f"set-ID bits left out: is yours, not of {node.uid}:{node.gid}", error)
        if not stat.S_ISLNK(node.mode):
            os.chmod(path, mode)
        for key, value in self._files.xattrs(found).items():
            try:
                os.setxattr(path, key, value)
            except OSError as error:
                self._warn(found, f"without attribute {os.fsdecode(key)}", error)
        with suppress(OverflowError):  # beyond what time_t of this machine holds
            os.utime(path, ns=(node.mtime_ns, node.mtime_ns))

    def _warn(self, found: Found, what: str, error: OSError) -> None:
        self._warns(f"{os.fsdecode(found.path)}: {what}: {describe(error)}")


def _moved(found: Found) -> OSError:
    return OSError(errno.ESTALE, "it was moved while it was written", os.fsdecode(found.path))


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
