"""imgfs umount: unmount, and wait for the daemon to end."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from imgfs.cli.options import (
    Commands,
    add_command,
)
from imgfs.cli.output import complain, warn, words_of
from imgfs.errors import MountError, UsageError

_FAILED = 1  # exit code


def add_umount(commands: Commands) -> None:
    """`imgfs umount`."""
    command = add_command(
        commands,
        "umount",
        umount,
        "unmount",
        """\
Unmounts each MOUNTPOINT and waits for its daemon to end. `umount` and `fusermount3 -u` do as well. If one
cannot be unmounted, that is told, the others are all the same, and the exit code is 1. Where an overlay
stands on the mount, or a process has it in another mount namespace, as a container may, a warning says that
its daemon goes on until then.

Examples:
  imgfs umount /mnt
  imgfs umount /mnt/a /mnt/b
  imgfs umount --all                   all that imgfs has mounted
  imgfs umount --lazy /mnt             although a process still uses it
  imgfs umount --force /mnt            although its daemon does not answer: readers that wait get an error
""",
    )
    command.add_argument("mountpoints", metavar="MOUNTPOINT", nargs="*", default=[])
    command.add_argument(
        "-a", "--all", action="store_true", help="all mounts of imgfs that this user has made (root: all)"
    )
    command.add_argument(
        "-l", "--lazy", action="store_true", help="detach now; the daemon ends when no process uses it"
    )
    command.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="have all that waits for the daemon fail, then unmount; not by the kernel's driver",
    )


def umount(options: argparse.Namespace) -> int:
    """Unmount one or several: all are tried, and each that fails is told; exit code 1 if any does."""
    if options.all == bool(options.mountpoints):
        raise UsageError("name what to unmount: MOUNTPOINT…, or --all")
    code = 0
    for path in _all() if options.all else map(Path, options.mountpoints):
        try:
            _unmount(path, options)
        except (MountError, OSError) as error:
            complain(words_of(error) if isinstance(error, OSError) else error)
            code = _FAILED
    return code


def _unmount(path: Path, options: argparse.Namespace) -> None:
    """Unmount one; with --all, what has gone meanwhile is no failure."""
    from imgfs.mounts.table import imgfs_mount_at, mount_at
    from imgfs.mounts.unmount import HeldElsewhere, end_connection, unmount

    if options.all and mount_at(path) is None:
        return
    mount = imgfs_mount_at(path)
    if options.force and end_connection(mount):
        return
    try:
        unmount(mount, lazy=options.lazy, ask=not options.force)
    except HeldElsewhere as error:
        warn(f"{path}: {error}")


def _all() -> list[Path]:
    """Return this user's mountpoints, the latest first; root's are all."""
    from imgfs.mounts.table import imgfs_mounts

    mine = (mount for mount in imgfs_mounts() if os.geteuid() in (0, mount.user))
    return [mount.mountpoint for mount in mine][::-1]
