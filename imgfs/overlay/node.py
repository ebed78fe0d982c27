"""A file of the union that has an upper half: what is known of it while the kernel may ask for it."""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass
from typing import NamedTuple

_A_DAY = 86_400
UPPER_INO = 1 << 48  # added to the ino that a new file has in the upper directory; the image's are below


class UpperAttributes(NamedTuple):
    """What stat(2) says of a file with an upper half. `blocks` are of 512 bytes."""

    ino: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    nlink: int
    device: int
    blocks: int
    atime_ns: int
    ctime_ns: int


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
    data: int | None = None
    anchor: int | None = None  # a descriptor (O_PATH) that holds it once its name is gone
    fd: int | None = None  # its bytes, open for reading and writing
    opens: int = 0  # handles that need `fd`
    lookups: int = 0  # the kernel's references, if they have been counted
    counted: bool = True  # not if the kernel knew the file before it was copied up
    changes: int = 0  # of a directory: how often its names have changed
    links: int | None = None  # of a merged directory: its link count, once it has been needed
    clean: bool = False  # of a directory: made here, so that it holds no whiteouts
    group: int | None = None  # of a directory: what `Union.group_of` has found, -1 for none
    incapable: bool = False  # known to have no file capabilities
    frozen_mtime: int | None = (
        None  # what its time stays while its data is copied up, or written by the kernel
    )
    before_fill: BeforeFill | None = None  # while its data is copied up
    failed: int | None = None  # errno of what the kernel had gathered and could not be written: see `failure`

    @property
    def is_directory(self) -> bool:
        """Whether it is one."""
        return self.kind == stat.S_IFDIR

    def is_called(self, parent: UpperNode, name: bytes) -> bool:
        """Whether this is the name it is reached by."""
        return self.parent is parent and self.name == name

    def move(self, parent: UpperNode, name: bytes) -> None:
        """Be reached by another name."""
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


def is_access_old(found: os.stat_result) -> bool:
    """Whether reading a file moves its access time, as `relatime` has it (mount(8)): the file has changed
    since it was read last, or that was a day ago."""
    is_changed = found.st_atime_ns <= max(found.st_mtime_ns, found.st_ctime_ns)
    return is_changed or found.st_atime < time.time() - _A_DAY


def error(number: int) -> OSError:
    """The exception of an errno."""
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
