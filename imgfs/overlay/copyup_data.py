"""The data of files that have only their attributes in the upper directory (metacopy): copied up, or undone.

What copy-up asks of the image's bytes, in which ranges, and how it writes them. A copy-up whose use has
failed, of a file to be written or cut whose data could not be had, is undone: a copy that differs in nothing
from the image's file is of no use, and takes room on a disk that is full.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from imgfs.layer.entry import Extent
from imgfs.overlay.node import At, BeforeFill, UpperNode, error, no_entry, times_kept
from imgfs.overlay.union import Union
from imgfs.overlay.xattrs import CAPABILITY, METACOPY, REDIRECT, shown_xattrs
from imgfs.tree.database import Node

_CHUNK = 4 << 20  # bytes filled in at a time


class ImageData(Protocol):
    """The bytes of the image's files."""

    def cached(self, layer: int, extents: Sequence[Extent], offset: int, length: int) -> memoryview | None:
        """Return some bytes, if they can be had without waiting."""

    def read(self, layer: int, extents: Sequence[Extent], offset: int, length: int) -> bytes:
        """Return some bytes; waits for them. Raises ImgfsError."""

    def copy(
        self,
        layer: int,
        extents: Sequence[Extent],
        offset: int,
        length: int,
        target: int,
        at: int,
        given_up: Future[None] | None = None,
    ) -> None:
        """Copy bytes to `at` in the open file `target`; waits for them, until `given_up` is settled.

        Raises OSError, ImgfsError, InterruptedError.
        """


class Copy(Protocol):
    """Copies the data of one file up."""

    def __call__(self, given_up: Future[None] | None = None) -> None: ...


def copy_ranges(extents: Sequence[Extent], start: int, end: int) -> list[tuple[int, int]]:
    """Return (offset, length) of what has to be copied of a part of a file: its holes stay holes."""
    ranges = []
    for extent in extents:
        offset, last = max(start, extent.offset), min(end, extent.offset + extent.length)
        while offset < last:
            length = min(_CHUNK, last - offset)
            ranges.append((offset, length))
            offset += length
    return ranges


class DataCopyUp:
    """Copies the data of files of `union` up. With `durable` it is on the disk before it counts."""

    def __init__(self, union: Union, content: ImageData, *, durable: bool) -> None:
        self._union = union
        self._upper = union.upper
        self._content = content
        self._durable = durable

    def fill(self, node: UpperNode, limit: int) -> Copy:
        """Return what copies the data of a file up, its first `limit` bytes: for any thread to call, once.

        Until `filled` or `not_filled` is called the file's data is still the image's. It raises OSError,
        ImgfsError, and InterruptedError soon after what it is given is settled.
        """
        assert node.data is not None
        lower = self._union.tree.node(node.data)
        layer, extents = self._union.tree.extents(node.data)
        found = self._upper.stat(self._union.at(node))
        if lower is None or found is None:
            raise no_entry()
        node.frozen_mtime = found.st_mtime_ns
        node.before_fill = BeforeFill(self._union.ctime(node, found), self._capability(node))
        fd = self._upper.open_data(self._union.at(node))
        end = min(limit, lower.size, found.st_size)

        def copy(given_up: Future[None] | None = None) -> None:
            try:
                for offset, length in copy_ranges(extents, 0, end):
                    if given_up and given_up.done():
                        raise error(errno.EINTR)
                    self._content.copy(layer, extents, offset, length, fd, offset, given_up)
                if self._durable:
                    os.fdatasync(fd)
            finally:
                os.close(fd)

        return copy

    def filled(self, node: UpperNode) -> None:
        """Make the copied data the file's own."""
        self.restore_time(node)
        self._give_back(node)
        self.clear_metacopy(node)

    def not_filled(self, node: UpperNode) -> None:
        """Leave the data the image's, and discard what has been copied of it."""
        at = self._union.at(node)
        found = self._upper.stat(at)
        if found is not None:
            fd = self._upper.open_data(at)
            os.ftruncate(fd, 0)
            os.ftruncate(fd, found.st_size)
            os.close(fd)
        self.restore_time(node)
        self._give_back(node)

    def _give_back(self, node: UpperNode) -> None:
        """Give a file its ctime and, as writing to it has taken them (capabilities(7)), its capabilities."""
        before, node.before_fill = node.before_fill, None
        if before is None:
            return
        if before.capability is not None and self._capability(node) is None:
            self._upper.set_xattr(self._union.at(node), CAPABILITY, before.capability)
        self._union.keep_ctime(node, before.ctime_ns)

    def restore_time(self, node: UpperNode) -> None:
        """Give a file the modification time that it has shown while it was written."""
        at = self._union.place(node)
        found = self._upper.stat(at)
        if found is not None and node.frozen_mtime is not None:
            ctime_ns = self._union.ctime(node, found)
            self._upper.set_times(at, found.st_atime_ns, node.frozen_mtime)
            self._union.keep_ctime(node, ctime_ns)
        node.frozen_mtime = None

    def clear_metacopy(self, node: UpperNode) -> None:
        """Take the metacopy mark off a file, whose data is its own now."""
        ctime_ns = self._union.ctime(node)
        self._upper.remove_overlay_xattrs(self._union.at(node), METACOPY, REDIRECT)
        self._union.keep_ctime(node, ctime_ns)
        node.data = node.frozen_mtime = node.before_fill = None

    def _capability(self, node: UpperNode) -> bytes | None:
        return self._upper.xattrs(self._union.at(node)).get(CAPABILITY)


def undo_copy_up(union: Union, node: UpperNode) -> None:
    """Have the image's file show again in place of its copy, if it was not changed or opened meanwhile.

    A file with several names keeps its copy: they could not all be taken back at once. Raises OSError.
    """
    lower = union.tree.node(node.data) if node.data is not None else None
    parent = node.parent
    if lower is None or parent is None or not _can_go(union, node, parent, lower):
        return
    at = At(union.directory_fd(parent), node.name)
    with times_kept(union.at(parent)):
        union.upper.unlink(at)
    parent.changes += 1
    union.drop(node)


def _can_go(union: Union, node: UpperNode, parent: UpperNode, lower: Node) -> bool:
    """Return whether the image's file would show under the copy's only name, and look like it."""
    if node.opens or node.ino != lower.ino or len(union.tree.names(lower.ino)) != 1:
        return False
    below = union.below(parent, node.name)
    return below is not None and below.ino == lower.ino and _is_same(union, node, lower)


def _is_same(union: Union, node: UpperNode, lower: Node) -> bool:
    at = union.at(node)
    found = union.upper.stat(at)
    if found is None or found.st_nlink != 1:
        return False
    owner = union.upper.owner(at, found)
    shown = (owner.uid, owner.gid, owner.mode, found.st_size, found.st_mtime_ns)
    image = (lower.uid, lower.gid, stat.S_IMODE(lower.mode), lower.size, lower.mtime_ns)
    return shown == image and shown_xattrs(union.upper.xattrs(at)) == union.tree.xattrs(lower.ino)
