"""The numbers of the FUSE protocol: opcodes, flags and limits (linux/fuse.h, version 7.31)."""

from __future__ import annotations

import enum

MAJOR, MINOR = 7, 31
NEEDED_MINOR = 29  # Linux 5.1
ROOT_INO = 1
MAX_WRITE = 1 << 20  # bytes of a write, and of a read: what 256 pages hold
MAX_PAGES = 256  # of a request; the kernel has no more unless root says so
READ_BUFFER = MAX_WRITE + 4096  # a whole request: the largest is a write, with 80 bytes of headers
FOREVER = 1 << 30  # seconds, some 34 years: nothing of an image changes


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
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class NotifyCode(enum.IntEnum):
    """What the file system tells the kernel unasked (FUSE_NOTIFY_*)."""

    INVALIDATE_INODE = 2
    INVALIDATE_ENTRY = 3
    STORE = 4  # bytes of a file for the page cache
    RESEND = 7  # 7.40: send what was read and has not been answered again, its number marked by RESENT


class InitFlag(enum.IntFlag):
    """What kernel and file system may agree on when they greet (FUSE_INIT flags)."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4  # `.` and `..` can be looked up
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6  # the file system applies the umask, where no ACL is inherited
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPEN_SUPPORT = 1 << 17  # the kernel's alone: see `Operations.open`
    NO_OPENDIR_SUPPORT = 1 << 24  # and `Operations.opendir`
    HANDLE_KILLPRIV_V2 = 1 << 28  # 7.33: the file system takes set-id bits away where the KILL flags say so
    SETXATTR_EXT = 1 << 29  # 7.33: a setxattr says more
    INIT_EXT = 1 << 30  # 7.36: the flags from 1 << 32 on count, which are in words of their own
    ALLOW_IDMAP = 1 << 40  # 7.41, Linux 6.12: mounts of it may show its owners by a user namespace's map


class OpenFlag(enum.IntFlag):
    """What the answer to an open asks of the kernel (FOPEN_*)."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3


class SetattrMask:
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


RESENT = 1 << 63  # in the number of a request that is sent again (FUSE_UNIQUE_RESEND)
SETXATTR_ACL_KILL_SGID = 1 << 0  # of a setxattr of an ACL: the caller may not keep the set-gid bit
OPEN_KILL_SUIDGID = 1 << 0  # of an open with O_TRUNC (FUSE_OPEN_KILL_SUIDGID)
READ_LOCKOWNER = 1 << 1  # of a read past the page cache: a program waits in its system call for just that
GETATTR_FH = 1 << 0  # of a getattr: the kernel needs to know, in the middle of a call on an open file
