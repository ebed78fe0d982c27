"""What the command line may say, and what its help teaches."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from imgfs import __version__
from imgfs.cli.arguments import changing, indexing, login, looking, mounting, pulling, running, watching
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

_COMMANDS = (
    mounting.add_mount,
    mounting.add_umount,
    watching.add_status,
    running.add_run,
    running.add_bundle,
    pulling.add_pull,
    looking.add_ls,
    looking.add_cat,
    looking.add_inspect,
    changing.add_diff,
    changing.add_commit,
    changing.add_scratch,
    changing.add_copy,
    changing.add_push,
    indexing.add_index,
    login.add_login,
    login.add_logout,
    looking.add_store,
    looking.add_version,
)  # in the order of the help


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; `run` of the result carries it out. Exits by itself for --help and errors."""
    parser = argparse.ArgumentParser(
        prog="imgfs", description=_SUMMARY, epilog=_EXAMPLES, formatter_class=RAW
    )
    parser.add_argument("--version", action="version", version=f"imgfs {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in _COMMANDS:
        add(commands)
    return parser.parse_args(arguments)
