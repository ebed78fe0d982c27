"""imgfs find: find files of an image by what it says of them."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from imgfs.cli.options import Commands, json_option
from imgfs.cli.output import say_line
from imgfs.cli.paths import NamedFiles, add_look, file_fields, open_files, take_paths

if TYPE_CHECKING:
    from imgfs.image.files import Found, ImageFiles
    from imgfs.tree.versions import HiddenFile

Test: TypeAlias = "Callable[[ImageFiles, Found], bool]"

_TYPES = {
    "f": stat.S_IFREG,
    "d": stat.S_IFDIR,
    "l": stat.S_IFLNK,
    "c": stat.S_IFCHR,
    "b": stat.S_IFBLK,
    "p": stat.S_IFIFO,
}
_SIZE = re.compile(r"([+-]?)([0-9]{1,18})([ckMG]?)")
_TESTS = (
    "name",
    "iname",
    "path",
    "type",
    "size",
    "newer",
    "older",
    "mode",
    "uid",
    "gid",
    "layer",
    "xattr",
    "depth",
)
_UNITS = {"": 1, "c": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MODE = re.compile(r"([-/]?)([0-7]{1,5})")


def add_find(commands: Commands) -> None:
    """`imgfs find`."""
    command = add_look(
        commands,
        "find",
        find,
        "find files of an image",
        """\
Lists what is below PATH (default: /) and passes all tests, directories before what is in them. Patterns are a
shell's; that of --path also matches slashes.

With --deleted it lists the files that later layers hide instead, each with the layer that brought it and the
one that deleted it (D) or overwrote it (C). `imgfs which --restore` writes one out.

Examples:
  imgfs find debian:12 /usr -name '*.so*' -type f
  imgfs find debian:12 -perm /6000                     set-user-ID and set-group-ID files
  imgfs find --size +10M --json app:v2
  imgfs find app:v2 --layer 3 -0 | xargs -0 …
  imgfs find app:v2 --deleted --name '*.key'           what later layers hide
""",
    )
    add = command.add_argument_group("tests").add_argument
    add("--name", "-name", metavar="PATTERN", type=_glob, help="the last part of the path matches")
    add("--iname", "-iname", metavar="PATTERN", type=iglob, help="the same, whatever the case")
    add("--path", "-path", metavar="PATTERN", type=_path_glob, help="the whole path matches")
    add("--type", "-type", metavar="LETTERS", type=_type, help="f, d, l, c, b or p; several: fl")
    add("--size", "-size", metavar="[+-]N[kMG]", type=_size, help="bytes: more than +N, less than -N")
    add("--newer", metavar="DATE", type=_newer, help="changed after a date, like 2024-05-01")
    add("--older", metavar="DATE", type=_older, help="changed before a date")
    bits = "that mode; -OCTAL: all these bits; /OCTAL: any of them"
    add("--mode", "-perm", metavar="OCTAL", type=_mode, help=bits)
    add("--uid", "-uid", metavar="N", type=_uid, help="the owner's number")
    add("--gid", "-gid", metavar="N", type=_gid, help="the group's number")
    add("--xattr", metavar="NAME", type=_xattr, help="has an attribute whose name matches")
    add("--layer", metavar="N", type=_layer, help="brought by the layer of that number, from 1")
    add("--depth", "-maxdepth", metavar="N", type=_depth, help="at most N levels below PATH")
    command.add_argument("-0", "-print0", "--print0", action="store_true", help="end each path by a NUL")
    command.add_argument("--deleted", action="store_true", help="list what later layers delete or overwrite")
    json_option(command)


def find(options: argparse.Namespace) -> int:
    """Find files."""
    paths = take_paths(options)
    given = (getattr(options, name) for name in _TESTS)
    tests: list[Test] = [test for test in given if test is not None]
    lines = _Lines(options, tests)
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
    """Writes the files that pass some tests one by one: there may be a million."""

    def __init__(self, options: argparse.Namespace, tests: list[Test]) -> None:
        self._options = options
        self._tests = tests
        self._is_first = True

    def say(self, files: ImageFiles, found: Found, hidden: HiddenFile | None = None) -> None:
        """Write a file; `hidden` says by what it is hidden, None if the image shows it."""
        if not all(test(files, found) for test in self._tests):
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


def _glob(text: str) -> Test:
    pattern = os.fsencode(text)
    return lambda _, found: fnmatch.fnmatchcase(_name(found), pattern)


def iglob(text: str) -> Test:
    """Test a name against a pattern, whatever the case."""
    pattern = os.fsencode(text.lower())
    return lambda _, found: fnmatch.fnmatchcase(os.fsencode(os.fsdecode(_name(found)).lower()), pattern)


def _path_glob(text: str) -> Test:
    pattern = os.fsencode(text)
    return lambda _, found: fnmatch.fnmatchcase(found.path, pattern)


def _name(found: Found) -> bytes:
    return os.path.basename(found.path) or b"/"


def _type(text: str) -> Test:
    if not text or set(text) - set(_TYPES):
        raise argparse.ArgumentTypeError(f"{text!r} has other letters than {', '.join(_TYPES)}")
    kinds = {_TYPES[letter] for letter in text}
    return lambda _, found: stat.S_IFMT(found.node.mode) in kinds


def _size(text: str) -> Test:
    match = _SIZE.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, like 5, +10k or -2M")
    sign, count = match[1], int(match[2]) * _UNITS[match[3]]
    if sign == "+":
        return lambda _, found: found.node.size > count
    if sign == "-":
        return lambda _, found: found.node.size < count
    return lambda _, found: found.node.size == count


def _newer(text: str) -> Test:
    moment = _moment(text)
    return lambda _, found: found.node.mtime_ns > moment


def _older(text: str) -> Test:
    moment = _moment(text)
    return lambda _, found: found.node.mtime_ns < moment


def _moment(text: str) -> int:
    """Return a date, perhaps with a time, in nanoseconds since the epoch; UTC unless it says another zone."""
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date, like 2024-05-01") from None
    if date.tzinfo is None:
        date = datetime.fromisoformat(f"{date.isoformat()}+00:00")
    return int(date.timestamp() * 1_000_000_000)


def _mode(text: str) -> Test:
    match = _MODE.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no mode, like 755, -4000 or /6000")
    bits = int(match[2], 8)
    if match[1] == "-":
        return lambda _, found: stat.S_IMODE(found.node.mode) & bits == bits
    if match[1] == "/":
        return lambda _, found: bool(stat.S_IMODE(found.node.mode) & bits)
    return lambda _, found: stat.S_IMODE(found.node.mode) == bits


def _uid(text: str) -> Test:
    number = _number(text)
    return lambda _, found: found.node.uid == number


def _gid(text: str) -> Test:
    number = _number(text)
    return lambda _, found: found.node.gid == number


def _layer(text: str) -> Test:
    number = _number(text)
    return lambda files, found: files.layer(found) == number


def _depth(text: str) -> Test:
    number = _number(text)
    return lambda _, found: found.depth <= number


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 10:
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def _xattr(text: str) -> Test:
    return partial(_has_xattr, os.fsencode(text))


def _has_xattr(pattern: bytes, files: ImageFiles, found: Found) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in files.xattrs(found))
