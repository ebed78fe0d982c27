"""The rules of a writable tree without any disk: inodes in dicts, for root with the umask 022.

`Model` fulfils the contract `Files`, errors included, by path_resolution(7) and the manual page of each call.

A symlink's target, here, has no `..`, and if it is absolute leads nowhere. Fifos and devices are not opened:
`Model.is_special` says what not to open. No directory is both sticky and open to all for writing, so that
the sysctls fs.protected_* have no say.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, NoReturn

from tests.support.scratch_files import EXCHANGE, NOREPLACE, Listed, State
from tests.support.umoci_oracle import Seen, seen_on_disk

UMASK = 0o022
_CAPABILITY = b"security.capability"
_MOST_LINKS = 40  # that a path may lead through (path_resolution(7))
_LONGEST = 255  # bytes of a name (NAME_MAX)


@dataclass(eq=False)
class Node:
    """An inode. `mtime_ns` is None where the time is the clock's."""

    kind: int
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int | None = None
    data: bytes = b""
    target: bytes = b""
    device: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, Node] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def size(self) -> int:
        return len(self.data or self.target)


class Spot(NamedTuple):
    """Where a path leads: a name in a directory, and what is there."""

    directory: Node
    name: bytes
    node: Node | None


class Opened(NamedTuple):
    """An open file."""

    node: Node
    flags: int


