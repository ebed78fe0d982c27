"""What the command line may say, and what its help teaches."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from typing import NoReturn

from imgfs import __version__
from imgfs.cli.arguments.options import RAW
from imgfs.quoting import printable

_SUMMARY = "Mount a container image straight from its registry: lazily, unprivileged, unconverted."
_EXAMPLES = """\
IMAGE is what docker calls it, or an OCI layout directory:
  debian:12                            docker.io/library/debian:12
  registry.example.com:5000/team/app   its tag latest
  app@sha256:0f3c…                     one image for ever
  oci:DIR:TAG                          no registry needed

Examples:
  imgfs mount debian:12 /mnt           mount it; its daemon stays
  grep -r TODO /mnt/usr/share          bytes are fetched as they are read
  imgfs umount /mnt
  imgfs ls -l debian:12 /etc           look without mounting

Each command has its own help: imgfs mount --help. The manual: imgfs help
"""

COMMANDS = {
    "mount": "arguments.mounting",
    "umount": "arguments.mounting",
    "ps": "arguments.mounting",
    "status": "arguments.watching",
    "run": "arguments.running",
    "bundle": "arguments.running",
    "pull": "arguments.pulling",
    "ls": "arguments.looking",
    "cat": "arguments.looking",
    "inspect": "arguments.looking",
    "diff": "arguments.changing",
    "commit": "arguments.changing",
    "scratch": "arguments.changing",
    "copy": "arguments.changing",
    "push": "arguments.changing",
    "index": "arguments.indexing",
    "login": "arguments.login",
    "logout": "arguments.login",
    "store": "arguments.storing",
    "help": "help",
    "version": "arguments.looking",
}  # by the module of `imgfs.cli` whose function add_COMMAND describes it, in the order of the help
_HIDDEN = {"complete": "complete"}  # for shells


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line in text that prints, as it quotes what was typed."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; `run` of the result carries it out. Exits by itself for --help and errors.

    Only the command that is meant is described, if there is one: to describe them all would be felt.
    """
    known = {**COMMANDS, **_HIDDEN}
    named = {name: known[name] for name in arguments[:1] if name in known}
    return describe(named or COMMANDS).parse_args(arguments)


def describe(commands: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return the parser of the command line with these of its commands, by module."""
    parser = _Parser(prog="imgfs", description=_SUMMARY, epilog=_EXAMPLES, formatter_class=RAW)
    parser.add_argument("--version", action="version", version=f"imgfs {__version__}")
    actions = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in commands.items():
        getattr(importlib.import_module(f"imgfs.cli.{module}"), f"add_{name}")(actions)
    return parser
