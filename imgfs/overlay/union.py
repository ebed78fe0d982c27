"""The union seen: an upper directory over an image's tree, by overlayfs's rules (kernel, overlayfs.rst).

What its files are is `lookup`'s; here are their attributes, the names in directories, and from a file of the
image up to the names it shows under.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping

from imgfs import syscalls
from imgfs.layer.entry import DEFAULT_ACL
from imgfs.overlay.ctimes import ShownCtimes
from imgfs.overlay.lookup import File, UnionLookup
from imgfs.overlay.node import At, UpperNode, error
from imgfs.overlay.upper import Upper
from imgfs.overlay.xattrs import Owner
from imgfs.tree.database import ROOT, Attributes, Node
from imgfs.tree.reader import Tree

_OWN = 1 << 62  # the positions in a listing of names that the image does not have begin here


class Union(UnionLookup):
    """What an upper directory and a tree show together. Raises OSError."""

    def __init__(self, tree: Tree, upper: Upper, copies: Mapping[int, int] | None = None) -> None:
        """See UnionLookup."""
        super().__init__(tree, upper, copies)
        self._aside = upper.xattr_format.override
        self.ctimes = ShownCtimes()
        self.outlives = False  # whether another process may go on with what this one has open
        self.pristine = not os.listdir(b"/proc/self/fd/%d" % upper.root)

    def group_of(self, directory: UpperNode) -> int | None:
        """Return the group that what is made in a directory gets, if it is set-gid (inode(7))."""
        if directory.group is None:
            owner = self.owner(directory)
            directory.group = owner.gid if owner.mode & stat.S_ISGID else -1
        return directory.group if directory.group >= 0 else None

    def default_acl(self, directory: UpperNode) -> bytes:
        """Return the ACL that what is made in a directory inherits; empty if there is none."""
        if directory.default_acl is None:
            name = self.upper.xattr_format.stored_name(DEFAULT_ACL)
            directory.default_acl = self.upper.xattrs(self.at(directory)).get(name, b"")
        return directory.default_acl

    def target(self, node: UpperNode) -> bytes:
        """Return where a symbolic link with an upper half points to."""
        at = self.at(node)
        if at.anchored:  # the empty path means the link itself (readlinkat(2))
            return os.readlink(b"", dir_fd=node.anchor)
        return os.readlink(at.name, dir_fd=at.directory)

    def birth_ns(self, node: UpperNode) -> int | None:
        """Return when the upper half of a file was made, in nanoseconds, if its file system knows."""
        at = self.at(node)
        return syscalls.birth_time(at.directory, at.name, follow=at.anchored)

    def owner(self, node: UpperNode) -> Owner:
        """Return owner, group and permission bits of a file with an upper half."""
        at = self.place(node)
        found = self.upper.stat(at)
        if found is None:
            raise error(errno.ESTALE)
        return self.upper.owner(at, found)

    def attributes(self, file: File, found: os.stat_result | None = None) -> Attributes:
        """Return what stat(2) says of a file.

        `found` is what it says now of the upper half, if that is known.
        """
        return self._lower_attributes(file) if isinstance(file, Node) else self._upper_attributes(file, found)

    def _lower_attributes(self, node: Node) -> Node:
        links = self._links.get(node.ino)
        if links is None and not self.pristine and node.nlink > 1 and not stat.S_ISDIR(node.mode):
            links = self._links[node.ino] = len(self.visible_names(node.ino))
        return node if links is None else node._replace(nlink=links)

    def _upper_attributes(self, node: UpperNode, found: os.stat_result | None) -> Attributes:
        if found is None:
            fd = self.held(node)
            found = self.upper.stat(self.at(node)) if fd is None else os.fstat(fd)
        if found is None:
            raise error(errno.ESTALE)
        uid, gid, mode = self.upper.owner(self.place(node), found) if self._aside else _owner_on_disk(found)
        lower = self.tree.node(node.data) if node.data is not None else None
        return Attributes(
            node.ino,
            node.kind | mode,
            uid,
            gid,
            found.st_size,
            found.st_mtime_ns if node.frozen_mtime is None else node.frozen_mtime,
            self._directory_links(node, found) if node.is_directory else found.st_nlink - node.kept,
            found.st_rdev,
            lower.blocks if lower else found.st_blocks,
            found.st_atime_ns,
            self.ctime(node, found),
        )

    def ctime(self, node: UpperNode, found: os.stat_result | None = None) -> int:
        """Return a file's time of change: the disk's, unless only imgfs has moved that."""
        found = found or self.upper.stat(self.place(node))
        if found is None:
            raise error(errno.ESTALE)
        return self.ctimes.shown(node, found.st_ctime_ns)

    def keep_ctime(self, node: UpperNode, shown_ns: int) -> None:
        """Have a file's time of change be shown so until a program changes it; see `ShownCtimes.keep`."""
        found = self.upper.stat(self.place(node))
        self.ctimes.keep(node, found.st_ctime_ns if found else shown_ns, shown_ns)

    def _directory_links(self, node: UpperNode, found: os.stat_result) -> int:
        """Return the image's link count, more the directories that are new, less those that are covered."""
        if node.lower is None or node.anchor is not None:
            return 0 if node.kept else found.st_nlink
        if node.links is None:
            lower = self.tree.node(node.lower)
            node.links = (lower.nlink if lower else 2) + sum(
                entry.is_dir(follow_symlinks=False) - self._covers_directory(node, os.fsencode(entry.name))
                for entry in self.upper.scan(self.at(node))
            )
        return node.links

    def _covers_directory(self, node: UpperNode, name: bytes) -> bool:
        below = self.below(node, name)
        return below is not None and stat.S_ISDIR(below.mode)

    def upper_names(self, node: UpperNode) -> tuple[list[bytes], set[bytes]]:
        """Return the names that a directory's upper half shows, and those of the image that it covers."""
        return self.upper.names(self.at(node))

    def children(self, ino: int) -> Iterator[tuple[bytes, File]]:
        """Yield all children of a directory, those with an upper half first."""
        node = self.nodes.get(ino)
        if node is None:
            yield from ((name, child) for _, name, child in self.tree.children(ino))
            return
        shown, covered = self.upper_names(node)
        for name in shown:
            found = self.find(ino, name)
            if found is not None:
                yield name, found
        if node.lower is not None:
            for _, name, child in self.tree.children(node.lower):
                if name not in covered:
                    yield name, child

    def listing(self, ino: int, after: int) -> Iterator[tuple[int, bytes, File]]:
        """Yield (position, name, file) of the children of a directory behind the position `after`.

        A name keeps its position whatever happens to the directory, so that a reader who goes on misses no
        name that stays, and sees none twice. First come the names that the image has there, as the tree has
        them, then all others. What has changed since the listing began is looked up before it is shown.
        """
        node = self.nodes.get(ino)
        changes = node.changes if node else None
        shown, covered = self.upper_names(node) if node else ([], set())
        lower = node.listed if node else ino
        both = set()
        for position, name, child in self.tree.children(lower, after) if lower and after < _OWN else ():
            if name in covered:
                both.add(name)
            is_sure = name not in covered and self._is_as_it_was(ino, changes)
            found = child if is_sure else self.find(ino, name)
            if found is not None:
                yield position, name, found
        if lower and after:  # not all of the image's names have been met above
            both = {name for name in shown if self.tree.lookup(lower, name)}
        for position, name in sorted((_own_position(name), name) for name in shown if name not in both):
            found = self.find(ino, name) if position > after else None
            if found is not None:
                yield position, name, found

    def _is_as_it_was(self, ino: int, changes: int | None) -> bool:
        """Return True if names that a directory had from the image at its `changes` are the image's still."""
        node = self.nodes.get(ino)
        if node is None or changes is None:
            return node is None and changes is None
        return node.changes == changes and node.lower is not None

    def path(self, ino: int) -> bytes:
        """Return where a directory is, without a slash before it; the root's is empty. Raises ENOENT."""
        node = self.nodes.get(ino)
        if node is None:
            parent, name = self.tree.names(ino)[0]
            standing = self._directory_showing(parent)
        else:
            standing, name = node.parent.ino if node.parent else None, node.name
        if node is self.root:
            return b""
        if standing is None:
            raise error(errno.ENOENT)
        return os.path.join(self.path(standing), name)

    def visible_names(self, ino: int) -> list[tuple[int, bytes]]:
        """Return (directory, name) of every name of an image's file, not copied up, that can be seen."""
        found = []
        for lower_parent, name in self.tree.names(ino):
            parent = self._directory_showing(lower_parent)
            if parent is not None:
                file = self.find(parent, name)
                if isinstance(file, Node) and file.ino == ino:
                    found.append((parent, name))
        return found

    def _directory_showing(self, lower: int) -> int | None:
        """Return the ino of the directory that shows names of the image's directory `lower`, if any does."""
        way: list[tuple[bytes, int]] = []
        while lower != ROOT and lower not in self._moved and not self._shows(lower):
            names = self.tree.names(lower)
            if not names:
                return None
            way.append((names[0][1], lower))
            lower = names[0][0]
        ino = self._moved[lower].ino if lower in self._moved else lower
        for name, wanted in reversed(way):
            file = self.find(ino, name)
            if file is None or _merged_with(file) != wanted:
                return None
            ino = file.ino
        return ino

    def _shows(self, lower: int) -> bool:
        """Return True if it is known without a look that a directory of the image shows under its own ino.

        It does if it has been copied up: as long as it has a name, and is not whole, its names show in it.
        """
        node = self.nodes.get(lower)
        return node is not None and node.lower == lower and node.anchor is None

    @contextlib.contextmanager
    def unlinking(self, file: File, directory: UpperNode, name: bytes) -> Iterator[None]:
        """Wrap what takes a name from a file: open handles keep it; if that fails, all stays."""
        if isinstance(file, Node):
            links = self._lower_attributes(file).nlink
            yield
            self._links[file.ino] = 0 if stat.S_ISDIR(file.mode) else max(0, links - 1)
            return
        called = file.is_called(directory, name)
        self._keep_open(file)
        if called:
            file.anchor = self.upper.hold(self.at(file))
            file.parent = None
        try:
            yield
        except BaseException:
            self.let_go(file)
            if called:
                file.move(directory, name)
            raise

    def keep_open(self, node: UpperNode) -> None:
        """Have a file that is about to lose its last name, or has none, be there for another process."""
        if self.outlives:
            self.upper.keep_open(self.at(node), node.ino)
            node.kept = True

    def place_for(self, file: File) -> At | None:
        """Return where a directory that is about to be removed is to go, for another process.

        None if nowhere.
        """
        is_kept = self.outlives and isinstance(file, UpperNode) and file.is_directory
        return self.upper.place_for_open(file.ino) if is_kept else None

    def let_go(self, node: UpperNode) -> None:
        """Let go of a file that has a name again."""
        if node.kept:
            node.kept = False
            self.upper.let_go(node.ino)

    def _keep_open(self, node: UpperNode) -> None:
        """Keep a file that loses a name, if it is its last and it may be open, as O_PATH is, untold."""
        may_be_open = node.opens or not node.counted or node.kind != stat.S_IFREG
        if self.outlives and may_be_open and not node.is_directory:
            found = self.upper.stat(self.at(node))
            if found is not None and found.st_nlink == 1:
                self.keep_open(node)


def _owner_on_disk(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def _merged_with(file: File) -> int | None:
    if isinstance(file, Node):
        return file.ino
    return file.lower


def _own_position(name: bytes) -> int:
    """Return the position in listings of a name that is not the image's: after the image's, by hash.

    Of 61 bits: two names of a directory with the same are not to be expected.
    """
    digest = hashlib.blake2b(name, digest_size=8).digest()
    return _OWN | (int.from_bytes(digest, "little") >> 3)
