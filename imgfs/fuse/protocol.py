"""The FUSE protocol as bytes: parse what the kernel sends, pack what it is sent (linux/fuse.h, 7.31).

A request is a header and a body by its opcode; so is an answer. All numbers are in the machine's own order.
`NAME_in` parses the body of a request, `NAME_out` packs the body of an answer. What is called for every read,
write or lookup is the bound method of its struct, without a Python function around it.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

from imgfs.fuse.errors import FUSEError
from imgfs.fuse.opcodes import FOREVER, OpenFlag
from imgfs.tree.database import Attributes

_BILLION = 1_000_000_000
_DEVICE = (1 << 32) - 1  # a dev_t as the kernel has it: the low half of the C library's
_BLOCK_SIZE = 4096  # st_blksize: how much programs had best read at once

Squash: TypeAlias = tuple[int, int] | None  # (uid, gid) that every file is shown to belong to


class Head(NamedTuple):
    """The header of every request. `unique` is its number; `uid` and `gid` are the caller's.

    `pid` is the calling thread's, as the PID namespace of the mount has it; 0 if it has none there.
    """

    opcode: int
    unique: int
    ino: int
    uid: int
    gid: int
    pid: int = 0

    def __str__(self) -> str:
        """Return a request's text for the log."""
        return f"opcode {self.opcode}, ino {self.ino}"


class NewAttributes(NamedTuple):
    """The body of a setattr (fuse_setattr_in); `changes` (SetattrMask) says which fields count."""

    changes: int
    padding: int
    handle: int
    size: int
    lock_owner: int
    atime: int
    mtime: int
    ctime: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    unused: int
    uid: int
    gid: int
    unused_too: int


class NewName(NamedTuple):
    """The body of a rename: the old name in the directory of the header, the new directory and name.

    `flags` are renameat2(2)'s.
    """

    name: bytes
    new_parent: int
    new_name: bytes
    flags: int


class RangeToCopy(NamedTuple):
    """The body of a copy_file_range: `length` bytes at `offset` in the file of the header go to another."""

    offset: int
    target: int
    target_offset: int
    length: int


class Statfs(NamedTuple):
    """The size of a file system (fuse_kstatfs): blocks of `block_size` bytes, and files."""

    blocks: int
    free: int
    available: int
    files: int
    files_free: int
    block_size: int
    name_max: int
    fragment_size: int


HEAD = struct.Struct("=4xI2Q3I4x")  # fuse_in_header: its length comes first
HEAD_SIZE = HEAD.size
ANSWER_HEAD = struct.Struct("=IiQ")  # fuse_out_header: length, negative errno, the request's number
INIT_IN = struct.Struct("=4I")  # fuse_init_in: major, minor, read-ahead in bytes, InitFlag
INIT_MORE = struct.Struct("=16xI")  # … and since 7.36 its upper 32 bits
# …, background, congestion, largest write, ns of time, pages, alignment of maps, upper 32 bits of InitFlag
INIT_OUT = struct.Struct("=4I2H2I2HI28x")
INTERRUPT_IN = struct.Struct("=Q")  # fuse_interrupt_in: the number of the request that is interrupted
INVALIDATE_ENTRY_OUT = struct.Struct("=Q2I")  # fuse_notify_inval_entry_out: parent, length of the name, flags
INVALIDATE_INODE_OUT = struct.Struct("=Q2q")  # fuse_notify_inval_inode_out: ino, offset (-1: no data), length
STORE_OUT = struct.Struct("=2QI4x")  # fuse_notify_store_out: ino, offset, size; the bytes come next
READ_IN = struct.Struct("=2QI")  # fuse_read_in begins with: handle, offset, size
READ_FLAGS = struct.Struct("=20xI")  # and goes on with READ_LOCKOWNER

