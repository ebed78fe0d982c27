"""The operations of a mount that is read, answered from a view of its files.

Everything here runs on the event loop and answers within microseconds: the tree is a local file, cached
bytes are a `pread`. Only a read that must wait for the network or the disk goes to a thread; the two kinds
have limits of their own, so a dead registry never holds up what is cached.

There is no state for each inode: a node keeps its ino in the tree for ever, so lookups need not be counted,
FORGET has nothing to do, and directories need no handles.

A handler parses the body of its request (`protocol`), and calls a method that returns the answer's body, or a
coroutine for it, and raises OSError or ImgfsError.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from imgfs.fuse.callers import is_contained
from imgfs.fuse.disk_reads import DiskReads
from imgfs.fuse.errors import FUSEError
from imgfs.fuse.opcodes import ROOT_INO, InitFlag, Opcode, OpenFlag
from imgfs.fuse.protocol import (
    ABSENT,
    Squash,
    attributes,
    entry,
    getxattr_in,
    handle_in,
    listed,
    listed_dot,
    listxattr_in,
    lseek_in,
    name_in,
    open_in,
    open_out,
    position_out,
    read_in,
    readdir_in,
    statfs_out,
    statx_out,
    xattr_names_out,
    xattr_out,
)
from imgfs.fuse.session import Handler, Session
from imgfs.fuse.views import NAME_MAX, Children, PendingRead, View
from imgfs.mounts.status_client import STATUS_XATTR, encode_status

if TYPE_CHECKING:
    import trio

    from imgfs.fuse.files_ahead import FilesAhead
    from imgfs.status import MountStatus

DOTS = (b".", b"..")
_FETCHES, _DISK_READS = 64, 8  # threads that may wait at once
_SMALL_READ = 128 << 10  # bytes: more is read from the disk in a thread, whatever the disk
_LISTINGS = 64  # listings that are kept for the request that continues them
KEPT_LISTING = OpenFlag.KEEP_CACHE | OpenFlag.CACHE_DIR
_STATUS = STATUS_XATTR.encode()
_count = itertools.count()  # of listings, in the order in which they begin
F = TypeVar("F")
Later: TypeAlias = Coroutine[object, object, bytes]


class Operations(Generic[F]):
    """The files of `view`, to be read.

    With `squash` (uid, gid) every file is shown as theirs. `on_ready` is called after FUSE_INIT; `status`
    returns what `imgfs status` shows, served as an extended attribute of the root. With `acls` the kernel
    enforces the files' ACLs. `ahead` is told what is read.
    """

    def __init__(
        self,
        view: View[F],
        *,
        squash: Squash = None,
        on_ready: Callable[[], None] = lambda: None,
        status: Callable[[], MountStatus] | None = None,
        acls: bool = False,
        ahead: FilesAhead | None = None,
    ) -> None:
        self._view = view
        self._ahead = ahead
        self._acls = acls
        self._squash = squash
        self._on_ready = on_ready
        self._status = status
        self._disk = DiskReads()
        self._listings: OrderedDict[tuple[int, int], Listing[F]] = OrderedDict()  # by directory, position
        self._needs_handles = self._goes_without_opens = False

    @cached_property
    def fetches(self) -> trio.CapacityLimiter:
        """The limiter of the threads that wait for the network."""
        from imgfs.fuse.tasks import limiter  # here and below: many a mount never waits

        return limiter(_FETCHES)

    @cached_property
    def disk_reads(self) -> trio.CapacityLimiter:
        """The limiter of the threads that wait for the disk."""
        from imgfs.fuse.tasks import limiter

        return limiter(_DISK_READS)

    def session(self, descriptor: int, *, stands_below: bool = False) -> Session:
        """Return a session on `descriptor`, an open /dev/fuse."""
        session = Session(
            descriptor, self.handlers(), self.greeted, stands_below=stands_below, acls=self._acls
        )
        if self._ahead:
            self._ahead.session = session
        return session

    def handlers(self) -> dict[Opcode, Handler]:
        """Return the handlers by opcode."""
        return {
            Opcode.LOOKUP: lambda head, body: self.lookup(head.ino, name_in(body)),
            Opcode.GETATTR: lambda head, _: self.getattr(head.ino),
            Opcode.READLINK: lambda head, _: self.readlink(head.ino),
            Opcode.OPEN: lambda head, body: self.open(head.ino, *open_in(body)),
            Opcode.READ: lambda head, body: self.read(head.ino, *read_in(body)),
            Opcode.RELEASE: lambda head, body: self.release(head.ino, *handle_in(body)),
            Opcode.OPENDIR: lambda head, _: self.opendir(head.ino),
            Opcode.READDIRPLUS: lambda head, body: self.readdir(head.ino, *readdir_in(body)),
            Opcode.RELEASEDIR: lambda _, body: self.releasedir(*handle_in(body)),
            Opcode.STATFS: lambda *_: self.statfs(),
            Opcode.GETXATTR: lambda head, body: self.getxattr(head.ino, *getxattr_in(body), head.pid),
            Opcode.LISTXATTR: lambda head, body: self.listxattr(head.ino, listxattr_in(body)),
            Opcode.LSEEK: lambda head, body: self.lseek(head.ino, *lseek_in(body)),
            Opcode.STATX: lambda head, _: self.statx(head.ino),
            Opcode.IOCTL: lambda *_: self.ioctl(),
            Opcode.DESTROY: lambda *_: b"",
        }

    def refused(self, layer: int, session: Session) -> None:
        """Drop the pages of all files of a layer whose bytes turned out to be wrong. For any thread."""
        session.forget_pages_soon(self._view.files_of(layer))

    def greeted(self, offered: int) -> None:
        """Note the kernel's features (InitFlag), after FUSE_INIT has been answered."""
        self._needs_handles = not offered & InitFlag.NO_OPENDIR_SUPPORT
        self._goes_without_opens = not self._view.needs_opens and bool(offered & InitFlag.NO_OPEN_SUPPORT)
        self._on_ready()

    def lookup(self, parent: int, name: bytes) -> bytes:
        """Return a directory's entry, or a negative one, which the kernel caches for ever."""
        if name in DOTS:  # by a file handle, as of NFS (FUSE_EXPORT_SUPPORT)
            return entry(self._view.attributes(parent), self._squash)
        if len(name) > NAME_MAX:  # the kernel lets longer ones through to FUSE
            raise FUSEError(errno.ENAMETOOLONG)
        found = self._view.lookup(parent, name)
        return entry(found, self._squash) if found else ABSENT

    def getattr(self, ino: int) -> bytes:
        """Return a file's attributes."""
        return attributes(self._view.attributes(ino), self._squash)

    def statx(self, ino: int) -> bytes:
        """Return a file's attributes and its time of birth."""
        return statx_out(self._view.attributes(ino), self._view.birth_ns(ino), self._squash)

    def readlink(self, ino: int) -> bytes:
        """Return a symlink's target."""
        return self._view.readlink(ino)

    def open(self, ino: int, flags: int, more: int = 0) -> bytes:
        """Return a handle on a file, and whether the kernel may keep its pages.

        ENOSYS unless the view has to see opens: the kernel then sends no OPEN and no RELEASE any more.
        """
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise FUSEError(errno.EROFS)
        if self._goes_without_opens:
            raise FUSEError(errno.ENOSYS)
        return open_out(0, self._view.open(ino))

    def read(self, ino: int, offset: int, size: int) -> bytes | memoryview | Later:
        """Return exactly the bytes asked for, or those up to the end of the file, or fail with EIO."""
        found = self._view.read(ino, offset, size)
        if isinstance(found, PendingRead):
            at_once = self._disk.read(found.from_disk) if found.from_disk and size <= _SMALL_READ else None
            if at_once is None:
                return self._wait(found)
            found = at_once
        if self._ahead and not offset and self._ahead.reads(ino):
            found = bytes(found)  # the buffer is that of other reads meanwhile
            self._ahead.store()
        return found

    def lseek(self, ino: int, offset: int, whence: int) -> bytes | Later:
        """Return where a file's next data or hole begins."""
        return position_out(self._view.seek(ino, offset, whence))

    def ioctl(self) -> bytes:
        """Refuse with ENOTTY: files have no ioctls but those that the kernel implements itself (ioctl(2))."""
        raise FUSEError(errno.ENOTTY)

    def release(self, ino: int, handle: int) -> bytes:
        """Answer RELEASE: there is no state for a handle."""
        return b""

    def opendir(self, ino: int) -> bytes:
        """Refuse with ENOSYS: the kernel sends no OPENDIR again, and caches all listings (Linux 5.1).

        A kernel that lacks this (FUSE_NO_OPENDIR_SUPPORT) gets a handle that means nothing.
        """
        if self._needs_handles:
            return open_out(0, KEPT_LISTING)
        raise FUSEError(errno.ENOSYS)

    def readdir(self, ino: int, handle: int, position: int, room: int) -> bytes:
        """Return the entries after `position` with their attributes, as many as fit."""
        listing = self._listings.pop((ino, position), None) or Listing(self._view.children(ino), ino)
        body = listing.reply(self._view, position, room, self._squash)
        if body:
            self._keep(listing)
        return body

    def _keep(self, listing: Listing[F]) -> None:
        """Keep a listing for the request that continues it, unless a newer one stands at that position."""
        place = listing.directory, listing.position
        other = self._listings.get(place)
        if other is None or other.began < listing.began:
            self._listings[place] = listing
            if len(self._listings) > _LISTINGS:
                self._listings.popitem(last=False)

    def releasedir(self, handle: int) -> bytes:
        """Answer RELEASEDIR: directories have no handles."""
        return b""

    def getxattr(self, ino: int, name: bytes, room: int, caller: int) -> bytes | int | Later:
        """Return an extended attribute; of the root also the mount's status, which has paths of the host."""
        if name == _STATUS and ino == ROOT_INO and self._status and not is_contained(caller):
            return xattr_out(encode_status(self._status().to_json()), room)
        value = self._view.xattr(ino, name)
        if value is None:
            return errno.ENODATA
        return self._xattr_later(value, room) if isinstance(value, PendingRead) else xattr_out(value, room)

    def listxattr(self, ino: int, room: int) -> bytes:
        """Return the names of the extended attributes."""
        return xattr_names_out(self._view.xattrs(ino), room)

    def statfs(self) -> bytes:
        """Return the size of the file system."""
        return statfs_out(self._view.statfs())

    async def _xattr_later(self, pending: PendingRead, room: int) -> bytes:
        return xattr_out(await self._wait(pending), room)

    async def _wait(self, pending: PendingRead) -> bytes:
        from imgfs.fuse.tasks import abandoned_or_done

        return await abandoned_or_done(pending.read, self.disk_reads if pending.is_local else self.fetches)


