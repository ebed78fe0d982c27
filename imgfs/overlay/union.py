"""The union seen: an upper directory over an image's tree, by overlayfs's rules (kernel, overlayfs.rst).

A file with an upper half is an `UpperNode`; any other is the tree's own `Node`, and nothing is kept for it.
Both answer to one ino: the image's, if the file comes from the image. The upper directory is asked each time:
it is the truth, and this process alone changes it. All of this belongs to one thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from imgfs.overlay.at import At
from imgfs.overlay.directories import Directories
from imgfs.overlay.node import UPPER_INO, UpperAttributes, UpperNode, error
from imgfs.overlay.upper import Upper
from imgfs.overlay.xattrs import METACOPY, OPAQUE, ORIGIN, REDIRECT, Owner, is_whiteout
from imgfs.tree.reader import Node, Tree
from imgfs.tree.schema import ROOT

_CTIMES = 65_536  # files whose time of change is told otherwise than the disk has it
_LONGEST_REDIRECT = 1024  # bytes: some file systems have no more room than this for all attributes of a file

File: TypeAlias = UpperNode | Node


class Union:
    """What an upper directory and a tree show together. Raises OSError."""

    def __init__(self, tree: Tree, upper: Upper, copies: Mapping[int, int] | None = None) -> None:
        """`copies` are files known to be the image's: by their ino in the upper directory, the image's."""
        self.tree = tree
        self.upper = upper
        self.nodes: dict[int, UpperNode] = {}
        self._by_upper: dict[int, UpperNode] = {}
        self._directories = Directories(upper.root)
        self._copies = copies or {}
        self._links: dict[int, int] = {}  # names left of an image's file that has lost some
        self._ctimes: dict[int, tuple[int, int]] = {}  # by ino of the upper directory: on disk, told
        self._moved: dict[int, UpperNode] = {}  # by the image's directory: where a redirect shows it
        found = os.fstat(upper.root)
        self.root = UpperNode(ROOT, found.st_ino, stat.S_IFDIR, lower=ROOT, counted=False)
        self.pristine = not os.listdir(b"/proc/self/fd/%d" % upper.root)
        self.add(self.root)

    def close(self) -> None:
        """Let go of all descriptors."""
        self._directories.close()
        for node in self.nodes.values():
            node.close()
        self.nodes.clear()

    def find(self, parent: int, name: bytes) -> File | None:
        """What a name in a directory means."""
        directory = self.nodes.get(parent)
        if directory is None:
            return self.tree.lookup(parent, name)
        found = self.upper.stat(At(self.directory_fd(directory), name))
        if found is None:
            return self.below(directory, name)
        return None if is_whiteout(found) else self.node_at(directory, name, found)

    def below(self, directory: UpperNode, name: bytes) -> Node | None:
        """What the image has under a name, whether or not it shows."""
        return None if directory.lower is None else self.tree.lookup(directory.lower, name)

    def file(self, ino: int) -> File:
        """The file with that ino; raises ENOENT."""
        found = self.nodes.get(ino) or self.tree.node(ino)
        if found is None:
            raise error(errno.ENOENT)
        return found

    def node_at(self, directory: UpperNode, name: bytes, found: os.stat_result) -> UpperNode:
        """The node of what the upper directory has at a name."""
        node = self._by_upper.get(found.st_ino)
        if node is None:
            node = self._load(directory, name, found)
            self.add(node)
        elif node.parent is None and node is not self.root:
            node.move(directory, name)
        return node

    def node_new(self, directory: UpperNode, name: bytes, found: os.stat_result) -> UpperNode:
        """The node of something that was just made."""
        kind = stat.S_IFMT(found.st_mode)
        node = UpperNode(UPPER_INO | found.st_ino, found.st_ino, kind, directory, name, clean=True)
        self.add(node)
        return node

    def group_of(self, directory: UpperNode) -> int | None:
        """The group that what is made in a directory gets, if it is set-gid (inode(7))."""
        if directory.group is None:
            owner = self.owner(directory)
            directory.group = owner.gid if owner.mode & stat.S_ISGID else -1
        return directory.group if directory.group >= 0 else None

    def target(self, node: UpperNode) -> bytes:
        """Where a symbolic link with an upper half points to."""
        at = self.at(node)
        if at.anchored:  # the empty path means the link itself (readlinkat(2))
            return os.readlink(b"", dir_fd=node.anchor)
        return os.readlink(at.name, dir_fd=at.directory)

    def owner(self, node: UpperNode) -> Owner:
        """Return owner, group and permission bits of a file with an upper half."""
        at = self.at(node)
        found = self.upper.stat(at)
        if found is None:
            raise error(errno.ESTALE)
        return self.upper.owner(at, found)

    def add(self, node: UpperNode) -> None:
        """Know a node from now on."""
        self.nodes[node.ino] = node
        self._by_upper[node.upper_ino] = node

    def drop(self, node: UpperNode) -> None:
        """Forget a node: another lookup finds it again, if it has a name."""
        self.nodes.pop(node.ino, None)
        self._by_upper.pop(node.upper_ino, None)
        self._directories.drop(node)
        node.close()

    def forget(self, ino: int, count: int) -> None:
        """The kernel has let go of `count` references."""
        node = self.nodes.get(ino)
        if node is None:
            if self._links.get(ino) == 0:
                del self._links[ino]
            return
        node.lookups -= count
        nameless = node.parent is None and node is not self.root
        if node.opens == 0 and (nameless if node.is_directory or not node.counted else node.lookups <= 0):
            self.drop(node)

    def at(self, node: UpperNode) -> At:
        """Where a node's upper half is."""
        return self._directories.at(node)

    def directory_fd(self, node: UpperNode) -> int:
        """A descriptor (O_PATH) of a directory's upper half; good for some dozen calls more."""
        return self._directories.fd(node)

    def attributes(self, file: File) -> UpperAttributes | Node:
        """What stat(2) says of a file."""
        return self._lower_attributes(file) if isinstance(file, Node) else self._upper_attributes(file)

    def _lower_attributes(self, node: Node) -> Node:
        links = self._links.get(node.ino)
        if links is None and not self.pristine and node.nlink > 1 and not stat.S_ISDIR(node.mode):
            links = self._links[node.ino] = len(self.visible_names(node.ino))
        return node if links is None else node._replace(nlink=links)

    def _upper_attributes(self, node: UpperNode) -> UpperAttributes:
        at = self.at(node)
        found = self.upper.stat(at)
        if found is None:
            raise error(errno.ESTALE)
        uid, gid, mode = self.upper.owner(at, found)
        lower = self.tree.node(node.data) if node.data is not None else None
        return UpperAttributes(
            node.ino,
            node.kind | mode,
            uid,
            gid,
            found.st_size,
            found.st_mtime_ns if node.frozen_mtime is None else node.frozen_mtime,
            self._directory_links(node, found) if node.is_directory else found.st_nlink,
            found.st_rdev,
            lower.blocks if lower else found.st_blocks,
            found.st_atime_ns,
            self.ctime(node, found),
        )

    def ctime(self, node: UpperNode, found: os.stat_result | None = None) -> int:
        """A file's time of change, as it is told: the disk's, if that has not moved for our doing alone."""
        found = found or self.upper.stat(self.at(node))
        if found is None:
            raise error(errno.ESTALE)
        on_disk, told = self._ctimes.get(node.upper_ino, (0, 0))
        return told if on_disk == found.st_ctime_ns else found.st_ctime_ns

    def keep_ctime(
        self, node: UpperNode, told_ns: int, shown_ns: int | None = None, *, on_disk_ns: int | None = None
    ) -> None:
        """Have a file's time of change be shown as `told_ns` until a program changes it.

        It cannot be set on disk, where it moves with all that we do: copying up, and setting the times of
        what a kernel that gathers writes has written before. Of the last files it is known, while mounted.
        `shown_ns` is what would be told now, `on_disk_ns` what the disk says, if the caller has just looked.
        """
        on_disk, shown = self._ctimes.pop(node.upper_ino, (0, 0))
        if on_disk_ns is not None:
            on_disk = on_disk_ns
        elif shown_ns is None:
            found = self.upper.stat(self.at(node))
            on_disk = found.st_ctime_ns if found else told_ns
        elif shown_ns != shown:
            on_disk = shown_ns
        if on_disk != told_ns:
            self._ctimes[node.upper_ino] = on_disk, told_ns
        if len(self._ctimes) > _CTIMES:
            del self._ctimes[next(iter(self._ctimes))]

    def _directory_links(self, node: UpperNode, found: os.stat_result) -> int:
        """The image's link count, more the directories that are new, less those that are covered."""
        if node.lower is None or node.anchor is not None:
            return found.st_nlink
        if node.links is None:
            lower = self.tree.node(node.lower)
            node.links = (lower.nlink if lower else 2) + sum(
                entry.is_dir(follow_symlinks=False) - self._covers_directory(node, os.fsencode(entry.name))
                for entry in self._scan(node)
            )
        return node.links

    def _covers_directory(self, node: UpperNode, name: bytes) -> bool:
        below = self.below(node, name)
        return below is not None and stat.S_ISDIR(below.mode)

    def _scan(self, node: UpperNode) -> Iterator[os.DirEntry[str]]:
        fd = self.upper.open(self.at(node), os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
        try:
            with os.scandir(fd) as entries:
                yield from entries
        finally:
            os.close(fd)

    def upper_names(self, node: UpperNode) -> tuple[list[bytes], set[bytes]]:
        """The names that a directory's upper half shows, and those of the image that it covers."""
        shown, covered = [], set()
        for entry in self._scan(node):
            name = os.fsencode(entry.name)
            covered.add(name)
            if not _is_whiteout_entry(entry):
                shown.append(name)
        return sorted(shown), covered

    def children(self, ino: int) -> Iterator[tuple[bytes, File]]:
        """All children of a directory, those with an upper half first."""
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

    def path(self, ino: int) -> bytes:
        """Where a directory is, without a slash before it; the root's is empty. Raises ENOENT."""
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
        """(directory, name) of every name under which a file of the image, not copied up, can be seen."""
        found = []
        for lower_parent, name in self.tree.names(ino):
            parent = self._directory_showing(lower_parent)
            if parent is not None:
                file = self.find(parent, name)
                if isinstance(file, Node) and file.ino == ino:
                    found.append((parent, name))
        return found

    def _directory_showing(self, lower: int) -> int | None:
        """The ino of the directory in which the names of the image's directory `lower` show, if any do."""
        way: list[tuple[bytes, int]] = []
        while lower != ROOT and lower not in self._moved:
            names = self.tree.names(lower)
            if not names:
                return None
            way.append((names[0][1], lower))
            lower = names[0][0]
        ino = ROOT if lower == ROOT else self._moved[lower].ino
        for name, wanted in reversed(way):
            file = self.find(ino, name)
            if file is None or _merged_with(file) != wanted:
                return None
            ino = file.ino
        return ino

    @contextlib.contextmanager
    def unlinking(self, file: File, directory: UpperNode, name: bytes) -> Iterator[None]:
        """Wrap what takes a name from a file: open handles keep it; if that fails, all stays."""
        if isinstance(file, Node):
            links = self._lower_attributes(file).nlink
            yield
            self._links[file.ino] = 0 if stat.S_ISDIR(file.mode) else max(0, links - 1)
            return
        called = file.is_called(directory, name)
        if called:
            file.anchor = self.upper.hold(self.at(file))
            file.parent = None
        try:
            yield
        except BaseException:
            if called:
                file.move(directory, name)
            raise

    def _load(self, directory: UpperNode, name: bytes, found: os.stat_result) -> UpperNode:
        """Make the node of something in the upper directory, from its overlay xattrs."""
        attributes = self.upper.overlay_xattrs(At(self.directory_fd(directory), name))
        node = UpperNode(UPPER_INO | found.st_ino, found.st_ino, stat.S_IFMT(found.st_mode), directory, name)
        origin = self._origin(attributes, node.kind) or self.tree.node(self._copies.get(found.st_ino, 0))
        if node.is_directory:
            below = None if attributes.get(OPAQUE) == b"y" else self._lower_file(directory, name, attributes)
            merged = below if below and stat.S_ISDIR(below.mode) else None
            node.lower = merged.ino if merged else None
            if known := merged or origin:
                self._take_ino(node, known)
            if node.lower is not None and REDIRECT in attributes:
                self._moved[node.lower] = node
            return node
        if METACOPY in attributes and stat.S_ISREG(node.kind):
            source = origin or self._lower_file(directory, name, attributes)
            if source and not origin and self.upper.is_ours:  # overlayfs wrote it; it may be renamed now
                self.set_redirect(At(self.directory_fd(directory), name), source.ino)
            node.data = source.ino if source else None
        if origin:
            self._take_ino(node, origin)
        return node

    def set_redirect(self, at: At, ino: int) -> None:
        """Write on a file where in the image its data is, as overlayfs needs it."""
        path = b"/" + self.tree.path(ino)
        if len(path) <= _LONGEST_REDIRECT:
            self.upper.set_overlay_xattr(at, REDIRECT, path)

    def _take_ino(self, node: UpperNode, lower: Node) -> None:
        if lower.ino not in self.nodes:
            node.ino = lower.ino

    def _origin(self, attributes: dict[bytes, bytes], kind: int) -> Node | None:
        text = attributes.get(ORIGIN, b"")
        lower = self.tree.node(int(text)) if text.isdigit() and len(text) < 16 else None
        return lower if lower and stat.S_IFMT(lower.mode) == kind else None

    def _lower_file(self, directory: UpperNode, name: bytes, attributes: dict[bytes, bytes]) -> Node | None:
        """The image's half: at the same name, or where a redirect says (a name, or a path from the root)."""
        redirect = attributes.get(REDIRECT, name)
        if not redirect.startswith(b"/"):
            return self.below(directory, redirect)
        found = self.tree.node(ROOT)
        for part in redirect.strip(b"/").split(b"/"):
            found = self.tree.lookup(found.ino, part) if found else None
        return found


def is_directory(file: File) -> bool:
    """Whether a file is a directory."""
    return stat.S_ISDIR(file.mode if isinstance(file, Node) else file.kind)


def _merged_with(file: File) -> int | None:
    if isinstance(file, Node):
        return file.ino
    return file.lower


def _is_whiteout_entry(entry: os.DirEntry[str]) -> bool:
    if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False) or entry.is_symlink():
        return False
    return is_whiteout(entry.stat(follow_symlinks=False))
