"""What a scratch changes in its image, file by file, and the same as members of a layer.

Found by walking the union and the tree side by side, and only where the upper directory has something. A file
that was copied up but is what it was is no change.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.layer.entry import KIND_OF, Entry, Kind
from imgfs.layer.limits import HolesBudget
from imgfs.overlay.copyup_data import ImageData
from imgfs.overlay.lookup import File, is_directory
from imgfs.overlay.node import UpperNode
from imgfs.overlay.union import Union
from imgfs.overlay.xattrs import shown_xattrs
from imgfs.tree.database import ROOT, Attributes, Node
from imgfs.tree.paths import WHITEOUT_PREFIX, shown

_CHUNK = 1 << 20  # bytes read at a time
_SECTOR = 512  # bytes: st_blocks (stat(2))


class ChangeKind(enum.Enum):
    """What has happened to a name; the letters are docker's."""

    ADDED = "A"
    CHANGED = "C"
    DELETED = "D"


class DiffEntry(NamedTuple):
    """One difference; of a directory that is gone only the directory itself is one.

    `path` is from the root, without a slash before it, and empty for the root itself. `before` is what the
    image has there, `after` what the scratch shows.
    """

    path: bytes
    kind: ChangeKind
    before: Node | None
    after: Attributes | None


class _NameDiff(NamedTuple):
    """A name that is not what it was, or, without `kind`, one more name of a file with several."""

    path: bytes
    kind: ChangeKind | None
    before: Node | None
    file: File | None
    after: Attributes | None


