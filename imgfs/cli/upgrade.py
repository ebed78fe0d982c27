"""imgfs upgrade: have mounts served by this imgfs instead of the one that has mounted them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.cli.options import Commands, add_command
from imgfs.cli.output import complain
from imgfs.errors import MountError, UsageError

if TYPE_CHECKING:
    from imgfs.mounts.table import Mount

_FAILED = 1  # exit code


def add_upgrade(commands: Commands) -> None:
    """`imgfs upgrade`."""
    command = add_command(
        commands,
        "upgrade",
        upgrade,
        "hand mounts over to this version of imgfs, while they are in use",
        """\
Has each MOUNTPOINT, mounted with --restart, served by the imgfs that this command is of, instead of the one
that serves it now. Readers notice nothing: the new daemon gets ready, the old one stops to take requests,
answers those that it has, and ends. The holder, which restarts the daemon, becomes that of the new version,
too. If the new one cannot go on with the mount, as versions may differ in what they keep of it, that is told,
the old one serves on, and the exit code is 1. `imgfs ps` shows versions.

Examples:
  imgfs upgrade /mnt
  imgfs upgrade --all                  after a new version was installed
""",
    )
    command.add_argument("mountpoints", metavar="MOUNTPOINT", nargs="*", default=[])
    command.add_argument(
        "-a", "--all", action="store_true", help="all of --restart that this user has mounted (root: all)"
    )


def upgrade(options: argparse.Namespace) -> int:
    """Hand over one or several: all are tried, and each that fails is told; exit code 1 if any does."""
    from imgfs.mount.holder_protocol import PROTOCOL
    from imgfs.mount.holder_start import holder_program
    from imgfs.mount.resume import successor_program
    from imgfs.mounts.holders import hand_over
    from imgfs.mounts.table import imgfs_mount_at

    if options.all == bool(options.mountpoints):
        raise UsageError("name what to hand over: MOUNTPOINT…, or --all")
    code = 0
    for mount in _all() if options.all else map(imgfs_mount_at, map(Path, options.mountpoints)):
        try:
            hand_over(mount, PROTOCOL, holder_program(), successor_program())
        except MountError as error:
            complain(error)
            code = _FAILED
    return code


def _all() -> list[Mount]:
    """Return the mounts of --restart that are this user's; root's are all."""
    from imgfs.mounts.holders import holder_of
    from imgfs.mounts.table import imgfs_mounts

    return [mount for mount in imgfs_mounts() if os.geteuid() in (0, mount.user) and holder_of(mount)]
