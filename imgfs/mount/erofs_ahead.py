"""What the kernel's own file systems need of an image, written beside a mount by FUSE, for the next mounts.

It is written once a program has started, which needs the processor more: when nothing was fetched for a
moment, or at the mount's end. With `exit_idle` it is written once nothing is read any more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from imgfs.errors import ImgfsError
from imgfs.starting import try_thread

if TYPE_CHECKING:
    from imgfs.mount.serving import ServedMount

_SETTLED = 1.0  # seconds without a byte fetched after which a program is taken to have started,
_LATEST = 20.0  # or after which it is not waited for: all of the image may be fetched


def is_written(mount: ServedMount) -> bool:
    """Return True if the tree is there as EROFS; raises ImgfsError if that would be of no use."""
    from imgfs.kernel.driver import check_host, mount_attributes
    from imgfs.kernel.erofs_image import has_image, sizes_of

    check_host(owner=mount.options.owner)
    mount_attributes(mount.options.fuse)
    image = mount.image
    return has_image(image.tree, image.resolved.tree, sizes_of(image), mount.store)


def write_beside(mount: ServedMount) -> None:
    """Have the tree written by another process in a while, unless that waits for the mount to be idle."""
    if not mount.options.exit_idle:
        writer = _LaterWriter(mount)
        mount.at_end.callback(writer.end)
        try_thread(writer.wait, "imgfs-erofs")


class _LaterWriter:
    """Has the tree written once: when nothing is fetched any more, or at the end."""

    def __init__(self, mount: ServedMount) -> None:
        self._mount = mount
        self._ended = threading.Event()
        self._first = threading.Lock()  # held from when it has begun

    def wait(self) -> None:
        """Begin when nothing has been fetched for a moment."""
        before, latest = None, time.monotonic() + _LATEST
        while (now := self._mount.image.source.traffic()) != before and time.monotonic() < latest:
            before = now
            if self._ended.wait(_SETTLED):
                return
        self._begin()

    def end(self) -> None:
        """Begin, if that has not been."""
        self._ended.set()
        self._begin()

    def _begin(self) -> None:
        if self._first.acquire(blocking=False):
            _spawn_writer(self._mount)


def write_while_idle(mount: ServedMount) -> None:
    """Have the tree written, if it is missing, and the mount's driver is to be found."""
    with contextlib.suppress(ImgfsError):  # the next mount reports it
        if mount.options.driver == "auto" and not is_written(mount):
            _spawn_writer(mount)


def _spawn_writer(mount: ServedMount) -> None:
    from imgfs.kernel.erofs_image import sizes_of, spawn_writer

    spawn_writer(mount.image.resolved.tree, sizes_of(mount.image), mount.store)
