"""Files of several names that overlayfs has copied up: its index (kernel, overlayfs.rst, "Index").

The kernel gives such a file an upper half under the name that was written to only; for the others it finds
that in its index, `work/index`, by the file handle of the image's file. No other program reads the index.
So, while overlayfs is mounted, imgfs has it copy up the other names too, before the upper directory is read;
after the unmount imgfs links them there and removes the index: the scratch has the form that imgfs gives it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from imgfs import syscalls
from imgfs.overlay.at import At, times_kept
from imgfs.overlay.copyup import CopyUp
from imgfs.overlay.node import UpperNode
from imgfs.overlay.overlay import Overlay
from imgfs.overlay.union import Union
from imgfs.overlay.upper import Upper
from imgfs.overlay.xattrs import METACOPY, ORIGIN, is_whiteout
from imgfs.tree.reader import Tree

HandleLookup = Callable[[bytes], int | None]  # the ino of the image's file that a handle of overlayfs's means

INDEX = "index"  # in the work directory
KERNELS_ORIGIN = b"origin"  # a mark of the kernel's on the root: which image's files the index is of
_LINKS = b"nlink"  # the kernel's mark: how far its count of names is from the one on disk


def no_handles(_: bytes) -> int | None:
    """Return None: the `HandleLookup` of a caller that cannot read the kernel's handles."""
    return None


class IndexEntry(NamedTuple):
    """A file in the index: what it is a copy of, and where."""

    ino: int
    upper_ino: int
    name: bytes


def read_index(work: Path, ino_of: HandleLookup) -> list[IndexEntry]:
    """What is in the index of a work directory, if there is one; raises OSError."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(work / INDEX) as entries:
        for entry in entries:
            about = entry.stat(follow_symlinks=False)
            ino = None if is_whiteout(about) else ino_of(_handle(entry.name))
            if ino is not None:
                found.append(IndexEntry(ino, about.st_ino, os.fsencode(entry.name)))
    return found


def copies(index: list[IndexEntry]) -> dict[int, int]:
    """The ino of the image's file, by that of its copy in the upper directory."""
    return {one.upper_ino: one.ino for one in index}


def copy_up_index(tree: Tree, upper: Upper, index: list[IndexEntry], mountpoint: Path) -> None:
    """Have overlayfs, mounted at `mountpoint`, copy up all names of what is in its index. Raises OSError."""
    with contextlib.closing(Union(tree, upper, copies(index))) as union:
        _visit_all(union)
        for one in index:
            for parent, name in union.visible_names(one.ino):
                path = os.path.join(os.fsencode(mountpoint), union.path(parent), name)
                with contextlib.suppress(FileNotFoundError):  # meanwhile
                    syscalls.rewrite_atime(path)


def merge_index(overlay: Overlay, index: list[IndexEntry], work: Path) -> None:
    """Link the files in the index to all their names, and take them out of it. Raises OSError.

    Overlayfs must not be mounted, nor may `overlay` have been asked for anything yet.
    """
    union = overlay.union
    fd = os.open(work / INDEX, os.O_PATH | os.O_DIRECTORY)
    try:
        for one in index:
            _describe(union, At(fd, one.name), one.ino)
        _visit_all(union)
        for one in index:
            _link(overlay.copyup, union, At(fd, one.name), one.ino)
            os.unlink(one.name, dir_fd=fd)
    finally:
        os.close(fd)


def has_entries(work: Path) -> bool:
    """Whether there is anything in the index still."""
    with os.scandir(work / INDEX) as entries:
        return any(not is_whiteout(entry.stat(follow_symlinks=False)) for entry in entries)


def _describe(union: Union, at: At, ino: int) -> None:
    """Write on a file what imgfs's own copies say, and take off what only the kernel's index needs."""
    union.upper.set_overlay_xattr(at, ORIGIN, b"%d" % ino)
    union.upper.remove_overlay_xattrs(at, _LINKS)
    if METACOPY in union.upper.overlay_xattrs(at):
        union.set_redirect(at, ino)


def _link(copyup: CopyUp, union: Union, at: At, ino: int) -> None:
    for parent, name in union.visible_names(ino):
        directory = copyup.up(parent)
        with times_kept(union.at(directory)):
            copyup.link(at, At(union.directory_fd(directory), name))
        directory.changes += 1


def _visit_all(union: Union) -> None:
    """Look at every directory of the upper one: so it is known where those of the image have moved."""
    ahead = [union.root]
    while ahead:
        directory = ahead.pop()
        for name in union.upper_names(directory)[0]:
            file = union.find(directory.ino, name)
            if isinstance(file, UpperNode) and file.is_directory:
                ahead.append(file)


def _handle(name: str) -> bytes:
    try:
        return bytes.fromhex(name)
    except ValueError:  # what the kernel is about to make, or has left
        return b""
