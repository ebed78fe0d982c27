"""A whole tree as one EROFS image: superblock, inodes by ino, then directories; no file's bytes.

Two passes over the tree. The first finds out how large everything is, and so where; it keeps 17 bytes for
each node. The second writes, from the first byte to the last. The same tree gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple

from imgfs.errors import InvalidImage, StoreError
from imgfs.kernel.assembled import Assembled
from imgfs.kernel.erofs import (
    CHUNKED,
    DEVICE_SIZE,
    INLINE,
    INODE,
    PLAIN,
    SLOT,
    SUPERBLOCK,
    SUPERBLOCK_SIZE,
    Attributes,
    Superblock,
    Unsuitable,
    chunk_tag,
    device_number,
    directory_size,
    file_type,
    pack_chunks,
    pack_device,
    pack_directory,
    pack_inode,
    pack_superblock,
    pack_xattrs,
    read_uuid,
)
from imgfs.kernel.placing import chunks_of, run
from imgfs.oci.descriptor import Digest
from imgfs.store import Store
from imgfs.store.store import write_aside
from imgfs.tree.paths import NAME_LIMIT
from imgfs.tree.schema import ROOT
from imgfs.tree.tree import Node, Stored, Tree

FORMAT = 1  # of our images; another number means: write them again
BLOCK_BITS = 9  # tar's blocks of 512 bytes: then every file begins at a whole one
_MOST_BLOCKS = (1 << 32) - 1  # of a device
_BUFFER = 1 << 20
_MOST_NODES = 1 << 26  # of a tree: its numbers are not to fill the memory
_MORE = 1 << 12  # numbers that are made room for at once
_DIRECTORY = 2  # as `file_type` has it
_DOTS = (b".", b"..")
_Name = tuple[bytes, int]  # and the ino it leads to


class Metadata(NamedTuple):
    """An EROFS image: its file, and what the flat file beyond those of the layers holds."""

    path: Path
    assembled: Assembled


def metadata_of(tree: Tree, digest: Digest, sizes: Sequence[int], store: Store) -> Metadata:
    """The EROFS image of the tree that the store keeps under `digest`, written if it is not there.

    `sizes` are those of the layers' flat files. Raises Unsuitable, InvalidImage, StoreError.
    """
    path = store.erofs(digest, FORMAT)
    uuid = identity(tree, sizes)
    if not _is_there(path, uuid):
        try:
            with write_aside(path) as aside, open(aside, "wb", buffering=_BUFFER) as file:
                write_image(tree, sizes, file, uuid=uuid)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
    with open(path, "rb") as file:
        os.posix_fadvise(
            file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED
        )  # the kernel will read it block by block
        return Metadata(path, Assembled.read(file, BLOCK_BITS))


def has_metadata(tree: Tree, digest: Digest, sizes: Sequence[int], store: Store) -> bool:
    """Whether that image is written already; raises StoreError."""
    return _is_there(store.erofs(digest, FORMAT), identity(tree, sizes))


def identity(tree: Tree, sizes: Sequence[int]) -> bytes:
    """16 bytes that say which tree an image was written from, and how."""
    said = [FORMAT, tree.origin, tree.node_count, tree.total_size, *tree.spaces(), *sizes]
    return hashlib.sha256("\n".join(map(str, said)).encode()).digest()[:16]


def _is_there(path: Path, uuid: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return read_uuid(file.read(SUPERBLOCK + SUPERBLOCK_SIZE)) == uuid
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error


def write_image(
    tree: Tree, sizes: Sequence[int], file: BinaryIO, *, uuid: bytes, block_bits: int = BLOCK_BITS
) -> None:
    """Write the image of `tree`, whose layers have flat files of `sizes` bytes. Raises as `metadata_of`."""
    writer = _Writer(tree, sizes, block_bits)
    writer.survey()
    writer.write(file, uuid)


class _Inode(NamedTuple):
    """An inode as it will be, but for where its blocks in the image begin."""

    layout: int
    tag: int
    xattrs: bytes
    tail: bytes = b""  # what follows at once: a symlink's target, chunk indexes
    blocks: bytes = b""  # what stands in blocks of its own: a long symlink's target

    @property
    def tail_at(self) -> int:
        """Where the tail begins: chunk indexes at whole 8 bytes."""
        end = INODE.size + len(self.xattrs)
        return end + (-end % 8 if self.layout == CHUNKED else 0)

    @property
    def size(self) -> int:
        """All of it, in bytes."""
        return self.tail_at + len(self.tail)


class _Writer:
    """What is known of an image that is being written; the arrays are by ino."""

    def __init__(self, tree: Tree, sizes: Sequence[int], block_bits: int) -> None:
        self._tree = tree
        self._sizes = sizes
        self._bits = block_bits
        self._block = 1 << block_bits
        self._kinds = array("B")
        self._slots = array("I")  # nids
        self._parents = array("I")  # of directories, and of whatever has a name
        self._lengths = array("I")  # of what has blocks in the image, in bytes
        self._starts = array("I")  # the first of these blocks, counted from `_data_at`
        head = SUPERBLOCK + SUPERBLOCK_SIZE + DEVICE_SIZE * (len(sizes) + 1)
        self._inodes_at = self._inodes_end = head + -head % self._block
        self._data_at = self._data_blocks = 0
        self._assembled = Assembled(block_bits)

    def survey(self) -> None:
        """Find out where everything will be."""
        for stored in self._tree.nodes():
            self._survey_node(stored)
        for directory, names in self._directories():
            lengths = (len(name) for name, _ in self._survey_names(directory, names))
            self._lengths[directory] = directory_size(lengths, self._block)
        for ino, kind in enumerate(self._kinds):
            if kind == _DIRECTORY and not self._lengths[ino]:
                self._lengths[ino] = directory_size(map(len, _DOTS), self._block)
            self._starts[ino] = self._data_blocks
            self._data_blocks += self._blocks_of(self._lengths[ino])
        if len(self._kinds) <= ROOT or self._kinds[ROOT] != _DIRECTORY:
            raise InvalidImage("the tree has no root")
        self._data_at = self._blocks_of(self._inodes_end)
        if (
            self._data_at + self._data_blocks > _MOST_BLOCKS
            or self._assembled.size >> self._bits > _MOST_BLOCKS
        ):
            raise Unsuitable("an image of so many files")

    def write(self, file: BinaryIO, uuid: bytes) -> None:
        """Write it all."""
        file.write((bytes(SUPERBLOCK) + self._head(uuid)).ljust(self._inodes_at, b"\0"))
        at = self._write_inodes(file)
        file.write(bytes((self._data_at << self._bits) - at))
        self._write_blocks(file)
        self._assembled.write(file)

    def _survey_node(self, stored: Stored) -> None:
        ino = stored.node.ino
        if not 0 < ino < _MOST_NODES:
            raise Unsuitable(f"a node numbered {ino}")
        while ino >= len(self._kinds):
            for numbers in (self._kinds, self._slots, self._parents, self._lengths, self._starts):
                numbers.extend([0] * _MORE)
        inode = self._inode(stored, self._assembled)
        self._kinds[ino] = file_type(stored.node.mode)
        self._lengths[ino] = len(inode.blocks)
        at = self._inodes_end
        if at % self._block + min(inode.size, self._block) > self._block:
            at += -at % self._block
        self._slots[ino] = at // SLOT
        self._inodes_end = at + inode.size + -inode.size % SLOT

    def _survey_names(self, directory: int, names: Iterator[_Name]) -> Iterator[_Name]:
        """The same names, noted and checked, and with the two dots."""
        for name, ino in _with_dots(names, directory, directory):
            if name not in _DOTS:
                self._check_name(name, ino)
                self._parents[ino] = directory
            yield name, ino

    def _check_name(self, name: bytes, ino: int) -> None:
        if not 0 < ino < len(self._kinds) or not self._kinds[ino] or ino == ROOT:
            raise InvalidImage(f"the tree has a name of nothing: {name!r}")
        if not 0 < len(name) <= NAME_LIMIT or b"/" in name or b"\0" in name:
            raise InvalidImage(f"the tree has an impossible name: {name!r}")
        if self._kinds[ino] == _DIRECTORY and self._parents[ino]:
            raise InvalidImage(f"the tree has a directory of two names: {name!r}")

    def _directories(self) -> Iterator[tuple[int, Iterator[_Name]]]:
        """Every directory that is not empty, with what is in it."""
        for ino, names in groupby(self._tree.dirents(), itemgetter(0)):
            if not 0 < ino < len(self._kinds) or self._kinds[ino] != _DIRECTORY:
                raise InvalidImage(f"the tree has names in node {ino}, which is no directory")
            yield ino, ((name, child) for _, name, child in names)

    def _head(self, uuid: bytes) -> bytes:
        devices = [*self._sizes, self._assembled.size]
        slots = b"".join(pack_device(self._blocks_of(size)) for size in devices)
        blocks = self._data_at + self._data_blocks
        count = self._tree.node_count
        return pack_superblock(
            Superblock(self._bits, self._slots[ROOT], count, blocks, len(devices), uuid), slots
        )

    def _write_inodes(self, file: BinaryIO) -> int:
        """Write the inodes; returns where the last one ends."""
        at = self._inodes_at
        assembled = Assembled(self._bits)
        for stored in self._tree.nodes():
            body = self._pack(stored.node, self._inode(stored, assembled))
            start = self._slots[stored.node.ino] * SLOT
            file.write(bytes(start - at) + body)
            at = start + len(body)
        return at

    def _pack(self, node: Node, inode: _Inode) -> bytes:
        ino, tag, size = node.ino, inode.tag, node.size
        if self._lengths[ino]:
            tag, size = self._data_at + self._starts[ino], self._lengths[ino]
        owner_and_time = node.uid, node.gid, size, node.mtime_ns, node.nlink
        head = pack_inode(Attributes(ino, node.mode, *owner_and_time, inode.layout, tag), inode.xattrs)
        return head.ljust(inode.tail_at, b"\0") + inode.tail

    def _write_blocks(self, file: BinaryIO) -> None:
        """Write what has blocks of its own, by ino: directories, long targets of symlinks."""
        directories = self._directories()
        following = next(directories, None)
        for ino, length in enumerate(self._lengths):
            if self._kinds[ino] != _DIRECTORY:
                file.write(self._filled(self._tree.target(ino)) if length else b"")
                continue
            names: Iterator[_Name] = iter(())
            if following and following[0] == ino:
                names = following[1]
            for block in pack_directory(self._dirents(ino, names), self._block):
                file.write(self._filled(block))
            if following and following[0] == ino:
                following = next(directories, None)

    def _dirents(self, directory: int, names: Iterator[_Name]) -> Iterator[tuple[bytes, int, int]]:
        parent = self._parents[directory] or directory
        for name, ino in _with_dots(names, directory, parent):
            yield name, self._slots[ino], self._kinds[ino]

    def _inode(self, stored: Stored, assembled: Assembled) -> _Inode:
        """The inode of a node; `assembled` is where a file goes that has no place as it is."""
        node, xattrs = stored.node, pack_xattrs(stored.xattrs)
        if stat.S_ISLNK(node.mode):
            target = stored.target or b""
            fits = INODE.size + len(xattrs) + len(target) <= self._block
            return _Inode(INLINE, 0, xattrs, target) if fits else _Inode(PLAIN, 0, xattrs, blocks=target)
        if stat.S_ISREG(node.mode) and node.size:
            return self._file(stored, xattrs, assembled)
        return _Inode(PLAIN, device_number(node.device), xattrs)

    def _file(self, stored: Stored, xattrs: bytes, assembled: Assembled) -> _Inode:
        node, device = stored.node, stored.layer + 1
        self._check_extents(stored)
        chunks = chunks_of(node.size, stored.extents, self._bits)
        if chunks is None:
            device = len(self._sizes) + 1
            chunks = run(assembled.add(node.ino, node.size), node.size, self._bits)
        return _Inode(CHUNKED, chunk_tag(chunks.bits), xattrs, pack_chunks(device, chunks.starts))

    def _check_extents(self, stored: Stored) -> None:
        """What lies beyond the end of a flat file, the kernel would read as anything."""
        at = 0
        flat_size = self._sizes[stored.layer] if 0 <= stored.layer < len(self._sizes) else 0
        if flat_size >> self._bits >= _MOST_BLOCKS:
            raise Unsuitable(f"a layer of {flat_size} bytes")
        for extent in stored.extents:
            if extent.offset < at or extent.length <= 0 or extent.flat + extent.length > flat_size:
                raise InvalidImage(f"the tree's node {stored.node.ino} lies outside of its layer")
            at = extent.offset + extent.length
        if at > stored.node.size:
            raise InvalidImage(f"the tree's node {stored.node.ino} has more bytes than its size")

    def _blocks_of(self, size: int) -> int:
        return -(-size >> self._bits)

    def _filled(self, body: bytes) -> bytes:
        return body + bytes(-len(body) % self._block)


def _with_dots(names: Iterator[_Name], directory: int, parent: int) -> Iterator[_Name]:
    return merge(names, [(b".", directory), (b"..", parent)])
