"""imgfs du: sum the sizes of files of an image, by directory or layer."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import TYPE_CHECKING

from imgfs.cli.format import size
from imgfs.cli.options import Commands, count, json_option
from imgfs.cli.output import say, say_line
from imgfs.cli.paths import NamedFiles, add_look, named, open_files, take_paths

if TYPE_CHECKING:
    from imgfs.image.files import Found, ImageFiles


def add_du(commands: Commands) -> None:
    """`imgfs du`."""
    command = add_look(
        commands,
        "du",
        du,
        "sum the sizes of files of an image",
        """\
Sums the sizes of the files below PATH (default: /), for each directory. Sizes are what the files hold, in
bytes; a file with several names counts once.

Examples:
  imgfs du -h -d 1 debian:12 /usr
  imgfs du -s debian:12:/var/*
  imgfs du --layers registry.example.com/team/app:v1
""",
        own_h=True,
    )
    command.add_argument("-s", dest="summarize", action="store_true", help="only the sum of each PATH")
    command.add_argument("-d", dest="depth", metavar="N", type=count, help="directories so many levels below")
    command.add_argument("-h", "-H", "--human", action="store_true", help="sizes in kB, MB, …")
    command.add_argument("--layers", action="store_true", help="by the layer that brought the files")
    json_option(command)


def du(options: argparse.Namespace) -> int:
    """Sum sizes."""
    paths = take_paths(options)
    with open_files(options) as files:
        named_files = NamedFiles(files)
        tops = [*named_files.of(paths)]
        if options.layers:
            _say_layers(files, tops, options)
            return named_files.code
        sums = [line for top in tops for line in _sums(files, top, 0 if options.summarize else options.depth)]
    if options.json:
        say(json.dumps([{**named(path), "size": total} for path, total in sums], indent=2))
    else:
        for path, total in sums:
            say_line(f"{_text(total, options)}\t".encode() + path)
    return named_files.code


def _sums(files: ImageFiles, top: Found, depth: int | None) -> list[tuple[bytes, int]]:
    """Return directories with the sum of what is below them, after those in them; `top` is the last."""
    seen: set[int] = set()
    sums: list[tuple[bytes, int]] = []
    open_directories: list[tuple[Found, int]] = []

    def close_to(level: int) -> None:
        while len(open_directories) > level:
            found, total = open_directories.pop()
            if depth is None or found.depth <= depth:
                sums.append((found.path, total))
            if open_directories:
                above, its = open_directories[-1]
                open_directories[-1] = above, its + total

    for found in files.below(top):
        close_to(found.depth)
        if found.is_directory:
            open_directories.append((found, 0))
            continue
        size_here = 0 if found.node.ino in seen else found.node.size
        if found.node.nlink > 1:
            seen.add(found.node.ino)
        if open_directories:
            above, its = open_directories[-1]
            open_directories[-1] = above, its + size_here
        else:
            sums.append((found.path, size_here))
    close_to(0)
    return sums


def _say_layers(files: ImageFiles, tops: list[Found], options: argparse.Namespace) -> None:
    sums: Counter[int] = Counter()
    seen: set[int] = set()
    for top in tops:
        for found in files.below(top):
            if not found.is_directory and found.node.ino not in seen:
                seen.update([found.node.ino] if found.node.nlink > 1 else [])
                sums[files.layer(found)] += found.node.size
    if options.json:
        say(json.dumps([{"layer": layer, "size": sums[layer]} for layer in sorted(sums)], indent=2))
        return
    for layer in sorted(sums):
        say(f"{_text(sums[layer], options)}\tlayer {layer}")


def _text(total: int, options: argparse.Namespace) -> str:
    return size(total) if options.human else str(total)
