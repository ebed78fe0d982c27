"""A tar archive of image files, read in place: which member is which range of it.

The headers alone are read, from one to the next, so a plain archive is ready at once however large it is. One
that is packed as a whole is read through `transport.packed`. A member is never written anywhere, so its name
can do no harm; names that lead out of the archive lead nowhere.
"""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imgfs.errors import InvalidImage, NotFound, UsageError
from imgfs.layer.codec.blob import MAGIC_LENGTH, sniff
from imgfs.layer.entry import Entry, Kind
from imgfs.layer.tar.reader import parse_tar
from imgfs.quoting import printable_path
from imgfs.transport.files import CHUNK, RegularFile, StoredFile
from imgfs.transport.packed import PackedFile, open_index

if TYPE_CHECKING:
    from imgfs.store.store import Store

_MEMBERS = 100_000  # of an archive: 500 layers, and what each image says of them, are a few thousand
_LINKS = 8  # that lead from a name to a file
_LINK_KINDS = (Kind.SYMLINK, Kind.HARDLINK)


class _Member(NamedTuple):
    """A member that is no directory; `start` is where its bytes begin, None if they are not in one piece.

    `twin` is the one of the same name before it.
    """

    kind: Kind
    start: int | None
    size: int
    target: bytes
    twin: _Member | None = None


_Members = dict[bytes, _Member]


class Archive:
    """The members of the archive at `path`, as files (`transport.files.Files`).

    `open_store` opens the store that keeps the index of a packed one.
    """

    def __init__(self, path: Path, open_store: Callable[[], Store] | None) -> None:
        self._path = path
        self._open_store = open_store
        self._lock = threading.Lock()
        self._opened: tuple[RegularFile, StoredFile, _Members] | None = None

    def path(self, name: str) -> str:
        """Return what messages call a member."""
        return f"{self._path}: member {printable_path(name.encode(errors='surrogateescape'))}"

    def has(self, name: str) -> bool:
        """Return True if there is a member of that name, whatever it is."""
        return _cleaned(name.encode(errors="surrogateescape")) in self._open()[2]

    def open(self, name: str) -> StoredFile:
        """Open a member, through links inside the archive."""
        _, content, _ = self._open()
        start, size = self._range(name)
        return _Range(content, start, size)

    def index_member(self, name: str) -> tuple[str, str]:
        """Return the digests of a member and, unpacked, of its tar; reads all of it, but only once."""
        file, _, _ = self._open()
        start, size = self._range(name)
        with (
            self.open(name) as member,
            open_index(member, file, (start, size), self._open_store) as index,
        ):
            return index.summary.digest, index.summary.diff_id

    def close(self) -> None:
        """Close the archive."""
        with self._lock:
            if self._opened:
                file, content, _ = self._opened
                content.close()
                file.close()
                self._opened = None

    def _range(self, name: str) -> tuple[int, int]:
        """Return where a member is in the archive, and its size."""
        members = self._open()[2]
        path = _cleaned(name.encode(errors="surrogateescape"))
        for _ in range(_LINKS):
            if path is None:
                raise InvalidImage("leads out of the archive", where=self.path(name))
            if path not in members:
                raise NotFound(f"{self.path(name)}: there is none")
            member = members[path]
            if member.twin:
                self._check_twins(member, name)
                members[path] = member._replace(twin=None)
            if member.kind not in _LINK_KINDS:
                if member.kind is not Kind.FILE or member.start is None:
                    what = "sparse" if member.kind is Kind.FILE else "not a regular file"
                    raise InvalidImage(what, where=self.path(name))
                return member.start, member.size
            above = posixpath.dirname(path) if member.kind is Kind.SYMLINK else b""
            path = None if member.target.startswith(b"/") else _cleaned(posixpath.join(above, member.target))
        raise InvalidImage("a loop of links, or too many", where=self.path(name))

    def _check_twins(self, member: _Member, name: str) -> None:
        """Raise InvalidImage unless members of one name are the same: else readers disagree which is meant.

        go-containerregistry writes a config once for each name of an image.
        """
        content, twin = self._open()[1], member.twin
        while twin:
            if twin._replace(start=0, twin=None) != member._replace(start=0, twin=None) or not _is_same(
                content, member, twin
            ):
                raise InvalidImage("there are two of this name", where=self.path(name))
            twin = twin.twin

    def _open(self) -> tuple[RegularFile, StoredFile, _Members]:
        with self._lock:
            if self._opened is None:
                try:
                    file = RegularFile(self._path)
                except NotFound as error:
                    raise UsageError(str(error)) from error
                try:
                    self._opened = self._read(file)
                except BaseException:
                    file.close()
                    raise
            return self._opened

    def _read(self, file: RegularFile) -> tuple[RegularFile, StoredFile, _Members]:
        try:
            if sniff(file.at(0, MAGIC_LENGTH)) == "tar":
                return file, file, _table(_entries(file))
            index = open_index(file, file, (0, file.size), self._open_store)
            try:
                return file, PackedFile(file, index), _table(index.entries())
            except BaseException:
                index.close()
                raise
        except InvalidImage as error:
            raise error.at(self._path) from error


def _is_same(content: StoredFile, one: _Member, other: _Member) -> bool:
    """Return True if two members of one size have the same bytes."""
    if one.start is None or other.start is None:
        return False
    for at in range(0, one.size, CHUNK):
        end = min(at + CHUNK, one.size)
        first, second = (
            b"".join(content.read(start + at, start + end)) for start in (one.start, other.start)
        )
        if first != second:
            return False
    return True


class _Range(StoredFile):
    """A range of an open file, which stays open."""

    def __init__(self, content: StoredFile, start: int, size: int) -> None:
        self._content = content
        self._start = start
        self.size = size

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield its bytes."""
        return self._content.read(self._start + start, self._start + end)

    def close(self) -> None:
        """Leave the archive open."""


def _entries(file: RegularFile) -> Iterable[Entry]:
    """Return the members of a plain tar; raises InvalidImage if there are too many."""
    found: list[Entry] = []

    def keep(entry: Entry) -> None:
        found.append(entry)
        if len(found) > _MEMBERS:
            raise InvalidImage(f"more than {_MEMBERS} members, which no archive of images has")

    reader = parse_tar(keep)
    try:
        wanted = next(reader)
        while True:
            wanted = reader.send(file.at(wanted.offset, wanted.length))
    except StopIteration as stop:
        if stop.value > file.size:
            raise InvalidImage(f"ends at {file.size}, inside its last member: truncated") from stop
    return found


def _table(entries: Iterable[Entry]) -> _Members:
    """Return the members by their names, the last of those that have the same."""
    members: _Members = {}
    for entry in entries:
        name = _cleaned(entry.path)
        if name is None or entry.kind is Kind.DIRECTORY:
            continue
        if len(members) >= _MEMBERS:
            raise InvalidImage(f"more than {_MEMBERS} members, which no archive of images has")
        members[name] = _member(entry)._replace(twin=members.get(name))
    return members


def _member(entry: Entry) -> _Member:
    first = entry.extents[0] if entry.extents else None
    if first is None:
        start = 0 if entry.size == 0 else None
    else:
        start = first.flat if len(entry.extents) == 1 and first.length == entry.size else None
    return _Member(entry.kind, start, entry.size, entry.target)


def _cleaned(path: bytes) -> bytes | None:
    """Return a member's name without `.` and `..`; None if it leads out of the archive."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if not parts:
                return None
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)
