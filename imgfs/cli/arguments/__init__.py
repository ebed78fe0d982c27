"""What the command line may say, and what its help teaches."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from imgfs import __version__
from imgfs.cli.arguments.options import RAW

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

Each command has its own help: imgfs mount --help
"""

_COMMANDS = {
    "mount": "mounting",
    "umount": "mounting",
    "status": "watching",
    "run": "running",
    "bundle": "running",
    "pull": "pulling",
    "ls": "looking",
    "cat": "looking",
    "inspect": "looking",
    "diff": "changing",
    "commit": "changing",
    "scratch": "changing",
    "copy": "changing",
    "push": "changing",
    "index": "indexing",
    "login": "login",
    "logout": "login",
    "store": "storing",
    "version": "looking",
}  # by the module whose function add_COMMAND describes it, in the order of the help


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; `run` of the result carries it out. Exits by itself for --help and errors.

    Only the command that is meant is described, if there is one: to describe them all would be felt.
    """
    parser = argparse.ArgumentParser(
        prog="imgfs", description=_SUMMARY, epilog=_EXAMPLES, formatter_class=RAW
    )
    parser.add_argument("--version", action="version", version=f"imgfs {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in {*arguments[:1]} & _COMMANDS.keys() or _COMMANDS:
        module = importlib.import_module(f"imgfs.cli.arguments.{_COMMANDS[name]}")
        getattr(module, f"add_{name}")(commands)
    return parser.parse_args(arguments)
