"""A little tree with one of everything, as an image's members and as files on a disk: the same from both.

    tree/small, empty, text, last, setuid, readonly, private, script, labelled, holes
    tree/linked-a = tree/linked-b, tree/pair/one = tree/pair/two      hard links
    tree/to-small, to-directory, to-nowhere                           symbolic links
    tree/directory/{a,b,sub/{c,deep/d}}, tree/bare, tree/wide/00…19   directories
    tree/acls/shared, inherits                                        POSIX ACLs
    tree/pipe, tree/null                                              a fifo, a character device

`tree/large` is there only for who asks for it.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from tests.support import tarmake as tar
from tests.support.mounted import Account

NO_ID = 0xFFFFFFFF
SMALL = b"small\n"
TEXT = b"0123456789" * 1000
SCRIPT = b"#!/bin/sh\necho ran\n"
HEAD, TAIL, HOLES = (
    b"head" * 1024,
    b"tail" * 1024,
    1 << 20,
)  # a file of HOLES bytes, of which only the ends are data
ACL = b"system.posix_acl_"
SOMEBODY = Account(4711, 4711)
# Owner and group may read and write, as may one named user; others may not (linux/posix_acl_xattr.h).
SHARED = struct.pack(
    "<I" + 5 * "2HI", 2, 1, 6, NO_ID, 2, 6, SOMEBODY.uid, 4, 6, NO_ID, 16, 6, NO_ID, 32, 0, NO_ID
)
T = 1_600_000_000_000_000_000  # nanoseconds: the first member's time; each has one of its own
STEP = 1_000_000_007
WIDE = [f"{number:02}" for number in range(20)]


class Kind(Enum):
    """What a member is."""

    FILE = 1
    SPARSE = 2
    DIRECTORY = 3
    HARDLINK = 4
    SYMLINK = 5
    FIFO = 6
    NULL = 7  # the character device 1, 3


class Member(NamedTuple):
    """One path below the tree; `body` is a link's target as well."""

    path: str
    kind: Kind
    body: bytes = b""
    mode: int = 0o644
    xattrs: Mapping[bytes, bytes] = {}


MEMBERS = [
    Member("", Kind.DIRECTORY, mode=0o755),
    Member("small", Kind.FILE, SMALL),
    Member("empty", Kind.FILE),
    Member("text", Kind.FILE, TEXT, mode=0o640),
    Member("setuid", Kind.FILE, b"s" * 100, mode=0o6755),
    Member("readonly", Kind.FILE, b"r", mode=0o444),
    Member("private", Kind.FILE, b"p", mode=0o600),
    Member("script", Kind.FILE, SCRIPT, mode=0o755),
    Member("labelled", Kind.FILE, b"l", xattrs={b"user.one": b"1", b"user.binary": b"\0\xff\n=\0"}),
    Member("holes", Kind.SPARSE),
    Member("linked-a", Kind.FILE, b"linked"),
    Member("linked-b", Kind.HARDLINK, b"linked-a"),
    Member("pair", Kind.DIRECTORY, mode=0o755),
    Member("pair/one", Kind.FILE, b"pair"),
    Member("pair/two", Kind.HARDLINK, b"pair/one"),
    Member("to-small", Kind.SYMLINK, b"small"),
    Member("to-directory", Kind.SYMLINK, b"directory"),
    Member("to-nowhere", Kind.SYMLINK, b"no/where"),
    Member("directory", Kind.DIRECTORY, mode=0o755, xattrs={b"user.directory": b"d"}),
    Member("directory/a", Kind.FILE, b"a"),
    Member("directory/b", Kind.FILE, b"b"),
    Member("directory/sub", Kind.DIRECTORY, mode=0o750),
    Member("directory/sub/c", Kind.FILE, b"c"),
    Member("directory/sub/deep", Kind.DIRECTORY, mode=0o755),
    Member("directory/sub/deep/d", Kind.FILE, b"d"),
    Member("bare", Kind.DIRECTORY, mode=0o755),
    Member("wide", Kind.DIRECTORY, mode=0o755),
    *(Member(f"wide/{name}", Kind.FILE, name.encode()) for name in WIDE),
    Member("acls", Kind.DIRECTORY, mode=0o755),
    Member("acls/shared", Kind.FILE, b"s", mode=0o660, xattrs={ACL + b"access": SHARED}),
    Member("acls/inherits", Kind.DIRECTORY, mode=0o755, xattrs={ACL + b"default": SHARED}),
    Member("pipe", Kind.FIFO),
    Member("null", Kind.NULL, mode=0o666),
    Member("last", Kind.FILE, b"last"),
]


