"""Which file of a tree a file handle of overlayfs's means: the kernel names so what it has copied up."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.kernel.erofs_format import SLOT, SUPERBLOCK, SUPERBLOCK_SIZE, read_uuid

if TYPE_CHECKING:
    from imgfs.oci.descriptor import Digest
    from imgfs.store.store import Store

# struct ovl_fb (fs/overlayfs/overlayfs.h) around what erofs_encode_fh makes of a nid (fs/erofs/super.c):
# version, magic, length, flags, type; the file system's UUID; nid (its upper half), nid (its lower half), 0
_HANDLE = struct.Struct("=5B16s3I")
_VERSION, _MAGIC, _INO64_GEN = 0, 0xFB, 0x81  # the last: include/linux/exportfs.h
_INO = struct.Struct("<I")
_INO_AT = 20  # in an inode, compact or extended (fs/erofs/erofs_fs.h, i_ino)


def ino_resolver(tree: Digest, store: Store) -> Callable[[bytes], int | None]:
    """What tells the ino of a handle's file, from the EROFS image that the store has of a tree."""

    def ino(handle: bytes) -> int | None:
        from imgfs.kernel.mkfs import FORMAT  # seldom needed

        return ino_of(handle, store.erofs(tree, FORMAT))

    return ino


def ino_of(handle: bytes, image: Path) -> int | None:
    """The ino of the file that a handle names, in the tree written as `image`; None if it is none of its."""
    if len(handle) != _HANDLE.size:
        return None
    version, magic, length, _, kind, uuid, upper, lower, _ = _HANDLE.unpack(handle)
    if (version, magic, length, kind) != (_VERSION, _MAGIC, _HANDLE.size, _INO64_GEN):
        return None
    try:
        with open(image, "rb") as file:
            if read_uuid(file.read(SUPERBLOCK + SUPERBLOCK_SIZE)) != uuid:
                return None
            file.seek((upper << 32 | lower) * SLOT + _INO_AT)
            return int(_INO.unpack(file.read(_INO.size))[0])
    except (OSError, struct.error):
        return None
