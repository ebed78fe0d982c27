"""imgfs find: find files of an image by what it says of them."""

from __future__ import annotations

import argparse
import json
import math
import sys
from functools import partial
from typing import TYPE_CHECKING

from imgfs.cli import find_tests
from imgfs.cli.find_tests import AddTerm, Operator
from imgfs.cli.options import Commands, accepted, count, json_option
from imgfs.cli.output import say_line
from imgfs.cli.paths import NamedFiles, add_look, file_fields, open_files, take_paths

if TYPE_CHECKING:
    from imgfs.cli.find_tests import Test
    from imgfs.image.files import Found, ImageFiles
    from imgfs.tree.versions import HiddenFile


def add_find(commands: Commands) -> None:
    """`imgfs find`."""
    command = add_look(
        commands,
        "find",
        find,
        "find files of an image",
        """\
Lists what is below PATH (default: /) and passes all tests, directories before what is in them. Tests are
joined as those of find(1): `!` or -not, -o, `(` and `)`. Patterns are a shell's; that of --path also matches
slashes. Names of users and groups are the image's.

With --deleted it lists the files that later layers hide instead, each with the layer that brought it and the
one that deleted it (D) or overwrote it (C). `imgfs which --restore` writes one out.

Examples:
  imgfs find debian:12 /usr -name '*.so*' -type f
  imgfs find debian:12 -perm /6000                     set-user-ID and set-group-ID files
  imgfs find debian:12 /etc ! -user root -o -mtime -7
  imgfs find --size +10M --json app:v2
  imgfs find app:v2 --layer 3 -0 | xargs -0 …
  imgfs find app:v2 --deleted --name '*.key'           what later layers hide
""",
    )
    _add_tests(command)
    command.add_argument("-0", "-print0", "--print0", action="store_true", help="end each path by a NUL")
    command.add_argument("--deleted", action="store_true", help="list what later layers delete or overwrite")
    json_option(command)


def _add_tests(command: argparse.ArgumentParser) -> None:
    """Add the tests and what joins them: terms of one expression, in the order of the line."""
    command.prefix_chars = "-!()"
    group = command.add_argument_group("tests (N may be +N, more, or -N, less)")
    add = partial(group.add_argument, dest="expression", default=[], action=AddTerm)
    add("--name", "-name", metavar="PATTERN", type=find_tests.glob, help="the last part of the path matches")
    add("--iname", "-iname", metavar="PATTERN", type=find_tests.iglob, help="the same, whatever the case")
    add("--path", "-path", metavar="PATTERN", type=find_tests.path_glob, help="the whole path matches")
    add("--type", "-type", metavar="LETTERS", type=find_tests.kind, help="f, d, l, c, b or p; several: fl")
    add("--size", "-size", metavar="N[kMG]", type=find_tests.size, help="has N bytes")
    add("--empty", "-empty", const=find_tests.is_empty, nargs=0, help="has no bytes, or no names in it")
    dates = "changed after a date, like 2024-05-01, or after the image's file at a PATH"
    add("--newer", "-newer", "-newermt", metavar="DATE|PATH", type=find_tests.newer, help=dates)
    add("--older", metavar="DATE", type=find_tests.older, help="changed before a date")
    add("--mtime", "-mtime", metavar="N", type=find_tests.days, help="changed N whole days ago")
    add("--mmin", "-mmin", metavar="N", type=find_tests.minutes, help="changed N whole minutes ago")
    bits = "that mode; -OCTAL: all these bits; /OCTAL: any of them"
    add("--mode", "-perm", metavar="OCTAL", type=find_tests.mode, help=bits)
    add("--user", "-user", metavar="NAME|N", type=find_tests.user, help="the owner, by name or number")
    add("--group", "-group", metavar="NAME|N", type=find_tests.group, help="the group, likewise")
    add("--uid", "-uid", metavar="N", type=find_tests.uid, help="the owner's number")
    add("--gid", "-gid", metavar="N", type=find_tests.gid, help="the group's number")
    add("--links", "-links", metavar="N", type=find_tests.links, help="has N names")
    add("--xattr", metavar="NAME", type=find_tests.xattr, help="has an attribute whose name matches")
    add("--layer", metavar="N", type=find_tests.layer, help="brought by the layer of that number, from 1")
    add("--not", "-not", const=Operator.NOT, nargs=0, help="the next test does not hold; also !")
    add("--or", "-or", "-o", const=Operator.OR, nargs=0, help="the tests before it hold, or those behind it")
    for sign in Operator.NOT, Operator.OPEN, Operator.CLOSE:
        add(sign.value, const=sign, nargs=0, help=argparse.SUPPRESS)
    add_depth = partial(group.add_argument, metavar="N", type=count)
    add_depth("--depth", "-maxdepth", help="at most N levels below PATH")
    add_depth("--min-depth", "-mindepth", default=0, help="at least N levels below PATH")
    accepted(command, "-a", "-and", "-print")


def find(options: argparse.Namespace) -> int:
    """Find files."""
    paths = take_paths(options)
    lines = _Lines(options, find_tests.joined(options.expression))
    code = (_find_hidden if options.deleted else _find_shown)(options, paths, lines)
    lines.end()
    return code


def _find_shown(options: argparse.Namespace, paths: list[bytes], lines: _Lines) -> int:
    """Write what the image shows below the paths."""
    with open_files(options) as files:
        named = NamedFiles(files)
        for top in named.of(paths):
            for found in files.below(top):
                lines.say(files, found)
        return named.code


def _find_hidden(options: argparse.Namespace, paths: list[bytes], lines: _Lines) -> int:
    """Write what later layers hide below the paths."""
    from imgfs.cli.layers import open_versions
    from imgfs.image.hidden import hidden_below

    with open_versions(options) as versions:
        named = NamedFiles(versions.files)
        for path in paths:
            is_empty = True
            for hidden, found in hidden_below(versions.tree, path):
                is_empty = False
                lines.say(versions.files, found, hidden)
            if is_empty:
                named.at(path)  # which tells if the path is in no layer
        return named.code


class _Lines:
    """Writes the files that pass a test one by one: there may be a million."""

    def __init__(self, options: argparse.Namespace, test: Test) -> None:
        self._options = options
        self._test = test
        self._least, self._most = options.min_depth, math.inf if options.depth is None else options.depth
        self._is_first = True

    def say(self, files: ImageFiles, found: Found, hidden: HiddenFile | None = None) -> None:
        """Write a file; `hidden` says by what it is hidden, None if the image shows it."""
        if not (self._least <= found.depth <= self._most and self._test(files, found)):
            return
        if self._options.json:
            fields = file_fields(files, found)
            if hidden:
                change = "overwritten" if hidden.is_replaced else "deleted"
                fields |= {"hidden_by": hidden.hider, "change": change}
            text = json.dumps(fields)
            sys.stdout.write(f"[\n  {text}" if self._is_first else f",\n  {text}")
        elif self._options.print0:
            sys.stdout.buffer.write(found.path + b"\0")
        elif hidden:
            letter = b"C" if hidden.is_replaced else b"D"
            say_line(
                b"%s  layer %d, by layer %d  %s" % (letter, files.layer(found), hidden.hider, found.path)
            )
        else:
            say_line(found.path)
        self._is_first = False

    def end(self) -> None:
        """Write what comes after the last file."""
        if self._options.json:
            say_line(b"[]" if self._is_first else b"\n]")
