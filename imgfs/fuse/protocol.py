"""The FUSE protocol as bytes: what the kernel sends and what it is sent (linux/fuse.h, version 7.31).

A request is a header and a body by its opcode; so is an answer. All numbers are in the machine's own order.
"""

from __future__ import annotations

import enum
import stat
import struct
from typing import NamedTuple, TypeAlias

from imgfs.overlay.node import UpperAttributes
from imgfs.tree.reader import Node

MAJOR, MINOR = 7, 31
ROOT_INO = 1
WRITE_MOST = 1 << 20  # bytes of a write, and of a read: what 256 pages hold
MOST_PAGES = 256  # of a request; the kernel has no more unless root says so
READ_BUFFER = WRITE_MOST + 4096  # a whole request: the largest is a write, with 80 bytes of headers
FOREVER = 1 << 30  # seconds, some 34 years: nothing of an image changes
_BILLION = 1_000_000_000
_DEVICE = (1 << 32) - 1  # a dev_t as the kernel has it: the low half of the C library's
_BLOCK_SIZE = 4096  # that programs are told is a good one to read in


class Opcode(enum.IntEnum):
    """What a request asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44
    RENAME2 = 45


class Notice(enum.IntEnum):
    """What the file system tells the kernel unasked (FUSE_NOTIFY_*)."""

    INVALIDATE_INODE = 2


class Offer(enum.IntFlag):
    """What kernel and file system may agree on when they greet (FUSE_INIT flags)."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4  # `.` and `..` can be looked up
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPEN_SUPPORT = 1 << 17  # the kernel's alone: see `Operations.open`
    NO_OPENDIR_SUPPORT = 1 << 24  # and `Operations.opendir`
    HANDLE_KILLPRIV_V2 = 1 << 28  # 7.33: the file system takes set-id bits away where the KILL flags say so


class OpenFlag(enum.IntFlag):
    """What the answer to an open asks of the kernel (FOPEN_*)."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3


class Change:
    """Which attributes a request sets (FATTR_*). Plain numbers: to ask an IntFlag takes a microsecond."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    CTIME = 1 << 10  # by a kernel that gathers writes, and so keeps the times
    KILL_SUIDGID = 1 << 11  # with SIZE: the caller may not keep the set-id bits (no CAP_FSETID)


class WriteFlag:
    """What a write says of itself (FUSE_WRITE_*); plain numbers, too."""

    CACHE = 1 << 0  # gathered pages: the program that wrote them has been told long ago that it has
    KILL_SUIDGID = 1 << 2


OPEN_KILL_SUIDGID = 1 << 0  # of an open with O_TRUNC (FUSE_OPEN_KILL_SUIDGID)
READ_LOCKOWNER = 1 << 1  # of a read past the page cache: a program waits in its system call for just that
GETATTR_FH = 1 << 0  # of a getattr: the kernel needs to know, in the middle of a call on an open file


class Head(NamedTuple):
    """What every request begins with. `unique` is its number; `uid` and `gid` are the caller's.

    `pid` is the calling thread's, as the PID namespace of the mount has it; 0 if it has none there.
    """

    opcode: int
    unique: int
    ino: int
    uid: int
    gid: int
    pid: int = 0


class NewAttributes(NamedTuple):
    """The body of a setattr (fuse_setattr_in); `changes` says which of it counts."""

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