class Refused(OSError):
    """A refusal for which kernels differ in the reason: all of `numbers` are right."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(numbers[0], "or another")
        self.numbers = frozenset(numbers)


class Model:
    """`Files` in dicts."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.opened: dict[int, Opened] = {}

    @classmethod
    def of(cls, root: Path) -> Model:
        """Return what a directory on a disk holds."""
        return cls(_node_on_disk(os.fsencode(root), {}))

    # -- for the tests

    def nodes(self) -> list[tuple[bytes, Node]]:
        """Return every path with its inode, in byte order."""
        return sorted(_below(b"", self.root), key=lambda found: found[0])

    def seen(self) -> dict[bytes, Seen]:
        """Return what `walk_directory` is to see; times that nobody has set are 0, and in `undated`."""
        nodes, groups = self.nodes(), dict[Node, bytes]()
        names = Counter(node for _, node in nodes)
        seen = {}
        for path, node in nodes:
            group = groups.setdefault(node, path) if names[node] > 1 else b""
            seen[path] = replace(_seen(node, names[node]), group=group)
        return seen

    def names(self, path: bytes) -> set[bytes]:
        """Return all paths of the file that a path leads to."""
        try:
            node = self._spot(path).node
        except OSError:
            return set()
        return {name for name, found in self.nodes() if found is node}

    def names_open(self, number: int) -> list[bytes]:
        """Return all paths of an open file, none of a directory."""
        node = self.opened[number].node
        return [path for path, found in self.nodes() if found is node and not node.is_directory]

    def is_dated(self, path: bytes) -> bool:
        """Return whether somebody has set the time of what is there."""
        try:
            return self._node(path, follow=False).mtime_ns is not None
        except OSError:
            return False

    def forget_time(self, path: bytes) -> None:
        """Have the time of what is there be one that nobody has set."""
        with contextlib.suppress(OSError):
            self._node(path).mtime_ns = None

    def undated(self) -> set[bytes]:
        """Return the paths whose times nobody has set."""
        return {path for path, node in self.nodes() if node.mtime_ns is None}

    def nlink(self, node: Node) -> int:
        """Return how many names a file has; two and one for each subdirectory."""
        if node.is_directory:
            return 2 + sum(child.is_directory for child in node.children.values())
        return sum(found is node for _, found in self.nodes())

    def is_special(self, path: bytes) -> bool:
        """Return whether opening the path would reach something else than a file or directory."""
        try:
            node = self._spot(path).node
        except OSError:
            return False
        return node is not None and node.kind not in (stat.S_IFREG, stat.S_IFDIR)

    def can_copy(self, source: bytes, target: bytes) -> bool:
        """Return whether a directory may be copied so: to a free name, not below itself."""
        try:
            node, spot = self._node(source, follow=False), self._spot(target, follow=False)
        except OSError:
            return False
        plain = (
            node.is_directory and not spot.directory.mode & stat.S_ISGID
        )  # which cp lets new directories keep
        return plain and spot.node is None and not _is_below(spot.directory, node)

    # -- the contract

    def look(self, path: bytes) -> Seen:
        node = self._node(path, follow=False)
        return _seen(node, self.nlink(node))

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        return self._file(path).data[offset : offset + length]

    def listdir(self, path: bytes) -> list[Listed]:
        node = self._node(path)
        if not node.is_directory:
            _fail(errno.ENOTDIR)
        rows = sorted(node.children.items())
        return [(name, *_kinds(child)) for name, child in rows]

    def create(self, path: bytes, mode: int, data: bytes) -> None:
        self._add(self._free(path), Node(stat.S_IFREG, mode & ~UMASK, data=data))

    def replace(self, path: bytes, data: bytes) -> None:
        spot = self._spot(path)
        if spot.node is None:
            self._add(spot, Node(stat.S_IFREG, 0o666 & ~UMASK, data=data))
        else:
            _write(_no_directory(spot.node), data)

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        _overwrite(self._file(path), offset, data)

    def append(self, path: bytes, data: bytes) -> None:
        node = self._file(path)
        _overwrite(node, node.size, data)

    def truncate(self, path: bytes, size: int) -> None:
        node = self._file(path)
        if node.kind != stat.S_IFREG:
            _fail(errno.EINVAL)
        _truncate(node, size)

    def unlink(self, path: bytes) -> None:
        spot = self._spot(path, follow=False)
        if _there(spot).is_directory:
            _fail(errno.EISDIR)
        _remove(spot)

    def mkdir(self, path: bytes, mode: int) -> None:
        self._add(self._free(path), Node(stat.S_IFDIR, mode & ~UMASK & 0o1777))

    def rmdir(self, path: bytes) -> None:
        spot = self._spot(path, follow=False)
        node = _there(spot)
        if not node.is_directory:
            _fail(errno.ENOTDIR)
        if node.children:
            _fail(errno.ENOTEMPTY)
        _remove(spot)

    def rename(self, source: bytes, target: bytes, flags: int) -> None:
        """The order of the checks is that of do_renameat2 and vfs_rename (Linux, fs/namei.c)."""
        self._parent(source)
        into = self._parent(target)
        old = self._spot(source, follow=False)
        moved = _there(old)
        # Linux 6.17 asks first whether a directory would come into itself, others look at the target before
        instead = (errno.EINVAL,) if _is_below(into, moved) else ()
        if len(os.path.basename(target)) > _LONGEST:
            raise Refused(errno.ENAMETOOLONG, *instead)
        new = self._spot(target, follow=False)
        if flags == NOREPLACE and new.node:
            raise Refused(errno.EEXIST, *instead)
        if flags == EXCHANGE and not new.node:
            raise Refused(errno.ENOENT, *instead)
        if instead:
            _fail(errno.EINVAL)
        if new.node and _is_below(old.directory, new.node):
            _fail(errno.EINVAL if flags == EXCHANGE else errno.ENOTEMPTY)
        if moved is new.node:
            return
        if flags != EXCHANGE and new.node is not None:
            _check_replaced(moved, new.node)
        self._move(old, new, flags)

    def link(self, source: bytes, target: bytes) -> None:
        node, spot = self._node(source, follow=False), self._free(target)
        if node.is_directory:
            _fail(errno.EPERM)
        spot.directory.children[spot.name] = node
        spot.directory.mtime_ns = None

    def symlink(self, target: bytes, path: bytes) -> None:
        self._add(self._free(path), Node(stat.S_IFLNK, 0o777, target=target))

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        self._add(self._free(path), Node(stat.S_IFMT(mode), stat.S_IMODE(mode) & ~UMASK, device=device))

    def chmod(self, path: bytes, mode: int) -> None:
        self._node(path).mode = mode

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        node = self._node(path, follow=False)
        node.uid, node.gid = uid, gid
        if not node.is_directory:  # chown(2): set-uid goes, set-gid where the group may execute
            lost = stat.S_ISUID | (stat.S_ISGID if node.mode & stat.S_IXGRP else 0)
            node.mode &= ~lost
            node.xattrs.pop(_CAPABILITY, None)

    def utime(self, path: bytes, mtime_ns: int) -> None:
        self._node(path, follow=False).mtime_ns = mtime_ns

    def set_xattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        node = self._node(path, follow=False)
        _check_xattr(node, name)
        if flags == os.XATTR_CREATE and name in node.xattrs:
            _fail(errno.EEXIST)
        if flags == os.XATTR_REPLACE and name not in node.xattrs:
            _fail(errno.ENODATA)
        node.xattrs[name] = value

    def remove_xattr(self, path: bytes, name: bytes) -> None:
        node = self._node(path, follow=False)
        _check_xattr(node, name)
        if node.xattrs.pop(name, None) is None:
            _fail(errno.ENODATA)

    def remove_tree(self, path: bytes) -> None:
        _remove(self._spot(path, follow=False))

    def copy_tree(self, source: bytes, target: bytes) -> None:
        spot = self._spot(target, follow=False)
        spot.directory.children[spot.name] = _copied(self._node(source, follow=False), {})
        spot.directory.mtime_ns = None

    def open(self, number: int, path: bytes, flags: int) -> None:
        node = self._node(path)
        if node.is_directory and flags != os.O_RDONLY:
            _fail(errno.EISDIR)
        self.opened[number] = Opened(node, flags)

    def close(self, number: int) -> None:
        del self.opened[number]

    def read_open(self, number: int, offset: int, length: int) -> bytes:
        return _no_directory(self.opened[number].node).data[offset : offset + length]

    def write_open(self, number: int, offset: int, data: bytes) -> None:
        _overwrite(self._writable(number, errno.EBADF), offset, data)

    def truncate_open(self, number: int, size: int) -> None:
        _truncate(self._writable(number, errno.EINVAL), size)

    def chmod_open(self, number: int, mode: int) -> None:
        self.opened[number].node.mode = mode

    def state_open(self, number: int) -> State:
        node = self.opened[number].node
        size, nlink = (0, 0) if node.is_directory else (node.size, self.nlink(node))
        return State(node.kind | node.mode, node.uid, node.gid, size, nlink)

    def _writable(self, number: int, error: int) -> Node:
        node, flags = self.opened[number]
        return _fail(error) if flags == os.O_RDONLY else node

    # -- paths

    def _spot(self, path: bytes, *, follow: bool = True) -> Spot:
        """Return where a path leads; its last symlink is followed, or not."""
        spot = Spot(self.root, b"", self.root)
        parts, links = _parts(path), 0
        directory = self.root
        while parts:
            name = parts.pop(0)
            _check_step(directory, name)
            spot = Spot(directory, name, directory.children.get(name))
            if spot.node is None:
                return spot if not parts else _fail(errno.ENOENT)
            if spot.node.kind == stat.S_IFLNK and (parts or follow):
                links += 1
                parts = _followed(spot.node, links) + parts
            else:
                directory = spot.node
        return spot

    def _parent(self, path: bytes) -> Node:
        directory = self._node(os.path.dirname(path))
        return directory if directory.is_directory else _fail(errno.ENOTDIR)

    def _node(self, path: bytes, *, follow: bool = True) -> Node:
        return _there(self._spot(path, follow=follow))

    def _file(self, path: bytes) -> Node:
        return _no_directory(self._node(path))

    def _free(self, path: bytes) -> Spot:
        spot = self._spot(path, follow=False)
        return spot if spot.node is None else _fail(errno.EEXIST)

    def _add(self, spot: Spot, node: Node) -> None:
        """Put a new inode in a directory; below a set-gid directory it gets that one's group (inode(7))."""
        if spot.directory.mode & stat.S_ISGID:
            node.gid = spot.directory.gid
            node.mode |= stat.S_ISGID if node.is_directory else 0
        spot.directory.children[spot.name] = node
        spot.directory.mtime_ns = None

    def _move(self, old: Spot, new: Spot, flags: int) -> None:
        _remove(old)
        if flags == EXCHANGE:
            old.directory.children[old.name] = _there(new)
        new.directory.children[new.name] = _there(old)
        new.directory.mtime_ns = None


