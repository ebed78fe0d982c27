"""imgfs tree: show the files of an image as a tree."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from imgfs.cli.format import counted
from imgfs.cli.options import Commands, accepted, count
from imgfs.cli.output import say, say_line
from imgfs.cli.paths import NamedFiles, add_look, open_files, take_paths

if TYPE_CHECKING:
    from imgfs.image.files import Found, ImageFiles


def add_tree(commands: Commands) -> None:
    """`imgfs tree`."""
    command = add_look(
        commands,
        "tree",
        tree,
        "show the files of an image as a tree",
        """\
Shows what is below PATH (default: /) of IMAGE.

Examples:
  imgfs tree -L 2 debian:12 /etc
  imgfs tree -d debian:12:/usr
""",
    )
    command.add_argument("-L", dest="depth", metavar="N", type=count, help="so many levels deep")
    command.add_argument("-d", dest="only_directories", action="store_true", help="directories only")
    accepted(command, "-a")


def tree(options: argparse.Namespace) -> int:
    """Show the files as a tree."""
    paths = take_paths(options)
    counts = [0, 0]
    with open_files(options) as files:
        named = NamedFiles(files)
        for top in named.of(paths, follow=True):
            say_line(top.path)
            _show(files, top, options, counts)
    say(f"\n{counted(counts[0], 'directory', 'directories')}, {counted(counts[1], 'file')}")
    return named.code


def _show(files: ImageFiles, top: Found, options: argparse.Namespace, counts: list[int]) -> None:
    """Show what is below a directory, without a call for each level: there may be thousands."""
    stack = [(b"", _listed(files, top, options))]
    while stack:
        indent, left = stack[-1]
        if not left:
            stack.pop()
            continue
        child = left.pop()
        counts[not child.is_directory] += 1
        branch, more = ("├── ", "│   ") if left else ("└── ", "    ")
        target = files.target(child)
        name = os.path.basename(child.path) + (b" -> " + target if target is not None else b"")
        say_line(indent + branch.encode() + name)
        if child.is_directory and (options.depth is None or len(stack) < options.depth):
            stack.append((indent + more.encode(), _listed(files, child, options)))


def _listed(files: ImageFiles, top: Found, options: argparse.Namespace) -> list[Found]:
    """Return what is shown of a directory, last first."""
    if not top.is_directory or (options.depth is not None and options.depth < 1):
        return []
    children = files.children(top)
    return [child for child in children if child.is_directory or not options.only_directories][::-1]
