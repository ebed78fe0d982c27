"""What a session and the kernel agree on when the kernel greets (FUSE_INIT): features of both, and limits.

ALLOW_IDMAP is not agreed to for what is writable: with it the kernel tells whose process asks for new files
alone (fs/fuse/dev.c, fuse_get_req). It needs `default_permissions`, as every mount has, but the one that
stands below another file system.

ASYNC_DIO is not agreed to: with it the kernel waits for direct reads in a way that no signal ends, and after
a direct write does not drop what it had cached of those bytes (fs/fuse/file.c, fuse_direct_IO).

AUTO_INVAL_DATA is not: it is this kernel that makes all changes. It would drop what it has just written, for
the time of modification that has moved by it (fs/fuse/inode.c, fuse_change_attributes).
"""

from __future__ import annotations

from imgfs.errors import MountError
from imgfs.fuse.opcodes import MAJOR, MAX_PAGES, MAX_WRITE, MINOR, NEEDED_MINOR, InitFlag
from imgfs.fuse.protocol import INIT_IN, INIT_MORE, INIT_OUT

IN_BACKGROUND = 512  # reads past its cache that the kernel may have under way; of itself it allows 12
ONCE = InitFlag.AUTO_INVAL_DATA  # was agreed to by earlier versions, and asks nothing of a daemon

_OFFERS = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.EXPORT_SUPPORT
    | InitFlag.BIG_WRITES
    | InitFlag.DO_READDIRPLUS
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
)
_ACLS = InitFlag.POSIX_ACL | InitFlag.DONT_MASK | InitFlag.SETXATTR_EXT
_IDMAP = InitFlag.INIT_EXT | InitFlag.ALLOW_IDMAP


def offers_of(*, writable: bool, writeback: bool, acls: bool, stands_below: bool) -> int:
    """Return what a session offers (InitFlag).

    `writable`: set-id bits are taken away by its handlers (HANDLE_KILLPRIV_V2). With `writeback` the kernel
    gathers what is written, with `acls` it obeys files' ACLs. `stands_below`: another file system reads.
    """
    offers = _OFFERS | (InitFlag.HANDLE_KILLPRIV_V2 if writable else 0)
    offers |= InitFlag.WRITEBACK_CACHE if writeback else 0
    offers |= _ACLS if acls else 0
    return offers | (0 if writable or stands_below else _IDMAP)


def agree(greeting: memoryview, offers: int) -> tuple[int, bytes]:
    """Return what the kernel offers in its `greeting`, and the answer's body; MountError if it is too old."""
    major, minor, read_ahead, offered = INIT_IN.unpack_from(greeting)
    if (major, minor) < (MAJOR, NEEDED_MINOR):
        raise MountError(
            f"this kernel speaks FUSE {major}.{minor}; imgfs needs {MAJOR}.{NEEDED_MINOR} (Linux 5.1)"
        )
    if offered & InitFlag.INIT_EXT and len(greeting) >= INIT_MORE.size:
        offered |= INIT_MORE.unpack_from(greeting)[0] << 32
    agreed = offered & offers
    limits = IN_BACKGROUND, IN_BACKGROUND * 3 // 4, MAX_WRITE, 1, MAX_PAGES, 0
    answer = INIT_OUT.pack(MAJOR, MINOR, read_ahead, agreed & 0xFFFFFFFF, *limits, agreed >> 32)
    return offered, answer
