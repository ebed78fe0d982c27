"""EROFS on disk (kernel, fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst), as far as we write it.

An image of ours holds metadata only: superblock, inodes, directories. A file's inode names a run of blocks
on another device, which is a flat layer. Everything is little-endian, addresses count blocks or 32 bytes.
Overlayfs names what it has copied up of an image by a file handle, which holds a nid.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imgfs.errors import MountError

if TYPE_CHECKING:
    from imgfs.oci.descriptor import Digest
    from imgfs.store.store import Store
    from imgfs.tree.database import Attributes

FORMAT = 1  # of our images; another number means: write them again
SUPERBLOCK = 1024  # where it is, whatever the size of a block
SUPERBLOCK_SIZE = 128
DEVICE_SIZE = 128
SLOT = 32  # bytes: what a nid counts
INODE = struct.Struct("<4HQ4IQ2I16x")  # struct erofs_inode_extended: 64 bytes
HOLE = None  # the start of a chunk that is all zeros
MOST_BLOCKS = (1 << 32) - 1  # of a device, and of an image
MOST_CHUNK_BITS = 31  # of a chunk's size in blocks: five bits hold them

_MAGIC = 0xE0F5E1E2
_CHECKSUM, _MTIME = 1, 2  # feature_compat
_CHUNKED_FILE, _DEVICE_TABLE = 4, 8  # feature_incompat
_SUPER = struct.Struct("<3IBBHQQ4I16s16sIHHHBBIQ24x")
_DEVICE = struct.Struct("<64sII56x")
_EXTENDED = 1  # the lowest bit of i_format; the layout follows
PLAIN, INLINE, CHUNKED = 0, 2, 4  # data layouts
_CHUNK_INDEXES = 0x20  # i_u of a chunked file: 8-byte indexes instead of bare block numbers
_CHUNK = struct.Struct("<HHI")  # block number (its upper half), device, block number (its lower half)
CHUNK_SIZE = _CHUNK.size  # indexes begin at whole ones
_DIRENT = struct.Struct("<QHBB")  # nid, where the name begins in the block, type, 0
_XATTR = struct.Struct("<BBH")  # name length, prefix, value size
_XATTR_HEADER = bytes(12)  # name filter (not in use), count of shared attributes (none), reserved
_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)
_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
_LARGEST_VALUE, _LARGEST_XATTRS = 0xFFFF, 0xFFFF * 4


# struct ovl_fb (fs/overlayfs/overlayfs.h) around what erofs_encode_fh makes of a nid (fs/erofs/super.c):
# version, magic, length, flags, type; the file system's UUID; nid (its upper half), nid (its lower half), 0
_HANDLE = struct.Struct("=5B16s3I")
_HANDLE_VERSION, _HANDLE_MAGIC, _INO64_GEN = 0, 0xFB, 0x81  # the last: include/linux/exportfs.h
_INO = struct.Struct("<I")
_INO_AT = 20  # in an inode, compact or extended (fs/erofs/erofs_fs.h, i_ino)


class Unsuitable(MountError):
    """An image that EROFS cannot hold, though it may be a good one."""


class Superblock(NamedTuple):
    """What differs from image to image. `blocks` of 1 << `block_bits` bytes; `devices` follow the superblock
    as device slots."""

    block_bits: int
    root_nid: int
    inodes: int
    blocks: int
    devices: int
    uuid: bytes


def pack_superblock(super_block: Superblock, devices: bytes) -> bytes:
    """Return the superblock at SUPERBLOCK, the device slots behind it, and zeros behind them."""
    block_bits, root_nid, inodes, blocks, count, uuid = super_block
    slot = (SUPERBLOCK + SUPERBLOCK_SIZE) // DEVICE_SIZE
    compat, incompat = _CHECKSUM | _MTIME, _CHUNKED_FILE | _DEVICE_TABLE

    def pack(checksum: int) -> bytes:
        head = (_MAGIC, checksum, compat, block_bits, 0, root_nid, inodes, 0, 0, blocks, 0, 0)
        return _SUPER.pack(*head, uuid, b"imgfs", incompat, 0, count, slot, 0, 0, 0, 0) + devices

    block = 1 << block_bits
    covered = block - SUPERBLOCK if block > SUPERBLOCK else block  # what the kernel takes the checksum of
    return pack(crc32c(pack(0)[:covered].ljust(covered, b"\0")))


def read_uuid(head: bytes) -> bytes | None:
    """Return the uuid in an image's first bytes, if they are one's."""
    if len(head) < SUPERBLOCK + SUPERBLOCK_SIZE:
        return None
    fields = _SUPER.unpack_from(head, SUPERBLOCK)
    uuid: bytes = fields[12]
    return uuid if fields[0] == _MAGIC else None


def ino_resolver(tree: Digest, store: Store) -> Callable[[bytes], int | None]:
    """Return what tells the ino of a handle's file, from the EROFS image that the store has of a tree."""
    return lambda handle: ino_of(handle, store.erofs(tree, FORMAT))


def ino_of(handle: bytes, image: Path) -> int | None:
    """Return the ino of the file that a handle names, in the tree written as `image`.

    None if it is none of its.
    """
    if len(handle) != _HANDLE.size:
        return None
    version, magic, length, _, kind, uuid, upper, lower, _ = _HANDLE.unpack(handle)
    if (version, magic, length, kind) != (_HANDLE_VERSION, _HANDLE_MAGIC, _HANDLE.size, _INO64_GEN):
        return None
    try:
        with open(image, "rb") as file:
            if read_uuid(file.read(SUPERBLOCK + SUPERBLOCK_SIZE)) != uuid:
                return None
            file.seek((upper << 32 | lower) * SLOT + _INO_AT)
            return int(_INO.unpack(file.read(_INO.size))[0])
    except (OSError, struct.error):
        return None


