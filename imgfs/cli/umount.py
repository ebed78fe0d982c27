"""imgfs umount: unmount, and wait for the daemon to end."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from imgfs.cli.options import (
    Commands,
    add_command,
)
from imgfs.cli.output import complain
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
  imgfs umount --all                   all that imgfs has mounted
  imgfs umount --lazy /mnt             although a process still uses it
""",
    )
    command.add_argument("mountpoints", metavar="MOUNTPOINT", nargs="*")
    command.add_argument(
        "-a", "--all", action="store_true", help="all mounts of imgfs that this user has made (root: all)"
    )
    command.add_argument(
        "-l", "--lazy", action="store_true", help="detach now; the daemon ends when no process uses it"
    )


def umount(options: argparse.Namespace) -> int:
    """Unmount one or several, all of which are tried; prints all errors but the last, which it raises."""
    from imgfs.mounts.table import imgfs_mount_at
    from imgfs.mounts.unmount import unmount

    if options.all == bool(options.mountpoints):
        raise UsageError("name what to unmount: MOUNTPOINT…, or --all")
    failed: list[MountError] = []
    for path in _all() if options.all else options.mountpoints:
        try:
            unmount(imgfs_mount_at(Path(path)), lazy=options.lazy)
        except MountError as error:
            failed.append(error)
    for other in failed[:-1]:
        complain(other)
    if failed:
        raise failed[-1]
    return 0


def _all() -> list[Path]:
    """Return this user's mountpoints, the latest first; root's are all."""
    from imgfs.mounts.table import imgfs_mounts

    mine = (mount for mount in imgfs_mounts() if os.geteuid() in (0, mount.user))
    return [mount.mountpoint for mount in mine][::-1]
