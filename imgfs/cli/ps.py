"""imgfs ps: list the mounts."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING, Any

from imgfs.cli.options import (
    Commands,
    json_option,
)
from imgfs.cli.output import say
from imgfs.errors import MountError

if TYPE_CHECKING:
    from imgfs.mounts.table import Mount


def add_ps(commands: Commands) -> None:
    """`imgfs ps`."""
    command = commands.add_parser(
        "ps",
        help="list the mounts",
        description="""\
Lists the mounts of imgfs, by either driver, with their daemons and scratches.

Examples:
  imgfs ps
  imgfs ps --json | jq -r '.[].mountpoint'
""",
    )
    json_option(command)
    command.set_defaults(run=ps)


def ps(options: argparse.Namespace) -> int:
    """List the mounts."""
    import json

    from imgfs.mounts.table import imgfs_mounts

    rows = [_row(mount) for mount in imgfs_mounts()]
    if options.json:
        say(json.dumps(rows, indent=2))
        return 0
    say(f"{'MOUNTPOINT':<28} {'IMAGE':<44} {'DRIVER':<7} {'PID':>7}  SCRATCH")
    for row in rows:
        pid = "?" if row["pid"] is None else str(row["pid"])
        scratch = row["scratch"] or "-"
        say(f"{row['mountpoint']:<28} {row['image']:<44} {row['driver']:<7} {pid:>7}  {scratch}")
    return 0


def _row(mount: Mount) -> dict[str, Any]:
    """Return a mount's row, with the pid and scratch of its daemon if that answers."""
    from imgfs.mounts.status_client import read_status

    status: dict[str, Any] = {}
    with contextlib.suppress(MountError):
        status = read_status(mount)
    scratch = status.get("scratch") or {}
    return {
        "mountpoint": str(mount.mountpoint),
        "image": mount.name,
        "driver": "kernel" if mount.runtime else "fuse",
        "pid": status.get("pid"),
        "scratch": scratch.get("name"),
    }
