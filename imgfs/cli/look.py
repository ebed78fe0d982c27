"""imgfs ls, cat: read an image without mounting it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from imgfs.cli.format import long_line
from imgfs.cli.options import Commands, accepted, add_command, count, image_options
from imgfs.cli.output import say_line
from imgfs.cli.paths import PATHS, NamedFiles, open_files, take_paths

if TYPE_CHECKING:
    from imgfs.image.files import Found, ImageFiles


def add_ls(commands: Commands) -> None:
    """`imgfs ls`."""
    command = add_command(
        commands,
        "ls",
        ls,
        "list files of an image without mounting it",
        """\
Lists PATH (default: /) of IMAGE.

Examples:
  imgfs ls debian:12
  imgfs ls -l debian:12 /etc
  imgfs ls -l debian:12:/etc '/usr/lib/*.so'
  imgfs ls -R debian:12 /usr/share/doc
  imgfs ls -l --layer 2 app:v2
""",
        own_h=True,
    )
    image_options(command)
    command.add_argument("paths", metavar="PATH", nargs="*", default=[], help=PATHS)
    command.add_argument("-l", dest="long", action="store_true", help="with mode, owner, size and time")
    command.add_argument("-R", dest="recursive", action="store_true", help="with everything below")
    command.add_argument(
        "-d", dest="itself", action="store_true", help="a directory itself, not what is in it"
    )
    command.add_argument("-h", dest="human", action="store_true", help="sizes in kB, MB, …")
    accepted(command, "-a", "-A", "-1")
    command.add_argument(
        "--layer",
        metavar="N",
        type=count,
        help="what layer N adds (A), changes (C) and deletes (D)",
    )


def add_cat(commands: Commands) -> None:
    """`imgfs cat`."""
    command = add_command(
        commands,
        "cat",
        cat,
        "write files of an image to standard output",
        """\
Writes the file PATH of IMAGE to standard output, symbolic links followed inside the image.

Examples:
  imgfs cat debian:12 /etc/os-release
  imgfs cat oci:build:latest /app/config.json | jq .
""",
    )
    image_options(command)
    command.add_argument("paths", metavar="PATH", nargs="*", default=[], help=PATHS)


def ls(options: argparse.Namespace) -> int:
    """List files of an image: as ls(1), what is no directory first, and names before several directories."""
    paths = take_paths(options)
    if options.layer is not None:
        return _list_layer(paths, options)
    with open_files(options) as files:
        named = NamedFiles(files)
        tops = [
            (found if found.path != b"/" + path.strip(b"/") else found._replace(path=path))
            for path in paths
            for found in named.at(path, follow=not (options.long or options.itself) or path.endswith(b"/"))
        ]
        plain = [top for top in tops if options.itself or not top.is_directory]
        for top in plain:
            _print_line(files, top, top.path, options)
        names = options.recursive or len(paths) > 1 or len(tops) > 1
        for number, top in enumerate(top for top in tops if top not in plain):
            if names and not options.recursive and (number or plain):
                say_line(b"")
            for directory, children in _listings(files, top, options.recursive):
                if names:
                    say_line(directory + b":")
                for child in children:
                    _print_line(files, child, os.path.basename(child.path), options)
                if options.recursive:
                    say_line(b"")
    return named.code


def _list_layer(paths: list[bytes], options: argparse.Namespace) -> int:
    """List what a layer does below some paths."""
    from imgfs.cli.layers import open_layers
    from imgfs.image.compare import layer_changes

    tops = [b"/" + path.strip(b"/") for path in paths]
    with open_layers(options) as layers, ExitStack() as stack:
        after = stack.enter_context(layers.at(options.layer))
        below = stack.enter_context(layers.at(options.layer - 1)) if options.layer > 1 else None
        for one in layer_changes(below, after, options.layer):
            if not any(one.path == top or one.path.startswith(top.rstrip(b"/") + b"/") for top in tops):
                continue
            found = one.after or one.before
            assert found is not None
            files = after if one.after or below is None else below
            name = f"{one.change[0].upper()} ".encode() + one.path
            _print_line(files, found, name, options)
    return 0


def cat(options: argparse.Namespace) -> int:
    """Write files of an image to standard output."""
    paths = take_paths(options, required=True)
    with open_files(options) as files:
        named = NamedFiles(files)
        for found in named.of(paths, follow=True):
            if not found.is_regular:
                named.refuse(found)
                continue
            for piece in files.read(found):
                sys.stdout.buffer.write(piece)
    return named.code


def _listings(files: ImageFiles, top: Found, recursive: bool) -> Iterator[tuple[bytes, list[Found]]]:
    """Directories from `top` down, each with its children, parents first."""
    ahead = [top]
    while ahead:
        directory = ahead.pop()
        children = list(files.children(directory))
        yield directory.path, children
        if recursive:
            ahead += [child for child in reversed(children) if child.is_directory]


def _print_line(files: ImageFiles, found: Found, name: bytes, options: argparse.Namespace) -> None:
    node = found.node
    say_line(long_line(node, name, files.target(found), human=options.human) if options.long else name)
