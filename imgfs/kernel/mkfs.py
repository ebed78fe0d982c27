"""A whole tree as one EROFS image: superblock, inodes by ino, then directories; no file's bytes.

One pass over the nodes writes the inodes and finds out where they are; it keeps 17 bytes for each. Then the
names say how long the directories are, and so where they are: their inodes are completed, and a second pass
over the names writes them. The same tree gives the same bytes.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import BinaryIO, NamedTuple

from imgfs.errors import InvalidImage
from imgfs.kernel.chunk_index import AssembledDevice, chunks_of, contiguous_chunks
from imgfs.kernel.erofs_format import (
    CHUNK_SIZE,
    CHUNKED,
    DEVICE_SIZE,
    INLINE,
    INODE,
    MOST_BLOCKS,
    PLAIN,
    SLOT,
    SUPERBLOCK,
    SUPERBLOCK_SIZE,
    Superblock,
    Unsuitable,
    chunk_tag,
    device_number,
    directory_size,
    file_type,
    pack_blocks,
    pack_chunks,
    pack_device,
    pack_directory,
    pack_inode,
    pack_superblock,
    pack_xattrs,
)
from imgfs.layer.limits import NAME_LIMIT
from imgfs.tree.database import ROOT, Node
from imgfs.tree.reader import NodeRecord, Tree

BLOCK_BITS = 9  # tar's blocks of 512 bytes: then every file begins at a whole one
_MOST_NODES = 1 << 26  # of a tree: its numbers are not to fill the memory
_MORE = 1 << 12  # numbers that are made room for at once
_DIRECTORY = 2  # as `file_type` has it
_DOTS = (b".", b"..")
_Name = tuple[bytes, int]  # and the ino it leads to


def write_image(
    tree: Tree, sizes: Sequence[int], file: BinaryIO, *, uuid: bytes, block_bits: int = BLOCK_BITS
) -> None:
    """Write the image of `tree`, whose layers have flat files of `sizes` bytes. Raises as `metadata_of`."""
    _ImageWriter(tree, sizes, file, block_bits).write(uuid)


class _Inode(NamedTuple):
    """What is behind an inode; where its blocks in the image begin is not known yet."""

    layout: int
    tag: int
    xattrs: bytes
    tail: bytes = b""  # what follows at once: a symlink's target, chunk indexes
    blocks: bytes = b""  # what stands in blocks of its own: a long symlink's target


class _ImageWriter:
    """What is known of an image that is being written; the arrays are by ino."""

    def __init__(self, tree: Tree, sizes: Sequence[int], file: BinaryIO, block_bits: int) -> None:
        self._tree = tree
        self._file = file
        self._sizes = sizes
        self._bits = block_bits
        self._block = 1 << block_bits
        self._kinds = array("B")
        self._slots = array("I")  # nids
        self._parents = array("I")  # of directories, and of whatever has a name
        self._lengths = array("I")  # of what has blocks in the image, in bytes
        self._starts = array("I")  # the first of these blocks, counted from `_data_at`
        head = SUPERBLOCK + SUPERBLOCK_SIZE + DEVICE_SIZE * (len(sizes) + 1)
        self._inodes_end = head + -head % self._block
        self._data_at = self._data_blocks = 0
        self._assembled = AssembledDevice(block_bits)

    def write(self, uuid: bytes) -> None:
        """Write it all."""
        self._file.write(bytes(self._inodes_end))
        for stored in self._tree.nodes():
            self._write_inode(stored)
        self._lay_out()
        self._file.write(bytes((self._data_at << self._bits) - self._inodes_end))
        self._write_blocks()
        self._assembled.write(self._file)
        self._complete(uuid)

    def _lay_out(self) -> None:
        """Find out where everything with blocks of its own will be."""
        for directory, names in self._directories():
            lengths = (len(name) for name, _ in self._checked_names(directory, names))
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
            self._data_at + self._data_blocks > MOST_BLOCKS
            or self._assembled.size >> self._bits > MOST_BLOCKS
        ):
            raise Unsuitable("an image of so many files")

    def _write_inode(self, stored: NodeRecord) -> None:
        ino = stored.node.ino
        if ino >= len(self._kinds):
            self._make_room(ino)
        inode = self._inode(stored)
        body = self._pack(stored.node, inode)
        self._kinds[ino] = file_type(stored.node.mode)
        self._lengths[ino] = len(inode.blocks)
        start = self._inodes_end
        in_block = start % self._block
        if in_block + min(len(body), self._block) > self._block:
            start += self._block - in_block
        self._slots[ino] = start // SLOT
        body += bytes(-len(body) % SLOT)
        self._file.write(bytes(start - self._inodes_end) + body)
        self._inodes_end = start + len(body)

    def _make_room(self, ino: int) -> None:
        if not 0 < ino < _MOST_NODES:
            raise Unsuitable(f"a node numbered {ino}")
        while ino >= len(self._kinds):
            for numbers in (self._kinds, self._slots, self._parents, self._lengths, self._starts):
                numbers.extend([0] * _MORE)

    def _checked_names(self, directory: int, names: Iterator[_Name]) -> Iterator[_Name]:
        """Yield the names of a directory with `.` and `..`, each checked, and note whose child it is."""
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
        """Yield every directory that is not empty, with what is in it."""
        for ino, names in groupby(self._tree.dirents(), itemgetter(0)):
            if not 0 < ino < len(self._kinds) or self._kinds[ino] != _DIRECTORY:
                raise InvalidImage(f"the tree has names in node {ino}, which is not a directory")
            yield ino, ((name, child) for _, name, child in names)

    def _head(self, uuid: bytes) -> bytes:
        devices = [*self._sizes, self._assembled.size]
        slots = b"".join(pack_device(self._blocks_of(size)) for size in devices)
        blocks = self._data_at + self._data_blocks
        count = self._tree.node_count
        return pack_superblock(
            Superblock(self._bits, self._slots[ROOT], count, blocks, len(devices), uuid), slots
        )

    def _pack(self, node: Node, inode: _Inode) -> bytes:
        head = pack_inode(node, inode.layout, inode.tag, inode.xattrs)
        if inode.layout == CHUNKED:
            head += bytes(-len(head) % CHUNK_SIZE)
        return head + inode.tail

    def _complete(self, uuid: bytes) -> None:
        """Write the superblock, and into inodes where their blocks are."""
        self._file.seek(SUPERBLOCK)
        self._file.write(self._head(uuid))
        for ino, length in enumerate(self._lengths):
            if length:
                for offset, field in pack_blocks(length, self._data_at + self._starts[ino]):
                    self._file.seek(self._slots[ino] * SLOT + offset)
                    self._file.write(field)

    def _write_blocks(self) -> None:
        """Write what has blocks of its own, by ino: directories, long targets of symlinks."""
        directories = self._directories()
        following = next(directories, None)
        for ino, length in enumerate(self._lengths):
            if self._kinds[ino] != _DIRECTORY:
                self._file.write(self._filled(self._tree.target(ino)) if length else b"")
                continue
            names: Iterator[_Name] = iter(())
            if following and following[0] == ino:
                names = following[1]
            for block in pack_directory(self._dirents(ino, names), self._block):
                self._file.write(self._filled(block))
            if following and following[0] == ino:
                following = next(directories, None)

    def _dirents(self, directory: int, names: Iterator[_Name]) -> Iterator[tuple[bytes, int, int]]:
        parent = self._parents[directory] or directory
        for name, ino in _with_dots(names, directory, parent):
            yield name, self._slots[ino], self._kinds[ino]

    def _inode(self, stored: NodeRecord) -> _Inode:
        node, xattrs = stored.node, pack_xattrs(stored.xattrs) if stored.xattrs else b""
        if stat.S_ISLNK(node.mode):
            target = stored.target or b""
            fits = INODE.size + len(xattrs) + len(target) <= self._block
            return _Inode(INLINE, 0, xattrs, target) if fits else _Inode(PLAIN, 0, xattrs, blocks=target)
        if stat.S_ISREG(node.mode) and node.size:
            return self._regular(stored, xattrs)
        return _Inode(PLAIN, device_number(node.device), xattrs)

    def _regular(self, stored: NodeRecord, xattrs: bytes) -> _Inode:
        """Return the inode of a file with bytes, which may have no place as they are."""
        node, device = stored.node, stored.layer + 1
        self._check_extents(stored)
        chunks = chunks_of(node.size, stored.extents, self._bits)
        if chunks is None:
            device = len(self._sizes) + 1
            chunks = contiguous_chunks(self._assembled.add(node.ino, node.size), node.size, self._bits)
        return _Inode(CHUNKED, chunk_tag(chunks.bits), xattrs, pack_chunks(device, chunks.starts))

    def _check_extents(self, stored: NodeRecord) -> None:
        """Raise if extents reach beyond the end of a flat layer: the kernel would read anything there."""
        at = 0
        flat_size = self._sizes[stored.layer] if 0 <= stored.layer < len(self._sizes) else 0
        if flat_size >> self._bits >= MOST_BLOCKS:
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
