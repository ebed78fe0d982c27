"""Whether a mount of imgfs answers, asked so that a dead or a silent one holds nothing up.

Of a mount whose daemon was killed the kernel still lists what it has cached, so only a question that is never
cached tells: statfs(2). Where a holder starts another daemon, that question waits, and is answered then.
"""

from __future__ import annotations

import os
import queue
import threading
from contextlib import suppress
from pathlib import Path

from imgfs.errors import MountError
from imgfs.mounts.status_client import read_status
from imgfs.mounts.table import mount_at

PATIENCE = 20.0  # seconds: a daemon that was killed is back in five, on a machine that is busy


def is_answering(mountpoint: Path, patience: float = PATIENCE) -> bool:
    """Return True if there is a mount of imgfs at `mountpoint`, and it answers within so many seconds."""
    mount = mount_at(mountpoint)
    if mount is None or not mount.is_imgfs:
        return False
    if mount.runtime is None:
        return statvfs_within(mountpoint, patience) is not None
    try:  # EROFS answers that itself; its daemon has a socket
        read_status(mount)
    except MountError:
        return False
    return True


def statvfs_within(path: Path, patience: float) -> os.statvfs_result | None:
    """Ask a file system how large it is; None if it fails, or says nothing within so many seconds.

    A thread asks, which is left alone with its question if there is no answer.
    """
    answers: queue.SimpleQueue[os.statvfs_result | None] = queue.SimpleQueue()

    def ask() -> None:
        found = None
        with suppress(OSError):  # ENOTCONN: the daemon has died
            found = os.statvfs(path)
        answers.put(found)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=patience)
    except queue.Empty:
        return None
