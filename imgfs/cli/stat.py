"""imgfs stat: show what an image says of files."""

from __future__ import annotations

import argparse
import json
import os
import stat as modes
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from imgfs.cli.options import Commands, json_option
from imgfs.cli.output import say
from imgfs.cli.paths import KINDS, NamedFiles, add_look, file_fields, open_files, take_paths
from imgfs.quoting import printable_path

if TYPE_CHECKING:
    from imgfs.image.files import Found, ImageFiles

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def add_stat(commands: Commands) -> None:
    """`imgfs stat`."""
    command = add_look(
        commands,
        "stat",
        stat,
        "show the metadata of files of an image",
        """\
Shows kind, size, mode, owner, time, links, attributes and layer of PATH; a symbolic link itself.

Examples:
  imgfs stat debian:12 /etc/passwd
  imgfs stat --json debian:12:/usr/bin/* | jq '.[] | select(.mode > "0777").path'
""",
    )
    json_option(command)


def stat(options: argparse.Namespace) -> int:
    """Show what is said of files."""
    paths = take_paths(options, required=True)
    with open_files(options) as files:
        named = NamedFiles(files)
        found = [*named.of(paths)]
        if options.json:
            say(json.dumps([file_fields(files, one) for one in found], indent=2))
        elif found:
            say("\n\n".join(_shown(files, one) for one in found))
    return named.code


def _shown(files: ImageFiles, found: Found) -> str:
    node, target = found.node, files.target(found)
    arrow = f" -> {printable_path(target)}" if target is not None else ""
    lines = [
        f"file   {printable_path(found.path)}{arrow}",
        f"kind   {KINDS[modes.S_IFMT(node.mode)]}, {node.size} bytes",
        f"mode   {modes.S_IMODE(node.mode):04o} {modes.filemode(node.mode)}",
        f"owner  {node.uid}:{node.gid}",
        f"mtime  {_time(node.mtime_ns)}",
        f"links  {node.nlink} (inode {node.ino})",
        f"layer  {files.layer(found)}",
    ]
    if modes.S_ISCHR(node.mode) or modes.S_ISBLK(node.mode):
        lines.append(f"device {os.major(node.device)}, {os.minor(node.device)}")
    for name, value in files.xattrs(found).items():
        lines.append(f"xattr  {printable_path(name)}={printable_path(value)}")
    return "\n".join(lines)


def _time(nanoseconds: int) -> str:
    """Return a time in UTC; one beyond the calendar in seconds since the epoch."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    try:
        return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%d %H:%M:%S}.{rest:09d} UTC"
    except OverflowError:
        return f"{seconds}.{rest:09d} s since 1970"
