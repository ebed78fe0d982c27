"""imgfs export: write the files of an image as one tar."""

from __future__ import annotations

import argparse
import sys

from imgfs.cli.options import Commands, add_command, image_options, output_option
from imgfs.cli.output_file import output_file
from imgfs.cli.paths import open_files
from imgfs.errors import UsageError


def add_export(commands: Commands) -> None:
    """`imgfs export`."""
    command = add_command(
        commands,
        "export",
        export,
        "write the files of an image as one tar",
        """\
Writes all files of IMAGE as a tar: what its layers make together, so without what upper ones delete. Owners,
links, devices, times and attributes are kept.

Examples:
  imgfs export debian:12 | tar -x -C rootfs
  imgfs export -o app.tar registry.example.com/team/app:v1
""",
    )
    image_options(command)
    output_option(command)


def export(options: argparse.Namespace) -> int:
    """Write the files as a tar."""
    from imgfs.layer.tar.writer import tar_of

    if options.output == "-" and sys.stdout.isatty():
        raise UsageError("a tar is not for a terminal: use -o FILE, or a pipe")
    with open_files(options) as files, output_file(options.output) as file:
        for piece in tar_of(files.members(files.matching(b"/"))):
            file.write(piece)
    return 0
