"""The files of an opened image, for looking into it: by path or pattern, what is below, as members of a tar.

Paths begin with `/`. Nothing is fetched but the bytes of the files that are read.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import NamedTuple

from imgfs.image.image import Image
from imgfs.layer.entry import KIND_OF, Entry, Extent, Kind
from imgfs.layer.limits import HolesBudget
from imgfs.layer.schema import TAR
from imgfs.tree.database import Node
from imgfs.tree.reader import Tree, leads_nowhere

_READ_SIZE = 1 << 20  # bytes that `read` reads at once
_DEPTH = 4096  # directories in a path: bounds an imported tree with cycles


class Found(NamedTuple):
    """A file of an image under one of its names."""

    path: bytes
    node: Node
    depth: int = 0  # directories below what was asked for

    @property
    def is_directory(self) -> bool:
        """Return True for a directory."""
        return stat.S_ISDIR(self.node.mode)

    @property
    def is_regular(self) -> bool:
        """Return True for a regular file."""
        return stat.S_ISREG(self.node.mode)


class ImageFiles:
    """The files of an image, or of a `tree` of some of its layers (`Image.tree_after`).

    Once `given_up` is settled, reads and listings raise InterruptedError instead of going on.
    """

    def __init__(
        self, image: Image, tree: Tree | None = None, *, given_up: Future[None] | None = None
    ) -> None:
        self._image = image
        self._tree = tree or image.tree
        self._spaces = self._tree.spaces()
        self._given_up = given_up
        self._holes = HolesBudget()

    def until(self, given_up: Future[None]) -> ImageFiles:
        """Return the same files, to be read and listed until `given_up` is settled."""
        return ImageFiles(self._image, self._tree, given_up=given_up)

    def matching(self, path: bytes, *, follow: bool = False) -> list[Found]:
        """Return the file at `path`; if there is none, those that it matches as a pattern of a shell.

        With `follow` a symlink at its end is followed. Raises OSError: ENOENT, ENOTDIR, ELOOP.
        """
        whole = b"/" + path.strip(b"/")
        try:
            return [Found(whole, self._tree.resolve(path, follow=follow or path.endswith(b"/")))]
        except FileNotFoundError:
            if not any(sign in path for sign in (b"*", b"?", b"[")):
                raise
        found = [b"/"]
        for part in whole.split(b"/")[1:]:
            found = [name for directory in found for name in self._matching_in(directory, part)]
        if not found:
            raise OSError(errno.ENOENT, "no file matches", os.fsdecode(path))
        return [Found(name, self._tree.resolve(name, follow=follow)) for name in found]

    def at(self, path: bytes) -> Found | None:
        """Return the file at a path, a symlink itself; None if there is none."""
        whole = b"/" + path.strip(b"/")
        try:
            return Found(whole, self._tree.resolve(whole, follow=False))
        except OSError as error:
            if leads_nowhere(error):
                return None
            raise

    def followed(self, found: Found) -> Found | None:
        """Return what a symlink leads to, under the symlink's own path; None if that is nothing."""
        try:
            return found._replace(node=self._tree.resolve(found.path))
        except OSError as error:
            if leads_nowhere(error):
                return None
            raise

    def below(self, top: Found) -> Iterator[Found]:
        """Yield `top` and everything below it, directories before what is in them, by names."""
        ahead = [top]
        while ahead:
            found = ahead.pop()
            yield found
            if found.is_directory:
                if found.depth >= _DEPTH:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(found.path))
                ahead += list(self.children(found))[::-1]

    def children(self, found: Found) -> Iterator[Found]:
        """Yield what is in a directory, by name."""
        above = found.path.rstrip(b"/")
        for _, name, node in self._tree.children(found.node.ino):
            if self._given_up and self._given_up.done():
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR), os.fsdecode(found.path))
            yield Found(above + b"/" + name, node, found.depth + 1)

    def layer(self, found: Found) -> int:
        """Return the number of the layer that brought a file, the lowest being 1."""
        return self._tree.contents(found.node.ino)[0] + 1

    def origin(self, found: Found) -> object:
        """Return what two files have in common if they are the same bytes of the same layer.

        A layer whose tar has been verified is known by its DiffID, however it is compressed.
        """
        layer, extents, size = self._tree.contents(found.node.ino)
        resolved, space = self._image.resolved, self._spaces[layer]
        is_verified = space == TAR and not self._tree.origin
        digest = resolved.config.diff_ids[layer] if is_verified else resolved.manifest.layers[layer].digest
        return digest, space, extents, size

    def target(self, found: Found) -> bytes | None:
        """Return a symlink's target, None of others."""
        return self._tree.target(found.node.ino) if stat.S_ISLNK(found.node.mode) else None

    def xattrs(self, found: Found) -> dict[bytes, bytes]:
        """Return the extended attributes."""
        return self._tree.xattrs(found.node.ino) if found.node.has_xattrs else {}

    def read(self, found: Found) -> Iterator[bytes]:
        """Yield all bytes of a regular file, in order."""
        read = self.reader(found)
        for offset in range(0, found.node.size, _READ_SIZE):
            yield read(offset, _READ_SIZE)

    def whole(self, found: Found) -> Iterator[bytes]:
        """Yield the same, for what has to read all of them. Raises InvalidImage for endless holes."""
        filled = sum(end - start for start, end in self.filled(found))
        self._holes.take(found.node.size, filled)
        yield from self.read(found)

    def data(self, found: Found) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes of a regular file that are in its layer, and where they are in it: no holes."""
        read = self.reader(found)
        for start, end in self.filled(found):
            for offset in range(start, end, _READ_SIZE):
                yield offset, read(offset, min(_READ_SIZE, end - offset))

    def filled(self, found: Found) -> Iterator[tuple[int, int]]:
        """Yield the ranges of a regular file that are no holes, in order."""
        return _joined(self._tree.contents(found.node.ino)[1])

    def searchable(self, found: Found) -> Iterator[bytes]:
        """Yield the same bytes alone, and one NUL for each hole: no text is in it, however long it is."""
        end = 0
        for offset, piece in self.data(found):
            yield b"\0" + piece if offset > end else piece
            end = offset + len(piece)
        if end < found.node.size:
            yield b"\0"

    def reader(self, found: Found) -> Callable[[int, int], bytes]:
        """Return what reads a regular file from an offset, at most so many bytes; any thread may call it."""
        layer, extents, size = self._tree.contents(found.node.ino)
        content, given_up = self._image.content, self._given_up
        return lambda offset, length: content.read(
            layer, extents, offset, max(0, min(length, size - offset)), given_up
        )

    def members(
        self, tops: Iterable[Found], *, below: bytes = b"/"
    ) -> Iterator[tuple[Entry, Iterable[bytes]]]:
        """Yield files and what is below them as members of a tar, named from the directory `below` on.

        Of a file's several names the first has the bytes, the others are hard links.
        """
        first: dict[int, bytes] = {}
        prefix = len(below.rstrip(b"/")) + 1
        for top in tops:
            for found in self.below(top):
                name = found.path[prefix:] or b"."
                kind = KIND_OF[stat.S_IFMT(found.node.mode)]
                several = found.node.nlink > 1 and not found.is_directory
                if several and first.setdefault(found.node.ino, name) != name:
                    kind = Kind.HARDLINK
                body = self.whole(found) if kind is Kind.FILE else ()
                yield self._entry(found, name, kind, first.get(found.node.ino, b"")), body

    def _entry(self, found: Found, name: bytes, kind: Kind, first: bytes) -> Entry:
        node = found.node
        is_device = kind in (Kind.CHARACTER, Kind.BLOCK)
        return Entry(
            name,
            kind,
            stat.S_IMODE(node.mode),
            node.uid,
            node.gid,
            node.size if kind is Kind.FILE else 0,
            node.mtime_ns,
            first if kind is Kind.HARDLINK else self.target(found) or b"",
            (os.major(node.device), os.minor(node.device)) if is_device else (0, 0),
            {} if kind is Kind.HARDLINK else self.xattrs(found),
        )

    def _matching_in(self, directory: bytes, pattern: bytes) -> Iterator[bytes]:
        """Yield the paths in a directory whose names match; none in what is no directory."""
        node = self._tree.resolve(directory)
        if stat.S_ISDIR(node.mode):
            for _, name, _ in self._tree.children(node.ino):
                if is_match(name, pattern):
                    yield directory.rstrip(b"/") + b"/" + name


def is_match(name: bytes, pattern: bytes) -> bool:
    """Return True if a name matches a shell's pattern, in which `*` matches no leading dot."""
    hidden = name.startswith(b".") and not pattern.startswith(b".")
    return not hidden and fnmatch.fnmatchcase(name, pattern)


def _joined(extents: Iterable[Extent]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a file that its extents fill, those that follow each other as one."""
    start = end = 0
    for extent in extents:
        if extent.offset != end:
            yield start, end
            start = extent.offset
        end = extent.offset + extent.length
    yield start, end