class Diff:
    """The differences between a union and its image, whose bytes are in `content`. Raises OSError.

    `check` is called once they are known, and again after the last body: it raises what says that they are
    not all there.
    """

    def __init__(self, union: Union, content: ImageData, check: Callable[[], object] = bool) -> None:
        self._union = union
        self._tree = union.tree
        self._content = content
        self._check = check
        self._holes = HolesBudget()
        self.left_out: dict[bytes, str] = {}  # by path: what was met that no layer holds

    def __iter__(self) -> Iterator[DiffEntry]:
        """Yield all changes, by name in byte order: a directory's before those of what is in it."""
        for found in self._whole_groups():
            yield DiffEntry(found.path, found.kind or ChangeKind.CHANGED, found.before, found.after)

    def members(self) -> Iterator[tuple[Entry, Iterable[bytes]]]:
        """Yield the changes as members of a layer (OCI layer.md), in the same order. `left_out` has the rest.

        Raises InvalidImage, before the first, for a name that a layer cannot hold: there it would delete.
        """
        groups = self._whole_groups()
        for found in groups:
            _check_name(found)
        with self._checked():
            yield from self._members(groups)

    def _members(self, groups: Iterable[_NameDiff]) -> Iterator[tuple[Entry, Iterable[bytes]]]:
        first: dict[int, bytes] = {}
        for found in groups:
            kind = KIND_OF.get(stat.S_IFMT(found.after.mode)) if found.after else None
            if found.file is None or found.after is None or (kind is None and found.before):
                head, slash, name = found.path.rpartition(b"/")
                yield Entry(head + slash + WHITEOUT_PREFIX + name, Kind.FILE, 0o644, 0, 0, 0, 0), ()
            elif kind is not None:
                several = found.after.nlink > 1 and kind is not Kind.DIRECTORY
                if several and first.setdefault(found.after.ino, found.path) != found.path:
                    kind = Kind.HARDLINK
                target = first.get(found.after.ino, b"")
                yield self._entry(found.path, kind, found.file, found.after, target), self._body(kind, found)

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._check()  # that they were thrown away says more than what is missing now
            raise
        self._check()

    def _entry(self, path: bytes, kind: Kind, file: File, after: Attributes, first: bytes) -> Entry:
        target = first if kind is Kind.HARDLINK else b""
        device = (0, 0)
        if kind is Kind.SYMLINK:
            target = self._target(file)
        elif kind in (Kind.CHARACTER, Kind.BLOCK):
            device = os.major(after.device), os.minor(after.device)
        return Entry(
            path or b".",
            kind,
            stat.S_IMODE(after.mode),
            after.uid,
            after.gid,
            after.size if kind is Kind.FILE else 0,
            after.mtime_ns,
            target,
            device,
            {} if kind is Kind.HARDLINK else self._xattrs(file),
        )

    def _body(self, kind: Kind, found: _NameDiff) -> Iterable[bytes]:
        if kind is not Kind.FILE or found.file is None or found.after is None:
            return ()
        return self._bytes(found.file, found.after.size)

    def _whole_groups(self) -> list[_NameDiff]:
        """Return all differences; where a file with several names has one, with all its other names.

        A hard link to a file of a layer below would mean a new file to most who unpack layers.
        """
        with self._checked():
            found = list(self._walk(ROOT, ROOT, b""))
            touched = {one.file.ino: one.file for one in found if one.kind and one.file is not None}
            found += self._unmoved_names({one.path for one in found}, touched.values())
        found.sort(key=lambda one: one.path.split(b"/") if one.path else [])
        return [one for one in found if one.kind or (one.file is not None and one.file.ino in touched)]

    def _unmoved_names(self, known: Set[bytes], files: Iterable[File]) -> Iterator[_NameDiff]:
        """Yield the other names of files of which nothing has changed but some names."""
        for file in files:
            if isinstance(file, Node) and file.nlink > 1 and not is_directory(file):
                for parent, name in self._union.visible_names(file.ino):
                    path = os.path.join(self._union.path(parent), name)
                    if path not in known:
                        yield _NameDiff(path, None, file, file, self._union.attributes(file))

    def _walk(self, ino: int, lower: int, path: bytes) -> Iterator[_NameDiff]:
        """Yield the differences in and below a directory that the union and the image have (`lower`) both."""
        ahead: list[tuple[bytes, File | None, Node | None]] = [
            (path, self._union.file(ino), self._tree.node(lower))
        ]
        while ahead:
            at, file, before = ahead.pop()
            yield from self._compare(at, file, before)
            if file is not None and is_directory(file):
                below = before.ino if before and stat.S_ISDIR(before.mode) else None
                inside = self._inside(file, below)
                ahead += [
                    (at + b"/" + name if at else name, after, was) for name, after, was in reversed(inside)
                ]

    def _inside(self, file: File, lower: int | None) -> list[tuple[bytes, File | None, Node | None]]:
        """Return (name, what it is now, what the image has) of a directory's names that may differ."""
        node = file if isinstance(file, UpperNode) else None
        if node is None and lower == file.ino:  # the image's own
            return []
        if node is not None and node.lower is not None and node.lower == lower:
            names = self._union.upper_names(node)[1]
        else:
            names = {name for name, _ in self._union.children(file.ino)}
            if lower is not None:
                names |= {name for _, name, _ in self._tree.children(lower)}
        return [
            (name, self._union.find(file.ino, name), self._tree.lookup(lower, name) if lower else None)
            for name in sorted(names)
        ]

    def _compare(self, path: bytes, file: File | None, before: Node | None) -> Iterator[_NameDiff]:
        if file is None:
            if before is not None:
                yield _NameDiff(path, ChangeKind.DELETED, before, None, None)
            return
        after = self._union.attributes(file)
        self._note_left_out(path, file, after)
        if before is None:
            yield _NameDiff(path, ChangeKind.ADDED, None, file, after)
        elif self._differs(file, after, before):
            yield _NameDiff(path, ChangeKind.CHANGED, before, file, after)
        elif after.nlink > 1 and not stat.S_ISDIR(after.mode) and isinstance(file, UpperNode):
            yield _NameDiff(path, None, before, file, after)

    def _note_left_out(self, path: bytes, file: File, after: Attributes) -> None:
        if not isinstance(file, UpperNode):
            return
        if names := self._union.upper.unkept_xattrs(self._union.at(file)):
            self.left_out[path] = ", ".join(shown(name) for name in names)
        if stat.S_ISSOCK(after.mode):
            self.left_out[path] = "a socket"

    def _differs(self, file: File, after: Attributes, before: Node) -> bool:
        if isinstance(file, Node) and file.ino == before.ino:
            return False
        if file.ino != before.ino and max(after.nlink, before.nlink) > 1 and not stat.S_ISDIR(after.mode):
            return True  # another file's name, or no more that of its own
        if _described(after) != _described(before):
            return True
        if self._xattrs(file) != shown_xattrs(self._tree.xattrs(before.ino)):
            return True
        if stat.S_ISLNK(after.mode):
            return self._target(file) != self._tree.target(before.ino)
        return stat.S_ISREG(after.mode) and self._has_other_bytes(file, before)

    def _has_other_bytes(self, file: File, before: Node) -> bool:
        """Return whether files of one size differ in their bytes."""
        data = file.data if isinstance(file, UpperNode) else file.ino
        if data == before.ino:
            return False
        pairs = zip(self._bytes(file, before.size), self._bytes(before, before.size), strict=True)
        try:
            return any(one != other for one, other in pairs)
        except InvalidImage:  # endless holes: it was written to
            return True

    def _bytes(self, file: File, size: int) -> Iterator[bytes]:
        """Yield a file's bytes, in pieces of 1 MiB. Raises InvalidImage for endless holes."""
        data = file.data if isinstance(file, UpperNode) else file.ino
        if data is not None:
            layer, extents = self._tree.extents(data)
            self._holes.take(size, sum(extent.length for extent in extents))
            for offset in range(0, size, _CHUNK):
                yield self._content.read(layer, extents, offset, min(_CHUNK, size - offset))
        elif isinstance(file, UpperNode):
            with open(self._open(file), "rb") as opened:
                self._holes.take(size, os.fstat(opened.fileno()).st_blocks * _SECTOR)
                while piece := opened.read(_CHUNK):
                    yield piece

    def _open(self, file: UpperNode) -> int:
        """Open a regular file: a container that runs may have put a FIFO or a device in its place by now."""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        fd = self._union.upper.open(self._union.at(file), flags)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), shown(self._union.path(file.ino)))

    def _xattrs(self, file: File) -> dict[bytes, bytes]:
        if isinstance(file, Node):
            return shown_xattrs(self._tree.xattrs(file.ino)) if file.has_xattrs else {}
        return shown_xattrs(self._union.upper.xattrs(self._union.at(file)))

    def _target(self, file: File) -> bytes:
        return self._tree.target(file.ino) if isinstance(file, Node) else self._union.target(file)


def _check_name(found: _NameDiff) -> None:
    """Raise InvalidImage if a new or changed file has a name that is a whiteout's (OCI layer.md)."""
    name = found.path.rpartition(b"/")[2]
    if found.after is not None and name.startswith(WHITEOUT_PREFIX):
        raise InvalidImage(
            f"/{shown(found.path)}: no layer can hold a file of this name, which means there that another "
            "one is deleted: rename or remove it"
        )


def _described(one: Attributes) -> tuple[int, ...]:
    """Return what a layer says of a file beside its bytes.

    A directory's size is the file system's own affair.
    """
    size = 0 if stat.S_ISDIR(one.mode) else one.size
    return one.mode, one.uid, one.gid, size, one.mtime_ns, one.device
