"""What the kernel's requests say: their bodies taken apart, for the operations of a file system to answer.

An operation returns what the kernel is sent, or a coroutine for it, and raises OSError or ImgfsError.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from imgfs.fuse.errors import FUSEError
from imgfs.fuse.protocol import (
    CREATE_IN,
    FORGET_IN,
    FORGET_ONE,
    GETATTR_IN,
    HANDLE_IN,
    INO_IN,
    MKDIR_IN,
    MKNOD_IN,
    OPEN_IN,
    READ_IN,
    RENAME2_IN,
    SETATTR_IN,
    SIZE_OUT,
    WRITE_IN,
    XATTR_IN,
    NewAttributes,
    Opcode,
)
from imgfs.fuse.session import Handler

if TYPE_CHECKING:
    from imgfs.fuse.operations import Operations
    from imgfs.fuse.writable import WritableOperations


def reading(to: Operations) -> dict[Opcode, Handler]:
    """Handlers of what can be asked of a file system that nobody changes."""
    return {
        Opcode.LOOKUP: lambda head, body: to.lookup(head.ino, _name(body)),
        Opcode.GETATTR: lambda head, _: to.getattr(head.ino),
        Opcode.READLINK: lambda head, _: to.readlink(head.ino),
        Opcode.OPEN: lambda head, body: to.open(head.ino, *OPEN_IN.unpack_from(body)),
        Opcode.READ: lambda head, body: to.read(head.ino, *READ_IN.unpack_from(body)[1:]),
        Opcode.RELEASE: lambda head, body: to.release(head.ino, *HANDLE_IN.unpack_from(body)[:1]),
        Opcode.OPENDIR: lambda head, _: to.opendir(head.ino),
        Opcode.READDIRPLUS: lambda head, body: to.readdir(head.ino, *READ_IN.unpack_from(body)),
        Opcode.RELEASEDIR: lambda _, body: to.releasedir(*HANDLE_IN.unpack_from(body)[:1]),
        Opcode.STATFS: lambda *_: to.statfs(),
        Opcode.GETXATTR: lambda head, body: _fitting(
            to.getxattr(head.ino, _name(body[XATTR_IN.size :])), *XATTR_IN.unpack_from(body)[:1]
        ),
        Opcode.LISTXATTR: lambda head, body: _fitting(
            b"".join(name + b"\0" for name in to.listxattr(head.ino)), *XATTR_IN.unpack_from(body)[:1]
        ),
        Opcode.DESTROY: lambda *_: b"",
    }


def writing(to: WritableOperations) -> dict[Opcode, Handler]:
    """Handlers of what changes a file system, too."""
    return {
        **reading(to),
        Opcode.FORGET: lambda head, body: to.forget(head.ino, *INO_IN.unpack_from(body)),
        Opcode.BATCH_FORGET: lambda _, body: _forget_all(to, body),
        Opcode.GETATTR: lambda head, body: to.getattr(head.ino, *GETATTR_IN.unpack_from(body)),
        Opcode.SETATTR: lambda head, body: to.setattr(
            head.ino, NewAttributes._make(SETATTR_IN.unpack_from(body))
        ),
        Opcode.MKNOD: lambda head, body: to.mknod(
            head, _name(body[MKNOD_IN.size :]), *MKNOD_IN.unpack_from(body)[:2]
        ),
        Opcode.MKDIR: lambda head, body: to.mkdir(
            head, _name(body[MKDIR_IN.size :]), *MKDIR_IN.unpack_from(body)[:1]
        ),
        Opcode.CREATE: lambda head, body: to.create(
            head, _name(body[CREATE_IN.size :]), *CREATE_IN.unpack_from(body)[1:2]
        ),
        Opcode.SYMLINK: lambda head, body: to.symlink(head, *_two_names(body)),
        Opcode.LINK: lambda head, body: to.link(
            INO_IN.unpack_from(body)[0], head.ino, _name(body[INO_IN.size :])
        ),
        Opcode.UNLINK: lambda head, body: to.unlink(head.ino, _name(body)),
        Opcode.RMDIR: lambda head, body: to.rmdir(head.ino, _name(body)),
        Opcode.RENAME: lambda head, body: _rename(
            to, head.ino, (*INO_IN.unpack_from(body), 0), body[INO_IN.size :]
        ),
        Opcode.RENAME2: lambda head, body: _rename(
            to, head.ino, RENAME2_IN.unpack_from(body), body[RENAME2_IN.size :]
        ),
        Opcode.WRITE: lambda head, body: to.write(
            head.ino, body[WRITE_IN.size :], *WRITE_IN.unpack_from(body)
        ),
        Opcode.FSYNC: lambda head, _: to.fsync(head.ino),
        Opcode.FSYNCDIR: lambda head, _: to.fsync(head.ino),
        Opcode.SETXATTR: lambda head, body: _setxattr(to, head.ino, body),
        Opcode.REMOVEXATTR: lambda head, body: to.removexattr(head.ino, _name(body)),
    }


def _name(body: memoryview) -> bytes:
    """What ends with a NUL byte, without that."""
    return bytes(body[:-1])


def _two_names(body: memoryview) -> list[bytes]:
    return bytes(body).split(b"\0")[:2]


def _rename(to: WritableOperations, parent: int, how: tuple[int, ...], body: memoryview) -> bytes:
    new_parent, flags = how[:2]
    name, new_name = _two_names(body)
    return to.rename((parent, name), (new_parent, new_name), flags)


def _setxattr(to: WritableOperations, ino: int, body: memoryview) -> bytes:
    size, flags = XATTR_IN.unpack_from(body)
    name, _, value = bytes(body[XATTR_IN.size :]).partition(b"\0")
    return to.setxattr(ino, name, value[:size], flags)


def _forget_all(to: WritableOperations, body: memoryview) -> None:
    for ino, count in FORGET_ONE.iter_unpack(body[FORGET_IN.size :]):
        to.forget(ino, count)


def _fitting(value: bytes, room: int) -> bytes:
    """An extended attribute, or the names of all, or, if there is no room at all, only how long that is."""
    if room == 0:
        return SIZE_OUT.pack(len(value), 0)
    if len(value) > room:
        raise FUSEError(errno.ERANGE)
    return value
