"""A file of the union that has an upper half: what is known of it, and how it is reached.

By an open directory and a name in it, or by a descriptor of its own once it has no name: paths may be longer
than the kernel takes, and directories move.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

_A_DAY = 86_400
UPPER_INO = 1 << 48  # added to the ino that a new file has in the upper directory; the image's are below
_OPEN = 512  # directories whose descriptors are kept at hand
_KEPT_ON_THE_WAY = 64  # a deeper path's directories are not all kept: that would close what is in use
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class At(NamedTuple):
    """Where a file is: `name` in the open directory `directory`, or, with None, a path to follow."""

    directory: int | None
    name: bytes

    @property
    def anchored(self) -> bool:
        """Whether the file is held by a descriptor of its own: it may have no name any more."""
        return self.directory is None

    @property
    def path(self) -> bytes:
        """A path for the system calls that take nothing else."""
        if self.directory is None:
            return self.name
        return b"/proc/self/fd/%d/%s" % (self.directory, self.name)

    @classmethod
    def anchor(cls, fd: int) -> At:
        """Return the file that `fd` is open on."""
        return cls(None, b"/proc/self/fd/%d" % fd)


class OpenFile(NamedTuple):
    """A file that is open, for the system calls that take its descriptor in the place of a path."""

    name: int
    directory: None = None
    anchored: bool = True

    @property
    def path(self) -> int:
        """The descriptor, for the system calls that take nothing else."""
        return self.name


Place: TypeAlias = At | OpenFile  # for a system call that takes both


@contextlib.contextmanager
def times_kept(at: At) -> Iterator[None]:
    """A directory's times stay what they are: what is done in it is no change that anybody sees."""
    found = os.stat(at.name, dir_fd=at.directory, follow_symlinks=at.anchored)
    yield
    os.utime(at.name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=at.directory)


class BeforeFill(NamedTuple):
    """What filling in a file's data changes of it although no program did: to be restored."""

    ctime_ns: int
    capability: bytes | None


@dataclass(slots=True, eq=False)
class UpperNode:
    """A file or directory with an upper half.

    It is reached by one of its names, or, once that is gone, by a descriptor. `lower` is the image's
    directory that a directory is merged with; `data` is the image's file whose bytes this one still has.
    """

    ino: int  # the union's: an image file keeps its own when it is copied up
    upper_ino: int  # st_ino in the upper directory
    kind: int  # S_IFMT of its mode
    parent: UpperNode | None = None
    name: bytes = b""
    lower: int | None = None
    listed: int | None = None  # the image's directory whose names come first in a listing of this one
    data: int | None = None
    anchor: int | None = None  # a descriptor (O_PATH) that holds it once its name is gone
    kept: bool = False  # has a name in the work directory, for a process that goes on with it
    fd: int | None = None  # its bytes, open for reading and writing
    opens: int = 0  # handles that need `fd`
    writers: int = 0  # of them, those that may write
    lookups: int = 0  # the kernel's references, if they have been counted
    counted: bool = True  # not if the kernel knew the file before it was copied up
    changes: int = 0  # of a directory: how often its names have changed
    links: int | None = None  # of a merged directory: its link count, once it has been needed
    clean: bool = False  # of a directory: made here, so that it holds no whiteouts
    group: int | None = None  # of a directory: what `Union.group_of` has found, -1 for none
    default_acl: bytes | None = None  # of a directory: what `Union.default_acl` has found, empty for none
    incapable: bool = False  # known to have no file capabilities
    frozen_mtime: int | None = (
        None  # what its time stays while its data is copied up, or written by the kernel
    )
    before_fill: BeforeFill | None = None  # while its data is copied up
    failed: int | None = None  # errno of what the kernel had gathered and could not be written: see `failure`
    overstated: bool = False  # the kernel counts bytes in its size that could not be written

    @property
    def is_directory(self) -> bool:
        """Return True for a directory."""
        return self.kind == stat.S_IFDIR

    def is_called(self, parent: UpperNode, name: bytes) -> bool:
        """Return whether this is the name it is reached by."""
        return self.parent is parent and self.name == name

    def move(self, parent: UpperNode, name: bytes) -> None:
        """Note the name by which the upper half is reached from now on; an anchor is not needed any more."""
        self.parent, self.name = parent, name
        if self.anchor is not None:
            os.close(self.anchor)
            self.anchor = None

    def close(self) -> None:
        """Let go of its descriptors."""
        for fd in (self.anchor, self.fd):
            if fd is not None:
                os.close(fd)
        self.anchor = self.fd = None


def is_access_old(found: os.stat_result, ctime_ns: int) -> bool:
    """Whether reading a file moves its access time, as `relatime` has it (mount(8)): the file has changed
    since it was read last, by `ctime_ns` or by its time of modification, or that was a day ago."""
    is_changed = found.st_atime_ns <= max(found.st_mtime_ns, ctime_ns)
    return is_changed or found.st_atime < time.time() - _A_DAY


def error(number: int) -> OSError:
    """Return the exception of an errno."""
    return OSError(number, os.strerror(number))


def no_entry() -> OSError:
    """There is no such name."""
    return error(errno.ENOENT)


def path_of(parent: UpperNode, name: bytes) -> bytes:
    """Return the path of a name in a directory, from the root of the upper directory."""
    parts = [name]
    directory: UpperNode | None = parent
    while directory is not None and directory.parent is not None:
        parts.append(directory.name)
        directory = directory.parent
    return b"/".join(reversed(parts))


class Directories:
    """The directories below `root`, a descriptor; the latest used stay open. Raises OSError."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._fds: OrderedDict[UpperNode, int] = OrderedDict()

    def at(self, node: UpperNode) -> At:
        """Return where a node is: by its name, or by the descriptor that holds it."""
        if node.anchor is not None:
            return At.anchor(node.anchor)
        if node.parent is None:
            return At.anchor(self._root)
        return At(self.fd(node.parent), node.name)

    def fd(self, node: UpperNode) -> int:
        """Return a descriptor (O_PATH) of a directory; good for some dozen calls more."""
        fd = self._fds.get(node)
        if fd is not None:
            self._fds.move_to_end(node)
            return fd
        chain = [node]
        while chain[-1].parent is not None and chain[-1].parent not in self._fds:
            chain.append(chain[-1].parent)
        return self._open_chain(chain[::-1])

    def held(self, node: UpperNode) -> int | None:
        """Return the descriptor of a directory, if it is open."""
        return self._fds.get(node)

    def drop(self, node: UpperNode) -> None:
        """Close a directory that is gone, if it is open."""
        fd = self._fds.pop(node, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close them all."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _open_chain(self, chain: list[UpperNode]) -> int:
        """Open directories one in the other, and keep the last few."""
        fd = -1
        for depth, node in enumerate(chain):
            before = fd
            fd = self._open_directory(node, before)
            if len(chain) - depth <= _KEPT_ON_THE_WAY:
                self._fds[node] = fd
            if before >= 0 and len(chain) - depth >= _KEPT_ON_THE_WAY:
                os.close(before)
        while len(self._fds) > _OPEN:
            _, oldest = self._fds.popitem(last=False)
            os.close(oldest)
        return fd

    def _open_directory(self, node: UpperNode, parent_fd: int) -> int:
        if node.anchor is not None:
            return os.dup(node.anchor)
        if node.parent is None:
            return os.dup(self._root)
        return os.open(node.name, _DIRECTORY, dir_fd=parent_fd if parent_fd >= 0 else self._fds[node.parent])
