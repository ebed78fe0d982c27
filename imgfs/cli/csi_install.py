"""imgfs csi install and uninstall: systemd is told of it, or no more."""

from __future__ import annotations

import argparse
import os

from imgfs.cli.engine_server import socket_path
from imgfs.cli.node_units import (
    absolute,
    carry_out,
    command_words,
    removed_units,
    say_how_to_stop,
    unit_options,
    written_units,
)
from imgfs.cli.options import Commands, add_command, store_option
from imgfs.cli.output import say

ENDPOINT = "unix:///run/imgfs/csi.sock"
_ROOT = "/run/imgfs-csi"
_REGISTRY = "/var/lib/kubelet/plugins_registry"


def server_options(command: argparse.ArgumentParser) -> None:
    """Add where it answers and registers, and where it keeps what it has."""
    command.add_argument(
        "--endpoint",
        metavar="unix://SOCKET",
        help=f"where to answer (default: $CSI_ENDPOINT, else {ENDPOINT})",
    )
    command.add_argument(
        "--register",
        metavar="DIR",
        nargs="?",
        const=_REGISTRY,
        help="register with the kubelet that looks into this directory, as node-driver-registrar does "
        f"(default: {_REGISTRY})",
    )
    command.add_argument("--node-id", metavar="NAME", help="this node's name (default: the machine's)")
    command.add_argument(
        "--root",
        metavar="DIR",
        default=_ROOT,
        help=f"where shared mounts are, and what is published is written down (default: {_ROOT})",
    )
    store_option(command)


def add_setup(actions: Commands) -> None:
    """`imgfs csi install` and `uninstall`."""
    command = add_command(
        actions,
        "install",
        install,
        "write systemd's units",
        """\
Writes units for systemd, by which the driver registers with kubelet. Nothing is started: what to do next is
shown.

Examples:
  imgfs csi install --dry-run
  imgfs csi install --node-id worker-3
""",
    )
    server_options(command)
    unit_options(command, "imgfs-csi")
    command = add_command(
        actions,
        "uninstall",
        uninstall,
        "remove what install has written",
        """\
Removes the units. Pods that have volumes of the driver cannot be removed without it: remove them before.

Examples:
  imgfs csi uninstall
""",
    )
    unit_options(command, "imgfs-csi")


def install(options: argparse.Namespace) -> int:
    """Have systemd run it."""
    from imgfs.engines.node.unit import CSI

    address = socket_path(options.endpoint or ENDPOINT)
    chosen = {
        "--endpoint": (f"unix://{address}", ENDPOINT),
        "--register": (os.path.abspath(options.register or _REGISTRY), None),
        "--node-id": (options.node_id, None),
        "--root": (os.path.abspath(options.root), _ROOT),
        "--store": (absolute(options.store), None),
    }
    changes = written_units(CSI, options.unit, command_words("csi", chosen), address)
    if carry_out(changes, is_dry=options.dry_run):
        say(
            f"""
Next:   systemctl daemon-reload && systemctl enable --now {CSI.units[0]}
        kubectl apply the object CSIDriver, once for a cluster (imgfs help kubernetes)
Check:  kubectl get csinode {options.node_id or os.uname().nodename} -o yaml     names image.csi.imgfs.io"""
        )
    return 0


def uninstall(options: argparse.Namespace) -> int:
    """Remove the units."""
    from imgfs.engines.node.unit import CSI

    if carry_out(removed_units(CSI, options.unit), is_dry=options.dry_run):
        say_how_to_stop(CSI)
    return 0