@functools.cache
def large_body() -> bytes:
    """Over 3 MiB in which every 8 bytes differ: nothing can be mistaken for its neighbour."""
    return b"".join(b"%07d\n" % number for number in range(400_003))


def mtime_of(path: str) -> int:
    """Return the modification time, in nanoseconds, that the tree gives to `path`."""
    return next(time for member, time in _timed(large=True) if member.path == path)


def as_members(where: str, owner: Account, large: bool) -> Iterator[bytes]:
    """The members of a tar stream that hold the tree in the directory `where`, which is `owner`'s too."""
    yield tar.directory(where, uid=owner.uid, gid=owner.gid)
    for member, time in _timed(large):
        yield _as_member(member, f"{where}/tree", owner, time)


def lay_out(where: Path, owner: Account, large: bool) -> None:
    """The tree on a disk in the directory `where`, which is made; only root can give it away."""
    where.mkdir()
    os.chown(where, *owner)
    for member, _ in _timed(large):
        _make(member, where / "tree", owner)
    for member, time in _timed(large):  # last: what is made in a directory changes its time
        os.utime(where / "tree" / member.path, ns=(time, time), follow_symlinks=False)


def _timed(large: bool) -> Iterator[tuple[Member, int]]:
    members = MEMBERS + ([Member("large", Kind.FILE, large_body())] if large else [])
    first: dict[bytes, int] = {}
    for number, member in enumerate(members):
        time = T + number * STEP
        first[member.path.encode()] = time
        yield member, first[member.body] if member.kind is Kind.HARDLINK else time


def _as_member(member: Member, tree: str, owner: Account, time: int) -> bytes:
    path, (uid, gid) = f"{tree}/{member.path}".rstrip("/"), owner
    match member.kind:
        case Kind.FILE:
            body, xattrs = member.body, member.xattrs
            return tar.file(path, body, mode=member.mode, uid=uid, gid=gid, mtime_ns=time, xattrs=xattrs)
        case Kind.DIRECTORY:
            return tar.directory(
                path, mode=member.mode, uid=uid, gid=gid, mtime_ns=time, xattrs=member.xattrs
            )
        case Kind.SYMLINK:
            return tar.symlink(path, member.body, uid=uid, gid=gid, mtime_ns=time)
        case Kind.HARDLINK:
            return tar.hardlink(path, f"{tree}/{os.fsdecode(member.body)}")
        case Kind.SPARSE:
            pieces = [(0, HEAD), (HOLES - len(TAIL), TAIL)]
            return _timing(time) + tar.sparse_old(path, HOLES, pieces, mode=member.mode, owner=owner)
        case Kind.FIFO:
            return _timing(time) + tar.member(path, b"6", mode=member.mode, owner=owner)
        case Kind.NULL:
            return _timing(time) + tar.member(path, b"3", mode=member.mode, owner=owner, device=(1, 3))


def _timing(time: int) -> bytes:
    return tar.pax({b"mtime": tar.seconds(time)})


def _make(member: Member, tree: Path, owner: Account) -> None:
    path = tree / member.path
    match member.kind:
        case Kind.HARDLINK:
            os.link(tree / os.fsdecode(member.body), path)
            return
        case Kind.FILE:
            path.write_bytes(member.body)
        case Kind.SPARSE:
            path.write_bytes(HEAD)
            os.truncate(path, HOLES - len(TAIL))
            with path.open("ab") as file:
                file.write(TAIL)
        case Kind.DIRECTORY:
            path.mkdir()
        case Kind.SYMLINK:
            path.symlink_to(os.fsdecode(member.body))
        case Kind.FIFO:
            os.mkfifo(path)
        case Kind.NULL:
            os.mknod(path, 0o20666, os.makedev(1, 3))
    os.lchown(path, *owner)
    if member.kind is not Kind.SYMLINK:
        path.chmod(member.mode)
    for name, value in member.xattrs.items():
        os.setxattr(path, name, value)
