"""What the kernel asks of a read-only mount, answered from a tree and its contents.

Everything here runs on the event loop and answers within microseconds: the tree is a local file, cached
bytes are a `pread`. Only a read that must wait for the network or the disk goes to a thread; the two kinds
have places of their own, so a dead registry never holds up what is cached.

There is no state for each inode: a node's ino is its name in the tree, for ever, so lookups need not be
counted, forget has nothing to do, and a file's handle is its ino.
"""

from __future__ import annotations

import errno
import functools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, StatvfsData

from imgfs.errors import ImgfsError
from imgfs.fuse.boundary import answers
from imgfs.image import Image
from imgfs.layer.entry import Extent
from imgfs.mounts import STATUS_XATTR
from imgfs.tree.tree import Node

FOREVER = 1 << 30  # seconds, some 34 years: nothing of an image changes
_BLOCK = 4096  # what statfs counts in
_NAME_MAX = 255  # bytes in a name
_FETCHES, _DISK_READS = 64, 8  # threads that may wait at once
_OPEN_FILES = 4096  # whose extents are kept at hand
_TROUBLED_FILES = 256  # whose paths are kept for the log: to find one, all names are read
_DOTS = (b".", b"..")
_STATUS = STATUS_XATTR.encode()


class Operations(pyfuse3.Operations):
    """A read-only file system over `image`.

    With `owner` (uid, gid) every file is shown as theirs. `on_ready` is called when the kernel has greeted,
    `status` gives what `imgfs status` shows.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self,
        image: Image,
        *,
        owner: tuple[int, int] | None,
        on_ready: Callable[[], None],
        status: Callable[[], dict[str, Any]],
    ) -> None:
        super().__init__()
        self._tree = image.tree
        self._content = image.content
        self._owner = owner
        self._on_ready = on_ready
        self._status = status
        self._fetches = trio.CapacityLimiter(_FETCHES)
        self._disk_reads = trio.CapacityLimiter(_DISK_READS)
        self._extents = functools.lru_cache(_OPEN_FILES)(self._load_extents)
        self._paths = functools.lru_cache(_TROUBLED_FILES)(image.tree.path)
        self._listings: dict[int, _Listing] = {}
        self._handles = 0

    def init(self) -> None:
        """The kernel has greeted."""
        self._on_ready()

    @answers
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> EntryAttributes:
        """A directory's entry; one that is not there is said not to be, for ever."""
        if name in _DOTS:  # asked only by those who re-export the mount
            return self._attributes(self._node(parent_inode))
        if len(name) > _NAME_MAX:  # the kernel lets longer ones through to FUSE
            raise FUSEError(errno.ENAMETOOLONG)
        node = self._tree.lookup(parent_inode, name)
        return self._attributes(node) if node else _absent()

    @answers
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> EntryAttributes:
        """A node's attributes."""
        return self._attributes(self._node(inode))

    @answers
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """A symlink's target."""
        return self._tree.target(inode)

    @answers
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        """Everything but writing: the kernel checks permissions itself (`default_permissions`)."""
        if mode & os.W_OK:
            raise FUSEError(errno.EROFS)
        return True

    @answers
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> FileInfo:
        """A handle on a file; what the kernel has cached of it stays good."""
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise FUSEError(errno.EROFS)
        self._extents(inode)
        return FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    @answers
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Exactly the bytes asked for, or up to the end of the file, or EIO."""
        layer, extents, file_size = self._extents(fh)
        length = min(size, file_size - off)
        if length <= 0:
            return b""
        ready = self._content.cached(layer, extents, off, length)
        if ready is not None:
            return ready  # type: ignore[return-value]  # pyfuse3 copies any buffer, before anybody else runs
        there = self._content.is_here(layer, extents, off, length)
        limiter = self._disk_reads if there else self._fetches
        read = functools.partial(self._content.read, layer, extents, off, length)
        try:
            return await trio.to_thread.run_sync(read, limiter=limiter, abandon_on_cancel=True)
        except ImgfsError as error:
            raise await self._located(fh, error) from error

    @answers
    async def flush(self, fh: int) -> None:
        """Nothing to write; ENOSYS tells the kernel not to ask again."""
        raise FUSEError(errno.ENOSYS)

    @answers
    async def release(self, fh: int) -> None:
        """Nothing is kept for a handle."""

    @answers
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        """A handle on a directory's listing."""
        self._handles += 1
        self._listings[self._handles] = _Listing(self._tree.children, inode)
        return pyfuse3.FileHandleT(self._handles)

    @answers
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """The listing from `start_id` on, with attributes, as much as fits."""
        listing = self._listings[fh]
        for position, name, node in listing.read_from(start_id):
            attributes = self._attributes(node) if node else self._attributes(self._node(listing.directory))
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), attributes, position):
                listing.put_back(position, name, node)
                return

    @answers
    async def releasedir(self, fh: int) -> None:
        """The listing is done with."""
        self._listings.pop(fh).close()

    @answers
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """An extended attribute; on the root also the mount's status."""
        if name == _STATUS and inode == pyfuse3.ROOT_INODE:
            return json.dumps(self._status()).encode()
        value = self._tree.xattrs(inode).get(name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    @answers
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[pyfuse3.XAttrNameT]:
        """The names of the extended attributes."""
        return [pyfuse3.XAttrNameT(name) for name in self._tree.xattrs(inode)]

    @answers
    async def statfs(self, ctx: pyfuse3.RequestContext) -> StatvfsData:
        """The image's own size: full, as nothing can be added."""
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = _BLOCK
        answer.f_blocks = -(-self._tree.total_size // _BLOCK)
        answer.f_files = self._tree.node_count
        answer.f_namemax = _NAME_MAX
        return answer

    async def forget(self, inode_list: object) -> None:
        """Nothing is kept for an inode."""

    def _node(self, ino: int) -> Node:
        node = self._tree.node(ino)
        if node is None:
            raise FUSEError(errno.ENOENT)
        return node

    def _load_extents(self, ino: int) -> tuple[int, tuple[Extent, ...], int]:
        return *self._tree.extents(ino), self._node(ino).size

    def _attributes(self, node: Node) -> EntryAttributes:
        answer = EntryAttributes()
        answer.st_ino = pyfuse3.InodeT(node.ino)
        answer.entry_timeout = answer.attr_timeout = FOREVER
        answer.st_mode = pyfuse3.ModeT(node.mode)
        answer.st_nlink = node.nlink
        answer.st_uid, answer.st_gid = self._owner or (node.uid, node.gid)
        answer.st_rdev = node.device
        answer.st_size = node.size
        answer.st_blocks = node.blocks
        answer.st_atime_ns = answer.st_mtime_ns = answer.st_ctime_ns = node.mtime_ns
        return answer

    async def _located(self, ino: int, error: ImgfsError) -> ImgfsError:
        """The error with the path of the file it hit, for the log."""
        path = await trio.to_thread.run_sync(self._paths, ino)
        return ImgfsError(f"/{os.fsdecode(path)}: {error}")


class _Listing:
    """A directory being listed: where the kernel is, and the rest of the query.

    Positions: `.` is 1, `..` is 2, then the tree's own positions moved up by two. What an iterator has given
    but the reply had no room for is put back and comes first the next time.
    """

    def __init__(
        self, children: Callable[[int, int], Iterator[tuple[int, bytes, Node]]], directory: int
    ) -> None:
        self.directory = directory
        self._children = children
        self._rest: Iterator[tuple[int, bytes, Node | None]] = iter(())
        self._held: tuple[int, bytes, Node | None] | None = None  # put back: comes before the rest
        self._next = -1  # the position that the iterator stands behind

    def read_from(self, position: int) -> Iterator[tuple[int, bytes, Node | None]]:
        """The entries behind `position`; the node is None for `.` and `..`."""
        if position != self._next:
            self._rest, self._held = self._start(position), None
        while entry := self._take():
            self._next = entry[0]
            yield entry

    def put_back(self, position: int, name: bytes, node: Node | None) -> None:
        """The entry just read had no room."""
        self._held = position, name, node
        self._next = position - 1

    def close(self) -> None:
        """Let go of the query."""
        self._rest = iter(())

    def _take(self) -> tuple[int, bytes, Node | None] | None:
        held, self._held = self._held, None
        return held or next(self._rest, None)

    def _start(self, position: int) -> Iterator[tuple[int, bytes, Node | None]]:
        for number, name in enumerate(_DOTS, 1):
            if number > position:
                yield number, name, None
        shift = len(_DOTS)
        for number, name, node in self._children(self.directory, max(0, position - shift)):
            yield number + shift, name, node


def _absent() -> EntryAttributes:
    """No such name (st_ino 0): the kernel remembers that too."""
    answer = EntryAttributes()
    answer.st_ino = pyfuse3.InodeT(0)
    answer.entry_timeout = FOREVER
    return answer
