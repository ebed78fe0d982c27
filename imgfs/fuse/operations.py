"""What the kernel asks of a read-only mount, answered from a tree and its contents.

Everything here runs on the event loop and answers within microseconds: the tree is a local file, cached
bytes are a `pread`. Only a read that must wait for the network or the disk goes to a thread; the two kinds
have places of their own, so a dead registry never holds up what is cached.

There is no state for each inode: a node's ino is its name in the tree, for ever, so lookups need not be
counted, forget has nothing to do, and directories need no handles. An operation returns what the kernel is
sent; see `requests`.
"""

from __future__ import annotations

import errno
import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import trio

from imgfs.errors import ImgfsError
from imgfs.fuse.dispatch import reading
from imgfs.fuse.errors import FUSEError
from imgfs.fuse.interrupts import abandoned_or_done
from imgfs.fuse.listing import DOTS, Listing
from imgfs.fuse.protocol import (
    ABSENT,
    ROOT_INO,
    STATFS_OUT,
    File,
    Offer,
    OpenFlag,
    attributes,
    entry,
    listed,
    listed_dot,
    opened,
)
from imgfs.fuse.session import Session
from imgfs.image.image import Image
from imgfs.layer.entry import Extent
from imgfs.mounts.status_client import STATUS_XATTR, encode_status
from imgfs.tree.reader import Node

_BLOCK = 4096  # what statfs counts in
_NAME_MAX = 255  # bytes in a name
_FETCHES, _DISK_READS = 64, 8  # threads that may wait at once
_OPEN_FILES = 4096  # whose extents are kept at hand
_OPENS = 256  # between two looks whether all of the image is here
_LISTINGS = 64  # directories whose readers are expected to ask for more
_TROUBLED_FILES = 256  # whose paths are kept for the log: to find one, all names are read
KEPT_LISTING = OpenFlag.KEEP_CACHE | OpenFlag.CACHE_DIR
_STATUS = STATUS_XATTR.encode()


