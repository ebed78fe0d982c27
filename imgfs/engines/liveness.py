"""Whether a mount of imgfs answers, asked so that a dead or a silent one holds nothing up.

Of a mount whose daemon was killed the kernel still lists what it has cached, so only a question that is never
cached tells: statfs(2). Where a holder starts another daemon, that question waits, and is answered then.
EROFS answers it without its daemon, which has a socket.
"""

from __future__ import annotations

import os
import queue
import time
from contextlib import suppress
from pathlib import Path

from imgfs.errors import MountError
from imgfs.mounts.holders import holder_of
from imgfs.mounts.status_client import read_status
from imgfs.mounts.table import Mount, mount_at
from imgfs.starting import start_thread

PATIENCE = 20.0  # seconds: a daemon that was killed is back in five, on a machine that is busy
_PAUSE = 0.2  # seconds before a daemon's socket is tried again


def is_answering(mountpoint: Path, patience: float = PATIENCE) -> bool:
    """Return True if there is a mount of imgfs at `mountpoint`, and it answers within so many seconds."""
    mount = mount_at(mountpoint)
    if mount is None or not mount.is_imgfs:
        return False
    if mount.runtime is None:
        return statvfs_within(mountpoint, patience) is not None
    return _answers_status(mount, time.monotonic() + patience)


def _answers_status(mount: Mount, end: float) -> bool:
    """Ask the daemon, again and again while it may have a successor."""
    while True:
        try:
            read_status(mount, max(0.1, end - time.monotonic()))
        except MountError:
            if time.monotonic() > end or holder_of(mount) is None:
                return False
            time.sleep(_PAUSE)
        else:
            return True


def statvfs_within(path: Path, patience: float) -> os.statvfs_result | None:
    """Ask a file system how large it is; None if it fails, or says nothing within so many seconds.

    A thread asks, which is left alone with its question if there is no answer. Raises LimitReached.
    """
    answers: queue.SimpleQueue[os.statvfs_result | None] = queue.SimpleQueue()

    def ask() -> None:
        found = None
        with suppress(OSError):  # ENOTCONN: the daemon has died
            found = os.statvfs(path)
        answers.put(found)

    start_thread(ask, "imgfs-statvfs")
    try:
        return answers.get(timeout=patience)
    except queue.Empty:
        return None