_SETATTR_IN = struct.Struct("=2I3Q3q8I")
_READ_AT_IN = struct.Struct("=8xQI")  # the same without the handle
_WRITE_IN = struct.Struct("=8xQ4xI16x")  # fuse_write_in: offset, WriteFlag; the data comes next
_GETATTR_IN = struct.Struct("=I")  # fuse_getattr_in begins with: GETATTR_FH
_HANDLE_IN = struct.Struct("=Q")  # fuse_release_in begins with: handle
_OPEN_IN = struct.Struct("=2I")  # fuse_open_in: flags of open(2), OPEN_KILL_SUIDGID
_MKNOD_IN = struct.Struct("=3I4x")  # fuse_mknod_in: mode, device, umask; the name
_MKDIR_IN = struct.Struct("=2I")  # fuse_mkdir_in: mode, umask; the name
_CREATE_IN = struct.Struct("=4x2I4x")  # fuse_create_in: flags of open(2), mode, umask; the name
_INO_IN = struct.Struct("=Q")  # fuse_link_in: the file; fuse_rename_in: the directory; fuse_forget_in: count
_RENAME2_IN = struct.Struct("=QI4x")  # fuse_rename2_in: the new directory, flags of renameat2(2); two names
_XATTR_IN = struct.Struct("=2I")  # fuse_setxattr_in: size, flags; fuse_getxattr_in: the room for the answer
_SETXATTR_IN = struct.Struct("=3I4x")  # fuse_setxattr_in with SETXATTR_EXT: and SETXATTR_ACL_KILL_SGID
_FORGET_IN = struct.Struct("=2I")  # fuse_batch_forget_in: how many follow
_FORGET_ONE = struct.Struct("=2Q")  # fuse_forget_one: ino, count
_FALLOCATE_IN = struct.Struct("=8x2QI4x")  # fuse_fallocate_in: offset, length, FALLOC_FL_*
_LSEEK_IN = struct.Struct("=8xQI4x")  # fuse_lseek_in: offset, SEEK_*
_COPY_IN = struct.Struct("=8x2Q8x3Q")  # fuse_copy_file_range_in: offset, target, its offset, length, flags
_POSITION_OUT = struct.Struct("=Q")  # fuse_lseek_out, fuse_copy_file_range_out
_OPEN_OUT = struct.Struct("=Q2I")  # fuse_open_out: handle, OpenFlag
_SIZE_OUT = struct.Struct("=2I")  # fuse_write_out, fuse_getxattr_out
_STATFS_OUT = struct.Struct("=5Q3I28x")  # fuse_statfs_out
_ENTRY = struct.Struct("=4Q2I 6q10I")  # fuse_entry_out: ino, generation, seconds that it is good, fuse_attr
_ATTR_AT = 40  # bytes into it
_DIRENT = struct.Struct("=2Q2I")  # fuse_dirent: ino, position, length of the name, kind
_STATX_OUT = struct.Struct("=Q2I16x 2IQ3IH2x3QQ qI4xqI4xqI4xqI4x 4I112x")  # fuse_statx_out: …, fuse_statx
_BASIC, _BTIME = 0x7FF, 0x800  # STATX_BASIC_STATS, STATX_BTIME (linux/stat.h)
_PADDING = [bytes(-length % 8) for length in range(8)]
_NO_ENTRY = bytes(_ENTRY.size)
_FOREVER = struct.pack("=Q2I", FOREVER, 0, 0)
ABSENT = struct.pack("=4Q", 0, 0, FOREVER, 0) + bytes(_ENTRY.size - 32)  # no such name: remembered, too

read_in: Callable[[memoryview], tuple[int, int]] = _READ_AT_IN.unpack_from  # offset, size
readdir_in: Callable[[memoryview], tuple[int, int, int]] = READ_IN.unpack_from  # handle, position, room
open_in: Callable[[memoryview], tuple[int, int]] = _OPEN_IN.unpack_from
getattr_in: Callable[[memoryview], tuple[int]] = _GETATTR_IN.unpack_from
handle_in: Callable[[memoryview], tuple[int]] = _HANDLE_IN.unpack_from
forget_in: Callable[[memoryview], tuple[int]] = _INO_IN.unpack_from


