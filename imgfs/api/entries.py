"""What an image says of a file, of a layer, and of a name in a directory; errors of paths."""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from imgfs.tree.database import Node
from imgfs.tree.reader import leads_nowhere

if TYPE_CHECKING:
    from imgfs.api.image import Image

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def path_error(number: int, path: AnyPath) -> OSError:
    """Return the error of a system call that failed for a path."""
    return OSError(number, os.strerror(number), os.fsdecode(path))


class FileStat(NamedTuple):
    """What an image says of a file, by the names of `os.stat_result`; `layer` brought it, the lowest is 1.

    `st_mtime_ns` is in nanoseconds since 1970, and the only time that layers keep.
    """

    st_mode: int
    st_ino: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_mtime_ns: int
    st_rdev: int
    layer: int

    @property
    def st_mtime(self) -> float:
        """Return the time of the last modification, in seconds since 1970."""
        return self.st_mtime_ns / 1e9


class ImageLayer(NamedTuple):
    """A layer: its number from 1, the lowest; the digest and `size` of its blob, as the registry has it."""

    number: int
    digest: str
    diff_id: str
    size: int
    media_type: str


class DirectoryEntry:
    """A name in a directory, as `os.DirEntry`."""

    __slots__ = ("_image", "_node", "name", "path")

    def __init__(self, image: Image, directory: str, name: str, node: Node) -> None:
        self.name = name
        self.path = os.path.join(directory, name)
        self._image = image
        self._node = node

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return True for a directory, or a link to one."""
        return self._is(modes.S_ISDIR, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return True for a regular file, or a link to one."""
        return self._is(modes.S_ISREG, follow_symlinks)

    def is_symlink(self) -> bool:
        """Return True for a symbolic link."""
        return modes.S_ISLNK(self._node.mode)

    def inode(self) -> int:
        """Return the number of the file, which all of its names have."""
        return self._node.ino

    def stat(self, *, follow_symlinks: bool = True) -> FileStat:
        """Return what `Image.stat` does."""
        if follow_symlinks and self.is_symlink():
            return self._image.stat(self.path)
        return self._image._stat(self._node)

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"<DirectoryEntry {self.path!r}>"

    def _is(self, check: Callable[[int], bool], follow: bool) -> bool:
        if not (follow and self.is_symlink()):
            return check(self._node.mode)
        try:
            return check(self.stat().st_mode)
        except OSError as error:
            if leads_nowhere(error):
                return False
            raise
