"""The content of an image's volume, copied out of the image: what is there, but for devices and sockets.

A volume is a directory of this machine's, so nothing is put there that the machine would take for its own: no
device. Set-user-ID bits stay, as podman leaves them: a volume is mounted `nosuid`, and only its owner gets at
the directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imgfs.errors import StoreError
from imgfs.owned.writing import write_all

_DEEPEST = 200  # directories in each other: two descriptors are open for each
_PIECE = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_XATTRS = ("user.", "security.capability", "system.posix_acl_")  # those that mean something in a container


def fill(volume: Path, image: Path) -> None:
    """Copy what is in one directory to another, which is empty and gets its attributes; raises StoreError."""
    try:
        with _opened(image, None) as source, _opened(volume, None) as sink:
            _Copying(sink).directory(source, sink, ())
    except OSError as error:
        raise StoreError(f"{volume}: cannot be filled: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Copying:
    """One copy; `top` is the volume, `linked` where in it the files are that have several names."""

    top: int
    linked: dict[tuple[int, int], str] = field(default_factory=dict)

    def directory(self, source: int, sink: int, names: tuple[str, ...]) -> None:
        if len(names) > _DEEPEST:
            raise StoreError(f"a volume has more than {_DEEPEST} directories in each other")
        for name in sorted(os.listdir(source)):
            self._entry(source, sink, name, (*names, name))
        _keep_attributes(source, sink)

    def _entry(self, source: int, sink: int, name: str, names: tuple[str, ...]) -> None:
        found = os.lstat(name, dir_fd=source)
        if stat.S_ISDIR(found.st_mode):
            os.mkdir(name, 0o700, dir_fd=sink)
            with _opened(name, source) as below, _opened(name, sink) as made:
                self.directory(below, made, names)
        elif stat.S_ISREG(found.st_mode):
            self._file(source, sink, found, names)
        elif stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=sink)
            _own(name, found, dir_fd=sink)
        elif stat.S_ISFIFO(found.st_mode):
            os.mkfifo(name, 0o600, dir_fd=sink)
            _own(name, found, dir_fd=sink)
            os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=sink)

    def _file(self, source: int, sink: int, found: os.stat_result, names: tuple[str, ...]) -> None:
        key, name = (found.st_dev, found.st_ino), names[-1]
        if key in self.linked:
            with contextlib.suppress(OSError):  # too long a path, too many names: then it is copied
                os.link(self.linked[key], name, src_dir_fd=self.top, dst_dir_fd=sink, follow_symlinks=False)
                return
        elif found.st_nlink > 1:
            self.linked[key] = "/".join(names)
        with (
            _fd(os.open(name, _READ, dir_fd=source)) as read,
            _fd(os.open(name, _WRITE, 0o600, dir_fd=sink)) as written,
        ):
            _copy_bytes(read, written)
            _keep_attributes(read, written)


def _copy_bytes(source: int, sink: int) -> None:
    """Copy a file's bytes; where it has a hole, or is only zeros, the copy has one.

    Holes are not read: an image's file may have exabytes of them.
    """
    for start, end in _data_of(source):
        os.lseek(source, start, os.SEEK_SET)
        while start < end and (piece := os.read(source, min(_PIECE, end - start))):
            if piece.count(0) < len(piece):
                os.lseek(sink, start, os.SEEK_SET)
                write_all(sink, piece)
            start += len(piece)
    os.ftruncate(sink, os.fstat(source).st_size)


def _data_of(file: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a file that are no holes (lseek(2), SEEK_DATA)."""
    end = 0
    while True:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more
                return
            raise
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, end


def _keep_attributes(source: int, sink: int) -> None:
    found = os.fstat(source)
    _own(sink, found)
    os.fchmod(sink, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        if name.startswith(_XATTRS):
            with contextlib.suppress(OSError):  # what this file system does not keep
                os.setxattr(sink, name, os.getxattr(source, name))
    os.utime(sink, ns=(found.st_atime_ns, found.st_mtime_ns))


def _own(place: int | str, found: os.stat_result, dir_fd: int | None = None) -> None:
    with contextlib.suppress(PermissionError):  # an id that a user namespace does not have
        if isinstance(place, int):
            os.fchown(place, found.st_uid, found.st_gid)
        else:
            os.chown(place, found.st_uid, found.st_gid, dir_fd=dir_fd, follow_symlinks=False)


@contextlib.contextmanager
def _opened(path: Path | str, directory: int | None) -> Iterator[int]:
    with _fd(os.open(path, _DIRECTORY, dir_fd=directory)) as fd:
        yield fd


@contextlib.contextmanager
def _fd(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