class Listing(Generic[F]):
    """A directory being listed: the kernel's position, and the rest of the query.

    Positions: `.` is 1, `..` is 2, then the tree's own positions plus two. An entry that did not fit into a
    reply is put back, and comes first in the next.
    """

    def __init__(self, children: Children[F], directory: int) -> None:
        self.directory = directory
        self.began = next(_count)
        self._children = children
        self._rest: Iterator[tuple[int, bytes, F | None]] = iter(())
        self._held: tuple[int, bytes, F | None] | None = None  # put back: comes before the rest
        self.position = -1  # of the last entry that was read and not put back
        self._before = -1  # of the one before that

    def read_from(self, position: int) -> Iterator[tuple[int, bytes, F | None]]:
        """Yield the entries after `position`; the child is None for `.` and `..`."""
        if position != self.position:
            self._rest, self._held, self.position = self._start(position), None, position
        while entry := self._take():
            self._before, self.position = self.position, entry[0]
            yield entry

    def put_back(self, position: int, name: bytes, child: F | None) -> None:
        """Take back the entry just read, for which the reply had no room."""
        self._held = position, name, child
        self.position = self._before

    def reply(self, view: View[F], position: int, room: int, squash: Squash) -> bytes:
        """Return the entries after `position` with their attributes, as many as `room` bytes hold."""
        entries = []
        for number, name, child in self.read_from(position):
            entry = self._entry(view, number, name, child, squash)
            room -= len(entry)
            if room < 0:
                self.put_back(number, name, child)
                break
            entries.append(entry)
            if entry and child is not None:
                view.reference(child)
        return b"".join(entries)

    def _entry(self, view: View[F], position: int, name: bytes, child: F | None, squash: Squash) -> bytes:
        if child is None:
            return listed_dot(position, name, self.directory)
        try:
            return listed(position, name, view.child_attributes(child), squash)
        except OSError as error:
            if error.errno == errno.ESTALE:  # removed since the last reply, which had no room for it
                return b""
            raise

    def _take(self) -> tuple[int, bytes, F | None] | None:
        held, self._held = self._held, None
        return held or next(self._rest, None)

    def _start(self, position: int) -> Iterator[tuple[int, bytes, F | None]]:
        for number, name in enumerate(DOTS, 1):
            if number > position:
                yield number, name, None
        shift = len(DOTS)
        for number, name, child in self._children(self.directory, max(0, position - shift)):
            yield number + shift, name, child
