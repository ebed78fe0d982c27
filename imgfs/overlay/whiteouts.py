"""Bringing an upper directory that others have written to the one form the union knows.

fuse-overlayfs says with files named `.wh.NAME` and `.wh..wh..opq`, where it may not make devices, or beside
them, what overlayfs says with devices and attributes. They are turned into those: but only where
fuse-overlayfs was the writer, which lets no user make such a name. Anywhere else a file of that name is a
file: overlayfs lets every user make it, and it must not delete what the image has. Only a layer says by names
what is deleted (OCI layer.md, "Whiteouts").
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from imgfs.overlay import fdtree
from imgfs.overlay.at import At, times_kept
from imgfs.overlay.upper import Upper
from imgfs.overlay.xattrs import is_whiteout
from imgfs.tree.paths import WHITEOUT_PREFIX

_OPAQUE_DEVICE = b".wh..opq"
_OPAQUE_FILES = (b".wh..wh..opq", _OPAQUE_DEVICE)  # fuse-overlayfs leaves both, the latter as a device
_THEIR_WORK = "work"  # in the work directory: fuse-overlayfs's and overlayfs's own


def is_of_fuse_overlayfs(work: Path) -> bool:
    """Whether fuse-overlayfs has used a work directory, and overlayfs never since. Raises OSError.

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