def _fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part]


def _check_step(directory: Node, name: bytes) -> None:
    if not directory.is_directory:
        _fail(errno.ENOTDIR)
    if len(name) > _LONGEST:
        _fail(errno.ENAMETOOLONG)


def _followed(link: Node, links: int) -> list[bytes]:
    """Return the steps that a symlink stands for, the `links`th of a path."""
    if links > _MOST_LINKS:
        _fail(errno.ELOOP)
    if link.target.startswith(b"/"):
        _fail(errno.ENOENT)
    return _parts(link.target)


def _there(spot: Spot) -> Node:
    return spot.node or _fail(errno.ENOENT)


def _no_directory(node: Node) -> Node:
    return _fail(errno.EISDIR) if node.is_directory else node


def _kinds(node: Node) -> tuple[bool, bool, bool]:
    return node.is_directory, node.kind == stat.S_IFREG, node.kind == stat.S_IFLNK


def _remove(spot: Spot) -> None:
    del spot.directory.children[spot.name]
    spot.directory.mtime_ns = None


def _write(node: Node, data: bytes) -> None:
    """Give a file new bytes; it loses its capabilities (capabilities(7), "Safety checking")."""
    node.data, node.mtime_ns = data, None
    node.xattrs.pop(_CAPABILITY, None)


