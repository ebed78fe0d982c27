"""The operations that change the files of a writable mount, made on its overlay.

Reads are answered as in a read-only mount, from the view of the union. All changes run on the event loop,
one after the other: none is seen half done, and the overlay needs no locks. Only two things go to a thread:
copying the data of a large file up before its first write (see `copyup_data`), and a sync.

Handles of a file with an upper half are marked, as they share its one descriptor. Directories need none: a
name's position in a listing stays what it is, and the kernel, which makes all changes, knows when the listing
that it keeps is out of date (fs/fuse/readdir.c, fuse_readdir_cached).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from imgfs.errors import is_full
from imgfs.fuse.errors import FUSEError
from imgfs.fuse.namespace import UPPER_HANDLE, WRITING, NamespaceOperations
from imgfs.fuse.once import Once
from imgfs.fuse.opcodes import GETATTR_FH, OPEN_KILL_SUIDGID, Opcode, OpenFlag, SetattrMask, WriteFlag
from imgfs.fuse.operations import Later, Operations
from imgfs.fuse.privileges import Privileges
from imgfs.fuse.protocol import (
    NewAttributes,
    Squash,
    attributes,
    batch_forget_in,
    forget_in,
    getattr_in,
    handle_in,
    open_in,
    open_out,
    setattr_in,
    write_in,
    write_out,
)
from imgfs.fuse.ranges import RangeOperations
from imgfs.fuse.session import Handler, Session
from imgfs.fuse.union_view import UnionView
from imgfs.overlay.lookup import File
from imgfs.overlay.node import UpperNode, is_access_old
from imgfs.overlay.overlay import Overlay

if TYPE_CHECKING:
    import trio

    from imgfs.fuse.copyup_data import Fills

_WRITING = os.O_WRONLY | os.O_RDWR
_SMALL = 128 << 10  # bytes of a file: the kernel reads them by one request or two
_TIMES = SetattrMask.ATIME | SetattrMask.MTIME
_BILLION = 1_000_000_000
_DONE = b""


class WritableOperations:
    """Changes of the files of `view`, which go to its `overlay`; `reading` answers all else.

    The kernel caches writes (FUSE_WRITEBACK_CACHE), and keeps sizes and times of files meanwhile; with
    `write_through` it passes each write on. `once` is memory for `Once`, if another process may take over.
    """

    def __init__(
        self,
        reading: Operations[File],
        view: UnionView,
        overlay: Overlay,
        *,
        squash: Squash = None,
        write_through: bool,
        once: int | None = None,
    ) -> None:
        self._reading = reading
        self._view = view
        self._writeback = not write_through
        self._overlay = overlay
        self._squash = squash
        self._union = overlay.union
        self._nodes = overlay.union.nodes
        self._copied: dict[UpperNode, trio.Lock] = {}  # files whose data is being copied up
        self._once = once
        self._privileges = Privileges(view, overlay)

    def session(self, descriptor: int) -> Session:
        """Return a session on `descriptor`, an open /dev/fuse."""
        names = NamespaceOperations(self._view, self._overlay, self._squash)
        ranges = RangeOperations(
            self._view,
            self._overlay,
            lambda: self._fills,
            self._privileges,
            self._reading,
            writeback=self._writeback,
        )
        parts = self._reading, self, names, ranges
        handlers = {opcode: handler for part in parts for opcode, handler in part.handlers().items()}
        if self._once is not None:
            handlers = Once(self._once, self._overlay, self._reading.lookup).handlers(handlers)

        def greeted(offered: int) -> None:
            names.greeted(offered)
            self._reading.greeted(offered)

        session = Session(descriptor, handlers, greeted, writable=True, writeback=self._writeback, acls=True)
        self._privileges.session = session
        return session

    def refused(self, layer: int, session: Session) -> None:
        """See Operations."""
        self._reading.refused(layer, session)

    def handlers(self) -> dict[Opcode, Handler]:
        """Return the handlers of changes of files, and of what a writable mount answers in its own way."""
        return {
            Opcode.FORGET: lambda head, body: self.forget(head.ino, *forget_in(body)),
            Opcode.BATCH_FORGET: lambda _, body: self.forget_all(batch_forget_in(body)),
            Opcode.GETATTR: lambda head, body: self.getattr(head.ino, *getattr_in(body)),
            Opcode.SETATTR: lambda head, body: self.setattr(head.ino, setattr_in(body)),
            Opcode.OPEN: lambda head, body: self.open(head.ino, *open_in(body)),
            Opcode.RELEASE: lambda head, body: self.release(head.ino, *handle_in(body)),
            Opcode.WRITE: lambda head, body: self.write(head.ino, *write_in(body)),
            Opcode.FSYNC: lambda head, _: self.fsync(head.ino),
            Opcode.FSYNCDIR: lambda head, _: self.fsync(head.ino),
        }

    def getattr(self, ino: int, flags: int = 0) -> bytes:
        """Return a file's attributes.

        A GETATTR with a handle comes before a write(2): then an earlier failure to write back is reported,
        once.
        """
        node = self._nodes.get(ino) if flags & GETATTR_FH else None
        if node is not None and node.failed:
            number, node.failed = node.failed, None
            raise FUSEError(number)
        return self._reading.getattr(ino)

    def setattr(self, ino: int, new: NewAttributes) -> bytes | Later:
        """Change a file's attributes; the kernel has checked that the caller may."""
        if new.changes & SetattrMask.SIZE and self._truncates(ino, new.size):
            node = self._overlay.copyup.up(ino, with_data=new.size > 0)
            if self._must_wait(node, new.size):
                return self._set_later(ino, node, new)
            self._overlay.truncate(node, new.size)
        return self._set_rest(ino, new)

    def open(self, ino: int, flags: int, more: int = 0) -> bytes | Later:
        """Return a handle on a file. Opening it to write copies it up: errors of that are reported here."""
        if flags & os.O_TRUNC:
            if self._truncates(ino, 0):
                node = self._overlay.copyup.up(ino, with_data=False)
                if self._must_wait(node, 0):
                    return self._open_later(ino, flags, more)
                self._overlay.truncate(node, 0)
            self._privileges.drop(ino, kill=more & OPEN_KILL_SUIDGID)
        if flags & _WRITING and self._overlay.copyup.up(ino).data is not None:
            return self._open_later(ino, flags & ~os.O_TRUNC, more)
        if ino in self._nodes:
            return self._handle(self._nodes[ino], is_read=not flags & _WRITING)
        return self._reading.open(ino, flags & ~_WRITING)

    def write(self, ino: int, data: memoryview, offset: int, flags: int) -> bytes | Later:
        """Write data: write-back pages whole or not at all, a program's write as far as there is room."""
        node = self._nodes.get(ino)
        if node is None:
            raise FUSEError(errno.ESTALE)
        if node.data is not None:  # a link or a rename after a kill may have left it to do
            return self._write_later(node, bytes(data), offset, flags)
        return self._write(node, data, offset, flags)

    def fsync(self, ino: int) -> bytes | Later:
        """Sync a file, or a directory's names; nothing to do for a scratch that goes with the mount."""
        node = self._nodes.get(ino)
        if node is None or not self._overlay.durable:
            return _DONE
        return self._sync_later(node)

    def release(self, ino: int, handle: int) -> bytes:
        """Note that a handle is closed."""
        node = self._nodes.get(ino)
        if node is not None:
            self._overlay.release(node, opened=bool(handle & UPPER_HANDLE), writes=bool(handle & WRITING))
            if node.overstated and not node.writers:
                self._correct_size(node)
        return _DONE

    def _correct_size(self, node: UpperNode) -> None:
        """Have the kernel drop a file of which it counts lost bytes, as NULs, once no process writes to it.

        With a write-back cache the kernel takes no word of a file's size (fs/fuse/inode.c,
        fuse_get_cache_mask), but it has no inode without a name or an open file, and a new one is told.
        """
        node.overstated = False
        if self._privileges.session and node.parent is not None and node.anchor is None:
            self._privileges.session.forget_name_soon(node.parent.ino, node.name)

    def forget(self, ino: int, count: int) -> None:
        """Drop references that the kernel held to a file."""
        self._union.forget(ino, count)

    def forget_all(self, counts: Iterable[tuple[int, int]]) -> None:
        """Drop references to several files, as (ino, count)."""
        for ino, count in counts:
            self._union.forget(ino, count)

    @cached_property
    def _fills(self) -> Fills:
        from imgfs.fuse.copyup_data import Fills  # here: small files are copied up at once

        return Fills(self._overlay, self._reading.fetches, self._copied)

    def _must_wait(self, node: UpperNode, size: int) -> bool:
        """Return True if data must be copied up before a file is cut, or another caller is copying it."""
        return node in self._copied or (node.data is not None and size > 0)

    def _new_owner(self, new: NewAttributes) -> tuple[int | None, int | None]:
        """Return the uid and gid to set. With `squash` all files are shown as the user's, and stay so."""
        uid = new.uid if new.changes & SetattrMask.UID else None
        gid = new.gid if new.changes & SetattrMask.GID else None
        if not self._overlay.keeps_owners_aside or os.geteuid() == 0:
            return uid, gid
        if (uid is None or uid == os.geteuid()) and (gid is None or gid == os.getegid()):
            return None, None
        raise FUSEError(errno.EPERM)

    def _set_rest(self, ino: int, new: NewAttributes) -> bytes:
        """Set all but the size."""
        if new.changes & (SetattrMask.UID | SetattrMask.GID):
            self._overlay.set_owner(ino, *self._new_owner(new))
        if new.changes & SetattrMask.MODE:
            self._overlay.set_mode(ino, new.mode)
        if new.changes & _TIMES and not self._is_of_no_use(ino, new):
            atime_ns = new.atime * _BILLION + new.atime_ns if new.changes & SetattrMask.ATIME else None
            mtime_ns = new.mtime * _BILLION + new.mtime_ns if new.changes & SetattrMask.MTIME else None
            self._overlay.set_times(ino, atime_ns, mtime_ns)
        shown = self._view.attributes(ino)
        if new.changes & SetattrMask.KILL_SUIDGID and shown.mode & (stat.S_ISUID | stat.S_ISGID):
            self._overlay.drop_privileges(self._overlay.copyup.up(ino))
            shown = self._view.attributes(ino)
        if new.changes & SetattrMask.CTIME and ino in self._nodes:
            node, ctimes = self._nodes[ino], self._union.ctimes
            ctimes.keep(node, ctimes.on_disk(node, shown.ctime_ns), new.ctime * _BILLION + new.ctime_ns)
        return attributes(shown, self._squash)

    def _is_of_no_use(self, ino: int, new: NewAttributes) -> bool:
        """Return True if the kernel flushes the times of a file that has no name and is not open.

        It does so after each unlink(2) of a file whose times it keeps, right before it forgets the file; what
        it answers a program that still holds the file by O_PATH are its own times. A file that has never had
        a name may be given one still (open(2), O_TMPFILE).
        """
        if new.changes != SetattrMask.MTIME | SetattrMask.CTIME or not self._writeback:
            return False
        node = self._nodes.get(ino)
        if node is None or node.anchor is None or node.opens or node.kind != stat.S_IFREG:
            return False
        return bool(node.name) and os.fstat(node.anchor).st_nlink == 0

    async def _set_later(self, ino: int, node: UpperNode, new: NewAttributes) -> bytes:
        with self._fills.undoing(node):
            await self._fills.truncate(node, new.size)
        return self._set_rest(ino, new)

    async def _open_later(self, ino: int, flags: int, more: int) -> bytes:
        node = self._overlay.copyup.up(ino, with_data=False)
        with self._fills.undoing(node):
            if flags & os.O_TRUNC:
                await self._fills.truncate(node, 0)
                self._privileges.drop(ino, kill=more & OPEN_KILL_SUIDGID)
            await self._fills.fill(node)
        return self._handle(node)

    def _handle(self, node: UpperNode, *, is_read: bool = False) -> bytes:
        """Return a handle, and what the kernel may keep of the file's pages."""
        self._overlay.open(node, writes=not is_read)
        if is_read:
            return open_out(UPPER_HANDLE, self._kept_by_reader(node))
        return open_out(UPPER_HANDLE | WRITING, OpenFlag.KEEP_CACHE)

    def _kept_by_reader(self, node: UpperNode) -> int:
        """Return whether the kernel keeps the file's pages; see that its access time moves as by relatime.

        Access times are the daemon's work. If this file's is due, the kernel drops a small file's pages, so
        that reading them from the upper file moves it. A large file keeps its pages, and is touched at the
        open.
        """
        fd = self._overlay.data(node)
        found = os.fstat(fd)
        if node.data is not None or not is_access_old(found, self._union.ctime(node, found)):
            return OpenFlag.KEEP_CACHE
        if found.st_size <= _SMALL:
            return 0
        os.pread(fd, 1, 0)
        if self._privileges.session and os.fstat(fd).st_atime_ns != found.st_atime_ns:
            self._privileges.session.invalidate_attributes(node.ino)
        return OpenFlag.KEEP_CACHE

    def _write(self, node: UpperNode, data: bytes | memoryview, offset: int, flags: int) -> bytes:
        """Write data. Write-back pages are written whole or fail: the kernel ignores the count for them."""
        fd, shown_ns = self._overlay.data(node), None
        try:
            found = os.fstat(fd)
            if self._writeback:
                self._overlay.freeze_time(node, found)
            if flags & WriteFlag.CACHE:
                shown_ns = self._union.ctime(node, found)
            count = os.pwrite(fd, data, offset)
            while count < len(data) and flags & WriteFlag.CACHE:
                count += os.pwrite(fd, data[count:], offset + count)
        except OSError as error:
            if flags & WriteFlag.CACHE:
                self._failed(node, error)
                if is_full(error):  # close(2) knows ENOSPC, and has EIO for all else (mapping_set_error)
                    raise FUSEError(errno.ENOSPC) from error
            raise
        if shown_ns is not None:  # the kernel has its own time of that write(2), and sends it if it has moved
            self._union.ctimes.keep(node, os.fstat(fd).st_ctime_ns, shown_ns)
        if flags & WriteFlag.KILL_SUIDGID:
            self._privileges.drop(node.ino, kill=True)
        return write_out(count)

    def _failed(self, node: UpperNode, error: OSError) -> None:
        """Report at the next write(2) to a file that earlier writes are lost.

        With a write-back cache the kernel itself reports that only at fsync(2) and close(2): a program that
        goes on writing would not learn of it. Before each write the kernel checks the mode; with that
        invalidated it asks by GETATTR, which fails (fs/fuse/file.c, fuse_cache_write_iter).
        """
        node.failed, node.overstated = error.errno or errno.EIO, True
        if self._privileges.session:
            self._privileges.session.invalidate_attributes_soon(node.ino)

    async def _write_later(self, node: UpperNode, data: bytes, offset: int, flags: int) -> bytes:
        await self._fills.fill(node)
        return self._write(node, data, offset, flags)

    async def _sync_later(self, node: UpperNode) -> bytes:
        from imgfs.fuse.tasks import undone_or_done

        async with self._reading.disk_reads:
            sync = self._overlay.sync(node)
            await undone_or_done(lambda _: sync())
        return _DONE

    def _truncates(self, ino: int, size: int) -> bool:
        """Return True if `size` differs from the file's; if not, a kernel with write-back keeps the times."""
        return not self._writeback or size != self._view.attributes(ino).size
