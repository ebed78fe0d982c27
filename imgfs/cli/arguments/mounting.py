"""mount, umount, ps: what they may be told, and what their help teaches."""

from __future__ import annotations

import argparse

from imgfs.cli.arguments.options import (
    RAW,
    Commands,
    add_command,
    driver_option,
    image_options,
    json_option,
    lazily,
    rate,
)
from imgfs.metrics.endpoint import MetricsAddress, parse_address


def add_mount(commands: Commands) -> None:
    """`imgfs mount`."""
    command = add_command(
        commands,
        "mount",
        "mount",
        "mount an image",
        """\
Mounts IMAGE at MOUNTPOINT, an empty directory, and returns when it answers. The image itself never changes:
with --rw or --scratch, changes are kept beside it.
A layer that nobody has indexed is streamed once; after that it is read lazily (see: imgfs index).

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
        "--squash-owner", action="store_true", help="show every file as your own, so that you may read it"
    )
    command.add_argument(
        "--upto-layer",
        metavar="N|DIGEST",
        help="the image as it was after an earlier layer, counted from 1 as `imgfs inspect` lists them",
    )
    command.add_argument(
        "--rw", action="store_true", help="with a writable scratch on top, which goes with the mount"
    )
    command.add_argument(
        "--scratch",
        metavar="NAME|DIR",
        help="with a scratch that is kept: by a name in the store, or in a directory (has a slash)",
    )
    command.add_argument(
        "--write-through",
        action="store_true",
        help="lose nothing written to a scratch even if the daemon is killed; slower",
    )
    command.add_argument(
        "--record",
        metavar="PROFILE",
        help="keep what is read, in its order, under this name (by itself: as `auto`, for the next mount)",
    )
    command.add_argument(
        "--replay",
        metavar="PROFILE",
        help="fetch ahead what was read under this name, or nothing: none (default: `default`, else `auto`)",
    )
    command.add_argument(
        "--fill", action="store_true", help="fetch everything, while nobody waits for a read"
    )
    command.add_argument(
        "--limit-rate",
        metavar="RATE",
        type=rate,
        help="of --fill, in bytes per second: 500k, 2M (default: none)",
    )
    command.add_argument(
        "--metrics",
        metavar="ADDRESS",
        type=_address,
        help="tell Prometheus what `imgfs status` shows: at [HOST:]PORT (default: on loopback) or unix:PATH",
    )
    driver_option(command)
    command.add_argument(
        "-o",
        dest="fuse_options",
        metavar="OPT[,OPT…]",
        action="append",
        default=[],
        help="FUSE options: allow_other (root: always), suid, dev, noexec, nonempty, …; nopassthrough: the "
        "kernel driver reads nothing past imgfs",
    )
    command.add_argument(
        "--log-level",
        default="info",
        type=str.lower,
        choices=["debug", "info", "warning", "error"],
        help="how much the daemon logs (default: info)",
    )


def add_umount(commands: Commands) -> None:
    """`imgfs umount`."""
    command = add_command(
        commands,
        "umount",
        "mount",
        "unmount",
        """\
Unmounts each MOUNTPOINT and waits for its daemon to end. `umount` and `fusermount3 -u` do as well.

Examples:
  imgfs umount /mnt
  imgfs umount /mnt/a /mnt/b
  imgfs umount --all                   whatever imgfs has mounted
  imgfs umount --lazy /mnt             although something still uses it
""",
    )
    command.add_argument("mountpoints", metavar="MOUNTPOINT", nargs="*")
    command.add_argument("-a", "--all", action="store_true", help="all mounts of imgfs that are seen")
    command.add_argument("-l", "--lazy", action="store_true", help="detach now, end when nobody uses it")


def add_ps(commands: Commands) -> None:
    """`imgfs ps`."""
    command = commands.add_parser(
        "ps",
        help="list the mounts",
        description="""\
Lists what imgfs has mounted, by either driver, with the daemons and the scratches.

Examples:
  imgfs ps
  imgfs ps --json | jq -r '.[].mountpoint'
""",
        formatter_class=RAW,
    )
    json_option(command)
    command.set_defaults(run=lazily("mount", "ps"))


def _address(text: str) -> MetricsAddress:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
