"""imgfs cri install and uninstall: systemd and the snapshotter are told of it, or no more."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from imgfs.cli.engine_server import socket_path
from imgfs.cli.node_units import (
    absolute,
    carry_out,
    command_words,
    own_text,
    removed_units,
    say_how_to_stop,
    unit_options,
    written_units,
)
from imgfs.cli.options import Commands, add_command, store_option
from imgfs.cli.output import say

_ADDRESS, _CONTAINERD = "/run/imgfs/cri.sock", "/run/containerd/containerd.sock"
_AUTH = "/run/imgfs-cri/auth.json"
_DROP_IN = "imgfs-cri.conf"  # of the snapshotter's unit


def server_options(command: argparse.ArgumentParser) -> None:
    """Add where it answers, where containerd does, and what is kept where."""
    for name, default, what in (
        ("--address", _ADDRESS, "where to answer"),
        ("--containerd", _CONTAINERD, "where containerd answers"),
    ):
        command.add_argument(name, metavar="SOCKET", default=default, help=f"{what} (default: {default})")
    command.add_argument(
        "--auth-file", metavar="FILE", default=_AUTH, help=f"where credentials are kept (default: {_AUTH})"
    )
    store_option(command)


def add_setup(actions: Commands) -> None:
    """`imgfs cri install` and `uninstall`."""
    command = add_command(
        actions,
        "install",
        install,
        "write systemd's units",
        """\
Writes units for systemd, and a drop-in by which the snapshotter's mounts read the credentials that are kept.
Nothing is started, and kubelet's configuration stays as it is: what to do next is shown.

Examples:
  imgfs cri install --dry-run
  imgfs cri install --containerd /run/k3s/containerd/containerd.sock
""",
    )
    server_options(command)
    unit_options(command, "imgfs-cri")
    command = add_command(
        actions,
        "uninstall",
        uninstall,
        "remove what install has written",
        """\
Removes the units and the drop-in. Have kubelet ask containerd itself before that.

Examples:
  imgfs cri uninstall
""",
    )
    unit_options(command, "imgfs-cri")


def install(options: argparse.Namespace) -> int:
    """Have systemd run it, and the snapshotter read what it keeps."""
    from imgfs.engines.node.changed_files import FileChange
    from imgfs.engines.node.unit import CRI, SNAPSHOTTER

    auth, address = os.path.abspath(options.auth_file), socket_path(options.address)
    chosen = {
        "--address": (str(address), _ADDRESS),
        "--containerd": (str(socket_path(options.containerd)), _CONTAINERD),
        "--auth-file": (auth, _AUTH),
        "--store": (absolute(options.store), None),
    }
    drop_in = _drop_in(options)
    changes = [
        *written_units(CRI, options.unit, command_words("cri", chosen), address),
        FileChange(drop_in, own_text(drop_in, CRI), CRI.variable("REGISTRY_AUTH_FILE", auth)),
    ]
    if carry_out(changes, is_dry=options.dry_run):
        name, snapshotter = CRI.units[0], SNAPSHOTTER.units[0]
        say(
            f"""
Next:   systemctl daemon-reload && systemctl enable --now {name} && systemctl try-restart {snapshotter}
        kubelet's configuration: imageServiceEndpoint: unix://{address}; systemctl restart kubelet
Check:  crictl -i unix://{address} pull --creds USER:PASSWORD IMAGE && imgfs ps"""
        )
    return 0


def uninstall(options: argparse.Namespace) -> int:
    """Remove the units, and the snapshotter's drop-in."""
    from imgfs.engines.node.unit import CRI

    if carry_out(removed_units(CRI, options.unit, _drop_in(options)), is_dry=options.dry_run):
        say_how_to_stop(CRI)
    return 0


def _drop_in(options: argparse.Namespace) -> Path:
    """Return the file beside the units by which the snapshotter's has one variable more."""
    from imgfs.engines.node.unit import SNAPSHOTTER

    return Path(options.unit).with_name(f"{SNAPSHOTTER.units[0]}.d") / _DROP_IN
