"""Scratches that other programs mount, too: what they write is brought to the form that the union knows.

overlayfs keeps an index of files of several names (kernel, overlayfs.rst, "Index"). It gives such a file an
upper half under the name that was written to only; for the others it finds that in its index, `work/index`,
by the file handle of the image's file. No other program reads the index. So, while overlayfs is mounted,
imgfs has it copy up the other names too, before the upper directory is read; after the unmount imgfs links
them there and removes the index: the scratch has the form that imgfs gives it.

fuse-overlayfs says with files named `.wh.NAME` and `.wh..wh..opq`, where it may not make devices, or beside
them, what overlayfs says with devices and attributes. They are turned into those: but only where
fuse-overlayfs was the writer, which lets no user make such a name. Anywhere else a file of that name is a
file: overlayfs lets every user make it, and it must not delete what the image has. Only a layer says by names
what is deleted (OCI layer.md, "Whiteouts").

Either expects whole files: `complete` fills in the data of those that have only their attributes (metacopy).
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from imgfs import syscalls
from imgfs.errors import ImgfsError, describe
from imgfs.overlay import fdtree
from imgfs.overlay.copyup import CopyUp
from imgfs.overlay.copyup_data import DataCopyUp
from imgfs.overlay.node import At, UpperNode, times_kept
from imgfs.overlay.overlay import Overlay
from imgfs.overlay.union import Union
from imgfs.overlay.upper import Upper
from imgfs.overlay.xattrs import METACOPY, ORIGIN, is_whiteout
from imgfs.tree.paths import WHITEOUT_PREFIX
from imgfs.tree.reader import Tree

HandleLookup = Callable[[bytes], int | None]  # the ino of the image's file that a handle of overlayfs's means

INDEX = "index"  # in the work directory
KERNELS_ORIGIN = b"origin"  # a mark of the kernel's on the root: which image's files the index is of
_LINKS = b"nlink"  # the kernel's mark: how far its count of names is from the one on disk
_OPAQUE_DEVICE = b".wh..opq"
_OPAQUE_FILES = (b".wh..wh..opq", _OPAQUE_DEVICE)  # fuse-overlayfs leaves both, the latter as a device
_THEIR_WORK = "work"  # in the work directory: fuse-overlayfs's and overlayfs's own
log = logging.getLogger(__name__)


def no_handles(_: bytes) -> int | None:
    """Return None: the `HandleLookup` of a caller that cannot read the kernel's handles."""
    return None


class IndexEntry(NamedTuple):
    """A file in the index: what it is a copy of, and where."""

    ino: int
    upper_ino: int
    name: bytes


def read_index(work: Path, ino_of: HandleLookup) -> list[IndexEntry]:
    """Return what is in the index of a work directory, if there is one; raises OSError."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(work / INDEX) as entries:
        for entry in entries:
            about = entry.stat(follow_symlinks=False)
            ino = None if is_whiteout(about) else ino_of(_handle(entry.name))
            if ino is not None:
                found.append(IndexEntry(ino, about.st_ino, os.fsencode(entry.name)))
    return found


def copies(index: list[IndexEntry]) -> dict[int, int]:
    """Return the ino of the image's file, by that of its copy in the upper directory."""
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
            _describe_copy(union, At(fd, one.name), one.ino)
        _visit_all(union)
        for one in index:
            _link_names(overlay.copyup, union, At(fd, one.name), one.ino)
            os.unlink(one.name, dir_fd=fd)
    finally:
        os.close(fd)


def has_entries(work: Path) -> bool:
    """Return whether there is anything in the index still."""
    with os.scandir(work / INDEX) as entries:
        return any(not is_whiteout(entry.stat(follow_symlinks=False)) for entry in entries)


def _describe_copy(union: Union, at: At, ino: int) -> None:
    """Write on a file what imgfs's own copies say, and take off what only the kernel's index needs."""
    union.upper.set_overlay_xattr(at, ORIGIN, b"%d" % ino)
    union.upper.remove_overlay_xattrs(at, _LINKS)
    if METACOPY in union.upper.overlay_xattrs(at):
        union.set_redirect(at, ino)


