"""imgfs umount: unmount, and wait for the daemon to end."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from imgfs.cli.options import (
    Commands,
    add_command,
)
from imgfs.errors import MountError, UsageError


def add_umount(commands: Commands) -> None:
    """`imgfs umount`."""
    command = add_command(
        commands,
        "umount",
        umount,
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


def umount(options: argparse.Namespace) -> int:
    """Unmount one or several, all of which are tried; raises MountError, having told of all but the last."""
    from imgfs.mounts.table import imgfs_mount_at
    from imgfs.mounts.unmount import unmount

    if options.all == bool(options.mountpoints):
        raise UsageError("say which to unmount: MOUNTPOINT…, or --all")
    failed: list[MountError] = []
    for path in _all() if options.all else options.mountpoints:
        try:
            unmount(imgfs_mount_at(Path(path)), lazy=options.lazy)
        except MountError as error:
            failed.append(error)
    for other in failed[:-1]:
        print(f"imgfs: {other}", file=sys.stderr)
    if failed:
        raise failed[-1]
    return 0


def _all() -> list[Path]:
    """Where this user's mounts are, the latest first; root's are all."""
    from imgfs.mounts.table import imgfs_mounts

    mine = (mount for mount in imgfs_mounts() if os.geteuid() in (0, mount.user))
    return [mount.mountpoint for mount in mine][::-1]
