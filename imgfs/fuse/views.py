"""What a mount shows: the View of an image's tree. That of a union is in `union_view`, of flat layers in
`erofs_devices`.

A view answers on the event loop, within microseconds, from local files. Only bytes that are not at hand are a
`PendingRead`: `Operations` has a thread run it.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, TypeVar

from imgfs.errors import ImgfsError
from imgfs.fuse.errors import FUSEError
from imgfs.fuse.interrupts import GiveUp
from imgfs.fuse.opcodes import OpenFlag
from imgfs.fuse.protocol import Statfs
from imgfs.layer.entry import Extent, seek_extents
from imgfs.tree.database import Attributes, Node

if TYPE_CHECKING:
    from imgfs.content.content import Content
    from imgfs.tree.reader import Tree

NAME_MAX = 255  # bytes in a name
_BLOCK = 4096  # bytes: what statfs counts in
_OPEN_FILES = 4096  # files whose extents are kept at hand
_TROUBLED_FILES = 256  # files whose paths are kept for the log: to find a path, all names are read
LARGEST = 1 << 20  # bytes the kernel reads at once at most
F = TypeVar("F")  # how a view refers to a child that it lists
Children: TypeAlias = Callable[[int, int], Iterator[tuple[int, bytes, F]]]
"""(directory, position) -> (position, name, child) of the children behind the position, counted from 1."""


FromDisk: TypeAlias = Callable[[], memoryview | None]
"""Waits for the disk, and returns bytes that are good until the next read; None if they are gone, or bad."""


class PendingRead(NamedTuple):
    """Bytes that are not at hand: `read` waits for them, in a thread, until it is told to give up.

    `is_local` if they can be had without the network; then `from_disk` may read them in the caller's thread.
    """

    read: Callable[[GiveUp], bytes]
    is_local: bool
    from_disk: FromDisk | None = None


class View(Protocol[F]):
    """The files of a mount, by ino. Raises OSError with the errno that the kernel is to see.

    Unless it `needs_opens`, the kernel opens and closes files by itself (FUSE_NO_OPEN_SUPPORT), and keeps
    their pages: small files are read by one request each instead of three.
    """

    @property
    def needs_opens(self) -> bool:
        """Whether OPEN must be answered here."""

    def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """Return the attributes of the file that a name leads to, None if there is no such name.

        The kernel then holds one more reference to the file.
        """

    def attributes(self, ino: int) -> Attributes:
        """Return the attributes of a file. Raises ENOENT."""

    def children(self, directory: int) -> Children[F]:
        """Return a query for the children of a directory, for one listing of it."""

    def child_attributes(self, child: F) -> Attributes:
        """Return the attributes of a listed child, as they are now. Raises ESTALE if it has been removed."""

    def reference(self, child: F) -> None:
        """Count a reference that the kernel holds to a listed child."""

    def readlink(self, ino: int) -> bytes:
        """Return the target of a symbolic link."""

    def xattr(self, ino: int, name: bytes) -> bytes | PendingRead | None:
        """Return the value of an extended attribute, None if there is none."""

    def xattrs(self, ino: int) -> Iterable[bytes]:
        """Return the names of the extended attributes."""

    def open(self, ino: int) -> int:
        """Note that a file is opened to be read; what the kernel may do with its pages (OpenFlag)."""

    def read(self, ino: int, offset: int, size: int) -> bytes | memoryview | PendingRead:
        """Return exactly these bytes, or up to the end of the file.

        A memoryview is good until the next call.
        """

    def seek(self, ino: int, offset: int, whence: int) -> int:
        """Return where a file's next data or hole is (SEEK_DATA, SEEK_HOLE). Raises ENXIO."""

    def birth_ns(self, ino: int) -> int | None:
        """Return when a file was made; None if nothing tells, as in an image."""

    def files_of(self, layer: int) -> Iterable[int]:
        """Return the inos of the files whose bytes are in a layer of the image. For any thread."""

    def statfs(self) -> Statfs:
        """Return the size of the file system."""


