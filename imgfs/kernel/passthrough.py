"""Passthrough: layers that the kernel reads from the store's own files, without the daemon in between.

A layer that is here whole, and whose index is verified, needs no daemon to serve it. Its flat file is pinned
for as long as the kernel may read it (`store.flat`), whatever becomes of the daemon: bytes that are evicted
meanwhile stay until it is unmounted. What is read then is neither counted nor recorded.

Pages that the kernel has cached of a mount's files are dropped when bytes turn out to be wrong: EROFS keeps
its pages, and never asks again whether they are good. Pages that a running program has mapped cannot be taken
away from it.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from imgfs.content.layer import LayerContent
from imgfs.starting import try_thread

_AGAIN = 1.0  # seconds after which answers that were under way have arrived, too


def drop_cached_pages(root: Path) -> None:
    """Have the kernel forget the pages of all regular files below `root`, in a thread."""
    try_thread(partial(_drop_twice, root), "imgfs-pages", level=logging.WARNING)


def _drop_twice(root: Path) -> None:
    drop_cached_pages_now(root)
    threading.Event().wait(_AGAIN)
    drop_cached_pages_now(root)


def drop_cached_pages_now(root: Path) -> None:
    """Have the kernel forget them; what is mounted below is left alone."""
    with suppress(OSError):  # it is not mounted there any more
        device = os.stat(root).st_dev
        for _, directories, names, fd in os.fwalk(root):
            directories[:] = [name for name in directories if _stat(name, fd).st_dev == device]
            for name in names:
                _drop(name, fd)


def _drop(name: str, directory: int) -> None:
    with suppress(OSError):
        if stat.S_ISREG(_stat(name, directory).st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def _stat(name: str, directory: int) -> os.stat_result:
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


class Passthrough:
    """Flat files that the kernel reads itself: of each layer its file, pinned, or None if it is served.

    `release` them once it does not any more. What is not released is found and forgotten by evictions.
    """

    def __init__(self, files: Sequence[Path | None]) -> None:
        self.files = tuple(files)

    @classmethod
    def pin(cls, layers: Sequence[LayerContent]) -> Passthrough:
        """Pin what the kernel may read of `layers`."""
        return cls([None if layer.index.summary.trusted_by else layer.flat.pin() for layer in layers])

    @property
    def count(self) -> int:
        """How many layers the kernel reads itself."""
        return sum(file is not None for file in self.files)

    def release(self) -> None:
        """Unpin the layers: the kernel reads them no more."""
        for file in self.files:
            if file:
                file.unlink(missing_ok=True)
