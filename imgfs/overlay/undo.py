"""Taking back a copy-up whose use has failed: of a file to be written or cut whose data could not be had.

A copy that differs in nothing from the image's file is of no use, and takes room on a disk that is full.
"""

from __future__ import annotations

import stat

from imgfs.overlay.at import At, times_kept
from imgfs.overlay.node import UpperNode
from imgfs.overlay.union import Union
from imgfs.overlay.xattrs import shown_xattrs
from imgfs.tree.reader import Node


def undo_copy_up(union: Union, node: UpperNode) -> None:
    """Have the image's file show again in place of its copy, if it was not changed or opened meanwhile.

    A file with several names keeps its copy: they could not all be taken back at once. Raises OSError.
    """
    lower = union.tree.node(node.data) if node.data is not None else None
    parent = node.parent
    if lower is None or parent is None or not _can_go(union, node, parent, lower):
        return
    at = At(union.directory_fd(parent), node.name)
    with times_kept(union.at(parent)):
        union.upper.unlink(at)
    parent.changes += 1
    union.drop(node)


def _can_go(union: Union, node: UpperNode, parent: UpperNode, lower: Node) -> bool:
    """Whether the image's file would show under the copy's only name, and look like it."""
    if node.opens or node.ino != lower.ino or len(union.tree.names(lower.ino)) != 1:
        return False
    below = union.below(parent, node.name)
    return below is not None and below.ino == lower.ino and _is_same(union, node, lower)


def _is_same(union: Union, node: UpperNode, lower: Node) -> bool:
    at = union.at(node)
    found = union.upper.stat(at)
    if found is None or found.st_nlink != 1:
        return False
    owner = union.upper.owner(at, found)
    shown = (owner.uid, owner.gid, owner.mode, found.st_size, found.st_mtime_ns)
    image = (lower.uid, lower.gid, stat.S_IMODE(lower.mode), lower.size, lower.mtime_ns)
    return shown == image and shown_xattrs(union.upper.xattrs(at)) == union.tree.xattrs(lower.ino)
