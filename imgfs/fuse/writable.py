"""What the kernel asks of a mount with a writable scratch.

What has no upper half is answered as in a read-only mount, by the class this one extends. All changes run
on the event loop, one after the other: none is seen half done, and the overlay needs no locks. Only two
things go to a thread: filling in the data of a large file before its first write (see `filling`), and a sync.

Handles of a file with an upper half are marked, as they share its one descriptor.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from imgfs.fuse.copyup_data import Fills
from imgfs.fuse.dispatch import writing
from imgfs.fuse.errors import FUSEError
from imgfs.fuse.interrupts import undone_or_done
from imgfs.fuse.listing import Listing
from imgfs.fuse.operations import KEPT_LISTING, Operations
from imgfs.fuse.protocol import (
    GETATTR_FH,
    OPEN_KILL_SUIDGID,
    SIZE_OUT,
    STATFS_OUT,
    Change,
    Head,
    NewAttributes,
    OpenFlag,
    WriteFlag,
    attributes,
    entry,
    opened,
)
from imgfs.fuse.session import Session
from imgfs.image.image import Image
from imgfs.overlay.listing import UnionListing
from imgfs.overlay.node import UpperAttributes, UpperNode, is_access_old
from imgfs.overlay.overlay import Overlay
from imgfs.overlay.union import File
from imgfs.overlay.xattrs import CAPABILITY, Owner
from imgfs.tree.reader import Node

_UPPER = 1  # a handle that needs the descriptor of the upper half
_LARGEST = 1 << 20  # bytes the kernel reads at once at most
_WRITING = os.O_WRONLY | os.O_RDWR
_BILLION = 1_000_000_000
_DONE = b""
Later = Coroutine[Any, Any, bytes]


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
        self._writeback = not write_through
        self._overlay = overlay
        self._union = overlay.union
        self._entries = overlay.entries
        self._nodes = overlay.union.nodes
        self._fills = Fills(overlay, self._fetches)
        self._buffer = memoryview(bytearray(_LARGEST))
        self._readers: dict[int, Listing] = {}  # by handle
        self._handles = 0
        self._session: Session | None = None

    def session(self, descriptor: int) -> Session:
        """The conversation with the kernel by `descriptor`, an open /dev/fuse."""
        self._session = Session(
            descriptor, writing(self), self.greeted, writable=True, writeback=self._writeback
        )
        return self._session

    def getattr(self, ino: int, flags: int = 0) -> bytes:
        """A file's attributes.

        Asked about an open file, the kernel is about to write to it: then it is told, once, of what it had
        gathered before and could not be written.
        """
        node = self._nodes.get(ino) if flags & GETATTR_FH else None
        if node is not None and node.failed:
            number, node.failed = node.failed, None
            raise FUSEError(number)
        return super().getattr(ino)

    def setattr(self, ino: int, new: NewAttributes) -> bytes | Later:
        """Change a file's attributes; the kernel has checked that the caller may."""
        if new.changes & Change.SIZE and self._truncates(ino, new.size):
            node = self._overlay.copyup.up(ino, with_data=new.size > 0)
            if self._fills.must_wait(node, new.size):
                return self._set_later(ino, node, new)
            self._overlay.truncate(node, new.size)
        return self._set_rest(ino, new)

    def readlink(self, ino: int) -> bytes:
        """A symlink's target."""
        return self._overlay.symlink_target(ino)

    def create(self, caller: Head, name: bytes, mode: int) -> bytes:
        """Make a file and open it."""
        node = self._entries.create(caller.ino, name, self._creator(mode, caller))
        handle = self._handle(node)
        return self._known(node) + handle

    def mknod(self, caller: Head, name: bytes, mode: int, device: int) -> bytes:
        """Make a FIFO, socket, device or file."""
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        return self._known(self._entries.make(caller.ino, name, kind, self._creator(mode, caller), device))

    def mkdir(self, caller: Head, name: bytes, mode: int) -> bytes:
        """Make a directory."""
        return self._known(self._entries.make(caller.ino, name, stat.S_IFDIR, self._creator(mode, caller)))

    def symlink(self, caller: Head, name: bytes, target: bytes) -> bytes:
        """Make a symbolic link."""
        return self._known(self._entries.symlink(caller.ino, name, target, self._creator(0o777, caller)))

    def link(self, ino: int, new_parent: int, new_name: bytes) -> bytes:
        """Give a file another name."""
        return self._known(self._entries.link(ino, new_parent, new_name))

    def unlink(self, parent: int, name: bytes) -> bytes:
        """Remove a name."""
        self._entries.unlink(parent, name)
        return _DONE

    def rmdir(self, parent: int, name: bytes) -> bytes:
        """Remove an empty directory."""
        self._entries.rmdir(parent, name)
        return _DONE

    def rename(self, old: tuple[int, bytes], new: tuple[int, bytes], flags: int) -> bytes:
        """Rename, or, by the flags, exchange."""
        self._overlay.rename(old, new, flags)
        return _DONE

    def open(self, ino: int, flags: int, more: int = 0) -> bytes | Later:
        """A handle on a file. One to write to has the file copied up: what hinders that is told now."""
        if flags & os.O_TRUNC:
            if self._truncates(ino, 0):
                node = self._overlay.copyup.up(ino, with_data=False)
                if self._fills.must_wait(node, 0):
                    return self._open_later(ino, flags, more)
                self._overlay.truncate(node, 0)
            self._drop_privileges(ino, kill=more & OPEN_KILL_SUIDGID)
        if flags & _WRITING and self._overlay.copyup.up(ino).data is not None:
            return self._open_later(ino, flags & ~os.O_TRUNC, more)
        if ino in self._nodes:
            return self._handle(self._nodes[ino], is_read=not flags & _WRITING)
        return super().open(ino, flags & ~_WRITING)

    def read(self, ino: int, offset: int, size: int) -> bytes | memoryview | Later:
        """Exactly the bytes asked for, or up to the end of the file, or an error."""
        node = self._nodes.get(ino)
        if node is None:
            return super().read(ino, offset, size)
        if node.data is not None:
            return super().read(node.data, offset, size)
        count = os.preadv(self._overlay.data(node), [self._buffer[:size]], offset)
        return self._buffer[:count]

    def write(self, ino: int, data: memoryview, offset: int, flags: int) -> bytes | Later:
        """Write all of it, or, of what a program has just written, as much as there is room for."""
        node = self._nodes[ino]
        if node.data is not None:  # a link or a rename after a kill may have left it to do
            return self._write_later(node, bytes(data), offset, flags)
        return self._write(node, data, offset, flags)

    def fsync(self, ino: int) -> bytes | Later:
        """Get a file, or a directory's names, to the disk; what goes with the mount need not get there."""
        node = self._nodes.get(ino)
        if node is None or not self._overlay.durable:
            return _DONE
        return self._sync_later(node)

    def release(self, ino: int, handle: int) -> bytes:
        """A handle is closed."""
        node = self._nodes.get(ino)
        if node is not None:
            self._overlay.release(node, opened=handle == _UPPER)
        return _DONE

    def opendir(self, ino: int) -> bytes:
        """A handle on a directory's listing, which the kernel keeps for as long as it is the image's."""
        self._handles += 1
        self._readers[self._handles] = Listing(UnionListing(self._union, ino).children, ino)
        return opened(self._handles, 0 if ino in self._nodes else KEPT_LISTING)

    def readdir(self, ino: int, handle: int, position: int, room: int) -> bytes:
        """The listing behind `position`, with attributes, as much as there is room for."""
        return self._listed(self._readers[handle], position, room)

    def releasedir(self, handle: int) -> bytes:
        """The listing is done with."""
        del self._readers[handle]
        return _DONE

    def listxattr(self, ino: int) -> Sequence[bytes]:
        """The names of the extended attributes."""
        return list(self._overlay.xattrs(ino))

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int) -> bytes:
        """Set an extended attribute; by the flags, one that is there, or one that is not."""
        if flags and (self._xattr(ino, name) is None) == (flags & os.XATTR_REPLACE != 0):
            raise FUSEError(errno.ENODATA if flags & os.XATTR_REPLACE else errno.EEXIST)
        self._overlay.set_xattr(ino, name, value)
        return _DONE

    def removexattr(self, ino: int, name: bytes) -> bytes:
        """Remove an extended attribute."""
        self._overlay.remove_xattr(ino, name)
        return _DONE

    def statfs(self) -> bytes:
        """The room there is for changes."""
        found = self._overlay.statfs()
        sizes = found.f_bsize, found.f_namemax, found.f_frsize, 0
        return STATFS_OUT.pack(
            found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree, *sizes
        )

    def forget(self, ino: int, count: int) -> None:
        """The kernel does not know a file any more, as often as it was told of it."""
        self._union.forget(ino, count)

    def _file(self, ino: int) -> File:
        return self._union.file(ino)

    def _find(self, parent: int, name: bytes) -> File | None:
        found = self._union.find(parent, name)
        self._was_listed(found)
        return found

    def _needs_no_opens(self) -> bool:
        return False  # those that are about to write have to be known

    def _shown(self, file: File) -> UpperAttributes | Node:
        return self._union.attributes(file)

    def _xattr(self, ino: int, name: bytes) -> bytes | None:
        return self._overlay.xattr(ino, name)

    def _was_listed(self, file: File | None) -> None:
        if isinstance(file, UpperNode):
            file.lookups += 1

    def _known(self, node: UpperNode) -> bytes:
        """An answer that makes the kernel know the file."""
        node.lookups += 1
        return entry(self._shown(node), self._owner)

    def _creator(self, mode: int, caller: Head) -> Owner:
        """Whom something new belongs to: an ordinary user is root in his image."""
        mode = stat.S_IMODE(mode)
        is_own = self._overlay.keeps_owners_aside and caller.uid == os.geteuid()
        return Owner(0, 0, mode) if is_own else Owner(caller.uid, caller.gid, mode)

    def _new_owner(self, new: NewAttributes) -> tuple[int | None, int | None]:
        """The uid and gid to set. An ordinary user is shown as the owner of all, and stays so."""
        uid = new.uid if new.changes & Change.UID else None
        gid = new.gid if new.changes & Change.GID else None
        if not self._overlay.keeps_owners_aside or os.geteuid() == 0:
            return uid, gid
        if (uid is None or uid == os.geteuid()) and (gid is None or gid == os.getegid()):
            return None, None
        raise FUSEError(errno.EPERM)

    def _set_rest(self, ino: int, new: NewAttributes) -> bytes:
        """Set all but the size."""
        if new.changes & (Change.UID | Change.GID):
            self._overlay.set_owner(ino, *self._new_owner(new))
        if new.changes & Change.MODE:
            self._overlay.set_mode(ino, new.mode)
        if new.changes & (Change.ATIME | Change.MTIME):
            atime_ns = new.atime * _BILLION + new.atime_ns if new.changes & Change.ATIME else None
            mtime_ns = new.mtime * _BILLION + new.mtime_ns if new.changes & Change.MTIME else None
            self._overlay.set_times(ino, atime_ns, mtime_ns)
        if new.changes & Change.KILL_SUIDGID:  # the answer tells the mode
            self._overlay.drop_privileges(self._overlay.copyup.up(ino))
        shown = self._shown(self._file(ino))
        if new.changes & Change.CTIME and ino in self._nodes:
            told_ns = new.ctime * _BILLION + new.ctime_ns
            self._union.keep_ctime(self._nodes[ino], told_ns, shown.ctime_ns)
        return attributes(shown, self._owner)

    def _drop_privileges(self, ino: int, *, kill: int) -> None:
        """Have a file whose bytes are changed without set-id bits, if `kill`, and without capabilities."""
        file = self._shown(self._file(ino))
        if (
            kill
            and file.mode & (stat.S_ISUID | stat.S_ISGID)
            and self._overlay.drop_privileges(self._overlay.copyup.up(ino))
            and self._session
        ):
            self._session.invalidate_attributes(ino)
        if self._xattr(ino, CAPABILITY) is not None:
            self._overlay.drop_capability(self._overlay.copyup.up(ino))

    async def _set_later(self, ino: int, node: UpperNode, new: NewAttributes) -> bytes:
        with self._fills.undoing(node):
            await self._fills.truncate(node, new.size)
        return self._set_rest(ino, new)

    async def _open_later(self, ino: int, flags: int, more: int) -> bytes:
        node = self._overlay.copyup.up(ino, with_data=False)
        with self._fills.undoing(node):
            if flags & os.O_TRUNC:
                await self._fills.truncate(node, 0)
                self._drop_privileges(ino, kill=more & OPEN_KILL_SUIDGID)
            await self._fills.fill(node)
        return self._handle(node)

    def _handle(self, node: UpperNode, *, is_read: bool = False) -> bytes:
        """A handle. What is read is to move the file's access time, which the kernel leaves to us: where that
        is about to move, the kernel drops the pages it has, and so reads the file below, which moves it.
        """
        self._overlay.open(node)
        is_moved = is_read and node.data is None and is_access_old(os.fstat(self._overlay.data(node)))
        return opened(_UPPER, 0 if is_moved else OpenFlag.KEEP_CACHE)

    def _write(self, node: UpperNode, data: bytes | memoryview, offset: int, flags: int) -> bytes:
        """Write. What the kernel has gathered is written whole or fails: it does not look at the count."""
        if self._writeback:
            self._overlay.freeze_time(node)
        fd = self._overlay.data(node)
        try:
            count = os.pwrite(fd, data, offset)
            while count < len(data) and flags & WriteFlag.CACHE:
                count += os.pwrite(fd, data[count:], offset + count)
        except OSError as error:
            if flags & WriteFlag.CACHE:
                self._failed(node, error)
            raise
        if flags & WriteFlag.KILL_SUIDGID:
            self._drop_privileges(node.ino, kill=True)
        return SIZE_OUT.pack(count, 0)

    def _failed(self, node: UpperNode, error: OSError) -> None:
        """Have who goes on writing a file hear that what was written before is lost, at the next write(2).

        Of its own a kernel that gathers writes tells of that only at fsync(2) and close(2): a program that
        writes on and on would never hear it. Before each write the kernel wants to know the mode; with that
        out of date it asks, and hears the error (fs/fuse/file.c, fuse_cache_write_iter).
        """
        node.failed = error.errno or errno.EIO
        if self._session:
            self._session.invalidate_attributes_soon(node.ino)

    async def _write_later(self, node: UpperNode, data: bytes, offset: int, flags: int) -> bytes:
        await self._fills.fill(node)
        return self._write(node, data, offset, flags)

    async def _sync_later(self, node: UpperNode) -> bytes:
        async with self._disk_reads:
            sync = self._overlay.sync(node)
            await undone_or_done(lambda _: sync())
        return _DONE

    def _truncates(self, ino: int, size: int) -> bool:
        """Whether that changes anything; if not, a kernel that gathers writes has the times unchanged."""
        return not self._writeback or size != self._shown(self._file(ino)).size
