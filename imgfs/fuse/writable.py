"""What the kernel asks of a mount with a writable scratch.

What has no upper half is answered as in a read-only mount, by the class this one extends. All changes run
on the event loop, one after the other: none is seen half done, and the overlay needs no locks. Only two
things go to a thread: filling in the data of a large file before its first write, which others who write
that file wait for, and a sync.

A handle is an ino. Handles of a file with an upper half are marked, as they share its one descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, StatvfsData

from imgfs.fuse.boundary import answers
from imgfs.fuse.operations import Operations
from imgfs.image.image import Image
from imgfs.overlay import Overlay
from imgfs.overlay.listing import Listing
from imgfs.overlay.marks import Owner
from imgfs.overlay.node import UpperNode
from imgfs.overlay.union import File

_UPPER = 1 << 62  # in a handle: it needs the descriptor of the upper half
_LARGEST = 1 << 20  # bytes the kernel reads at once at most
_WRITING = os.O_WRONLY | os.O_RDWR


class WritableOperations(Operations):
    """A file system over `image` whose changes go to `overlay`.

    The kernel gathers what is written, and keeps sizes and times of files meanwhile; with `write_through` it
    hands each write on.
    """

    def __init__(
        self,
        image: Image,
        overlay: Overlay,
        *,
        owner: tuple[int, int] | None,
        on_ready: Callable[[], None],
        status: Callable[[], dict[str, Any]],
        write_through: bool,
    ) -> None:
        super().__init__(image, owner=owner, on_ready=on_ready, status=status)
        self.enable_writeback_cache = not write_through
        self._overlay = overlay
        self._union = overlay.union
        self._entries = overlay.entries
        self._nodes = overlay.union.nodes
        self._fills: dict[UpperNode, trio.Lock] = {}
        self._buffer = memoryview(bytearray(_LARGEST))

    @answers
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> EntryAttributes:
        """A file's attributes."""
        return self._attributes(self._file(inode))

    @answers
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> EntryAttributes:
        """Change a file's attributes; the kernel has checked that the caller may."""
        if fields.update_size:
            await self._truncate(inode, attr.st_size)
        if fields.update_uid or fields.update_gid:
            self._overlay.set_owner(inode, *self._new_owner(attr, fields))
        if fields.update_mode:
            self._overlay.set_mode(inode, attr.st_mode)
        if fields.update_atime or fields.update_mtime:
            atime_ns = attr.st_atime_ns if fields.update_atime else None
            mtime_ns = attr.st_mtime_ns if fields.update_mtime else None
            self._overlay.set_times(inode, atime_ns, mtime_ns)
        return self._attributes(self._file(inode))

    @answers
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """A symlink's target."""
        return self._overlay.symlink_target(inode)

    @answers
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        """Everything: the kernel checks permissions itself (`default_permissions`)."""
        return True

    @answers
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make a file and open it."""
        node = self._entries.create(parent_inode, name, self._creator(mode, ctx))
        return self._handle(node), self._entry(node)

    @answers
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        """Make a FIFO, socket, device or file."""
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        return self._entry(self._entries.make(parent_inode, name, kind, self._creator(mode, ctx), rdev))

    @answers
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        """Make a directory."""
        return self._entry(self._entries.make(parent_inode, name, stat.S_IFDIR, self._creator(mode, ctx)))

    @answers
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        """Make a symbolic link."""
        return self._entry(self._entries.symlink(parent_inode, name, target, self._creator(0o777, ctx)))

    @answers
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        """Give a file another name."""
        return self._entry(self._entries.link(inode, new_parent_inode, new_name))

    @answers
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove a name."""
        self._entries.unlink(parent_inode, name)

    @answers
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove an empty directory."""
        self._entries.rmdir(parent_inode, name)

    @answers
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """Rename, or, by the flags, exchange."""
        self._overlay.rename((parent_inode_old, name_old), (parent_inode_new, name_new), flags)

    @answers
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> FileInfo:
        """A handle on a file. One to write to has the file copied up: what hinders that is told now."""
        if flags & os.O_TRUNC:
            await self._truncate(inode, 0)
        if flags & _WRITING:
            await self._fill(self._overlay.copyup.up(inode))
        node = self._nodes.get(inode)
        if node is not None:
            return self._handle(node)
        return await super().open(inode, flags & ~_WRITING, ctx)

    @answers
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Exactly the bytes asked for, or up to the end of the file, or an error."""
        node = self._nodes.get(fh & ~_UPPER)
        if node is None:
            return await super().read(fh, off, size)
        if node.data is not None:
            return await super().read(node.data, off, size)
        count = os.preadv(self._overlay.data(node), [self._buffer[:size]], off)
        return self._buffer[:count]  # type: ignore[return-value]  # copied before anybody else runs

    @answers
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write all of it, or as much as there is room for."""
        node = self._nodes[fh & ~_UPPER]
        await self._fill(node)  # a link or a rename after a kill may have left it to do
        if self.enable_writeback_cache:
            self._overlay.freeze_time(node)
        return os.pwrite(self._overlay.data(node), buf, off)

    @answers
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Get a file to the disk; what goes with the mount need not get there."""
        node = self._nodes.get(fh & ~_UPPER)
        if node is not None and self._overlay.durable:
            await self._in_thread(self._overlay.sync(node), self._disk_reads)

    @answers
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Get a directory's names to the disk."""
        await self.fsync(self._listings[fh].directory, datasync)

    @answers
    async def release(self, fh: int) -> None:
        """A handle is closed."""
        node = self._nodes.get(fh & ~_UPPER)
        if node is not None:
            self._overlay.release(node, opened=bool(fh & _UPPER))

    @answers
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        """A handle on a directory's listing."""
        return self._open_listing(inode, Listing(self._union, inode).children)

    @answers
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """An extended attribute; on the root also the mount's status."""
        value = self._own_xattr(inode, name) or self._overlay.xattr(inode, name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    @answers
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[pyfuse3.XAttrNameT]:
        """The names of the extended attributes."""
        return [pyfuse3.XAttrNameT(name) for name in self._overlay.xattrs(inode)]

    @answers
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Set an extended attribute."""
        self._overlay.set_xattr(inode, name, value)

    @answers
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove an extended attribute."""
        self._overlay.remove_xattr(inode, name)

    @answers
    async def statfs(self, ctx: pyfuse3.RequestContext) -> StatvfsData:
        """The room there is for changes."""
        found, answer = self._overlay.statfs(), StatvfsData()
        for field in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax"):
            setattr(answer, f"f_{field}", getattr(found, f"f_{field}"))
        return answer

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel does not know some files any more."""
        for inode, count in inode_list:
            self._union.forget(inode, count)

    def _file(self, ino: int) -> File:
        return self._union.file(ino)

    def _find(self, parent: int, name: bytes) -> File | None:
        found = self._union.find(parent, name)
        self._was_listed(found)
        return found

    def _was_listed(self, file: File | None) -> None:
        if isinstance(file, UpperNode):
            file.lookups += 1

    def _entry(self, node: UpperNode) -> EntryAttributes:
        """Attributes for a reply that makes the kernel know the file."""
        node.lookups += 1
        return self._attributes(node)

    def _attributes(self, file: File) -> EntryAttributes:
        return self._reply(self._union.attributes(file))

    def _creator(self, mode: int, ctx: pyfuse3.RequestContext) -> Owner:
        """Whom something new belongs to: an ordinary user is root in his image."""
        mode = stat.S_IMODE(mode)
        is_own = self._overlay.keeps_owners_aside and ctx.uid == os.geteuid()
        return Owner(0, 0, mode) if is_own else Owner(ctx.uid, ctx.gid, mode)

    def _new_owner(
        self, attr: EntryAttributes, fields: pyfuse3.SetattrFields
    ) -> tuple[int | None, int | None]:
        """The uid and gid to set. An ordinary user is shown as the owner of all, and stays so."""
        uid = attr.st_uid if fields.update_uid else None
        gid = attr.st_gid if fields.update_gid else None
        if not self._overlay.keeps_owners_aside or os.geteuid() == 0:
            return uid, gid
        if (uid is None or uid == os.geteuid()) and (gid is None or gid == os.getegid()):
            return None, None
        raise FUSEError(errno.EPERM)

    def _handle(self, node: UpperNode) -> FileInfo:
        self._overlay.open(node)
        return FileInfo(fh=pyfuse3.FileHandleT(node.ino | _UPPER), keep_cache=True)

    async def _truncate(self, ino: int, size: int) -> None:
        """Cut or lengthen a file; of the image's data only what stays is copied up."""
        if self.enable_writeback_cache and size == self._union.attributes(self._file(ino)).size:
            return  # the kernel has the file's times unchanged, too
        node = self._overlay.copyup.up(ino, with_data=size > 0)
        async with self._filling(node):
            if node.data is not None and size:
                await self._copy_data(node, size)
            self._overlay.truncate(node, size)

    async def _fill(self, node: UpperNode) -> None:
        """Have the data of a file its own; one does it, all others wait for that."""
        if node.data is None:
            return
        async with self._filling(node):
            if node.data is not None:
                await self._copy_data(node, sys.maxsize)
                self._overlay.copyup.filled(node)

    @contextlib.asynccontextmanager
    async def _filling(self, node: UpperNode) -> AsyncIterator[None]:
        lock = self._fills.setdefault(node, trio.Lock())
        async with lock:
            yield
        if not lock.statistics().tasks_waiting:
            self._fills.pop(node, None)

    async def _copy_data(self, node: UpperNode, size: int) -> None:
        copy = self._overlay.copyup.fill(node, size)
        try:
            await self._in_thread(copy, self._fetches)
        except BaseException:
            self._overlay.copyup.not_filled(node)
            raise

    async def _in_thread(self, work: Callable[[], None], limiter: trio.CapacityLimiter) -> None:
        await trio.to_thread.run_sync(work, limiter=limiter)
