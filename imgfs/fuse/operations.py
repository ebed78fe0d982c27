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
import os
from collections.abc import Callable, Sequence
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, StatvfsData

from imgfs.errors import ImgfsError
from imgfs.fuse.boundary import answers
from imgfs.fuse.listing import DOTS, Children, Listing
from imgfs.image.image import Image
from imgfs.layer.entry import Extent
from imgfs.mounts import STATUS_XATTR, encode_status
from imgfs.overlay.node import Attributes
from imgfs.tree.tree import Node

FOREVER = 1 << 30  # seconds, some 34 years: nothing of an image changes
_BLOCK = 4096  # what statfs counts in
_NAME_MAX = 255  # bytes in a name
_FETCHES, _DISK_READS = 64, 8  # threads that may wait at once
_OPEN_FILES = 4096  # whose extents are kept at hand
_TROUBLED_FILES = 256  # whose paths are kept for the log: to find one, all names are read
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
        self._listings: dict[int, Listing] = {}
        self._handles = 0

    def init(self) -> None:
        """The kernel has greeted."""
        self._on_ready()

    @answers
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> EntryAttributes:
        """A directory's entry; one that is not there is said not to be, for ever."""
        if name in DOTS:  # asked only by those who re-export the mount
            return self._attributes(self._file(parent_inode))
        if len(name) > _NAME_MAX:  # the kernel lets longer ones through to FUSE
            raise FUSEError(errno.ENAMETOOLONG)
        found = self._find(parent_inode, name)
        return self._attributes(found) if found else _absent()

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
        """A handle on a file; what the kernel has cached of it stays good, unless it has been found out."""
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise FUSEError(errno.EROFS)
        layer, _, _ = self._extents(inode)
        self._content.opened(inode)
        return FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=not self._content.is_refused(layer))

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
        try:
            return await self._waited_for(layer, extents, off, length)
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
        return self._open_listing(inode, self._tree.children)

    @answers
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """The listing from `start_id` on, with attributes, as much as fits."""
        listing = self._listings[fh]
        for position, name, node in listing.read_from(start_id):
            try:
                attributes = self._attributes(node or self._file(listing.directory))
            except OSError as error:
                if error.errno == errno.ESTALE:  # removed since the last reply, which had no room for it
                    continue
                raise
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), attributes, position):
                listing.put_back(position, name, node)
                return
            self._was_listed(node)

    @answers
    async def releasedir(self, fh: int) -> None:
        """The listing is done with."""
        self._listings.pop(fh).close()

    @answers
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """An extended attribute; on the root also the mount's status."""
        value = self._own_xattr(inode, name) or self._tree.xattrs(inode).get(name)
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

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing is kept for an inode."""

    def _file(self, ino: int) -> Any:
        """The file with that ino; raises ENOENT."""
        return self._node(ino)

    def _find(self, parent: int, name: bytes) -> Any:
        """What a name in a directory means, None if nothing."""
        return self._tree.lookup(parent, name)

    def _node(self, ino: int) -> Node:
        node = self._tree.node(ino)
        if node is None:
            raise FUSEError(errno.ENOENT)
        return node

    def _own_xattr(self, ino: int, name: bytes) -> bytes | None:
        """An extended attribute that is the mount's, not the image's."""
        if name == _STATUS and ino == pyfuse3.ROOT_INODE:
            return encode_status(self._status())
        return None

    async def _waited_for(self, layer: int, extents: Sequence[Extent], offset: int, length: int) -> bytes:
        """A file's bytes, read in a thread: from the disk, or the network."""
        there = self._content.is_here(layer, extents, offset, length)
        limiter = self._disk_reads if there else self._fetches
        read = functools.partial(self._content.read, layer, extents, offset, length)
        return await trio.to_thread.run_sync(read, limiter=limiter, abandon_on_cancel=True)

    def _load_extents(self, ino: int) -> tuple[int, tuple[Extent, ...], int]:
        return *self._tree.extents(ino), self._node(ino).size

    def _open_listing(self, ino: int, children: Children) -> pyfuse3.FileHandleT:
        self._handles += 1
        self._listings[self._handles] = Listing(children, ino)
        return pyfuse3.FileHandleT(self._handles)

    def _was_listed(self, file: Any) -> None:
        """The kernel knows a file from a listing; it is None for `.` and `..`."""

    def _attributes(self, file: Any) -> EntryAttributes:
        """What the kernel is told of a file."""
        return self._reply(file)

    def _reply(self, node: Node | Attributes) -> EntryAttributes:
        answer = EntryAttributes()
        answer.st_ino = pyfuse3.InodeT(node.ino)
        answer.entry_timeout = answer.attr_timeout = FOREVER
        answer.st_mode = pyfuse3.ModeT(node.mode)
        answer.st_nlink = node.nlink
        answer.st_uid, answer.st_gid = self._owner or (node.uid, node.gid)
        answer.st_rdev = node.device
        answer.st_size = node.size
        answer.st_blocks = node.blocks
        answer.st_atime_ns, answer.st_mtime_ns = node.atime_ns, node.mtime_ns
        answer.st_ctime_ns = node.ctime_ns
        return answer

    async def _located(self, ino: int, error: ImgfsError) -> ImgfsError:
        """The error with the path of the file it hit, for the log."""
        path = await trio.to_thread.run_sync(self._paths, ino)
        return ImgfsError(f"/{os.fsdecode(path)}: {error}")


def _absent() -> EntryAttributes:
    """No such name (st_ino 0): the kernel remembers that too."""
    answer = EntryAttributes()
    answer.st_ino = pyfuse3.InodeT(0)
    answer.entry_timeout = FOREVER
    return answer
