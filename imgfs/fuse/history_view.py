"""What a mount with `-o history` shows beside the image: the View of `/.imgfs/layers/N`.

The upper 15 bits of an ino say which tree a file is of, the lower 48 its number there: 0 is the image itself,
N the tree after N layers, _OWN what only this view has. All trees are of the same layers' bytes.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable, Iterator, Sequence

from imgfs.errors import MountError
from imgfs.fuse.errors import FUSEError
from imgfs.fuse.opcodes import ROOT_INO
from imgfs.fuse.protocol import Statfs
from imgfs.fuse.views import Children, PendingRead, TreeView
from imgfs.tree.database import Node
from imgfs.tree.reader import Tree

NAME = b".imgfs"
_LAYERS = b"layers"
_SHIFT = 48
_NUMBER = (1 << _SHIFT) - 1
_OWN = 0x7FFF
_TOP_INO, _LAYERS_INO = (_OWN << _SHIFT) | 1, (_OWN << _SHIFT) | 2
_LAST = 1 << 62  # the position of NAME in the root, behind those of the tree


class HistoryView:
    """An image, and its states after each of its layers, the lowest first."""

    needs_opens = False

    def __init__(self, top: TreeView, states: Sequence[TreeView]) -> None:
        self._top = top
        self._states = states
        self._layers = len(states)

    @staticmethod
    def check(tree: Tree) -> None:
        """Raise MountError if there is no room for the history beside an image's own files."""
        if tree.lookup(ROOT_INO, NAME):
            raise MountError(f"-o history: the image itself has a file /{NAME.decode()}")
        if tree.largest_ino() > _NUMBER:
            raise MountError("-o history: the tree's numbers are too large")

    def lookup(self, parent: int, name: bytes) -> Node | None:
        """See View."""
        if parent == ROOT_INO and name == NAME:
            return self.attributes(_TOP_INO)
        if parent == _TOP_INO:
            return self.attributes(_LAYERS_INO) if name == _LAYERS else None
        if parent == _LAYERS_INO:
            number = int(name) if name.isdigit() and not name.startswith(b"0") and len(name) < 6 else 0
            return self._root_after(number) if 1 <= number <= self._layers else None
        number, view, ino = self._at(parent)
        found = view.lookup(ino, name)
        return _moved(found, number) if found else None

    def attributes(self, ino: int) -> Node:
        """See View."""
        if ino in (_TOP_INO, _LAYERS_INO):
            links = 3 if ino == _TOP_INO else 2 + self._layers
            mode = stat.S_IFDIR | 0o555
            return self._top.attributes(ROOT_INO)._replace(
                ino=ino, mode=mode, uid=0, gid=0, nlink=links, has_xattrs=False
            )
        number, view, own = self._at(ino)
        node = view.attributes(own)
        return node._replace(nlink=node.nlink + 1) if ino == ROOT_INO else _moved(node, number)

    def children(self, directory: int) -> Children[Node]:
        """See View."""
        return self._children

    def child_attributes(self, child: Node) -> Node:
        """See View."""
        return child

    def reference(self, child: Node) -> None:
        """Count nothing, as `TreeView`."""

    def readlink(self, ino: int) -> bytes:
        """See View."""
        _, view, own = self._at(ino)
        return view.readlink(own)

    def xattr(self, ino: int, name: bytes) -> bytes | PendingRead | None:
        """See View."""
        if ino >> _SHIFT == _OWN:
            return None
        _, view, own = self._at(ino)
        return view.xattr(own, name)

    def xattrs(self, ino: int) -> Iterable[bytes]:
        """See View."""
        if ino >> _SHIFT == _OWN:
            return ()
        _, view, own = self._at(ino)
        return view.xattrs(own)

    def open(self, ino: int) -> int:
        """See View."""
        _, view, own = self._at(ino)
        return view.open(own)

    def read(self, ino: int, offset: int, size: int) -> bytes | memoryview | PendingRead:
        """See View."""
        _, view, own = self._at(ino)
        return view.read(own, offset, size)

    def seek(self, ino: int, offset: int, whence: int) -> int:
        """See View."""
        _, view, own = self._at(ino)
        return view.seek(own, offset, whence)

    def birth_ns(self, ino: int) -> None:
        """See View."""

    def files_of(self, layer: int) -> Iterator[int]:
        """See View."""
        for number, view in enumerate((self._top, *self._states)):
            yield from (ino | (number << _SHIFT) for ino in view.files_of(layer))

    def statfs(self) -> Statfs:
        """Return the size of the image itself."""
        return self._top.statfs()

    def _children(self, directory: int, position: int) -> Iterator[tuple[int, bytes, Node]]:
        if directory == _TOP_INO:
            yield from [(1, _LAYERS, self.attributes(_LAYERS_INO))][position:]
        elif directory == _LAYERS_INO:
            for number in range(position + 1, self._layers + 1):
                yield number, b"%d" % number, self._root_after(number)
        elif position < _LAST:
            number, view, ino = self._at(directory)
            for at, name, node in view.children(ino)(ino, position):
                yield at, name, _moved(node, number)
            if directory == ROOT_INO:
                yield _LAST, NAME, self.attributes(_TOP_INO)

    def _root_after(self, number: int) -> Node:
        return _moved(self._states[number - 1].attributes(ROOT_INO), number)

    def _at(self, ino: int) -> tuple[int, TreeView, int]:
        """Return which tree an ino is of, as a number and as a view, and its number there. Raises ENOENT."""
        number = ino >> _SHIFT
        if number == 0:
            return 0, self._top, ino
        if number > self._layers:
            raise FUSEError(errno.ENOENT)
        return number, self._states[number - 1], ino & _NUMBER


def _moved(node: Node, number: int) -> Node:
    return node._replace(ino=node.ino | (number << _SHIFT)) if number else node
