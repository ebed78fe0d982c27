"""The flat layers of an image as files, for a file system of the kernel's to stand on.

Files are named by number: the layers', the lowest first, then one of what is put together of pieces. Only
the kernel opens them, so they are read in the pieces that it takes for its own page cache.

Which files of the image are being read, told from the reads of its flat files.

Readers of whole trees are noticed by the files they open (`content.treewalk`), but of those a file system of
the kernel says nothing. Only a reader of piece after piece of a layer, each a little further on, may be one:
then the extents of all files are read out of the tree, once, and from then on reads count as reads of their
files.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import threading
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol

import trio

from imgfs.errors import ImgfsError
from imgfs.fuse.dispatch import reading
from imgfs.fuse.errors import FUSEError
from imgfs.fuse.interrupts import GiveUp, abandoned_or_done
from imgfs.fuse.operations import Operations
from imgfs.fuse.protocol import OpenFlag, opened
from imgfs.fuse.session import Session
from imgfs.image.image import Image
from imgfs.layer.entry import Extent
from imgfs.tree.reader import Node, Tree

_NEAR = 1 << 20  # bytes from the end of one read to the next: what is between was not read, or read before
_EVIDENCE = 16  # such steps, less what speaks against it
_RECENT = 64  # reads that are told afterwards


class _Places:
    """Where the files of one layer begin; those out of the order of their inos are left out."""

    def __init__(self) -> None:
        self.starts, self.inos = array("Q"), array("Q")

    def add(self, flat: int, ino: int) -> None:
        if not self.starts or flat > self.starts[-1]:
            self.starts.append(flat)
            self.inos.append(ino)

    def file_at(self, flat: int) -> int:
        """The ino of the file that begins there, or last before; 0 if none does."""
        number = bisect_right(self.starts, flat)
        return self.inos[number - 1] if number else 0


class FlatReads:
    """Tells `opened` the inos of files whose bytes are read, as soon as that may be of use.

    All but the reading of the tree is for one thread.
    """

    def __init__(self, tree: Tree, layers: int, opened: Callable[[int], None]) -> None:
        self._tree = tree
        self._opened = opened
        self._ends = [0] * layers  # of the last read of each
        self._evidence = 0
        self._recent: deque[tuple[int, int]] = deque(maxlen=_RECENT)
        self._places: list[_Places] = []
        self._thread: threading.Thread | None = None
        self._last = 0

    def read(self, layer: int, offset: int, length: int) -> None:
        """Note a read of a flat file. Costs next to nothing."""
        if self._places:
            while self._recent:
                self._tell(*self._recent.popleft())
            self._tell(layer, offset)
            return
        step = offset - self._ends[layer]
        self._ends[layer] = offset + length
        if step:
            self._recent.append((layer, offset))
            self._evidence = self._evidence + 1 if 0 < step <= _NEAR else self._evidence // 2
        if self._evidence >= _EVIDENCE and self._thread is None:
            self._thread = threading.Thread(target=self._load, name="imgfs-places", daemon=True)
            self._thread.start()

    def _tell(self, layer: int, offset: int) -> None:
        ino = self._places[layer].file_at(offset)
        if ino and ino != self._last:
            self._last = ino
            self._opened(ino)

    def _load(self) -> None:
        places = [_Places() for _ in self._ends]
        with suppress(ImgfsError, IndexError, OverflowError):  # of a damaged tree the reader will hear
            for layer, flat, ino in self._tree.placed():
                places[layer].add(flat, ino)
        self._places = places


BLOCK = 512  # bytes: what the files' sizes are rounded up to
_TROUBLED_PLACES = 256  # of which it is remembered what file they are of
_ROOT = 1
_FIRST = 2  # the ino of the lowest layer's file


class Piece(Protocol):
    """`length` bytes of the image's file `ino`, from `offset` on; zeros beyond its end."""

    @property
    def ino(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...


class Pieces(Protocol):
    """What the last file is put together of."""

    @property
    def size(self) -> int:
        """Of the file, in bytes."""

    def parts(self, offset: int, length: int) -> Sequence[Piece] | Any:
        """What its bytes `[offset, offset+length)` are."""


class FlatFiles(Operations):
    """The flat layers of `image` as files 0, 1, …, and then `pieces` as another."""

    def __init__(self, image: Image, pieces: Pieces) -> None:
        super().__init__(image, owner=None, on_ready=lambda: None, status=dict)
        sizes = [layer.index.summary.flat_size for layer in image.content.layers]
        self._files = [*sizes, pieces.size]
        self._pieces = pieces
        self._last = _FIRST + len(sizes)
        self._paths_at = functools.lru_cache(_TROUBLED_PLACES)(self._path_at)
        self._reads = FlatReads(image.tree, len(sizes), image.content.opened)
        self._whole = [(Extent(0, size, 0),) if size else () for size in sizes]

    def session(self, descriptor: int) -> Session:
        """The conversation with the kernel by `descriptor`, an open /dev/fuse."""
        return Session(descriptor, reading(self), self.greeted, stands_below=True)

    def open(self, ino: int, flags: int, more: int = 0) -> bytes:
        """A handle on a flat file, which the kernel opens once, when it mounts.

        Of a layer that is all here, and beyond doubt, it may read ahead and keep that. Else it is to ask for
        what is read and no more: who reads what is cached must not wait for what lies beside.
        """
        layer, extents, size = self._extents(ino)
        is_whole = ino != self._last and self._content.is_here(layer, extents, 0, size)
        is_sure = is_whole and not self._content.layers[layer].index.summary.word
        return opened(0, OpenFlag.KEEP_CACHE if is_sure else OpenFlag.DIRECT_IO)

    def read(self, ino: int, offset: int, size: int) -> bytes | memoryview | Coroutine[Any, Any, bytes]:
        """Exactly the bytes asked for, or up to the end of the file, or EIO."""
        layer, extents, file_size = self._extents(ino)
        length = min(size, file_size - offset)
        if length <= 0:
            return b""
        is_last = ino == self._last
        if not is_last:
            self._reads.read(layer, offset, length)
        ready = None if is_last else self._content.cached(layer, extents, offset, length)
        return self._read_later(ino, offset, length) if ready is None else ready

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """There are none; ENOSYS tells the kernel not to ask again."""
        raise FUSEError(errno.ENOSYS)

    async def _read_later(self, ino: int, offset: int, length: int) -> bytes:
        try:
            if ino == self._last:
                return await self._put_together(offset, length)
            layer, extents, _ = self._extents(ino)
            return await self._waited_for(layer, extents, offset, length)
        except ImgfsError as error:
            path = await trio.to_thread.run_sync(self._path_within, ino, offset, length)
            raise ImgfsError(f"/{os.fsdecode(path)}: {error}" if path else str(error)) from error

    async def _put_together(self, offset: int, length: int) -> bytes:
        def read(given_up: GiveUp) -> bytes:
            return b"".join(self._piece(piece, given_up) for piece in self._pieces.parts(offset, length))

        return await abandoned_or_done(read, self._fetches)

    def _piece(self, piece: Piece, given_up: GiveUp) -> bytes:
        layer, extents = self._tree.extents(piece.ino)
        node = self._tree.node(piece.ino)
        length = min(piece.length, (node.size if node else 0) - piece.offset)
        body = self._content.read(layer, extents, piece.offset, length, given_up) if length > 0 else b""
        return body + bytes(piece.length - len(body))

    def _node(self, ino: int) -> Node:
        if ino == _ROOT:
            return Node(ino, stat.S_IFDIR | 0o500, 0, 0, 0, 0, 2, 0, 0, False)
        size = self._files[ino - _FIRST]
        size += -size % BLOCK
        return Node(ino, stat.S_IFREG | 0o400, 0, 0, size, 0, 1, 0, size // BLOCK, False)

    def _find(self, parent: int, name: bytes) -> Node | None:
        if parent == _ROOT and name.isdigit() and int(name) < len(self._files):
            return self._node(_FIRST + int(name))
        return None

    def _contents(self, ino: int) -> tuple[int, tuple[Extent, ...], int]:
        size = self._node(ino).size
        return (ino - _FIRST, self._whole[ino - _FIRST], size) if ino != self._last else (0, (), size)

    def _path_within(self, ino: int, offset: int, length: int) -> bytes | None:
        """A path of what a read is of: it may begin at a whole page, before the file that is read."""
        return self._paths_at(ino, offset) or self._paths_at(ino, offset + length - 1)

    def _path_at(self, ino: int, offset: int) -> bytes | None:
        """A path of the image's file that has the byte at `offset` of a flat file, if it is easily found."""
        if ino == self._last:
            found = next((piece.ino for piece in self._pieces.parts(offset, 1)), None)
        else:
            found = self._tree.file_at(ino - _FIRST, offset)
        return self._paths(found) if found else None
