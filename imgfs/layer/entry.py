"""The values that every layer format is turned into: entries, their extents, and spans with checkpoints.

An image made on another system has extended attributes that Linux cannot keep (`com.apple.provenance`), and
tar stores those of particular file systems (`system.nfs4_acl`). They are dropped (`kept_xattrs`), as umoci,
GNU tar and podman do on ENOTSUP; imgfs drops them from the tree, and so from both drivers, listings and
copies.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.layer.limits import XATTR_LIST_LIMIT, XATTR_NAME_LIMIT, XATTR_VALUE_LIMIT, XATTRS_LIMIT

WINDOW = 32 * 1024  # the farthest a deflate match can look back (RFC 1951, section 2)
_ANYWHERE = (b"trusted.", b"security.")
_ON_FILES = b"user."  # and directories: other files have no permission bits for it (xattr(7))
_CAPABILITY, _EFFECTIVE = b"security.capability", 1
_CAPABILITIES = ((0x02000000, 20), (0x03000000, 24))  # versions, and their sizes in bytes
ACL = b"system.posix_acl_"  # begins the names of two attributes, which are POSIX ACLs:
ACCESS_ACL, DEFAULT_ACL = ACL + b"access", ACL + b"default"


class Kind(IntEnum):
    """The type of an entry. The numbers are stored."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    HARDLINK = 3
    CHARACTER = 4
    BLOCK = 5
    FIFO = 6


KIND_OF: Mapping[int, Kind] = {  # by a mode's type (inode(7)); a hard link has that of its file
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}


class Extent(NamedTuple):
    """A run of a file: `length` bytes at `offset` in the file are those at `flat` in the flat layer."""

    offset: int
    length: int
    flat: int


def seek_extents(extents: Sequence[Extent], size: int, offset: int, whence: int) -> int:
    """Return the first offset from `offset` on with data (`os.SEEK_DATA`), or of a hole (`os.SEEK_HOLE`).

    The end of a file, at `size`, begins a hole. Raises OSError: ENXIO.
    """
    seek = _next_data if whence == os.SEEK_DATA else _next_hole
    found = seek(extents, size, offset) if offset < size else None
    if found is None:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
    return found


def _next_data(extents: Sequence[Extent], size: int, offset: int) -> int | None:
    for extent in extents:
        start = max(offset, extent.offset)
        if start < min(size, extent.offset + extent.length):
            return start
    return None


def _next_hole(extents: Sequence[Extent], size: int, offset: int) -> int:
    for extent in extents:
        if extent.offset > offset:
            break
        offset = max(offset, extent.offset + extent.length)
    return min(offset, size)


class Entry(NamedTuple):
    """One member of a layer, with the layer's own values.

    `path` and `target` are raw, as stored (uncleaned: `tree` does that). `mode` holds the twelve permission
    bits only. `device` is (major, minor). `xattrs` are unprefixed by PAX: `security.capability` and so on.
    `extents` are in order, without overlap; what they leave out of `size` is a hole.
    """

    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = {}
    extents: tuple[Extent, ...] = ()


class Codec(IntEnum):
    """How a span's compressed bytes become flat ones. The numbers are stored."""

    IDENTITY = 0  # they are the same
    GZIP = 1  # the span begins at a gzip member's header
    DEFLATE = 2  # the span begins inside a gzip member, at a deflate block: needs a checkpoint
    ZSTD = 3  # the span is whole zstd frames
    XZ = 4  # the span is whole xz streams
    BZIP2 = 5  # the span is whole bzip2 streams


class Checkpoint(NamedTuple):
    """Where inflate can begin in mid-member: `bits` (0-7) of the byte before the span's own first whole byte
    belong to it, `window` is up to 32 KiB of flat layer that come before (RFC 1951)."""

    bits: int
    window: bytes


class ChunkDigest(NamedTuple):
    """The sha256 of `length` flat bytes of a span, from `skip` bytes after the span's first on."""

    skip: int
    length: int
    digest: bytes


class Span(NamedTuple):
    """A piece of the flat layer, `[flat_start, flat_end)`, and the blob's bytes `[start, end)` that hold it.

    With a checkpoint of nonzero `bits`, the byte at `start` is the one whose upper `bits` bits begin the
    span. `digest` is the sha256 of exactly the blob's bytes `[start, end)`.

    A table of contents (eStargz, zstd:chunked) gives digests of decoded bytes instead: then `digest` is empty
    and `parts` say what is known: they ascend and do not overlap, so that checking them takes one pass. Where
    there are parts, they alone are checked. Files have no bytes outside of the parts; what the blob's bytes
    decode to beyond `flat_end` (the next member's tar header) does not count.
    """

    number: int
    flat_start: int
    flat_end: int
    start: int
    end: int
    codec: Codec
    digest: bytes
    checkpoint: Checkpoint | None = None
    parts: tuple[ChunkDigest, ...] = ()


def kept_xattrs(kind: Kind, xattrs: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """Return those of a file's attributes that Linux can keep; raises InvalidImage for one too long."""
    kept = {name: value for name, value in xattrs.items() if _is_kept(kind, name, value)}
    for name, value in kept.items():
        if len(name) > XATTR_NAME_LIMIT:
            raise InvalidImage(f"the name of an extended attribute is longer than {XATTR_NAME_LIMIT} bytes")
        if len(value) > XATTR_VALUE_LIMIT:
            raise InvalidImage(f"an extended attribute is longer than {XATTR_VALUE_LIMIT} bytes")
    if sum(len(name) + 1 for name in kept) > XATTR_LIST_LIMIT:
        raise InvalidImage(f"the names of its extended attributes are longer than {XATTR_LIST_LIMIT} bytes")
    if sum(4 + -(-(len(name) + len(value)) // 4) * 4 for name, value in kept.items()) > XATTRS_LIMIT:
        raise InvalidImage(f"its extended attributes are longer than {XATTRS_LIMIT} bytes")
    return kept


def _is_kept(kind: Kind, name: bytes, value: bytes) -> bool:
    if name.startswith(_ON_FILES):
        return kind in (Kind.FILE, Kind.DIRECTORY) and name != _ON_FILES
    if name == ACCESS_ACL:
        return kind is not Kind.SYMLINK and _is_acl(value)
    if name == DEFAULT_ACL:
        return kind is Kind.DIRECTORY and _is_acl(value)
    if name == _CAPABILITY:
        return _is_capability(value)
    return any(name.startswith(prefix) and name != prefix for prefix in _ANYWHERE)


def _is_capability(value: bytes) -> bool:
    """Return True for capabilities as the kernel takes and gives them: of version 2 or 3, with or without
    the effective bit (linux/capability.h, `vfs_ns_cap_data`; security/commoncap.c, `validheader`)."""
    version = int.from_bytes(value[:4], "little") & ~_EFFECTIVE
    return (version, len(value)) in _CAPABILITIES


def _is_acl(value: bytes) -> bool:
    """Return True for an ACL as the kernel reads them: version 2, entries of 8 bytes (posix_acl_xattr.h)."""
    return len(value) % 8 == 4 and value.startswith(b"\2\0\0\0")
