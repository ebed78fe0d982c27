"""What a writable mount shows: the View of an image's union with a scratch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from imgfs.buffers import buffer
from imgfs.fuse.protocol import Statfs
from imgfs.fuse.views import LARGEST, VIRTUAL_XATTRS, Children, PendingRead, TreeView
from imgfs.overlay.lookup import File
from imgfs.overlay.node import UpperNode
from imgfs.overlay.overlay import Overlay
from imgfs.overlay.ranges import Ranges
from imgfs.tree.database import Attributes


class UnionView:
    """An image with a scratch over it: files with an upper half are the overlay's, all others the image's."""

    needs_opens = True  # one that is about to write must be seen

    def __init__(self, image: TreeView, overlay: Overlay) -> None:
        self._image = image
        self._overlay = overlay
        self._union = overlay.union
        self._nodes = overlay.union.nodes
        self.ranges = Ranges(overlay)
        self._buffer = buffer(LARGEST)

    def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """See View."""
        found, status = self._union.find_with_status(parent, name)
        if found is None:
            return None
        attributes = self._union.attributes(found, status)
        self.reference(found)
        return attributes

    def attributes(self, ino: int) -> Attributes:
        """See View."""
        return self._union.attributes(self._union.file(ino))

    def children(self, directory: int) -> Children[File]:
        """See View."""
        return self._union.listing

    def child_attributes(self, child: File) -> Attributes:
        """See View."""
        return self._union.attributes(child)

    def reference(self, child: File) -> None:
        """Count the kernel's reference to a file with an upper half: it is forgotten with the last."""
        if isinstance(child, UpperNode):
            child.lookups += 1

    def readlink(self, ino: int) -> bytes:
        """See View."""
        return self._overlay.symlink_target(ino)

    def xattr(self, ino: int, name: bytes) -> bytes | PendingRead | None:
        """See View."""
        if name.startswith(VIRTUAL_XATTRS) and ino not in self._nodes:
            return self._image.xattr(ino, name)
        return self._overlay.xattr(ino, name)

    def xattrs(self, ino: int) -> Iterable[bytes]:
        """See View."""
        return self._overlay.xattrs(ino)

    def open(self, ino: int) -> int:
        """Open a file of the image; one with an upper half has a handle (see `writable`)."""
        return self._image.open(ino)

    def read(self, ino: int, offset: int, size: int) -> bytes | memoryview | PendingRead:
        """See View."""
        node = self._nodes.get(ino)
        if node is None:
            return self._image.read(ino, offset, size)
        if node.data is not None:
            return self._image.read(node.data, offset, size)
        count = os.preadv(self._overlay.data(node), [self._buffer[:size]], offset)
        return self._buffer[:count]

    def seek(self, ino: int, offset: int, whence: int) -> int:
        """Return where a file's next data or hole is, of what has been written back; see `ranges`."""
        return self.ranges.seek(self._union.file(ino), offset, whence)

    def birth_ns(self, ino: int) -> int | None:
        """Return when a file was made, or copied up."""
        node = self._nodes.get(ino)
        return None if node is None else self._union.birth_ns(node)

    def files_of(self, layer: int) -> Iterator[int]:
        """Yield the image's files, and copies of them whose bytes are the image's still."""
        lower = set(self._image.files_of(layer))
        copies = [(node.ino, node.data) for node in list(self._nodes.values()) if not node.is_directory]
        yield from lower.difference(ino for ino, _ in copies)
        yield from (ino for ino, data in copies if data in lower)

    def statfs(self) -> Statfs:
        """Return the room there is for changes."""
        found = self._overlay.statfs()
        return Statfs(
            found.f_blocks,
            found.f_bfree,
            found.f_bavail,
            found.f_files,
            found.f_ffree,
            found.f_bsize,
            found.f_namemax,
            found.f_frsize,
        )