class Operations:
    """A read-only file system over `image`.

    With `owner` (uid, gid) every file is shown as theirs. `on_ready` is called when the kernel has greeted,
    `status` gives what `imgfs status` shows.
    """

    def __init__(
        self,
        image: Image,
        *,
        owner: tuple[int, int] | None,
        on_ready: Callable[[], None],
        status: Callable[[], dict[str, Any]],
    ) -> None:
        self._tree = image.tree
        self._content = image.content
        self._owner = owner
        self._on_ready = on_ready
        self._status = status
        self._fetches = trio.CapacityLimiter(_FETCHES)
        self._disk_reads = trio.CapacityLimiter(_DISK_READS)
        self._extents = functools.lru_cache(_OPEN_FILES)(self._contents)
        self._paths = functools.lru_cache(_TROUBLED_FILES)(image.tree.path)
        self._listings: OrderedDict[tuple[int, int], Listing] = OrderedDict()  # by directory and position
        self._opens = 0
        self._needs_handles = self._can_go_without_opens = False

    def session(self, descriptor: int) -> Session:
        """The conversation with the kernel by `descriptor`, an open /dev/fuse."""
        return Session(descriptor, reading(self), self.greeted)

    def greeted(self, offered: int) -> None:
        """The kernel has greeted, and can do what it offers."""
        self._needs_handles = not offered & Offer.NO_OPENDIR_SUPPORT
        self._can_go_without_opens = bool(offered & Offer.NO_OPEN_SUPPORT)
        self._on_ready()

    def lookup(self, parent: int, name: bytes) -> bytes:
        """A directory's entry; one that is not there is said not to be, for ever."""
        if name in DOTS:  # asked only by those who re-export the mount
            return entry(self._shown(self._file(parent)), self._owner)
        if len(name) > _NAME_MAX:  # the kernel lets longer ones through to FUSE
            raise FUSEError(errno.ENAMETOOLONG)
        found = self._find(parent, name)
        return entry(self._shown(found), self._owner) if found else ABSENT

    def getattr(self, ino: int, flags: int = 0) -> bytes:
        """A file's attributes."""
        return attributes(self._shown(self._file(ino)), self._owner)

    def readlink(self, ino: int) -> bytes:
        """A symlink's target."""
        return self._tree.target(ino)

    def open(self, ino: int, flags: int, more: int = 0) -> bytes | Coroutine[Any, Any, bytes]:
        """A handle on a file; what the kernel has cached of it stays good, unless it has been found out.

        Once nothing is missing, and nothing in doubt, ENOSYS: the kernel asks no more, and opens and closes
        files by itself (FUSE_NO_OPEN_SUPPORT).
        """
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise FUSEError(errno.EROFS)
        if self._needs_no_opens():
            raise FUSEError(errno.ENOSYS)
        layer, _, _ = self._extents(ino)
        self._content.opened(ino)
        return opened(0, 0 if self._content.is_refused(layer) else OpenFlag.KEEP_CACHE)

    def read(self, ino: int, offset: int, size: int) -> bytes | memoryview | Coroutine[Any, Any, bytes]:
        """Exactly the bytes asked for, or up to the end of the file, or EIO."""
        layer, extents, file_size = self._extents(ino)
        length = min(size, file_size - offset)
        if length <= 0:
            return b""
        ready = self._content.cached(layer, extents, offset, length)
        return self._read_later(ino, offset, length) if ready is None else ready

    def release(self, ino: int, handle: int) -> bytes:
        """Nothing is kept for a handle."""
        return b""

    def opendir(self, ino: int) -> bytes:
        """No handle: the kernel never asks again, and keeps all listings (Linux 5.1)."""
        if self._needs_handles:
            return opened(0, KEPT_LISTING)
        raise FUSEError(errno.ENOSYS)

    def readdir(self, ino: int, handle: int, position: int, room: int) -> bytes:
        """The listing behind `position`, with attributes, as much as there is room for."""
        listing = self._listings.pop((ino, position), None) or Listing(self._tree.children, ino)
        body = self._listed(listing, position, room)
        if body:
            self._listings[ino, listing.position] = listing
            if len(self._listings) > _LISTINGS:
                self._listings.popitem(last=False)
        return body

    def releasedir(self, handle: int) -> bytes:
        """There are no handles."""
        return b""

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """An extended attribute; on the root also the mount's status."""
        value = self._own_xattr(ino, name) or self._xattr(ino, name)
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    def listxattr(self, ino: int) -> Sequence[bytes]:
        """The names of the extended attributes."""
        return list(self._tree.xattrs(ino))

    def statfs(self) -> bytes:
        """The image's own size: full, as nothing can be added."""
        blocks = -(-self._tree.total_size // _BLOCK)
        return STATFS_OUT.pack(blocks, 0, 0, self._tree.node_count, 0, _BLOCK, _NAME_MAX, _BLOCK, 0)

    def _needs_no_opens(self) -> bool:
        """Whether nobody has to know what is opened; looked at only now and then."""
        self._opens += 1
        if self._opens % _OPENS != 1 or not self._can_go_without_opens:
            return False
        return all(layer.is_whole() and not layer.index.summary.word for layer in self._content.layers)

    def _file(self, ino: int) -> Any:
        """The file with that ino; raises ENOENT."""
        return self._node(ino)

    def _find(self, parent: int, name: bytes) -> Any:
        """What a name in a directory means, None if nothing; the kernel knows it from then on."""
        return self._tree.lookup(parent, name)

    def _shown(self, file: Any) -> File:
        """What stat(2) says of a file."""
        found: File = file
        return found

    def _xattr(self, ino: int, name: bytes) -> bytes | None:
        return self._tree.xattrs(ino).get(name)

    def _was_listed(self, file: Any) -> None:
        """The kernel knows a file from a listing."""

    def _node(self, ino: int) -> Node:
        node = self._tree.node(ino)
        if node is None:
            raise FUSEError(errno.ENOENT)
        return node

    def _own_xattr(self, ino: int, name: bytes) -> bytes | None:
        """An extended attribute that is the mount's, not the image's."""
        if name == _STATUS and ino == ROOT_INO:
            return encode_status(self._status())
        return None

    def _listed(self, listing: Listing, position: int, room: int) -> bytes:
        """What a listing has behind a position, as much as there is room for."""
        entries = []
        for number, name, file in listing.read_from(position):
            entry = self._entry_of(listing.directory, number, name, file)
            room -= len(entry)
            if room < 0:
                listing.put_back(number, name, file)
                break
            entries.append(entry)
            if entry and file:
                self._was_listed(file)
        return b"".join(entries)

    def _entry_of(self, directory: int, position: int, name: bytes, file: Any) -> bytes:
        """An entry of a listing; `file` is None for `.` and `..`."""
        if file is None:
            return listed_dot(position, name, directory)
        try:
            return listed(position, name, self._shown(file), self._owner)
        except OSError as error:
            if error.errno == errno.ESTALE:  # removed since the last reply, which had no room for it
                return b""
            raise

    async def _read_later(self, ino: int, offset: int, length: int) -> bytes:
        layer, extents, _ = self._extents(ino)
        try:
            return await self._waited_for(layer, extents, offset, length)
        except ImgfsError as error:
            raise await self._located(ino, error) from error

    async def _waited_for(self, layer: int, extents: Sequence[Extent], offset: int, length: int) -> bytes:
        """A file's bytes, read in a thread: from the disk, or the network."""
        there = self._content.is_here(layer, extents, offset, length)
        limiter = self._disk_reads if there else self._fetches
        read = functools.partial(self._content.read, layer, extents, offset, length)
        return await abandoned_or_done(read, limiter)

    def _contents(self, ino: int) -> tuple[int, tuple[Extent, ...], int]:
        """(layer, extents, size) of a file."""
        return self._tree.contents(ino)

    async def _located(self, ino: int, error: ImgfsError) -> ImgfsError:
        """The error with the path of the file it hit, for the log."""
        path = await trio.to_thread.run_sync(self._paths, ino)
        return ImgfsError(f"/{os.fsdecode(path)}: {error}")
