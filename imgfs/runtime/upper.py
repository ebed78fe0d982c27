"""The upper directory of an ordinary user's container, as `imgfs mount --scratch` can go on with it.

Inside a user namespace the container's user seems to be root, and is not: the disk must hold nothing that the
user could not have made outside. So owners and modes are kept in an extended attribute
(`imgfs.overlay.xattrs`, OVERRIDE), whichever namespace the scratch is mounted in next.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from imgfs.errors import StoreError
from imgfs.overlay.scratch import UPPER_ASIDE, Scratch
from imgfs.overlay.xattrs import OVERRIDE, USER, Owner, XattrFormat, format_override
from imgfs.owned.held import new_directory, sweep
from imgfs.owned.opening import open_owned_directory
from imgfs.tree.reader import Tree
from imgfs.tree.schema import ROOT


def make_upper(scratch: Scratch, tree: Path) -> None:
    """Make the upper directory of a new scratch, with the owner of the root of the image's `tree` set aside.

    A scratch that has an upper directory is left as it is. Raises StoreError.
    """
    if os.path.lexists(scratch.upper):
        return
    with Tree(tree) as opened:
        root = opened.node(ROOT)
    mode = root.mode if root else stat.S_IFDIR | 0o755
    owner = Owner(root.uid if root else 0, root.gid if root else 0, stat.S_IMODE(mode))
    try:
        os.close(open_owned_directory(scratch.directory, make=True))
        sweep(scratch.directory, UPPER_ASIDE, os.rmdir)
        _make(scratch, owner, mode)
    except OSError as error:
        raise StoreError(f"{error.filename or scratch.directory}: {error.strerror}") from error


def _make(scratch: Scratch, owner: Owner, mode: int) -> None:
    held = new_directory(scratch.directory, UPPER_ASIDE)
    try:
        os.setxattr(held.fd, OVERRIDE, format_override(owner))
        os.fchmod(held.fd, XattrFormat(USER, override=True).disk_mode(mode))
        held.path.rename(scratch.upper)
    finally:
        held.release()