def pack_device(blocks: int) -> bytes:
    """Return the slot of a device of so many blocks."""
    return _DEVICE.pack(b"", blocks, 0)


def pack_inode(file: Attributes, layout: int, tag: int, xattrs: bytes) -> bytes:
    """Return an inode and its extended attributes (`pack_xattrs`), without the data behind them.

    `tag` is i_u.
    """
    ino, mode, uid, gid, size, mtime_ns, nlink = file[:7]
    seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
    count = (len(xattrs) - len(_XATTR_HEADER)) // 4 + 1 if xattrs else 0
    head = (_EXTENDED | layout << 1, count, mode, 0, size, tag, ino & 0xFFFFFFFF, uid, gid)
    return INODE.pack(*head, seconds & 0xFFFFFFFFFFFFFFFF, nanoseconds, nlink) + xattrs


def pack_blocks(length: int, block: int) -> Iterator[tuple[int, bytes]]:
    """(Offset, bytes) to be written into an inode once it is known where its `length` bytes are."""
    yield 8, length.to_bytes(8, "little")  # i_size
    yield 16, block.to_bytes(4, "little")  # i_u


def device_number(device: int) -> int:
    """Return a dev_t as inodes have it (new_encode_dev of the kernel): 12 bits of major, 20 of minor."""
    major, minor = os.major(device), os.minor(device)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def chunk_tag(bits: int) -> int:
    """Return the i_u of a file in chunks of 1 << `bits` blocks."""
    return bits | _CHUNK_INDEXES


def pack_chunks(device: int, starts: Sequence[int | None]) -> bytes:
    """Return the indexes of a file's chunks: at which block of a device each begins, HOLE for none."""
    return b"".join(
        b"\xff" * 8 if start is HOLE else _CHUNK.pack(start >> 32, device, start & 0xFFFFFFFF)
        for start in starts
    )


def pack_xattrs(xattrs: Mapping[bytes, bytes]) -> bytes:
    """Extended attributes, inline; empty if there are none that Linux knows. Raises Unsuitable."""
    entries = [_pack_xattr(name, value) for name, value in sorted(xattrs.items())]
    body = b"".join(entries)
    if len(body) > _LARGEST_XATTRS:
        raise Unsuitable(f"{len(body)} bytes of extended attributes of one file")
    return _XATTR_HEADER + body if body else b""


def _pack_xattr(name: bytes, value: bytes) -> bytes:
    for prefix, number in _PREFIXES:
        if name.startswith(prefix) and (number not in (2, 3) or _is_acl(name, prefix, value)):
            rest = name.removeprefix(prefix)
            if len(rest) > 0xFF or len(value) > _LARGEST_VALUE:
                raise Unsuitable(f"an extended attribute of {len(value)} bytes")
            return _padded(_XATTR.pack(len(rest), number, len(value)) + rest + value, 4)
    return b""  # no name that any file system of Linux's own would take


def _is_acl(name: bytes, prefix: bytes, value: bytes) -> bool:
    """Return whether it is an ACL for the kernel: version 2, entries of 8 bytes (posix_acl_xattr.h)."""
    return name == prefix and len(value) % 8 == 4 and value.startswith(b"\2\0\0\0")


def file_type(mode: int) -> int:
    """Return how directories call a file's kind; raises Unsuitable."""
    kind = _TYPES.get(stat.S_IFMT(mode))
    if kind is None:
        raise Unsuitable(f"a file of mode {mode:o}")
    return kind


def pack_directory(names: Iterable[tuple[bytes, int, int]], block: int) -> Iterator[bytes]:
    """Yield the blocks of a directory of (name, nid, type), sorted by name; all but the last are full ones.

    A block has its entries, then their names; where the first name begins tells how many there are.
    """
    batch: list[tuple[bytes, int, int]] = []
    room = block
    for entry in names:
        needed = _DIRENT.size + len(entry[0])
        if needed > room:
            yield _pack_dirents(batch).ljust(block, b"\0")
            batch, room = [], block
        batch.append(entry)
        room -= needed
    yield _pack_dirents(batch)


def _pack_dirents(batch: Sequence[tuple[bytes, int, int]]) -> bytes:
    at = _DIRENT.size * len(batch)
    heads = []
    for name, nid, kind in batch:
        heads.append(_DIRENT.pack(nid, at, kind, 0))
        at += len(name)
    return b"".join((*heads, *(entry[0] for entry in batch)))


def directory_size(lengths: Iterable[int], block: int) -> int:
    """Return how long a directory of names of these lengths will be: `pack_directory` without the bytes."""
    full, room = 0, block
    for length in lengths:
        needed = _DIRENT.size + length
        if needed > room:
            full, room = full + block, block
        room -= needed
    return full + block - room


def _padded(body: bytes, step: int) -> bytes:
    return body + bytes(-len(body) % step)


def crc32c(body: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720 section 12.1) as the kernel takes it: from all ones, not inverted."""
    crc = 0xFFFFFFFF
    for byte in body:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc


def _crc_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = tuple(map(_crc_entry, range(256)))
