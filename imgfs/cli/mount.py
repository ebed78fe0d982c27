"""imgfs mount, umount."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.errors import UsageError
from imgfs.mounts import check_mountable, our_mount_at, unmount

if TYPE_CHECKING:
    from imgfs.cli.images import Wanted
    from imgfs.mount import MountOptions
    from imgfs.overlay.scratch import Scratch
    from imgfs.store import Store


def mount(options: argparse.Namespace) -> int:
    """Mount an image."""
    from imgfs.mount import Mounting, mount_in_foreground

    if options.fill and options.offline:
        raise UsageError("--fill fetches everything, --offline nothing: say one of them")
    if options.foreground:
        image, how = _meant(options)
        mount_in_foreground(image.prepare(options.upto_layer), image.connect, image.store, how)
    with Mounting() as mounting:
        image, how = _meant(options)
        mounting.mount(image.prepare(options.upto_layer), image.connect, image.store, how)
    return 0


def _meant(options: argparse.Namespace) -> tuple[Wanted, MountOptions]:
    """What to mount, and how; raises ImgfsError before anything is fetched, if it cannot be."""
    from imgfs.cli.images import wanted
    from imgfs.content.fill import FillOptions
    from imgfs.mount import MountOptions

    image = wanted(options)
    scratch = _scratch(options, image.store)
    squashed = options.squash_owner or (scratch is not None and os.geteuid() != 0)
    how = MountOptions(
        mountpoint=Path(os.path.abspath(options.mountpoint)),
        fuse=_fuse_options(options.fuse_options),
        owner=(os.getuid(), os.getgid()) if squashed else None,
        log_level=options.log_level.upper(),
        foreground=options.foreground,
        scratch=scratch,
        write_through=options.write_through,
        record=options.record,
        replay=options.replay,
        fill=FillOptions(options.limit_rate) if options.fill else None,
        metrics=options.metrics,
        driver=options.driver,
    )
    check_mountable(how.mountpoint, nonempty="nonempty" in how.fuse)
    return image, how


def umount(options: argparse.Namespace) -> int:
    """Unmount."""
    unmount(our_mount_at(Path(options.mountpoint)), lazy=options.lazy)
    return 0


def _scratch(options: argparse.Namespace, store: Store) -> Scratch | None:
    """The scratch that --rw and --scratch ask for."""
    from imgfs.overlay.scratch import named, volatile

    if options.scratch is not None:
        return named(options.scratch, store.root)
    return volatile(store.root) if options.rw else None


def _fuse_options(given: list[str]) -> frozenset[str]:
    """The -o options; root's mounts are for everybody, as mounts of the kernel's own are."""
    names = {name for text in given for name in text.split(",") if name}
    return frozenset(names | ({"allow_other"} if os.geteuid() == 0 else set()))