def _link_names(copyup: CopyUp, union: Union, at: At, ino: int) -> None:
    for parent, name in union.visible_names(ino):
        directory = copyup.up(parent)
        with times_kept(union.at(directory)):
            union.upper.link(at, At(union.directory_fd(directory), name))
        directory.changes += 1


def _visit_all(union: Union) -> None:
    """Look at every directory of the upper one: so it is known where those of the image have moved."""
    for _ in _upper_nodes(union):
        pass


def _upper_nodes(union: Union) -> Iterator[UpperNode]:
    """Yield every file that the upper directory has, but for its root."""
    ahead = [union.root]
    while ahead:
        directory = ahead.pop()
        for name in union.upper_names(directory)[0]:
            file = union.find(directory.ino, name)
            if isinstance(file, UpperNode):
                yield file
                if file.is_directory:
                    ahead.append(file)


def _handle(name: str) -> bytes:
    try:
        return bytes.fromhex(name)
    except ValueError:  # what the kernel is about to make, or has left
        return b""


def is_of_fuse_overlayfs(work: Path) -> bool:
    """Return whether fuse-overlayfs has used a work directory, and overlayfs never since. Raises OSError.

    Both have a directory `work` in it. fuse-overlayfs makes it with permissions, if there is none (its
    main.c); overlayfs makes it anew at each mount, without any (fs/overlayfs/super.c, ovl_workdir_create),
    and that is what fuse-overlayfs leaves then.
    """
    try:
        found = os.stat(work / _THEIR_WORK, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) != 0


def convert_fuse_overlayfs(upper: Upper, work: Path) -> None:
    """Turn fuse-overlayfs's whiteout files into whiteouts, and leave files that are files; raises OSError."""
    if is_of_fuse_overlayfs(work):
        convert_whiteout_files(upper)
        return
    for directory, names in fdtree.walk(upper.root):
        if _OPAQUE_DEVICE in names and _is_device(directory, _OPAQUE_DEVICE):
            with times_kept(At.anchor(directory)):
                for name in _OPAQUE_FILES:
                    _convert(upper, directory, name)


def _is_device(directory: int, name: bytes) -> bool:
    """Whether it is a device as only fuse-overlayfs leaves it: overlayfs covers names of the image alone,
    which has none like it."""
    return is_whiteout(os.stat(name, dir_fd=directory, follow_symlinks=False))


def convert_whiteout_files(upper: Upper) -> None:
    """Turn whiteout files into whiteouts, in the whole upper directory; raises OSError."""
    for directory, names in fdtree.walk(upper.root):
        wanted = [name for name in names if name.startswith(WHITEOUT_PREFIX)]
        if wanted:
            with times_kept(At.anchor(directory)):
                for name in wanted:
                    _convert(upper, directory, name)


def _convert(upper: Upper, directory: int, name: bytes) -> None:
    hidden = At(directory, name.removeprefix(WHITEOUT_PREFIX))
    if name in _OPAQUE_FILES:
        upper.set_opaque(At.anchor(directory))
    elif not hidden.name.startswith(WHITEOUT_PREFIX) and hidden.name not in (b"", b".", b".."):
        with contextlib.suppress(FileExistsError):
            upper.whiteout(hidden)
    upper.discard(At(directory, name))


def complete(overlay: Overlay) -> None:
    """Fill in the data of all files; what fails is logged, and stays metacopy."""
    try:
        _complete_all(overlay)
    except (ImgfsError, OSError) as error:
        log.warning("some files have been left without their data, as metacopy: %s", describe(error))


def _complete_all(overlay: Overlay) -> None:
    for node in _upper_nodes(overlay.union):
        if not node.is_directory and node.data is not None:
            _complete(overlay.data_copyup, node)


def _complete(copyup: DataCopyUp, node: UpperNode) -> None:
    copy = copyup.fill(node, sys.maxsize)
    try:
        copy()
    except BaseException:
        copyup.not_filled(node)
        raise
    copyup.filled(node)