def name_in(body: memoryview) -> bytes:
    """Parse a name, which ends with a NUL byte."""
    return bytes(body[:-1])


def names_in(body: memoryview) -> tuple[bytes, bytes]:
    """Parse two names, each of which ends with a NUL byte."""
    first, second, *_ = bytes(body).split(b"\0")
    return first, second


def setattr_in(body: memoryview) -> NewAttributes:
    """Parse fuse_setattr_in."""
    return NewAttributes._make(_SETATTR_IN.unpack_from(body))


def mknod_in(body: memoryview) -> tuple[bytes, int, int, int]:
    """Parse the name, mode, device and umask of a mknod."""
    return name_in(body[_MKNOD_IN.size :]), *_MKNOD_IN.unpack_from(body)


def mkdir_in(body: memoryview) -> tuple[bytes, int, int]:
    """Parse the name, mode and umask of a mkdir."""
    return name_in(body[_MKDIR_IN.size :]), *_MKDIR_IN.unpack_from(body)


def create_in(body: memoryview) -> tuple[bytes, int, int]:
    """Parse the name, mode and umask of a create, or of a tmpfile, which has no name."""
    return name_in(body[_CREATE_IN.size :]), *_CREATE_IN.unpack_from(body)


def link_in(body: memoryview) -> tuple[int, bytes]:
    """Parse a link: the ino of the file, and its new name in the directory of the header."""
    return _INO_IN.unpack_from(body)[0], name_in(body[_INO_IN.size :])


def rename_in(body: memoryview) -> NewName:
    """Parse fuse_rename_in."""
    name, new_name = names_in(body[_INO_IN.size :])
    return NewName(name, _INO_IN.unpack_from(body)[0], new_name, 0)


def rename2_in(body: memoryview) -> NewName:
    """Parse fuse_rename2_in."""
    new_parent, flags = _RENAME2_IN.unpack_from(body)
    name, new_name = names_in(body[_RENAME2_IN.size :])
    return NewName(name, new_parent, new_name, flags)


def write_in(body: memoryview) -> tuple[memoryview, int, int]:
    """Parse a write: its data, offset and WriteFlag."""
    offset, flags = _WRITE_IN.unpack_from(body)
    return body[_WRITE_IN.size :], offset, flags


def fallocate_in(body: memoryview) -> tuple[int, int, int]:
    """Parse fuse_fallocate_in: offset, length, FALLOC_FL_*."""
    offset, length, mode = _FALLOCATE_IN.unpack_from(body)
    return offset, length, mode


def lseek_in(body: memoryview) -> tuple[int, int]:
    """Parse fuse_lseek_in: offset, SEEK_DATA or SEEK_HOLE."""
    offset, whence = _LSEEK_IN.unpack_from(body)
    return offset, whence


def copy_file_range_in(body: memoryview) -> RangeToCopy:
    """Parse fuse_copy_file_range_in."""
    return RangeToCopy._make(_COPY_IN.unpack_from(body)[:4])


def setxattr_in(body: memoryview, *, has_more: bool) -> tuple[bytes, bytes, int, int]:
    """Parse the name, value and flags of a setxattr(2), and what more it says (SETXATTR_EXT)."""
    head = _SETXATTR_IN if has_more else _XATTR_IN
    size, flags, *more = head.unpack_from(body)
    name, _, value = bytes(body[head.size :]).partition(b"\0")
    return name, value[:size], flags, more[0] if more else 0


def getxattr_in(body: memoryview) -> tuple[bytes, int]:
    """Parse a getxattr: the name, and the room for the value."""
    return name_in(body[_XATTR_IN.size :]), _XATTR_IN.unpack_from(body)[0]


def listxattr_in(body: memoryview) -> int:
    """Parse the room that a listxattr has for the names."""
    room: int = _XATTR_IN.unpack_from(body)[0]
    return room


def batch_forget_in(body: memoryview) -> Iterator[tuple[int, int]]:
    """Parse the (ino, count) of a batch forget."""
    return _FORGET_ONE.iter_unpack(body[_FORGET_IN.size :])


