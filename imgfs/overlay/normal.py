"""Bringing an upper directory that others have written to the one form the union knows.

fuse-overlayfs says with files named `.wh.NAME` and `.wh..wh..opq`, where it may not make devices, or beside
them, what overlayfs says with devices and attributes. They are turned into those.
"""

from __future__ import annotations

import contextlib

from imgfs.overlay import deep
from imgfs.overlay.upper import At, Upper, times_kept
from imgfs.tree.paths import WHITEOUT_PREFIX

_OPAQUE_FILES = (b".wh..wh..opq", b".wh..opq")  # fuse-overlayfs leaves both, the latter as a device


def normalise(upper: Upper) -> None:
    """Turn whiteout files into whiteouts, in the whole upper directory; raises OSError."""
    for directory, names in deep.walk(upper.root):
        wanted = [name for name in names if name.startswith(WHITEOUT_PREFIX)]
        if wanted:
            with times_kept(At.anchor(directory)):
                for name in wanted:
                    _translate(upper, directory, name)


def _translate(upper: Upper, directory: int, name: bytes) -> None:
    hidden = At(directory, name.removeprefix(WHITEOUT_PREFIX))
    if name in _OPAQUE_FILES:
        upper.mark_opaque(At.anchor(directory))
    elif not hidden.name.startswith(WHITEOUT_PREFIX) and hidden.name not in (b"", b".", b".."):
        with contextlib.suppress(FileExistsError):
            upper.whiteout(hidden)
    upper.discard(At(directory, name))
