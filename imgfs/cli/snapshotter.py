"""imgfs snapshotter: containerd's images, mounted in the place of being fetched and unpacked."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from imgfs.cli.engine_server import (
    checked_path,
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
    rate,
    store_option,
)
from imgfs.cli.output import warn
from imgfs.cli.snapshotter_install import ADDRESS, ROOT, add_setup
from imgfs.errors import UsageError
from imgfs.oci.policy import Policy


def add_snapshotter(commands: Commands) -> None:
    """`imgfs snapshotter`."""
    command = add_command(
        commands,
        "snapshotter",
        snapshotter,
        "serve images to containerd and Kubernetes, lazily",
        """\
Serves containerd as a snapshotter: a pull fetches no layer, and containers read what they need of their
images as they need it. All containers of an image share one mount. What runs, and the mounts, go on when this
ends; it goes on from there when it is started again, without a registry.

Examples:
  imgfs snapshotter install
  imgfs snapshotter
  imgfs snapshotter --index auto                on a node whose images trust each other
  imgfs snapshotter --fill --limit-rate 20M     fetch the rest of every image, too, in the background
""",
    )
    command.add_argument(
        "--address", metavar="SOCKET", default=ADDRESS, help=f"where to answer (default: {ADDRESS})"
    )
    command.add_argument(
        "--root", metavar="DIR", default=ROOT, help=f"where snapshots are kept (default: {ROOT})"
    )
    command.add_argument(
        "--fill", action="store_true", help="fetch all of each image in the background, while no read waits"
    )
    command.add_argument(
        "--limit-rate",
        metavar="RATE",
        type=rate,
        help="limit --fill, in bytes per second and image: 500k, 2M (default: none)",
    )
    command.add_argument(
        "--index",
        choices=[Policy.AUTO, Policy.VERIFIED, Policy.NONE],
        default=Policy.NONE,
        help="which published indexes to use: none, for containerd shares layers between images by their "
        "names, and one image's word must not stand for another's (the default); those that the image's "
        "digest covers (verified); those in the registry, too, unless an image was pulled by digest (auto)",
    )
    driver_option(command)
    connection_options(command)
    store_option(command)
    limit_option(command)
    log_level_option(command)
    add_setup(command.add_subparsers(metavar="[install|uninstall]"))


def snapshotter(options: argparse.Namespace) -> int:
    """Serve containerd."""
    from imgfs.engines.node.disks import unseen_disk
    from imgfs.engines.rpc import only_one
    from imgfs.engines.snapshotter.directories import SnapshotDirectories
    from imgfs.engines.snapshotter.image_mounts import ImageMounts
    from imgfs.engines.snapshotter.reserve import Reserve
    from imgfs.engines.snapshotter.rows import SnapshotRows
    from imgfs.engines.snapshotter.service import service_of
    from imgfs.engines.snapshotter.snapshotter import Snapshotter

    if os.geteuid():
        raise UsageError("containerd's snapshotter mounts for all users: it has to be root")
    root, address = checked_path(Path(options.root)), socket_path(options.address)
    store = open_store(options)
    if said := unseen_disk(store.root, root):
        warn(said)
    with only_one(root), fork_server(root):
        keep_limit(store, options.limit)
        made = Snapshotter(
            SnapshotRows(root / "snapshots.db"),
            SnapshotDirectories(root / "snapshots"),
            ImageMounts(
                root / "mnt",
                [*_mount_words(options), "--store", str(store.root)],
                Policy(options.index),
            ),
            store,
            Reserve(root / "reserve"),
        )
        run_server(lambda: {address: [service_of(made)]}, options.log_level)


def _mount_words(options: argparse.Namespace) -> list[str]:
    """Return the options of `imgfs mount` by which every image is mounted."""
    words = ["-o", "suid,dev", "--driver", options.driver, "--log-level", options.log_level]
    words += words_for_survival()
    words += ["--fill"] if options.fill else []
    words += ["--limit-rate", str(options.limit_rate)] if options.limit_rate is not None else []
    return [*words, *connection_words(options)]
