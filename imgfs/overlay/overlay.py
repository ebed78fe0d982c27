"""The scratch as a file system: everything a mount may do to an image, kept in an upper directory.

Blocking, and for one thread: each call is some microseconds of local system calls. Only copying the data of
a large file takes longer: `data_copyup.fill` hands that out, for another thread. Errors are OSErrors.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager

from imgfs.layer.entry import ACCESS_ACL, DEFAULT_ACL
from imgfs.overlay.acl import mode_of, says_more_than_mode, with_mode
from imgfs.overlay.copyup import CopyUp
from imgfs.overlay.copyup_data import DataCopyUp, ImageData
from imgfs.overlay.entries import Entries
from imgfs.overlay.node import UpperNode, error
from imgfs.overlay.resume import meet_all
from imgfs.overlay.union import Union
from imgfs.overlay.upper import Upper
from imgfs.overlay.xattrs import CAPABILITY, Owner, is_reserved, shown_xattrs
from imgfs.tree.reader import Tree

_CHANGEABLE = (b"user.", b"trusted.", b"security.", ACCESS_ACL, DEFAULT_ACL)  # begin the names of attributes


class Overlay(AbstractContextManager["Overlay"]):
    """An upper directory over the tree and the bytes of an image: a context manager.

    `union` is what there is to see, `entries` changes names, the overlay itself changes files. With `durable`
    what has been synced survives the power. With `is_mounted` it goes on in the place of another process.
    """

    def __init__(
        self, tree: Tree, content: ImageData, upper: Upper, *, durable: bool, is_mounted: bool = False
    ) -> None:
        self.union = Union(tree, upper)
        self.copyup = CopyUp(self.union, content)
        self.data_copyup = DataCopyUp(self.union, content, durable=durable)
        self.entries = Entries(self.union, self.copyup)
        self.content = content
        self.durable = durable
        self._upper = upper
        self._was_read_only = False  # the upper directory's disk, when a file was opened
        self.copyup.recover(is_mounted=is_mounted)
        if is_mounted:
            meet_all(self.union)

    @property
    def keeps_owners_aside(self) -> bool:
        """Whether files cannot be given owners, so that those are only noted."""
        return self._upper.xattr_format.override

    def open(self, node: UpperNode, *, writes: bool) -> None:
        """Have a file's bytes open for reading and writing, until `release`."""
        if writes:
            self._writable_data(node)
        else:
            self.data(node)
        node.opens += 1
        node.writers += writes

    def data(self, node: UpperNode) -> int:
        """Return the descriptor of a file's bytes; without a handle it is closed by the next `release`."""
        if node.fd is None:
            try:
                node.fd = self._upper.open_data(self.union.at(node))
            except OSError as failed:
                if failed.errno != errno.EROFS:
                    raise
                node.fd = self._upper.open(self.union.at(node), os.O_RDONLY)
                self._was_read_only = True
        return node.fd

    def _writable_data(self, node: UpperNode) -> int:
        """Return it for writing: a disk that has become read-only, as it had errors, is read on, and refuses.

        Where it takes writes again, a descriptor of that time is replaced.
        """
        fd = self.data(node)
        if self._was_read_only:
            writable = self._upper.open_data(self.union.at(node))
            os.dup2(writable, fd, inheritable=False)
            os.close(writable)
        return fd

    def freeze_time(self, node: UpperNode, found: os.stat_result | None = None) -> None:
        """Have writing leave a file's modification time alone, until it is set or the file is released.

        A kernel that gathers writes keeps the times of files itself, and tells of each that it changes.
        """
        if node.frozen_mtime is None:
            node.frozen_mtime = (found or os.fstat(self.data(node))).st_mtime_ns

    def release(self, node: UpperNode, *, opened: bool, writes: bool = False) -> None:
        """Close a handle on a file; `opened` if it came from `open`."""
        node.opens = max(0, node.opens - opened)  # it may have been opened before this process began
        node.writers = max(0, node.writers - writes)
        if node.opens == 0 and node.fd is not None:
            try:
                if node.frozen_mtime is not None and node.data is None:
                    self.data_copyup.restore_time(node)
            finally:
                os.close(node.fd)
                node.fd = None
                if node.counted and node.lookups <= 0:
                    self.union.forget(node.ino, 0)

    def truncate(self, node: UpperNode, size: int) -> None:
        """Cut or lengthen a file, whose data up to `size` must be its own or have been copied up."""
        try:
            os.ftruncate(self._writable_data(node), size)
            node.frozen_mtime = None
        finally:
            self.release(node, opened=False)
        if node.data is not None:
            self.data_copyup.clear_metacopy(node)

    def sync(self, node: UpperNode) -> Callable[[], None]:
        """Return what gets a file or directory to the disk: for any thread to call."""
        flags = os.O_RDONLY if node.is_directory else os.O_RDWR
        fd = self._upper.open(self.union.at(node), flags)

        def sync() -> None:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        return sync

    def set_owner(self, ino: int, uid: int | None, gid: int | None) -> None:
        """Change what is not None of a file's owner and group, which takes its privileges away (chown(2))."""
        node = self.copyup.up(ino)
        node.group = None
        at = self.union.place(node)
        if not self.keeps_owners_aside:
            self._upper.chown(at, -1 if uid is None else uid, -1 if gid is None else gid)
            return
        now = self.union.owner(node)
        mode = now.mode if node.is_directory else _without_privileges(now.mode)
        wanted = Owner(now.uid if uid is None else uid, now.gid if gid is None else gid, mode)
        self._upper.set_owner(at, node.kind, wanted)
        if not node.is_directory:
            self.drop_capability(node)

    def set_mode(self, ino: int, mode: int) -> None:
        """Change a file's permission bits."""
        node = self.copyup.up(ino)
        node.group = None
        at = self.union.place(node)
        if self.keeps_owners_aside:
            wanted = self.union.owner(node)._replace(mode=stat.S_IMODE(mode))
            self._upper.set_owner(at, node.kind, wanted)
            if acl := self.xattr(ino, ACCESS_ACL):
                self._upper.set_shown_xattr(at, ACCESS_ACL, with_mode(acl, mode))
        else:
            self._upper.chmod(at, node.kind | stat.S_IMODE(mode))

    def drop_privileges(self, node: UpperNode) -> bool:
        """Take a file's set-id bits, as a change by a user who may not keep them does; whether it had any.

        The group's goes only where the group may execute (linux/fuse.h, FUSE_HANDLE_KILLPRIV_V2).
        """
        mode = self.union.owner(node).mode
        if mode == _without_privileges(mode):
            return False
        self.set_mode(node.ino, _without_privileges(mode))
        return True

    def drop_capability(self, node: UpperNode) -> None:
        """Take a file's capabilities, as any change of its bytes does (capabilities(7))."""
        if not node.incapable and self.xattr(node.ino, CAPABILITY) is not None:
            self.remove_xattr(node.ino, CAPABILITY)
            node.incapable = True

    def set_times(self, ino: int, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Change what is not None of a file's times."""
        node = self.copyup.up(ino)
        at = self.union.place(node)
        if atime_ns is None or mtime_ns is None:
            found = self._upper.stat(at)
            if found is None:
                raise error(errno.ESTALE)
            now = found.st_mtime_ns if node.frozen_mtime is None else node.frozen_mtime
            atime_ns = found.st_atime_ns if atime_ns is None else atime_ns
            self._upper.set_times(at, atime_ns, now if mtime_ns is None else mtime_ns)
        else:
            self._upper.set_times(at, atime_ns, mtime_ns)
        if node.data is None:  # else it is being copied up, and the time is set again after that
            node.frozen_mtime = None
        elif node.frozen_mtime is not None and mtime_ns is not None:
            node.frozen_mtime = mtime_ns

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        """Return an extended attribute, or None if there is no such."""
        node = self.union.nodes.get(ino)
        if node is None:
            return self.union.tree.xattrs(ino).get(name)
        if is_reserved(name) or (name == CAPABILITY and node.incapable):
            return None
        try:
            at = self.union.at(node)
            return os.getxattr(
                at.path, self._upper.xattr_format.stored_name(name), follow_symlinks=at.anchored
            )
        except OSError as failure:
            if failure.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
        node.incapable = node.incapable or name == CAPABILITY
        return None

    def xattrs(self, ino: int) -> list[bytes]:
        """Return the names of a file's extended attributes."""
        node = self.union.nodes.get(ino)
        if node is None:
            return list(self.union.tree.xattrs(ino))
        return list(shown_xattrs(self._upper.xattrs(self.union.at(node))))

    def set_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        """Set an extended attribute."""
        node = self._changeable(ino, name)
        node.incapable = False
        node.default_acl = None
        if name == ACCESS_ACL and self.keeps_owners_aside:
            self._set_acl_aside(node, value)
        else:
            self._upper.set_shown_xattr(self.union.at(node), name, value)

    def _set_acl_aside(self, node: UpperNode, value: bytes) -> None:
        """Set an access ACL that the disk does not know as one: the mode follows it, and may be all of it."""
        at = self.union.at(node)
        owner = self.union.owner(node)
        if says_more_than_mode(value):
            self._upper.set_shown_xattr(at, ACCESS_ACL, value)
        elif self.xattr(node.ino, ACCESS_ACL) is not None:
            self._upper.remove_xattr(at, self._upper.xattr_format.stored_name(ACCESS_ACL))
        self._upper.set_owner(at, node.kind, owner._replace(mode=mode_of(value, owner.mode)))

    def remove_xattr(self, ino: int, name: bytes) -> None:
        """Remove an extended attribute; raises ENODATA."""
        if name not in self.xattrs(ino):
            raise error(errno.ENODATA)
        node = self._changeable(ino, name)
        node.default_acl = None
        self._upper.remove_xattr(self.union.at(node), self._upper.xattr_format.stored_name(name))

    def symlink_target(self, ino: int) -> bytes:
        """Return where a symbolic link points to."""
        node = self.union.nodes.get(ino)
        return self.union.tree.target(ino) if node is None else self.union.target(node)

    def statfs(self) -> os.statvfs_result:
        """Return the room there is: that of the upper directory's file system."""
        return os.fstatvfs(self._upper.root)

    def close(self) -> None:
        """Let go of everything."""
        self.union.close()
        self._upper.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _changeable(self, ino: int, name: bytes) -> UpperNode:
        """Return the node of a file whose attribute `name` may be changed, copied up."""
        if is_reserved(name):
            raise error(errno.EPERM)
        if not name.startswith(_CHANGEABLE):
            raise error(errno.ENOTSUP)
        return self.copyup.up(ino)


def _without_privileges(mode: int) -> int:
    """Permission bits without set-uid, and without set-gid where the group may execute."""
    return mode & ~stat.S_ISUID & ~(stat.S_ISGID if mode & stat.S_IXGRP else 0)
