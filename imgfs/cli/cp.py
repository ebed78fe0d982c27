"""imgfs cp: copy files out of an image."""

from __future__ import annotations

import argparse
import os
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.cli.options import Commands, accepted, add_command, image_options
from imgfs.cli.output import warn
from imgfs.cli.output_file import is_stream, output_file
from imgfs.cli.paths import PATHS, NamedFiles, open_files, take_paths
from imgfs.errors import UsageError

if TYPE_CHECKING:
    from imgfs.image.files import Found, ImageFiles

_WARNED = 10  # files


def add_cp(commands: Commands) -> None:
    """`imgfs cp`."""
    command = add_command(
        commands,
        "cp",
        cp,
        "copy files out of an image",
        """\
Copies files and directories of IMAGE to DEST, as `cp -a`: links stay links, and owners, modes, times and
attributes are kept, as far as you may set them. A DEST that is a directory gets them under their names. With
`-` for DEST a tar of them is written to standard output.

Examples:
  imgfs cp debian:12:/bin/busybox .
  imgfs cp debian:12 /etc /usr/share/doc saved/
  imgfs cp debian:12:/etc - | tar -t
""",
    )
    image_options(command)
    command.add_argument("paths", metavar="PATH", nargs="*", default=[], help=PATHS)
    command.add_argument("destination", metavar="DEST", help="a file or directory, or `-`")
    accepted(command, "-a", "-p", "-r", "-R")


def cp(options: argparse.Namespace) -> int:
    """Copy files out of an image."""
    from imgfs.image.extract import Extraction

    paths = take_paths(options, required=True)
    if options.destination == "-" and sys.stdout.isatty():
        raise UsageError("a tar is not for a terminal: name a directory, or use a pipe")
    with open_files(options) as files:
        named = NamedFiles(files)
        found = [*named.of(paths)]
        if options.destination == "-":
            return _write_tar(files, found) or named.code
        destination = Path(options.destination)
        into = destination.is_dir()
        if len(found) > 1 and not into:
            raise UsageError(f"{destination}: not a directory, and there are {len(found)} files to copy")
        if is_stream(options.destination):
            return _write_to(options.destination, files, found) or named.code
        told: list[str] = []
        extraction = Extraction(files, told.append)
        for one in found:
            name = os.path.basename(one.path) if into else os.fsencode(destination.name)
            if into and not name:  # the root: its contents
                for child in files.children(one):
                    extraction.write(child, destination, os.path.basename(child.path))
            else:
                extraction.write(one, destination if into else destination.parent, name)
    for text in told[:_WARNED]:
        warn(text)
    if len(told) > _WARNED:
        warn(f"and {len(told) - _WARNED} more")
    return named.code


def _write_to(name: str, files: ImageFiles, found: list[Found]) -> int:
    """Write one file to a device or a pipe."""
    for one in found:
        if not one.is_regular:
            raise UsageError(f"{name}: not a directory, and what is to be copied is not one file")
        with output_file(name) as file:
            for piece in files.read(one):
                file.write(piece)
    return 0


def _write_tar(files: ImageFiles, found: list[Found]) -> int:
    from imgfs.layer.tar.writer import tar_of

    each = (files.members([one], below=os.path.dirname(one.path)) for one in found)
    for piece in tar_of(chain.from_iterable(each)):
        sys.stdout.buffer.write(piece)
    return 0
