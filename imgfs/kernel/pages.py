"""What the kernel has in its memory of a mount's files, forgotten when it has turned out to be wrong.

What fails to be read from then on would be shown as it is there: EROFS keeps the pages of its files, and asks
nobody whether they are still good. Pages that a running program has mapped cannot be taken away from it.
"""

from __future__ import annotations

import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

_AGAIN = 1.0  # seconds after which answers that were under way have arrived, too


def forget_pages(root: Path) -> None:
    """Have the kernel forget the pages of all regular files below `root`, in a thread."""
    threading.Thread(target=_forget_twice, args=(root,), name="imgfs-pages", daemon=True).start()


def _forget_twice(root: Path) -> None:
    forget_now(root)
    threading.Event().wait(_AGAIN)
    forget_now(root)


def forget_now(root: Path) -> None:
    """Have the kernel forget them; what is mounted below is left alone."""
    with suppress(OSError):  # it is not mounted there any more
        device = os.stat(root).st_dev
        for _, directories, names, fd in os.fwalk(root):
            directories[:] = [name for name in directories if _stat(name, fd).st_dev == device]
            for name in names:
                _forget(name, fd)


def _forget(name: str, directory: int) -> None:
    with suppress(OSError):
        if stat.S_ISREG(_stat(name, directory).st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def _stat(name: str, directory: int) -> os.stat_result:
    return os.stat(name, dir_fd=directory, follow_symlinks=False)
