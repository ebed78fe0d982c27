"""The scratches of a store: found by name, listed, and made for one mount."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from imgfs import syscalls
from imgfs.errors import ImgfsError, MountError, UsageError
from imgfs.overlay.scratch import Scratch
from imgfs.owned.held import new_directory, sweep
from imgfs.owned.writing import os_errors

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


_VOLATILE = ".mount-"  # begins the name of a scratch that goes with its mount


def find_scratch(text: str, store_root: Path) -> Scratch:
    """The scratch that `text` means: with a slash a directory, else a name in the store."""
    if "/" in text:
        return Scratch(Path(text).absolute(), text)
    if not _NAME.fullmatch(text):
        raise UsageError(
            f"{text!r} is no name for a scratch (letters, digits, '_', '.', '-'), nor a directory"
        )
    return Scratch(store_root / "scratch" / text, text)


def list_scratches(store_root: Path) -> list[Scratch]:
    """The scratches with a name, in the store."""
    found = sorted((store_root / "scratch").glob("*"))
    scratches = [Scratch(path, path.name) for path in found if _NAME.fullmatch(path.name)]
    return [scratch for scratch in scratches if scratch.exists()]


def volatile_scratch(store_root: Path) -> Scratch:
    """A new scratch for one mount; those whose mounts have died are removed. Raises StoreError.

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