HEAD = struct.Struct("=4xI2Q3I4x")  # fuse_in_header: its length comes first
HEAD_SIZE = HEAD.size
ANSWER_HEAD = struct.Struct("=IiQ")  # fuse_out_header: length, negative errno, the request's number
INIT_IN = struct.Struct("=4I")  # fuse_init_in: major, minor, read-ahead in bytes, Offer
INIT_OUT = struct.Struct("=4I2H2I2H32x")  # …, background, congestion, largest write, ns of time, pages
SETATTR_IN = struct.Struct("=2I3Q3q8I")
READ_IN = struct.Struct("=2QI")  # fuse_read_in begins with: handle, offset, size
READ_FLAGS = struct.Struct("=20xI")  # and goes on with READ_LOCKOWNER
WRITE_IN = struct.Struct("=8xQ4xI16x")  # fuse_write_in: offset, WriteFlag; the data comes next
GETATTR_IN = struct.Struct("=I")  # fuse_getattr_in begins with: GETATTR_FH
INTERRUPT_IN = struct.Struct("=Q")  # fuse_interrupt_in: the number of the request that is not waited for
HANDLE_IN = struct.Struct("=QI")  # fuse_release_in and fuse_fsync_in begin with: handle, flags
OPEN_IN = struct.Struct("=2I")  # fuse_open_in: flags of open(2), OPEN_KILL_SUIDGID
MKNOD_IN = struct.Struct("=4I")  # mode, device, umask
MKDIR_IN = struct.Struct("=2I")  # mode, umask
CREATE_IN = struct.Struct("=4I")  # flags of open(2), mode, umask
INO_IN = struct.Struct("=Q")  # of a link and a rename: the file, the new directory; of a forget: how often
RENAME2_IN = struct.Struct("=Q2I")  # the new directory, flags of renameat2(2)
XATTR_IN = struct.Struct("=2I")  # fuse_setxattr_in: size, flags; fuse_getxattr_in: the room there is
FORGET_IN = struct.Struct("=2I")  # fuse_batch_forget_in: how many follow
FORGET_ONE = struct.Struct("=2Q")  # ino, count
OPEN_OUT = struct.Struct("=Q2I")  # handle, OpenFlag
INVALIDATE_INODE_OUT = struct.Struct("=Q2q")  # fuse_notify_inval_inode_out: ino, offset (-1: no data), length
SIZE_OUT = struct.Struct("=2I")  # fuse_write_out, fuse_getxattr_out
STATFS_OUT = struct.Struct("=5Q4I24x")  # blocks, free, available, files, free; block size, name's, fragment's

_ENTRY = struct.Struct("=4Q2I 6q10I")  # fuse_entry_out: ino, generation, seconds that it is good, fuse_attr
_ATTR_AT = 40  # bytes into it
_DIRENT = struct.Struct("=2Q2I")  # fuse_dirent: ino, position, length of the name, kind
_PADDING = [bytes(-length % 8) for length in range(8)]
_NO_ENTRY = bytes(_ENTRY.size)
_FOREVER = struct.pack("=Q2I", FOREVER, 0, 0)
ABSENT = struct.pack("=4Q", 0, 0, FOREVER, 0) + bytes(_ENTRY.size - 32)  # no such name: remembered, too

File: TypeAlias = Node | UpperAttributes
Owner: TypeAlias = tuple[int, int] | None  # (uid, gid) whom all files are shown as belonging to


def opened(handle: int, flags: OpenFlag | int) -> bytes:
    """A handle, and what the kernel may do with it."""
    return OPEN_OUT.pack(handle, flags, 0)


def entry(file: File, owner: Owner) -> bytes:
    """The file that a name leads to; good for ever."""
    ino, mode, uid, gid, size, mtime_ns, nlink, device, blocks = file[:9]
    mtime, mtime_rest = divmod(mtime_ns, _BILLION)
    atime, atime_rest, ctime, ctime_rest = mtime, mtime_rest, mtime, mtime_rest
    if isinstance(file, UpperAttributes):
        atime, atime_rest = divmod(file.atime_ns, _BILLION)
        ctime, ctime_rest = divmod(file.ctime_ns, _BILLION)
    if owner:
        uid, gid = owner
    # fmt: off
    return _ENTRY.pack(
        ino, 0, FOREVER, FOREVER, 0, 0,
        ino, size, blocks, atime, mtime, ctime, atime_rest, mtime_rest, ctime_rest,
        mode, nlink, uid, gid, device & _DEVICE, _BLOCK_SIZE, 0,
    )
    # fmt: on


def attributes(file: File, owner: Owner) -> bytes:
    """A file's attributes; good for ever."""
    return _FOREVER + entry(file, owner)[_ATTR_AT:]


def listed(position: int, name: bytes, file: File, owner: Owner) -> bytes:
    """A directory's entry with its file, which the kernel knows from then on."""
    head = _DIRENT.pack(file.ino, position, len(name), file.mode >> 12)
    return entry(file, owner) + head + name + _PADDING[len(name) % 8]


def listed_dot(position: int, name: bytes, ino: int) -> bytes:
    """A directory's `.` or `..`, of which the kernel wants no more than that."""
    head = _DIRENT.pack(ino, position, len(name), stat.S_IFDIR >> 12)
    return _NO_ENTRY + head + name + _PADDING[len(name) % 8]
