"""What run and bundle do alike before the image is mounted: how that is to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgfs.cli.selection import ImageSelection
from imgfs.mount.options import MountOptions, can_resend
from imgfs.overlay.scratch import Scratch
from imgfs.overlay.scratches import find_scratch, volatile_scratch
from imgfs.runtime.bundle import Bundle

if TYPE_CHECKING:
    import argparse


def bundle_mount_options(
    bundle: Bundle,
    scratch: Scratch,
    owner: tuple[int, int] | None,
    options: argparse.Namespace,
    *,
    for_all: bool,
    restart_after: float = 0.0,
) -> MountOptions:
    """Return how a container's image is mounted: at its bundle, changes to its scratch.

    It outlives its daemon, where the kernel can do that, from so many seconds on.
    """
    fuse = frozenset({"suid", "allow_other"} if for_all else ())
    driver = options.driver
    return MountOptions(
        mountpoint=bundle.rootfs,
        fuse=fuse,
        owner=owner,
        scratch=scratch,
        driver=driver,
        restart=can_resend(),
        restart_after=restart_after,
        predict=not options.offline,
    )


def scratch_of(options: argparse.Namespace, image: ImageSelection) -> Scratch:
    """Return the scratch that is named, or one that goes with the mount."""
    if options.scratch is not None:
        return find_scratch(options.scratch, image.store.root)
    return volatile_scratch(image.store.root)
