"""imgfs csi: images as volumes of Kubernetes' pods."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from imgfs.cli.engine_server import (
    fork_server,
    keep_limit,
    limit_option,
    run_server,
    socket_path,
    words_for_survival,
)
from imgfs.cli.options import (
    Commands,
    add_command,
    connection_options,
    connection_words,
    driver_option,
    log_level_option,
    open_store,
    store_option,
)
from imgfs.errors import UsageError

_ROOT = Path("/run/imgfs-csi")
_ENDPOINT = "unix:///run/imgfs/csi.sock"
_REGISTRY = "/var/lib/kubelet/plugins_registry"


def add_csi(commands: Commands) -> None:
    """`imgfs csi`."""
    command = add_command(
        commands,
        "csi",
        csi,
        "show images to Kubernetes as volumes (CSI)",
        """\
Serves kubelet as a driver of CSI, image.csi.imgfs.io: a pod names an image among the attributes of a volume,
and reads it at once. Volumes that are only read share one mount for each image; one that may be written is a
mount of its own, whose changes go with it. Volumes stay when this ends. (See: imgfs help engines.)

Examples:
  imgfs csi --register                         on a node, by systemd: kubelet finds it
  imgfs csi --endpoint unix:///csi/csi.sock --node-id "$NODE_NAME" --driver fuse
""",
    )
    command.add_argument(
        "--endpoint",
        metavar="unix://SOCKET",
        help=f"where to answer (default: $CSI_ENDPOINT, else {_ENDPOINT})",
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
        default=str(_ROOT),
        help=f"where shared mounts are, and what is published is written down (default: {_ROOT})",
    )
    driver_option(command)
    connection_options(command)
    store_option(command)
    limit_option(command)
    log_level_option(command)


def csi(options: argparse.Namespace) -> int:
    """Serve kubelet."""
    from imgfs import __version__
    from imgfs.config import csi_endpoint
    from imgfs.engines.csi.grants import Grants
    from imgfs.engines.csi.registration import SOCKET, registration
    from imgfs.engines.csi.services import Driver
    from imgfs.engines.csi.volumes import Volumes
    from imgfs.engines.rpc import only_one
    from imgfs.variables import variables

    if os.geteuid():
        raise UsageError("kubelet's volumes are mounted for all users: the driver has to be root")
    address = socket_path(options.endpoint or csi_endpoint(variables()) or _ENDPOINT)
    root = Path(options.root).absolute()
    connection = connection_words(options)
    store = open_store(options)
    mounting = ["--driver", options.driver, "--log-level", options.log_level]
    shared = words_for_survival()
    with only_one(root), fork_server(root):
        keep_limit(store, options.limit)
        grants = Grants(store.root / "grants")
        volumes = Volumes(root, [*connection, "--store", str(store.root)], mounting, shared, grants)
        driver = Driver(root, volumes, options.node_id or os.uname().nodename, __version__)
        offered = {address: driver.services()}
        if options.register:
            offered[Path(options.register).absolute() / SOCKET] = [registration(address)]
        run_server(lambda: offered, options.log_level)
