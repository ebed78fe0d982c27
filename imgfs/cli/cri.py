"""imgfs cri: kubelet's requests for images, on their way to containerd."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from imgfs.cli.cri_install import add_setup, server_options
from imgfs.cli.engine_server import run_server, socket_path
from imgfs.cli.options import Commands, add_command, log_level_option, open_store
from imgfs.errors import UsageError


def add_cri(commands: Commands) -> None:
    """`imgfs cri`."""
    command = add_command(
        commands,
        "cri",
        cri,
        "learn kubelet's image pull credentials, for the snapshotter",
        """\
Stands between kubelet and containerd where images are asked for, and hands every request on. The credentials
of pulls are kept in a file that `imgfs snapshotter` and its mounts read: containerd tells them none. Start
kubelet with --image-service-endpoint=unix:///run/imgfs/cri.sock, and the snapshotter with
REGISTRY_AUTH_FILE=/run/imgfs-cri/auth.json. Of the disks that images are on kubelet is told the fullest
first: it looks at no other. (See: imgfs help engines.)

Examples:
  imgfs cri install
  imgfs cri
  imgfs cri --address /run/imgfs/cri.sock --containerd /run/k3s/containerd/containerd.sock
""",
    )
    server_options(command)
    log_level_option(command)
    add_setup(command.add_subparsers(metavar="[install|uninstall]"))


def cri(options: argparse.Namespace) -> int:
    """Stand between kubelet and containerd."""
    from imgfs.engines.cri import SERVICE, STREAMED, PulledCredentials
    from imgfs.engines.image_disks import ImageDisks
    from imgfs.engines.rpc import Forwarded

    if os.geteuid():
        raise UsageError("kubelet and containerd are root's: what stands between them has to be root")
    address, containerd = map(socket_path, (options.address, options.containerd))
    auth = Path(options.auth_file).absolute()
    told = ImageDisks(open_store(options)).answer
    passed = Forwarded(SERVICE, containerd, PulledCredentials(auth).hear, told, STREAMED)
    run_server(lambda: {address: [passed]}, options.log_level)
