"""What a name or an ino of the union means: its files with an upper half, as they are met, or the tree's own.

A file with an upper half is an `UpperNode`; any other is the tree's own `Node`, and nothing is kept for it.
Both answer to one ino: the image's, if the file comes from the image. The upper directory is asked each time:
it is the truth, and this process alone changes it. All of this belongs to one thread.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from typing import TypeAlias

from imgfs.overlay.node import UPPER_INO, At, Directories, OpenFile, Place, UpperNode, error
from imgfs.overlay.upper import Upper
from imgfs.overlay.xattrs import METACOPY, OPAQUE, ORIGIN, REDIRECT, is_whiteout
from imgfs.tree.database import ROOT, Node
from imgfs.tree.reader import Tree

_LONGEST_REDIRECT = 1024  # bytes: some file systems have no more room than this for all attributes of a file

File: TypeAlias = UpperNode | Node


class UnionLookup:
    """The files of an upper directory over a tree. Raises OSError."""

    def __init__(self, tree: Tree, upper: Upper, copies: Mapping[int, int] | None = None) -> None:
        """`copies` are files known to be the image's: by their ino in the upper directory, the image's."""
        self.tree = tree
        self.upper = upper
        self.nodes: dict[int, UpperNode] = {}
        self._by_upper: dict[int, UpperNode] = {}
        self._directories = Directories(upper.root)
        self._copies = copies or {}
        self._links: dict[int, int] = {}  # names left of an image's file that has lost some
        self._moved: dict[int, UpperNode] = {}  # by the image's directory: where a redirect shows it
        found = os.fstat(upper.root)
        self.root = UpperNode(ROOT, found.st_ino, stat.S_IFDIR, lower=ROOT, listed=ROOT, counted=False)
        self.add(self.root)

    def close(self) -> None:
        """Let go of all descriptors."""
        self._directories.close()
        for node in self.nodes.values():
            node.close()
        self.nodes.clear()

    def find(self, parent: int, name: bytes) -> File | None:
        """Return what a name in a directory means."""
        return self.find_with_status(parent, name)[0]

    def find_with_status(self, parent: int, name: bytes) -> tuple[File | None, os.stat_result | None]:
        """Return what a name in a directory means, and the status of its upper half, if there is one."""
        directory = self.nodes.get(parent)
        if directory is None:
            return self.tree.lookup(parent, name), None
        found = self.upper.stat(At(self.directory_fd(directory), name))
        if found is None:
            return self.below(directory, name), None
        return None if is_whiteout(found) else self.node_at(directory, name, found), found

    def below(self, directory: UpperNode, name: bytes) -> Node | None:
        """Return what the image has under a name, whether or not it shows."""
        return None if directory.lower is None else self.tree.lookup(directory.lower, name)

    def file(self, ino: int) -> File:
        """Return the file with that ino; raises ENOENT."""
        found = self.nodes.get(ino) or self.tree.node(ino)
        if found is None:
            raise error(errno.ENOENT)
        return found

    def node_at(self, directory: UpperNode, name: bytes, found: os.stat_result) -> UpperNode:
        """Return the node of what the upper directory has at a name."""
        node = self._by_upper.get(found.st_ino)
        if node is None:
            node = self._load(directory, name, found)
            self.add(node)
        elif node.parent is None and node is not self.root:
            node.move(directory, name)
        return node

    def node_new(self, directory: UpperNode, name: bytes, found: os.stat_result) -> UpperNode:
        """Return the node of something that was just made."""
        kind = stat.S_IFMT(found.st_mode)
        ino = UPPER_INO | found.st_ino
        node = UpperNode(ino, found.st_ino, kind, directory, name, clean=True, incapable=True)
        self.add(node)
        return node

    def node_nameless(self, found: os.stat_result, anchor: int, ino: int = 0) -> UpperNode:
        """Return the node of something without a name, that is held by the descriptor `anchor`.

        It is new, if it has no `ino`.
        """
        kind = stat.S_IFMT(found.st_mode)
        node = UpperNode(ino or UPPER_INO | found.st_ino, found.st_ino, kind, anchor=anchor, incapable=True)
        self.add(node)
        return node

    def add(self, node: UpperNode) -> None:
        """Have a node found by its ino, and by its upper half's."""
        self.nodes[node.ino] = node
        self._by_upper[node.upper_ino] = node

    def drop(self, node: UpperNode) -> None:
        """Forget a node: another lookup finds it again, if it has a name."""
        self.nodes.pop(node.ino, None)
        self._by_upper.pop(node.upper_ino, None)
        self._directories.drop(node)
        if node.kept:
            self.upper.let_go(node.ino)
        node.close()

    def forget(self, ino: int, count: int) -> None:
        """Drop `count` references that the kernel held to a file."""
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
        """Return where a node's upper half is."""
        return self._directories.at(node)

    def place(self, node: UpperNode) -> Place:
        """Return a node's upper half for a system call: its descriptor if it is open, else its path."""
        return self.at(node) if node.fd is None else OpenFile(node.fd)

    def held(self, node: UpperNode) -> int | None:
        """Return a descriptor, perhaps of O_PATH, that a node's upper half has anyway; None if there is none.

        By it a stat(2) takes half as long as by a name.
        """
        if node.fd is not None:
            return node.fd
        return self._directories.held(node) if node.anchor is None else node.anchor

    def directory_fd(self, node: UpperNode) -> int:
        """Return a descriptor (O_PATH) of a directory's upper half; good for some dozen calls more."""
        return self._directories.fd(node)

    def _load(self, directory: UpperNode, name: bytes, found: os.stat_result) -> UpperNode:
        """Make the node of something in the upper directory, from its overlay xattrs."""
        attributes = self.upper.overlay_xattrs(At(self.directory_fd(directory), name))
        node = UpperNode(UPPER_INO | found.st_ino, found.st_ino, stat.S_IFMT(found.st_mode), directory, name)
        origin = self._origin(attributes, node.kind) or self.tree.node(self._copies.get(found.st_ino, 0))
        if node.is_directory:
            below = None if attributes.get(OPAQUE) == b"y" else self._lower_file(directory, name, attributes)
            merged = below if below and stat.S_ISDIR(below.mode) else None
            node.lower = node.listed = merged.ino if merged else None
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

    def image_data(self, at: At) -> int | None:
        """Return the image's file that a file without a name still has the bytes of."""
        attributes = self.upper.overlay_xattrs(at)
        if METACOPY not in attributes:
            return None
        source = self._origin(attributes, stat.S_IFREG) or self._lower_file(self.root, b"", attributes)
        return source.ino if source else None

    def set_redirect(self, at: Place, ino: int) -> None:
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
        """Return the image's half: of the same name, or where a redirect says (a name, or a path)."""
        redirect = attributes.get(REDIRECT, name)
        if not redirect.startswith(b"/"):
            return self.below(directory, redirect)
        found = self.tree.node(ROOT)
        for part in redirect.strip(b"/").split(b"/"):
            found = self.tree.lookup(found.ino, part) if found else None
        return found


def is_directory(file: File) -> bool:
    """Return whether a file is a directory."""
    return stat.S_ISDIR(file.mode if isinstance(file, Node) else file.kind)
