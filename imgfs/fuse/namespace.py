"""The operations that change a writable mount's directories and extended attributes, made on its overlay."""

from __future__ import annotations

import errno
import os
import stat

from imgfs.fuse.errors import FUSEError
from imgfs.fuse.opcodes import SETXATTR_ACL_KILL_SGID, InitFlag, Opcode, OpenFlag
from imgfs.fuse.protocol import (
    Head,
    NewName,
    Squash,
    create_in,
    entry,
    link_in,
    mkdir_in,
    mknod_in,
    name_in,
    names_in,
    open_out,
    rename2_in,
    rename_in,
    setxattr_in,
)
from imgfs.fuse.session import Handler
from imgfs.fuse.union_view import UnionView
from imgfs.overlay.node import UpperNode
from imgfs.overlay.overlay import Overlay
from imgfs.overlay.xattrs import Owner

UPPER_HANDLE, WRITING = 1, 2  # bits of a handle: it needs the descriptor of the upper half; it may write
_NEW_HANDLE = open_out(UPPER_HANDLE | WRITING, OpenFlag.KEEP_CACHE)
_DONE = b""


class NamespaceOperations:
    """Changes of `overlay`, which `view` shows; with `squash` (uid, gid) every file is shown as theirs."""

    def __init__(self, view: UnionView, overlay: Overlay, squash: Squash) -> None:
        self._view = view
        self._overlay = overlay
        self._entries = overlay.entries
        self._squash = squash
        self._setxattr_ext = False

    def greeted(self, offered: int) -> None:
        """Note what the kernel can do (InitFlag)."""
        self._setxattr_ext = bool(offered & InitFlag.SETXATTR_EXT)

    def handlers(self) -> dict[Opcode, Handler]:
        """Return what answers which request that changes directories or extended attributes."""
        return {
            Opcode.MKNOD: lambda head, body: self.mknod(head, *mknod_in(body)),
            Opcode.MKDIR: lambda head, body: self.mkdir(head, *mkdir_in(body)),
            Opcode.CREATE: lambda head, body: self.create(head, *create_in(body)),
            Opcode.TMPFILE: lambda head, body: self.tmpfile(head, *create_in(body)[1:]),
            Opcode.SYMLINK: lambda head, body: self.symlink(head, *names_in(body)),
            Opcode.LINK: lambda head, body: self.link(head.ino, *link_in(body)),
            Opcode.UNLINK: lambda head, body: self.unlink(head.ino, name_in(body)),
            Opcode.RMDIR: lambda head, body: self.rmdir(head.ino, name_in(body)),
            Opcode.RENAME: lambda head, body: self.rename(head.ino, rename_in(body)),
            Opcode.RENAME2: lambda head, body: self.rename(head.ino, rename2_in(body)),
            Opcode.SETXATTR: lambda head, body: self.setxattr(
                head.ino, *setxattr_in(body, has_more=self._setxattr_ext)
            ),
            Opcode.REMOVEXATTR: lambda head, body: self.removexattr(head.ino, name_in(body)),
        }

    def create(self, caller: Head, name: bytes, mode: int, umask: int) -> bytes:
        """Make a file and open it."""
        return self._created(*self._entries.create(caller.ino, name, self._creator(mode, caller), umask))

    def tmpfile(self, caller: Head, mode: int, umask: int) -> bytes:
        """Make a file without a name, as if for a directory, and open it."""
        return self._created(self._entries.create_nameless(caller.ino, self._creator(mode, caller), umask))

    def mknod(self, caller: Head, name: bytes, mode: int, device: int, umask: int) -> bytes:
        """Make a FIFO, socket, device or file."""
        kind, owner = stat.S_IFMT(mode) or stat.S_IFREG, self._creator(mode, caller)
        return self._entry(self._entries.make(caller.ino, name, kind, owner, device, umask))

    def mkdir(self, caller: Head, name: bytes, mode: int, umask: int) -> bytes:
        """Make a directory."""
        owner = self._creator(mode, caller)
        return self._entry(self._entries.make(caller.ino, name, stat.S_IFDIR, owner, umask=umask))

    def symlink(self, caller: Head, name: bytes, target: bytes) -> bytes:
        """Make a symbolic link."""
        return self._entry(self._entries.symlink(caller.ino, name, target, self._creator(0o777, caller)))

    def link(self, new_parent: int, ino: int, new_name: bytes) -> bytes:
        """Give a file another name."""
        return self._entry(self._entries.link(ino, new_parent, new_name))

    def unlink(self, parent: int, name: bytes) -> bytes:
        """Remove a name."""
        self._entries.unlink(parent, name)
        return _DONE

    def rmdir(self, parent: int, name: bytes) -> bytes:
        """Remove an empty directory."""
        self._entries.rmdir(parent, name)
        return _DONE

    def rename(self, parent: int, new: NewName) -> bytes:
        """Rename, or, by the flags, exchange."""
        self._entries.rename((parent, new.name), (new.new_parent, new.new_name), new.flags)
        return _DONE

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int, more: int) -> bytes:
        """Set an extended attribute; with XATTR_REPLACE or XATTR_CREATE only if it is there, or is not."""
        if flags and (self._view.xattr(ino, name) is None) == (flags & os.XATTR_REPLACE != 0):
            raise FUSEError(errno.ENODATA if flags & os.XATTR_REPLACE else errno.EEXIST)
        self._overlay.set_xattr(ino, name, value)
        if more & SETXATTR_ACL_KILL_SGID:
            self._overlay.set_mode(ino, self._view.attributes(ino).mode & ~stat.S_ISGID)
        return _DONE

    def removexattr(self, ino: int, name: bytes) -> bytes:
        """Remove an extended attribute."""
        self._overlay.remove_xattr(ino, name)
        return _DONE

    def _created(self, node: UpperNode, found: os.stat_result | None = None) -> bytes:
        """Answer with a new file, of which stat(2) says what was `found`, and a handle on it."""
        self._overlay.open(node, writes=True)
        return self._entry(node, found) + _NEW_HANDLE

    def _entry(self, node: UpperNode, found: os.stat_result | None = None) -> bytes:
        """Answer with a file, to which the kernel then holds a reference more."""
        self._view.reference(node)
        return entry(self._overlay.union.attributes(node, found), self._squash)

    def _creator(self, mode: int, caller: Head) -> Owner:
        """Return the owner of something new: an ordinary user is root in their own image."""
        mode = stat.S_IMODE(mode)
        is_own = self._overlay.keeps_owners_aside and caller.uid == os.geteuid()
        return Owner(0, 0, mode) if is_own else Owner(caller.uid, caller.gid, mode)
