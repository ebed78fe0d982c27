"""imgfs csi: images as volumes of Kubernetes' pods."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from imgfs.cli.csi_install import ENDPOINT, add_setup, server_options
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
)
from imgfs.errors import UsageError


def add_csi(commands: Commands) -> None:
    """`imgfs csi`."""
    command = add_command(
        commands,
        "csi",
        csi,
        "serve images to Kubernetes as volumes (CSI)",
        """\
Serves kubelet as a driver of CSI, image.csi.imgfs.io: a pod names an image among the attributes of a volume,
and reads it at once. Volumes that are only read share one mount for each image; one that may be written is a
mount of its own, whose changes go with it. Volumes stay when this ends. (See: imgfs help kubernetes.)

Examples:
  imgfs csi install                            on a node, by systemd: kubelet finds it
  imgfs csi --endpoint unix:///csi/csi.sock --node-id "$NODE_NAME" --driver fuse
""",
    )
    server_options(command)
    driver_option(command)
    connection_options(command)
    limit_option(command)
    log_level_option(command)
    add_setup(command.add_subparsers(metavar="[install|uninstall]"))


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
    address = socket_path(options.endpoint or csi_endpoint(variables()) or ENDPOINT)
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