VirtualXattr: TypeAlias = Callable[[int, bytes], bytes | PendingRead | None]
VIRTUAL_XATTRS = b"user.imgfs."  # what the names of those begin with that a mount has by itself


def _no_xattr(ino: int, name: bytes) -> None:
    """Have no virtual attributes."""


class TreeView:
    """An image: what a tree has, which never changes, and the bytes of the layers that it was merged from.

    `virtual` has the values of extended attributes that no layer has (`provenance`). Of a layer whose bytes
    are found to be wrong the kernel is made to forget all pages (`Operations.refused`).
    """

    needs_opens = False

    def __init__(self, tree: Tree, content: Content, virtual: VirtualXattr = _no_xattr) -> None:
        self._tree = tree
        self._content = content
        self._virtual = virtual
        self._contents = functools.lru_cache(_OPEN_FILES)(tree.contents)
        self._paths = functools.lru_cache(_TROUBLED_FILES)(tree.path)

    def lookup(self, parent: int, name: bytes) -> Node | None:
        """See View."""
        return self._tree.lookup(parent, name)

    def attributes(self, ino: int) -> Node:
        """See View."""
        node = self._tree.node(ino)
        if node is None:
            raise FUSEError(errno.ENOENT)
        return node

    def children(self, directory: int) -> Children[Node]:
        """See View."""
        return self._tree.children

    def child_attributes(self, child: Node) -> Node:
        """See View."""
        return child

    def reference(self, child: Node) -> None:
        """Count nothing: an ino is a file's name in the tree, for ever."""

    def readlink(self, ino: int) -> bytes:
        """See View."""
        return self._tree.target(ino)

    def xattr(self, ino: int, name: bytes) -> bytes | PendingRead | None:
        """See View."""
        value = self._tree.xattrs(ino).get(name)
        return self._virtual(ino, name) if value is None and name.startswith(VIRTUAL_XATTRS) else value

    def xattrs(self, ino: int) -> Iterable[bytes]:
        """See View."""
        return self._tree.xattrs(ino)

    def open(self, ino: int) -> int:
        """Let the kernel keep the pages it has, unless bytes of the layer have been found to be wrong."""
        layer, _, _ = self._contents(ino)
        return 0 if self._content.is_refused(layer) else OpenFlag.KEEP_CACHE

    def read(self, ino: int, offset: int, size: int) -> bytes | memoryview | PendingRead:
        """See View."""
        layer, extents, file_size = self._contents(ino)
        length = min(size, file_size - offset)
        if length <= 0:
            return b""
        if not offset:
            self._content.opened(ino)
        ready = self._content.cached(layer, extents, offset, length)
        if ready is not None:
            return ready
        wait = functools.partial(self._wait, ino, layer, extents, offset, length)
        if not self._content.is_here(layer, extents, offset, length):
            self._content.missed(ino)
            return PendingRead(wait, is_local=False)
        from_disk = functools.partial(self._content.cached, layer, extents, offset, length, flags=0)
        return PendingRead(wait, is_local=True, from_disk=from_disk)

    def seek(self, ino: int, offset: int, whence: int) -> int:
        """See View."""
        _, extents, size = self._contents(ino)
        return seek_extents(extents, size, offset, whence)

    def birth_ns(self, ino: int) -> None:
        """See View."""

    def files_of(self, layer: int) -> Iterable[int]:
        """See View."""
        return self._tree.files_of(layer)

    def statfs(self) -> Statfs:
        """Return the image's own size: full, as nothing can be added."""
        blocks = -(-self._tree.total_size // _BLOCK)
        return Statfs(blocks, 0, 0, self._tree.node_count, 0, _BLOCK, NAME_MAX, _BLOCK)

    def _wait(
        self, ino: int, layer: int, extents: tuple[Extent, ...], offset: int, length: int, given_up: GiveUp
    ) -> bytes:
        """Read bytes of a file; an error names the file, for the log."""
        try:
            return self._content.read(layer, extents, offset, length, given_up)
        except ImgfsError as error:
            raise ImgfsError(f"/{os.fsdecode(self._paths(ino))}: {error}") from error