def _overwrite(node: Node, offset: int, data: bytes) -> None:
    before = node.data[:offset].ljust(offset, b"\0")
    _write(node, before + data + node.data[offset + len(data) :])


def _truncate(node: Node, size: int) -> None:
    _write(node, node.data[:size].ljust(size, b"\0"))


def _check_replaced(moved: Node, replaced: Node) -> None:
    if moved.is_directory != replaced.is_directory:
        _fail(errno.ENOTDIR if moved.is_directory else errno.EISDIR)
    if replaced.children:
        _fail(errno.ENOTEMPTY)


def _is_below(node: Node, top: Node) -> bool:
    return any(found is node for _, found in _below(b"", top))


def _check_xattr(node: Node, name: bytes) -> None:
    """Only files and directories have attributes of users (xattr(7))."""
    if name.startswith(b"user.") and node.kind not in (stat.S_IFREG, stat.S_IFDIR):
        _fail(errno.EPERM)


def _copied(node: Node, known: dict[Node, Node]) -> Node:
    """Return a copy of a tree as `cp -a` makes it, with the hard links inside it."""
    if node not in known:
        children = {name: _copied(child, known) for name, child in node.children.items()}
        known[node] = replace(node, xattrs=dict(node.xattrs), children=children)
    return known[node]


def _node_on_disk(path: bytes, known: dict[int, Node]) -> Node:
    found = os.lstat(path)
    if found.st_ino in known:
        return known[found.st_ino]
    seen = seen_on_disk(path, found, b"")
    kind = stat.S_IFMT(found.st_mode)
    node = Node(kind, stat.S_IMODE(found.st_mode), seen.uid, seen.gid, seen.mtime_ns)
    node.target, node.device, node.xattrs = seen.target, seen.device, dict(seen.xattrs)
    known[found.st_ino] = node
    if kind == stat.S_IFREG:
        node.data = Path(os.fsdecode(path)).read_bytes()
    elif kind == stat.S_IFDIR:
        node.children = {name: _node_on_disk(os.path.join(path, name), known) for name in os.listdir(path)}
    return node


def _below(path: bytes, node: Node) -> Iterator[tuple[bytes, Node]]:
    yield path, node
    for name, child in node.children.items():
        yield from _below(os.path.join(path, name), child)


def _seen(node: Node, nlink: int) -> Seen:
    return Seen(
        mode=node.kind | node.mode,
        uid=node.uid,
        gid=node.gid,
        mtime_ns=node.mtime_ns or 0,
        size=node.size,
        nlink=0 if node.is_directory else nlink,
        device=node.device,
        target=node.target,
        content=_content(node.data) if node.kind == stat.S_IFREG else b"",
        xattrs=tuple(sorted(node.xattrs.items())),
    )


@lru_cache(maxsize=32)  # some of them are large
def _content(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
