"""The flat layers of an image as files: the devices of the EROFS that the kernel driver mounts.

Files are named by number: the layers, the lowest first, then the file of chunks. Only the kernel opens them,
and reads them in the pieces that it takes for its own page cache.

`FlatReads` finds out which files of the image are being read. Readers of whole trees are recognised by the
files that they open (`content.treewalk`), which EROFS does not tell. So once a layer is read piece after
piece, each a little further on, the extents of all files are loaded from the tree, and from then on reads
count as reads of their files. Where the next reads are guessed from opened files (`predict`), the extents are
loaded at once.
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
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from imgfs.errors import ImgfsError
from imgfs.fuse.errors import FUSEError
from imgfs.fuse.interrupts import GiveUp
from imgfs.fuse.opcodes import ROOT_INO, OpenFlag
from imgfs.fuse.protocol import Statfs
from imgfs.fuse.views import NAME_MAX, Children, PendingRead
from imgfs.image.image import Image
from imgfs.layer.entry import Extent
from imgfs.starting import try_thread
from imgfs.tree.database import Attributes
from imgfs.tree.reader import Tree

_NEAR = 1 << 20  # bytes from the end of one read to the next: what is between was not read, or read before
_EVIDENCE = 16  # such steps, less what speaks against it
_MANY = 300_000  # files of an image that are not read out of the tree without such evidence
_RECENT = 64  # reads that are told afterwards


class _FileStarts:
    """Where the files of one layer begin; without files that do not lie in the order of their inos."""

    def __init__(self) -> None:
        self.starts, self.inos = array("Q"), array("Q")

    def add(self, flat: int, ino: int) -> None:
        if not self.starts or flat > self.starts[-1]:
            self.starts.append(flat)
            self.inos.append(ino)

    def file_at(self, flat: int) -> int:
        """Return the ino of the last file that begins at or before an offset; 0 if there is none."""
        number = bisect_right(self.starts, flat)
        return self.inos[number - 1] if number else 0


class FlatReads:
    """Calls `opened` with the inos of files whose bytes are read, once that may be of use.

    All but the loading of the extents is for one thread.
    """

    def __init__(
        self, tree: Tree, layers: int, opened: Callable[[int], None], *, at_once: bool = False
    ) -> None:
        self._tree = tree
        self._opened = opened
        self._ends = [0] * layers  # of the last read of each
        self._evidence = 0
        self._recent: deque[tuple[int, int]] = deque(maxlen=_RECENT)
        self._files: list[_FileStarts] = []
        self._thread: threading.Thread | None = None
        self._last = 0
        if at_once and tree.node_count <= _MANY:
            self._begin_to_load()

    def read(self, layer: int, offset: int, length: int) -> None:
        """Note a read of a flat layer. Costs next to nothing."""
        if self._files:
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
            self._begin_to_load()

    def _begin_to_load(self) -> None:
        self._evidence = 0  # if there is no thread, more of it is waited for
        self._thread = try_thread(self._load, "imgfs-flat-files")

    def file_at(self, layer: int, offset: int) -> int:
        """Return the ino of the file that has the byte at an offset; 0 if that is not known (yet)."""
        return self._files[layer].file_at(offset) if self._files else 0

    def _tell(self, layer: int, offset: int) -> None:
        ino = self.file_at(layer, offset)
        if ino and ino != self._last:
            self._last = ino
            self._opened(ino)

    def _load(self) -> None:
        files = [_FileStarts() for _ in self._ends]
        with suppress(ImgfsError, IndexError, OverflowError):  # of a damaged tree the reader will hear
            for layer, flat, ino, _ in self._tree.contiguous_files():
                files[layer].add(flat, ino)
        self._files = files


BLOCK = 512  # bytes: what the files' sizes are rounded up to
_TROUBLED_PLACES = 256  # of which it is remembered what file they are of
_FIRST = 2  # the ino of the lowest layer's file


class FileChunk(Protocol):
    """`length` bytes of the image's file `ino`, from `offset` on; zeros beyond its end."""

    @property
    def ino(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...


class ChunkDevice(Protocol):
    """The last device: the bytes of files that no layer has in one piece (see `kernel.chunk_index`)."""

    @property
    def size(self) -> int:
        """The size of the device, in bytes."""

    def parts(self, offset: int, length: int) -> Iterable[FileChunk]:
        """Return the pieces of files that make up the bytes `[offset, offset+length)`."""


class FlatView:
    """The flat layers of `image` as files 0, 1, …, and then `chunks` as another."""

    needs_opens = True  # the answer decides what the kernel keeps

    def __init__(self, image: Image, chunks: ChunkDevice) -> None:
        sizes = [layer.index.summary.flat_size for layer in image.content.layers]
        self._tree, self._content = image.tree, image.content
        self._sizes = [*sizes, chunks.size]
        self._chunks = chunks
        self._last = _FIRST + len(sizes)
        self._paths = functools.lru_cache(_TROUBLED_PLACES)(self._path_at)
        self._path_of = functools.lru_cache(_TROUBLED_PLACES)(image.tree.path)
        content = image.content
        self._reads = FlatReads(image.tree, len(sizes), content.opened, at_once=content.is_followed)
        self._whole = [(Extent(0, size, 0),) if size else () for size in sizes]

    def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """See View."""
        if parent == ROOT_INO and name.isdigit() and int(name) < len(self._sizes):
            return self.attributes(_FIRST + int(name))
        return None

    def attributes(self, ino: int) -> Attributes:
        """See View."""
        if ino == ROOT_INO:
            return Attributes(ino, stat.S_IFDIR | 0o500, 0, 0, 0, 0, 2, 0, 0, 0, 0)
        size = self._size(ino)
        return Attributes(ino, stat.S_IFREG | 0o400, 0, 0, size, 0, 1, 0, size // BLOCK, 0, 0)

    def children(self, directory: int) -> Children[Attributes]:
        """List nothing: only the kernel looks in, and by name."""
        return lambda _directory, _after: iter(())

    def child_attributes(self, child: Attributes) -> Attributes:
        """See View."""
        return child

    def reference(self, child: Attributes) -> None:
        """Count nothing: the files are there for as long as the mount is."""

    def readlink(self, ino: int) -> bytes:
        """Refuse: there are no symbolic links."""
        raise FUSEError(errno.EINVAL)

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        """Refuse: there are none; ENOSYS has the kernel not ask again."""
        raise FUSEError(errno.ENOSYS)

    def xattrs(self, ino: int) -> Iterable[bytes]:
        """See View."""
        return ()

    def open(self, ino: int) -> int:
        """Open a flat file, which the kernel does once, when it mounts.

        The kernel may read ahead and keep pages of a layer that is all cached and verified. Of any other it
        has to ask for exactly what is read: a reader of cached bytes must not wait for missing bytes beside
        them.
        """
        if ino == self._last:
            return OpenFlag.DIRECT_IO
        layer = ino - _FIRST
        is_whole = self._content.is_here(layer, self._whole[layer], 0, self._size(ino))
        is_sure = is_whole and not self._content.layers[layer].index.summary.trusted_by
        return OpenFlag.KEEP_CACHE if is_sure else OpenFlag.DIRECT_IO

    def read(self, ino: int, offset: int, size: int) -> bytes | memoryview | PendingRead:
        """See View."""
        length = min(size, self._size(ino) - offset)
        if length <= 0:
            return b""
        if ino == self._last:
            return PendingRead(functools.partial(self._wait, ino, offset, length), is_local=False)
        layer = ino - _FIRST
        self._reads.read(layer, offset, length)
        whole = self._whole[layer]
        ready = self._content.cached(layer, whole, offset, length)
        if ready is not None:
            return ready
        wait = functools.partial(self._wait, ino, offset, length)
        if not self._content.is_here(layer, whole, offset, length):
            if missed := self._reads.file_at(layer, offset):
                self._content.missed(missed)
            return PendingRead(wait, is_local=False)
        from_disk = functools.partial(self._content.cached, layer, whole, offset, length, flags=0)
        return PendingRead(wait, is_local=True, from_disk=from_disk)

    def seek(self, ino: int, offset: int, whence: int) -> int:
        """Refuse: EROFS does not ask; ENOSYS has the kernel not ask again."""
        raise FUSEError(errno.ENOSYS)

    def birth_ns(self, ino: int) -> None:
        """See View."""

    def files_of(self, layer: int) -> Iterable[int]:
        """Return none: bytes that are not verified bypass the page cache (`open`)."""
        return ()

    def statfs(self) -> Statfs:
        """Return the size of all flat files."""
        return Statfs(sum(self._sizes) // BLOCK, 0, 0, len(self._sizes), 0, BLOCK, NAME_MAX, BLOCK)

    def _size(self, ino: int) -> int:
        if not _FIRST <= ino <= self._last:
            raise FUSEError(errno.ENOENT)
        size = self._sizes[ino - _FIRST]
        return size + -size % BLOCK

    def _wait(self, ino: int, offset: int, length: int, given_up: GiveUp) -> bytes:
        """Read bytes of a flat layer; an error names the image's file that has them, for the log."""
        try:
            if ino == self._last:
                parts = self._chunks.parts(offset, length)
                return b"".join(self._chunk(part, given_up) for part in parts)
            layer = ino - _FIRST
            return self._content.read(layer, self._whole[layer], offset, length, given_up)
        except ImgfsError as error:
            path = self._path_within(ino, offset, length)
            raise ImgfsError(f"/{os.fsdecode(path)}: {error}" if path else str(error)) from error

    def _chunk(self, chunk: FileChunk, given_up: GiveUp) -> bytes:
        layer, extents = self._tree.extents(chunk.ino)
        node = self._tree.node(chunk.ino)
        length = min(chunk.length, (node.size if node else 0) - chunk.offset)
        body = self._content.read(layer, extents, chunk.offset, length, given_up) if length > 0 else b""
        return body + bytes(chunk.length - len(body))

    def _path_within(self, ino: int, offset: int, length: int) -> bytes | None:
        """Return a path of the file that a read is for; the read may begin before it, at a whole page."""
        return self._paths(ino, offset) or self._paths(ino, offset + length - 1)

    def _path_at(self, ino: int, offset: int) -> bytes | None:
        """Return a path of the image's file that has the byte at `offset` of a flat layer, if found fast."""
        if ino == self._last:
            found = next((chunk.ino for chunk in self._chunks.parts(offset, 1)), None)
        else:
            found = self._tree.file_at(ino - _FIRST, offset)
        return self._path_of(found) if found else None
