"""The scratch of an ordinary user's container, as `imgfs mount --scratch` makes it: either goes on with it.

Inside a user namespace one seems to be root, and is not: the disk is to hold nothing that the user himself
could not have made. Owners are kept aside (`imgfs.overlay.xattrs`), whatever namespace the next mount is in.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from imgfs.errors import StoreError
from imgfs.overlay.scratch import Scratch
from imgfs.overlay.xattrs import OVERRIDE, USER, Owner, XattrFormat, format_override
from imgfs.tree.reader import Tree
from imgfs.tree.schema import ROOT


def make_upper(scratch: Scratch, tree: Path) -> None:
    """Have a scratch keep owners aside, if it is new; `tree` is the image's. Raises StoreError."""
    if os.path.lexists(scratch.upper):
        return
    with Tree(tree) as opened:
        root = opened.node(ROOT)
    mode = root.mode if root else stat.S_IFDIR | 0o755
    owner = Owner(root.uid if root else 0, root.gid if root else 0, stat.S_IMODE(mode))
    aside = scratch.directory / ".upper-new"
    try:
        aside.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.setxattr(aside, OVERRIDE, format_override(owner))
        aside.chmod(XattrFormat(USER, override=True).disk_mode(mode))
        aside.rename(scratch.upper)
    except OSError as error:
        raise StoreError(f"{error.filename or scratch.directory}: {error.strerror}") from error
