"""imgfs mount: show an image at an empty directory."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.cli.options import (
    Commands,
    add_command,
    driver_option,
    image_options,
    rate,
)
from imgfs.errors import UsageError

if TYPE_CHECKING:
    from imgfs.cli.selection import ImageSelection
    from imgfs.metrics.endpoint import MetricsAddress
    from imgfs.mount.serving import MountOptions
    from imgfs.overlay.scratch import Scratch
    from imgfs.store.store import Store


def add_mount(commands: Commands) -> None:
    """`imgfs mount`."""
    command = add_command(
        commands,
        "mount",
        mount,
        "mount an image",
        """\
Mounts IMAGE at MOUNTPOINT, an empty directory, and returns when the mount is ready. The image never changes:
with --rw or --scratch, changes are kept beside it.
A layer without an index is streamed once; after that it is read lazily (see: imgfs index).

Examples:
  imgfs mount debian:12 /mnt
  imgfs mount --squash-owner registry.example.com/team/app:v2 ~/app
  imgfs mount --platform linux/arm64 debian:12 /mnt
  imgfs mount --rw debian:12 /mnt      change it; the changes go when it is unmounted
  imgfs mount --scratch work debian:12 /mnt
  imgfs mount --record start app:v2 /mnt && /mnt/app/start && imgfs umount /mnt && imgfs index push app:v2
  imgfs mount --fill --limit-rate 2M debian:12 /mnt
  imgfs pull debian:12 && imgfs mount --offline debian:12 /mnt
  imgfs mount -f -o suid,dev debian:12 /mnt
  mount -t fuse.imgfs debian:12 /mnt -o platform=linux/arm64
""",
    )
    image_options(command)
    command.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory")
    command.add_argument("-f", "--foreground", action="store_true", help="stay until it is unmounted")
    command.add_argument(
        "--squash-owner", action="store_true", help="show every file as owned by you, so that you may read it"
    )
    command.add_argument(
        "--upto-layer",
        metavar="N|DIGEST",
        help="the image as it was after an earlier layer, counted from 1 as `imgfs inspect` lists them",
    )
    command.add_argument(
        "--rw", action="store_true", help="make it writable; the changes are removed with the mount"
    )
    command.add_argument(
        "--scratch",
        metavar="NAME|DIR",
        help="make it writable, and keep the changes: by name in the store, or in a directory (has a slash)",
    )
    command.add_argument(
        "--write-through",
        action="store_true",
        help="lose nothing written to a scratch even if the daemon is killed; slower",
    )
    command.add_argument(
        "--record",
        metavar="PROFILE",
        help="record what is read, in its order, as a profile (default: as `auto`, for the next mount)",
    )
    command.add_argument(
        "--replay",
        metavar="PROFILE",
        help="prefetch what a profile has recorded; none: nothing (default: `default`, else `auto`)",
    )
    command.add_argument(
        "--fill", action="store_true", help="fetch everything in the background, while no read waits"
    )
    command.add_argument(
        "--limit-rate",
        metavar="RATE",
        type=rate,
        help="limit --fill, in bytes per second: 500k, 2M (default: none)",
    )
    command.add_argument(
        "--metrics",
        metavar="ADDRESS",
        type=_address,
        help="serve the status to Prometheus at [HOST:]PORT (default: on loopback) or unix:PATH",
    )
    driver_option(command)
    command.add_argument(
        "-o",
        dest="fuse_options",
        metavar="OPT[,OPT…]",
        action="append",
        default=[],
        help="FUSE options: allow_other (root: always), suid, dev, noexec, nonempty, …; nopassthrough: with "
        "the kernel driver, all data is read through imgfs",
    )
    command.add_argument(
        "--log-level",
        default="info",
        type=str.lower,
        choices=["debug", "info", "warning", "error"],
        help="how much the daemon logs (default: info)",
    )


def _address(text: str) -> MetricsAddress:
    from imgfs.metrics.endpoint import parse_address

    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def mount(options: argparse.Namespace) -> int:
    """Mount an image."""
    from imgfs.mount.daemon import Mounting, mount_in_foreground

    if options.fill and options.offline:
        raise UsageError("--fill fetches everything, --offline nothing: say one of them")
    if options.foreground:
        image, how = _plan(options)
        mount_in_foreground(image.prepare(options.upto_layer), image.connect, image.store, how)
    with Mounting.fork() as mounting:
        image, how = _plan(options)
        mounting.mount(image.prepare(options.upto_layer), image.connect, image.store, how)
    return 0


def _plan(options: argparse.Namespace) -> tuple[ImageSelection, MountOptions]:
    """Select the image and the mount's options; raises ImgfsError before anything is fetched."""
    from imgfs.cli.selection import select_image
    from imgfs.content.background import BackgroundFetchOptions
    from imgfs.mount.serving import MountOptions
    from imgfs.mounts.mountpoint import check_mountable

    image = select_image(options)
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
        fill=BackgroundFetchOptions(options.limit_rate) if options.fill else None,
        metrics=options.metrics,
        driver=options.driver,
        trust=image.trust,
    )
    if "rw" in how.fuse and scratch is None:
        raise UsageError("-o rw: an image never changes; --rw or --scratch keeps what you change beside it")
    check_mountable(how.mountpoint, nonempty="nonempty" in how.fuse)
    return image, how


def _scratch(options: argparse.Namespace, store: Store) -> Scratch | None:
    """Return the scratch of --rw or --scratch."""
    from imgfs.overlay.scratches import find_scratch, volatile_scratch

    if options.scratch is not None:
        return find_scratch(options.scratch, store.root)
    return volatile_scratch(store.root) if options.rw else None


def _fuse_options(given: list[str]) -> frozenset[str]:
    """Return the -o options; root's mounts are for all users, as those of kernel file systems are."""
    names = {name for text in given for name in text.split(",") if name}
    return frozenset(names | ({"allow_other"} if os.geteuid() == 0 else set()))