def xattr_out(value: bytes, room: int) -> bytes:
    """Pack an extended attribute; without any room, only its length. Raises ERANGE if it is longer."""
    if room == 0:
        return _SIZE_OUT.pack(len(value), 0)
    if len(value) > room:
        raise FUSEError(errno.ERANGE)
    return value


def xattr_names_out(names: Iterable[bytes], room: int) -> bytes:
    """Pack the names of extended attributes; without any room, only their length. Raises ERANGE."""
    return xattr_out(b"".join(name + b"\0" for name in names), room)


def write_out(count: int) -> bytes:
    """Pack how many bytes have been written."""
    return _SIZE_OUT.pack(count, 0)


def position_out(number: int) -> bytes:
    """Pack a position in a file, or a count of 64 bits."""
    return _POSITION_OUT.pack(number)


def statfs_out(found: Statfs) -> bytes:
    """Pack the size of a file system."""
    return _STATFS_OUT.pack(*found)


def open_out(handle: int, flags: OpenFlag | int) -> bytes:
    """Pack a handle, and what the kernel may do with it."""
    return _OPEN_OUT.pack(handle, flags, 0)


def entry(file: Attributes, owner: Squash) -> bytes:
    """Pack the file that a name leads to; good for ever."""
    ino, mode, uid, gid, size, mtime_ns, nlink, device, blocks, atime_ns, ctime_ns, _ = file
    mtime, mtime_rest = divmod(mtime_ns, _BILLION)
    atime, atime_rest, ctime, ctime_rest = mtime, mtime_rest, mtime, mtime_rest
    if atime_ns != mtime_ns or ctime_ns != mtime_ns:
        atime, atime_rest = divmod(atime_ns, _BILLION)
        ctime, ctime_rest = divmod(ctime_ns, _BILLION)
    if owner:
        uid, gid = owner
    # fmt: off
    return _ENTRY.pack(
        ino, 0, FOREVER, FOREVER, 0, 0,
        ino, size, blocks, atime, mtime, ctime, atime_rest, mtime_rest, ctime_rest,
        mode, nlink, uid, gid, device & _DEVICE, _BLOCK_SIZE, 0,
    )
    # fmt: on


def attributes(file: Attributes, owner: Squash) -> bytes:
    """Pack the attributes of a file; good for ever."""
    return _FOREVER + entry(file, owner)[_ATTR_AT:]


def statx_out(file: Attributes, birth_ns: int | None, owner: Squash) -> bytes:
    """Pack the attributes of a file with its time of birth, if it has one; good for ever."""
    uid, gid = owner or (file.uid, file.gid)
    accessed, born, changed, modified = (
        divmod(time_ns, _BILLION) for time_ns in (file.atime_ns, birth_ns or 0, file.ctime_ns, file.mtime_ns)
    )
    mask = _BASIC if birth_ns is None else _BASIC | _BTIME
    # fmt: off
    return _STATX_OUT.pack(
        FOREVER, 0, 0,
        mask, _BLOCK_SIZE, 0, file.nlink, uid, gid, file.mode, file.ino, file.size, file.blocks, 0,
        *accessed, *born, *changed, *modified,
        os.major(file.device), os.minor(file.device), 0, 0,
    )
    # fmt: on


def listed(position: int, name: bytes, file: Attributes, owner: Squash) -> bytes:
    """Pack a child of a directory with its attributes: the kernel then holds a reference to the file."""
    head = _DIRENT.pack(file.ino, position, len(name), file.mode >> 12)
    return entry(file, owner) + head + name + _PADDING[len(name) % 8]


def listed_dot(position: int, name: bytes, ino: int) -> bytes:
    """Pack the `.` or `..` of a directory, without attributes: the kernel takes no reference to it."""
    head = _DIRENT.pack(ino, position, len(name), stat.S_IFDIR >> 12)
    return _NO_ENTRY + head + name + _PADDING[len(name) % 8]
