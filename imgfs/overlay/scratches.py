"""The scratches of a store: found by name, listed; made for a mount, or for an ordinary user's container.

Inside a user namespace the container's user seems to be root, and is not: the disk must hold nothing that the
user could not have made outside. So owners and modes are kept in an extended attribute
(`overlay.xattrs`, OVERRIDE), whichever namespace the scratch is mounted in next.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

from imgfs import syscalls
from imgfs.errors import ImgfsError, MountError, StoreError, UsageError
from imgfs.overlay.scratch import UPPER_ASIDE, Scratch
from imgfs.overlay.xattrs import OVERRIDE, USER, Owner, XattrFormat, format_override
from imgfs.owned.opening import open_owned_directory
from imgfs.owned.writing import new_directory, os_errors, sweep
from imgfs.tree.database import ROOT
from imgfs.tree.reader import Tree

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


_VOLATILE = ".mount-"  # begins the name of a scratch that goes with its mount


def find_scratch(text: str, store_root: Path) -> Scratch:
    """Return the scratch that `text` means: with a slash a directory, else a name in the store."""
    if "/" in text:
        return Scratch(Path(text).absolute(), text)
    if not _NAME.fullmatch(text):
        raise UsageError(
            f"{text!r} is not a name for a scratch (letters, digits, '_', '.', '-'), nor a directory"
        )
    return Scratch(store_root / "scratch" / text, text)


def list_scratches(store_root: Path) -> list[Scratch]:
    """Return the scratches with a name, in the store."""
    found = sorted((store_root / "scratch").glob("*"))
    scratches = [Scratch(path, path.name) for path in found if _NAME.fullmatch(path.name)]
    return [scratch for scratch in scratches if scratch.exists()]


def volatile_scratch(store_root: Path) -> Scratch:
    """Return a new scratch for one mount; those whose mounts have died are removed. Raises StoreError.

    Its directory is held until this process ends, so that it stays until its daemon has its lock.
    """
    parent = store_root / "scratch"
    with os_errors(parent):
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(parent, _VOLATILE, _remove_unused)
        held = new_directory(parent, _VOLATILE)
    return Scratch(held.path, held.path.name, volatile=True)


def _remove_unused(left: Path) -> None:
    """Remove a scratch whose mount has gone, unless its daemon is still there."""
    old = Scratch(left, left.name, volatile=True)
    if old.holder() is None:
        with contextlib.suppress(ImgfsError, OSError), old.locked("being removed"):
            old.remove()


def sync(mountpoint: Path) -> None:
    """Have what the kernel still holds of a mount's files written to its scratch."""
    try:
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"{mountpoint}: {error.strerror}") from error
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)


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
        _make_upper(scratch, owner, mode)
    except OSError as error:
        raise StoreError(f"{error.filename or scratch.directory}: {error.strerror}") from error


def _make_upper(scratch: Scratch, owner: Owner, mode: int) -> None:
    held = new_directory(scratch.directory, UPPER_ASIDE)
    try:
        os.setxattr(held.fd, OVERRIDE, format_override(owner))
        os.fchmod(held.fd, XattrFormat(USER, override=True).disk_mode(mode))
        held.path.rename(scratch.upper)
    finally:
        held.release()
