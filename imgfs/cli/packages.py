"""imgfs packages: list the packages that are installed in an image."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

from imgfs.cli.format import Column
from imgfs.cli.options import Commands, add_command, image_options
from imgfs.cli.output import say, say_table, warn
from imgfs.cli.paths import named

if TYPE_CHECKING:
    from imgfs.packages.installed import InstalledPackages
    from imgfs.packages.package import Package

_COLUMNS = (
    Column("NAME"),
    Column("VERSION"),
    Column("TYPE"),
    Column("LAYER", right=True),
    Column("PATH"),
)


def add_packages(commands: Commands) -> None:
    """`imgfs packages`."""
    command = add_command(
        commands,
        "packages",
        packages,
        "list the packages that are installed in an image",
        """\
Lists what the plain files of package managers say: dpkg (Debian's and distroless), apk, rpm (SQLite and
ndb), Python's metadata and node_modules. Only these files are fetched. PATH is the file that says so, LAYER
the layer that brought the package. What cannot be read is a warning, and in JSON the list `unread`.

Examples:
  imgfs packages debian:12
  imgfs packages --type pypi,npm app:v2
  imgfs packages --cyclonedx app:v2 > app.cdx.json
""",
    )
    command.add_argument(
        "--type",
        metavar="TYPES",
        type=_types,
        help="only of these: deb, rpm, apk, pypi, npm; several: deb,npm",
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--cyclonedx", action="store_true", help="print a CycloneDX 1.5 bill of materials")
    image_options(command)


def packages(options: argparse.Namespace) -> int:
    """List packages."""
    from imgfs.cli.selection import select_image
    from imgfs.image.files import ImageFiles
    from imgfs.packages.installed import InstalledPackages

    selection = select_image(options)
    with selection.open() as image:
        installed = InstalledPackages(ImageFiles(image))
        found = [one for one in installed.packages() if not options.type or one.type in options.type]
        found.sort(key=lambda one: (one.type, one.name, one.version, one.path))
        digest = str(image.resolved.digest)
    if options.cyclonedx:
        from imgfs.packages.cyclonedx import bill_of_materials

        say(
            json.dumps(
                bill_of_materials(selection.reference, digest, installed.distribution, found), indent=2
            )
        )
    elif options.json:
        say(json.dumps(_fields(installed, found), indent=2))
    else:
        _show(found)
    warn_of_unread(installed)
    return 0


def warn_of_unread(installed: InstalledPackages) -> None:
    """Say what could not be read, once all packages have been found."""
    for one in installed.unread:
        warn(f"{os.fsdecode(one.path)}: {one.reason}")
    if installed.unread_more:
        warn(f"{installed.unread_more} more files could not be read")


def _show(found: list[Package]) -> None:
    rows = [(one.name, one.full_version, one.type, str(one.layer), os.fsdecode(one.path)) for one in found]
    if rows:
        say_table(_COLUMNS, rows)


def _fields(installed: InstalledPackages, found: list[Package]) -> dict[str, object]:
    """Return packages for JSON."""
    from imgfs.packages.package import purl_of

    system = installed.distribution
    return {
        "distribution": system._asdict(),
        "packages": [
            {
                **one._asdict(),
                **named(one.path),
                "version": one.full_version,
                "purl": purl_of(one, system),
            }
            for one in found
        ],
        "unread": [{**named(one.path), "reason": one.reason} for one in installed.unread],
    }


def _types(text: str) -> set[str]:
    from imgfs.packages.package import TYPES

    types = set(text.split(","))
    if types - set(TYPES):
        raise argparse.ArgumentTypeError(f"{text!r} has other types than {', '.join(TYPES)}")
    return types
