"""Which operation answers which request: a table of handlers by opcode, for a `Session`.

A handler has the protocol parse the body of its request. What it calls returns the body of the answer, or a
coroutine for it, and raises OSError or ImgfsError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgfs.fuse.opcodes import Opcode
from imgfs.fuse.protocol import (
    batch_forget_in,
    create_in,
    forget_in,
    getattr_in,
    getxattr_in,
    handle_in,
    link_in,
    listxattr_in,
    mkdir_in,
    mknod_in,
    name_in,
    names_in,
    open_in,
    read_in,
    readdir_in,
    rename2_in,
    rename_in,
    setattr_in,
    setxattr_in,
    write_in,
)
from imgfs.fuse.session import Handler

if TYPE_CHECKING:
    from imgfs.fuse.namespace import NamespaceOperations
    from imgfs.fuse.operations import Operations
    from imgfs.fuse.writable import WritableOperations


def reading(to: Operations[Any]) -> dict[Opcode, Handler]:
    """Handlers of the requests that a read-only file system answers."""
    return {
        Opcode.LOOKUP: lambda head, body: to.lookup(head.ino, name_in(body)),
        Opcode.GETATTR: lambda head, _: to.getattr(head.ino),
        Opcode.READLINK: lambda head, _: to.readlink(head.ino),
        Opcode.OPEN: lambda head, body: to.open(head.ino, *open_in(body)),
        Opcode.READ: lambda head, body: to.read(head.ino, *read_in(body)),
        Opcode.RELEASE: lambda head, body: to.release(head.ino, *handle_in(body)),
        Opcode.OPENDIR: lambda head, _: to.opendir(head.ino),
        Opcode.READDIRPLUS: lambda head, body: to.readdir(head.ino, *readdir_in(body)),
        Opcode.RELEASEDIR: lambda _, body: to.releasedir(*handle_in(body)),
        Opcode.STATFS: lambda *_: to.statfs(),
        Opcode.GETXATTR: lambda head, body: to.getxattr(head.ino, *getxattr_in(body)),
        Opcode.LISTXATTR: lambda head, body: to.listxattr(head.ino, listxattr_in(body)),
        Opcode.DESTROY: lambda *_: b"",
    }


def changing_files(to: WritableOperations) -> dict[Opcode, Handler]:
    """Handlers of the requests that change files, and of those that a writable mount answers otherwise."""
    return {
        Opcode.FORGET: lambda head, body: to.forget(head.ino, *forget_in(body)),
        Opcode.BATCH_FORGET: lambda _, body: to.forget_all(batch_forget_in(body)),
        Opcode.GETATTR: lambda head, body: to.getattr(head.ino, *getattr_in(body)),
        Opcode.SETATTR: lambda head, body: to.setattr(head.ino, setattr_in(body)),
        Opcode.OPEN: lambda head, body: to.open(head.ino, *open_in(body)),
        Opcode.RELEASE: lambda head, body: to.release(head.ino, *handle_in(body)),
        Opcode.OPENDIR: lambda head, _: to.opendir(head.ino),
        Opcode.READDIRPLUS: lambda head, body: to.readdir(head.ino, *readdir_in(body)),
        Opcode.RELEASEDIR: lambda _, body: to.releasedir(*handle_in(body)),
        Opcode.WRITE: lambda head, body: to.write(head.ino, *write_in(body)),
        Opcode.FSYNC: lambda head, _: to.fsync(head.ino),
        Opcode.FSYNCDIR: lambda head, _: to.fsync(head.ino),
    }


def changing_names(to: NamespaceOperations) -> dict[Opcode, Handler]:
    """Handlers of the requests that change directories and extended attributes."""
    return {
        Opcode.MKNOD: lambda head, body: to.mknod(head, *mknod_in(body)),
        Opcode.MKDIR: lambda head, body: to.mkdir(head, *mkdir_in(body)),
        Opcode.CREATE: lambda head, body: to.create(head, *create_in(body)),
        Opcode.SYMLINK: lambda head, body: to.symlink(head, *names_in(body)),
        Opcode.LINK: lambda head, body: to.link(head.ino, *link_in(body)),
        Opcode.UNLINK: lambda head, body: to.unlink(head.ino, name_in(body)),
        Opcode.RMDIR: lambda head, body: to.rmdir(head.ino, name_in(body)),
        Opcode.RENAME: lambda head, body: to.rename(head.ino, rename_in(body)),
        Opcode.RENAME2: lambda head, body: to.rename(head.ino, rename2_in(body)),
        Opcode.SETXATTR: lambda head, body: to.setxattr(head.ino, *setxattr_in(body)),
        Opcode.REMOVEXATTR: lambda head, body: to.removexattr(head.ino, name_in(body)),
    }
