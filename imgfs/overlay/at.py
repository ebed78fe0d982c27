"""Name files by an open directory and a name in it, or by a descriptor of their own once they have no name.

Paths may be longer than the kernel takes, and directories move.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple


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
        """The file that `fd` is open on."""
        return cls(None, b"/proc/self/fd/%d" % fd)


@contextlib.contextmanager
def times_kept(at: At) -> Iterator[None]:
    """A directory's times stay what they are: what is done in it is no change that anybody sees."""
    found = os.stat(at.name, dir_fd=at.directory, follow_symlinks=at.anchored)
    yield
    os.utime(at.name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=at.directory)
