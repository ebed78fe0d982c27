"""What a session and the kernel agree on in FUSE_INIT: features and limits.

ALLOW_IDMAP is not agreed to by a writable mount: with it the kernel gives the caller's uid and gid only with
requests that create files (fs/fuse/dev.c, fuse_get_req). It needs `default_permissions`, which every mount
has except one that stands below another file system.

ASYNC_DIO is not agreed to: with it no signal ends the kernel's wait for a direct read, and after a direct
write the kernel does not drop what it had cached of those bytes (fs/fuse/file.c, fuse_direct_IO).

AUTO_INVAL_DATA is not agreed to: all changes come through this kernel. It would drop the pages of each write,
because the write has moved the time of modification (fs/fuse/inode.c, fuse_change_attributes).
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
    """Return the features that a session asks for (InitFlag).

    `writable`: its handlers take set-id bits away (HANDLE_KILLPRIV_V2). `writeback`: the kernel caches
    writes; `acls`: it enforces files' ACLs. `stands_below`: another file system reads from the mount.
    """
    offers = _OFFERS | (InitFlag.HANDLE_KILLPRIV_V2 if writable else 0)
    offers |= InitFlag.WRITEBACK_CACHE if writeback else 0
    offers |= _ACLS if acls else 0
    return offers | (0 if writable or stands_below else _IDMAP)


def agree(greeting: memoryview, offers: int) -> tuple[int, bytes]:
    """Return the kernel's features and the answer to its FUSE_INIT. MountError if the kernel is too old."""
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
