"""The directories of an upper directory that are open: a file is named by one and a name, whatever moves."""

from __future__ import annotations

import os
from collections import OrderedDict

from imgfs.overlay.at import At
from imgfs.overlay.node import UpperNode

_OPEN = 512  # directories whose descriptors are kept at hand
_KEPT_ON_THE_WAY = 64  # a deeper path's directories are not all kept: that would close what is in use
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directories:
    """The directories below `root`, a descriptor; the latest used stay open. Raises OSError."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._fds: OrderedDict[UpperNode, int] = OrderedDict()

    def at(self, node: UpperNode) -> At:
        """Where a node is: by its name, or by the descriptor that holds it."""
        if node.anchor is not None:
            return At.anchor(node.anchor)
        if node.parent is None:
            return At.anchor(self._root)
        return At(self.fd(node.parent), node.name)

    def fd(self, node: UpperNode) -> int:
        """A descriptor (O_PATH) of a directory; good for some dozen calls more."""
        fd = self._fds.get(node)
        if fd is not None:
            self._fds.move_to_end(node)
            return fd
        chain = [node]
        while chain[-1].parent is not None and chain[-1].parent not in self._fds:
            chain.append(chain[-1].parent)
        return self._open_chain(chain[::-1])

    def drop(self, node: UpperNode) -> None:
        """Close a directory that is gone, if it is open."""
        fd = self._fds.pop(node, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close them all."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _open_chain(self, chain: list[UpperNode]) -> int:
        """Open directories one in the other, and keep the last few."""
        fd = -1
        for depth, node in enumerate(chain):
            before = fd
            fd = self._open_directory(node, before)
            if len(chain) - depth <= _KEPT_ON_THE_WAY:
                self._fds[node] = fd
            if before >= 0 and len(chain) - depth >= _KEPT_ON_THE_WAY:
                os.close(before)
        while len(self._fds) > _OPEN:
            _, oldest = self._fds.popitem(last=False)
            os.close(oldest)
        return fd

    def _open_directory(self, node: UpperNode, parent_fd: int) -> int:
        if node.anchor is not None:
            return os.dup(node.anchor)
        if node.parent is None:
            return os.dup(self._root)
        return os.open(node.name, _DIRECTORY, dir_fd=parent_fd if parent_fd >= 0 else self._fds[node.parent])
