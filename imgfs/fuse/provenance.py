"""Virtual extended attributes: where a file of the image comes from, and how much of it is in the store.

    user.imgfs.layer    the layer that brought it: its number from 1, and its digest
    user.imgfs.step     the command that made that layer, as the image's history has it
    user.imgfs.digest   the SHA-256 of a regular file's contents; what is not in the store is fetched for it
    user.imgfs.here     how many bytes of a regular file are in the store

They are in no listing, so nothing copies them. The kernel has user attributes of regular files and
directories only (xattr(7)). What a layer itself says by such a name is what is shown.
"""

from __future__ import annotations

import errno
import hashlib
import stat
from functools import partial

from imgfs.content.content import Content
from imgfs.errors import InvalidImage
from imgfs.fuse.errors import FUSEError
from imgfs.fuse.interrupts import GiveUp
from imgfs.fuse.views import VIRTUAL_XATTRS, PendingRead
from imgfs.image.resolve import Resolved
from imgfs.image.versions import steps_of
from imgfs.layer.entry import Extent
from imgfs.layer.limits import HolesBudget
from imgfs.tree.reader import Tree

_PIECE = 1 << 20  # bytes that are hashed at once
_MOST = 4096  # digests that are kept


class Provenance:
    """The virtual attributes of the files of a tree, whose layers are the lowest of `resolved`."""

    def __init__(self, resolved: Resolved, tree: Tree, content: Content) -> None:
        self._tree = tree
        self._content = content
        self._layers = resolved.manifest.layers
        self._steps = {step.layer: step.command for step in steps_of(resolved)}
        self._digests: dict[int, bytes] = {}  # by ino

    def value(self, ino: int, name: bytes) -> bytes | PendingRead | None:
        """Return the value of a name that begins with VIRTUAL_XATTRS, None if there is no such attribute."""
        layer, extents, size = self._tree.contents(ino)
        match name.removeprefix(VIRTUAL_XATTRS):
            case b"layer" if self._layers:
                return f"{layer + 1} {self._layers[layer].digest}".encode()
            case b"step" if layer + 1 in self._steps:
                return self._steps[layer + 1].encode(errors="replace")
            case b"here" if self._is_regular(ino):
                return b"%d" % self._content.bytes_here(layer, extents, size)
            case b"digest" if self._is_regular(ino):
                return self._digests.get(ino) or PendingRead(
                    partial(self._hash, ino, layer, extents, size),
                    is_local=self._content.is_here(layer, extents, 0, size),
                )
        return None

    def _is_regular(self, ino: int) -> bool:
        node = self._tree.node(ino)
        return node is not None and stat.S_ISREG(node.mode)

    def _hash(self, ino: int, layer: int, extents: tuple[Extent, ...], size: int, given_up: GiveUp) -> bytes:
        """Return the digest of a file's contents, which is kept. Raises ImgfsError, InterruptedError.

        EFBIG for holes without end.
        """
        try:
            HolesBudget().take(size, sum(extent.length for extent in extents))
        except InvalidImage as error:
            raise FUSEError(errno.EFBIG) from error
        hasher = hashlib.sha256()
        for offset in range(0, size, _PIECE):
            length = min(_PIECE, size - offset)
            hasher.update(self._content.read(layer, extents, offset, length, given_up))
        if len(self._digests) < _MOST:
            self._digests[ino] = f"sha256:{hasher.hexdigest()}".encode()
        return f"sha256:{hasher.hexdigest()}".encode()
