"""What a writable tree can be asked to do, and the kernel asked to do it: below a mount or a plain directory.

`Files` is the contract, which `tests/support/scratch_model.py` fulfils without a disk.
"""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.support.patience import allowed
from tests.support.umoci_oracle import Seen, seen_on_disk

NOREPLACE, EXCHANGE = 1, 2  # linux/fs.h, RENAME_*
_HERE = -100  # linux/fcntl.h, AT_FDCWD

_libc = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.syncfs.argtypes = (ctypes.c_int,)

Listed = tuple[bytes, bool, bool, bool]  # a name; whether readdir calls it directory, file, symlink


class State(NamedTuple):
    """What can be seen of an open file."""

    mode: int
    uid: int
    gid: int
    size: int
    nlink: int


class Files(Protocol):
    """Operations on paths relative to a root, `b""`; each raises OSError as the system call would.

    Open files go by numbers that the caller gives.
    """

    def look(self, path: bytes) -> Seen: ...
    def read(self, path: bytes, offset: int, length: int) -> bytes: ...
    def listdir(self, path: bytes) -> list[Listed]: ...
    def create(self, path: bytes, mode: int, data: bytes) -> None: ...
    def replace(self, path: bytes, data: bytes) -> None: ...
    def write(self, path: bytes, offset: int, data: bytes) -> None: ...
    def append(self, path: bytes, data: bytes) -> None: ...
    def truncate(self, path: bytes, size: int) -> None: ...
    def unlink(self, path: bytes) -> None: ...
    def mkdir(self, path: bytes, mode: int) -> None: ...
    def rmdir(self, path: bytes) -> None: ...
    def rename(self, source: bytes, target: bytes, flags: int) -> None: ...
    def link(self, source: bytes, target: bytes) -> None: ...
    def symlink(self, target: bytes, path: bytes) -> None: ...
    def mknod(self, path: bytes, mode: int, device: int) -> None: ...
    def chmod(self, path: bytes, mode: int) -> None: ...
    def chown(self, path: bytes, uid: int, gid: int) -> None: ...
    def utime(self, path: bytes, mtime_ns: int) -> None: ...
    def set_xattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None: ...
    def remove_xattr(self, path: bytes, name: bytes) -> None: ...
    def remove_tree(self, path: bytes) -> None: ...
    def copy_tree(self, source: bytes, target: bytes) -> None: ...
    def open(self, number: int, path: bytes, flags: int) -> None: ...
    def close(self, number: int) -> None: ...
    def read_open(self, number: int, offset: int, length: int) -> bytes: ...
    def write_open(self, number: int, offset: int, data: bytes) -> None: ...
    def truncate_open(self, number: int, size: int) -> None: ...
    def chmod_open(self, number: int, mode: int) -> None: ...
    def state_open(self, number: int) -> State: ...


class Disk:
    """`Files` below a directory, by system calls."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)
        self.opened: dict[int, int] = {}

    def look(self, path: bytes) -> Seen:
        full = self._at(path)
        return seen_on_disk(full, os.lstat(full), b"")

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        with self._open(path, os.O_RDONLY) as fd:
            return os.pread(fd, length, offset)

    def listdir(self, path: bytes) -> list[Listed]:
        with os.scandir(self._at(path)) as found:
            items = list(found)
        for item in items:
            assert item.inode() == os.lstat(item.path).st_ino, (item.path, "d_ino")
        return sorted(map(_listed, items))

    def create(self, path: bytes, mode: int, data: bytes) -> None:
        with self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode) as fd:
            _write_all(fd, data, 0)

    def replace(self, path: bytes, data: bytes) -> None:
        with self._open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666) as fd:
            _write_all(fd, data, 0)

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        with self._open(path, os.O_WRONLY) as fd:
            _write_all(fd, data, offset)

    def append(self, path: bytes, data: bytes) -> None:
        with self._open(path, os.O_WRONLY | os.O_APPEND) as fd:
            assert os.write(fd, data) == len(data)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self._at(path), size)

    def unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def rename(self, source: bytes, target: bytes, flags: int) -> None:
        _check(_libc.renameat2(_HERE, self._at(source), _HERE, self._at(target), flags))

    def link(self, source: bytes, target: bytes) -> None:
        os.link(self._at(source), self._at(target), follow_symlinks=False)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._at(path))

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        os.mknod(self._at(path), mode, device)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.lchown(self._at(path), uid, gid)

    def utime(self, path: bytes, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(0, mtime_ns), follow_symlinks=False)

    def set_xattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def remove_xattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    def remove_tree(self, path: bytes) -> None:
        _run(b"rm", b"-rf", b"--", self._at(path))

    def copy_tree(self, source: bytes, target: bytes) -> None:
        _run(b"cp", b"-aT", b"--", self._at(source), self._at(target))

    def open(self, number: int, path: bytes, flags: int) -> None:
        self.opened[number] = os.open(self._at(path), flags | os.O_CLOEXEC)

    def close(self, number: int) -> None:
        os.close(self.opened.pop(number))

    def read_open(self, number: int, offset: int, length: int) -> bytes:
        return os.pread(self.opened[number], length, offset)

    def write_open(self, number: int, offset: int, data: bytes) -> None:
        _write_all(self.opened[number], data, offset)

    def truncate_open(self, number: int, size: int) -> None:
        os.ftruncate(self.opened[number], size)

    def chmod_open(self, number: int, mode: int) -> None:
        os.fchmod(self.opened[number], mode)

    def state_open(self, number: int) -> State:
        found = os.fstat(self.opened[number])
        if stat.S_ISDIR(found.st_mode):  # file systems count sizes and links of directories variously
            return State(found.st_mode, found.st_uid, found.st_gid, 0, 0)
        return State(found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_nlink)

    def sync(self) -> None:
        """Write what is open, and all the file system holds back, to where it outlives its process."""
        for fd in self.opened.values():
            os.fsync(fd)
        with self._open(b"", os.O_RDONLY) as fd:
            _check(_libc.syncfs(fd))

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self.root, path)

    def _open(self, path: bytes, flags: int, mode: int = 0) -> _Open:
        return _Open(os.open(self._at(path), flags | os.O_CLOEXEC, mode))


class _Open:
    """A file descriptor, closed after the block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _listed(item: os.DirEntry[bytes]) -> Listed:
    is_directory, is_file = item.is_dir(follow_symlinks=False), item.is_file(follow_symlinks=False)
    return item.name, is_directory, is_file, item.is_symlink()


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _write_all(fd: int, data: bytes, offset: int) -> None:
    assert not data or os.pwrite(fd, data, offset) == len(data)


def _run(*words: bytes) -> None:
    done = subprocess.run(words, check=False, capture_output=True, timeout=allowed(60))
    assert (done.returncode, done.stderr) == (0, b""), done
