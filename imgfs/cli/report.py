"""imgfs report: an image, or a mount of it, as one page of HTML."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.cli.options import Commands, add_command, image_options, output_option
from imgfs.cli.output_file import output_file
from imgfs.errors import MountError

if TYPE_CHECKING:
    from imgfs.cli.layers import AllVersions
    from imgfs.report.facts import Facts
    from imgfs.status import MountStatus


def add_report(commands: Commands) -> None:
    """`imgfs report`."""
    command = add_command(
        commands,
        "report",
        report,
        "write a page of HTML about an image or a mount",
        """\
Writes one page that needs no network and no other file: the layers of IMAGE, a map of its files by size and
layer to look into, the largest and the wasted files, its history and packages, and in which order mounts have
read it. IMAGE may be a mount point: then also what that mount has fetched, why, and what of it was read.
Nothing is fetched but what package managers say of themselves.

Examples:
  imgfs report debian:12 -o debian.html
  imgfs report /mnt -o mount.html
  imgfs report --without-packages app:v2 > app.html
""",
    )
    image_options(command)
    output_option(command)
    command.add_argument(
        "--without-packages", action="store_true", help="leave packages out: then no file is fetched"
    )


def report(options: argparse.Namespace) -> int:
    """Write the page."""
    from imgfs.cli.layers import open_versions
    from imgfs.report.page import page_of

    status = _status(options)
    with open_versions(options) as versions:
        page = page_of(_facts(versions, status, with_packages=not options.without_packages)).encode()
    with output_file(options.output) as file:
        file.write(page)
    return 0


def _status(options: argparse.Namespace) -> MountStatus | None:
    """Return the status of the mount that is meant, and have its image be reported; None if none is."""
    from imgfs.mounts.status_client import read_status
    from imgfs.mounts.table import mount_at

    mount = None
    with suppress(MountError):
        mount = mount_at(Path(options.image)) if os.path.isdir(options.image) else None
    if mount is None or not mount.is_imgfs:
        return None
    status = read_status(mount)
    options.image, options.platform = status.image, options.platform or status.platform
    options.store = options.store or status.store
    return status


def _facts(versions: AllVersions, status: MountStatus | None, *, with_packages: bool) -> Facts:
    from imgfs.image.waste import measure_waste
    from imgfs.report.facts import (
        WASTED,
        access_facts,
        image_facts,
        mount_facts,
        package_facts,
        waste_facts,
    )
    from imgfs.report.treemap import measure

    image, store = versions.image, versions.store
    resolved = image.resolved
    return {
        **image_facts(resolved, measure(image.tree)),
        "waste": waste_facts(measure_waste(resolved, store, versions.path, WASTED)),
        "packages": package_facts(image) if with_packages else None,
        "accesses": access_facts(resolved, store),
        "mount": mount_facts(status, str(resolved.digest)) if status else None,
    }
