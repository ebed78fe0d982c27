"""What the kernel's own file systems need of an image, written beside a mount by FUSE, for the next mounts.

With `exit_idle` it is written once nothing is read any more: an engine's container has the processor then.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from imgfs.errors import ImgfsError

if TYPE_CHECKING:
    from imgfs.mount.serving import ServedMount


def is_written(mount: ServedMount) -> bool:
    """Return True if the tree is there as EROFS; raises ImgfsError if that would be of no use."""
    from imgfs.kernel.driver import check_host, mount_attributes
    from imgfs.kernel.erofs_image import has_image, sizes_of

    check_host(owner=mount.options.owner)
    mount_attributes(mount.options.fuse)
    image = mount.image
    return has_image(image.tree, image.resolved.tree, sizes_of(image), mount.store)


def write_beside(mount: ServedMount) -> None:
    """Have the tree written by another process, unless that waits for the mount to be idle."""
    if not mount.options.exit_idle:
        _spawn_writer(mount)


def write_while_idle(mount: ServedMount) -> None:
    """Have the tree written, if it is missing, and the mount's driver is to be found."""
    with contextlib.suppress(ImgfsError):  # the next mount reports it
        if mount.options.driver == "auto" and not is_written(mount):
            _spawn_writer(mount)


def _spawn_writer(mount: ServedMount) -> None:
    from imgfs.kernel.erofs_image import sizes_of, spawn_writer

    spawn_writer(mount.image.resolved.tree, sizes_of(mount.image), mount.store)
