"""imgfs ps: list the mounts."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING, Any

from imgfs.cli.options import (
    Commands,
    json_option,
)
from imgfs.errors import MountError

if TYPE_CHECKING:
    from imgfs.mounts.table import Mount


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
    )
    json_option(command)
    command.set_defaults(run=ps)


def ps(options: argparse.Namespace) -> int:
    """List the mounts."""
    import json

    from imgfs.mounts.table import imgfs_mounts

    found = [_shown(mount) for mount in imgfs_mounts()]
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{'MOUNTPOINT':<28} {'IMAGE':<44} {'DRIVER':<7} {'PID':>7}  SCRATCH")
    for one in found:
        pid = "?" if one["pid"] is None else str(one["pid"])
        scratch = one["scratch"] or "-"
        print(f"{one['mountpoint']:<28} {one['image']:<44} {one['driver']:<7} {pid:>7}  {scratch}")
    return 0


def _shown(mount: Mount) -> dict[str, Any]:
    """A mount, and of its daemon, if it answers, who it is and what scratch it has."""
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
