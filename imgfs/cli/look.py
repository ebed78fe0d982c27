"""imgfs ls, cat: read an image without mounting it."""

from __future__ import annotations

import argparse
import errno
import os
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from imgfs.cli.format import long_line
from imgfs.cli.options import Commands, add_command, image_options
from imgfs.cli.output import say_line

if TYPE_CHECKING:
    from imgfs.tree.reader import Node, Tree


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
  imgfs ls -R debian:12 /usr/share/doc
""",
    )
    image_options(command)
    command.add_argument("path", metavar="PATH", nargs="?", default="/")
    command.add_argument("-l", dest="long", action="store_true", help="with mode, owner, size and time")
    command.add_argument("-R", dest="recursive", action="store_true", help="with everything below")


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
    command.add_argument("paths", metavar="PATH", nargs="+")


def ls(options: argparse.Namespace) -> int:
    """List files of an image."""
    from imgfs.cli.selection import select_image

    path = os.fsencode(options.path)
    with select_image(options).open() as image:
        top = image.tree.resolve(path, follow=not options.long or path.endswith(b"/"))
        if not stat.S_ISDIR(top.mode):
            _print_line(image.tree, top, path, options.long)
            return 0
        for directory, names in _listings(image.tree, top, path, options.recursive):
            if options.recursive:
                say_line(directory + b":")
            for name, node in names:
                _print_line(image.tree, node, name, options.long)
            if options.recursive:
                say_line(b"")
    return 0


def cat(options: argparse.Namespace) -> int:
    """Write files of an image to standard output."""
    from imgfs.cli.selection import select_image

    with select_image(options).open() as image:
        for path in options.paths:
            node = image.tree.resolve(os.fsencode(path))
            if not stat.S_ISREG(node.mode):
                number = errno.EISDIR if stat.S_ISDIR(node.mode) else errno.EINVAL
                raise OSError(number, os.strerror(number), path)
            for piece in image.read(node.ino):
                sys.stdout.buffer.write(piece)
    return 0


def _listings(
    tree: Tree, top: Node, path: bytes, recursive: bool
) -> Iterator[tuple[bytes, Iterator[tuple[bytes, Node]]]]:
    """Directories from `top` down, each with its children, parents first."""
    ahead = [(path, top)]
    while ahead:
        directory, node = ahead.pop()
        yield directory, ((name, child) for _, name, child in tree.children(node.ino))
        if recursive:
            below = [(_join(directory, name), child) for _, name, child in tree.children(node.ino)]
            ahead += [(name, child) for name, child in reversed(below) if stat.S_ISDIR(child.mode)]


def _join(directory: bytes, name: bytes) -> bytes:
    return directory.rstrip(b"/") + b"/" + name


def _print_line(tree: Tree, node: Node, name: bytes, long: bool) -> None:
    if not long:
        say_line(name)
        return
    target = tree.target(node.ino) if stat.S_ISLNK(node.mode) else None
    say_line(long_line(node, name, target))
