"""index: what it may be told, and what its help teaches."""

from __future__ import annotations

import argparse

from imgfs.cli.arguments.options import (
    RAW,
    Commands,
    json_option,
    lazily,
    registry_options,
    store_option,
)
from imgfs.oci.policy import Policy


def add_index(commands: Commands) -> None:
    """`imgfs index`."""
    command = commands.add_parser(
        "index",
        help="index images, and publish the indexes beside them",
        description="""\
An image that nobody has indexed is streamed once when it is mounted. An index that is pushed beside it, into
the same repository, spares everybody that: a mount finds it by itself. The image stays as it is.

Examples:
  imgfs index push registry.example.com/team/app:v2
  imgfs index ls registry.example.com/team/app:v2
  imgfs mount registry.example.com/team/app:v2 /mnt
  imgfs index build debian:12          into the store only
""",
        formatter_class=RAW,
    )
    actions = command.add_subparsers(metavar="build|push|ls|rm", required=True)
    _add_build(actions)
    _add_push(actions)
    _add_ls(actions)
    _add_rm(actions)


def _add_build(actions: Commands) -> None:
    command = _action(
        actions,
        "build",
        "index the layers of an image, in the store",
        """\
Streams those layers of IMAGE that have no index here yet, and merges them: a mount then has nothing to do.

Examples:
  imgfs index build debian:12
""",
    )
    _image_options(command)
    command.set_defaults(index=Policy.AUTO)


def _add_push(actions: Commands) -> None:
    command = _action(
        actions,
        "push",
        "publish the index of an image beside it",
        """\
Puts an artifact that refers to IMAGE into its repository: its tree, the spans of its layers, and what
recorded mounts have read. SOCI indexes are pushed with it, which soci-snapshotter can use as well. Only what
has been verified here is published. Replaces what imgfs has published of the image before.

Examples:
  imgfs index push registry.example.com/team/app:v2
  imgfs index push --repack registry.example.com/team/app:v2
  imgfs index push --soci none oci:build:v2
  imgfs index push --soci v2 --as registry.example.com/team/app:v2-soci registry.example.com/team/app:v2
""",
    )
    _image_options(command)
    command.add_argument(
        "--repack",
        action="store_true",
        help="with a seekable copy of each layer that can only be read from its start (zstd in one frame)",
    )
    command.add_argument(
        "--soci",
        choices=["v1", "v2", "none"],
        default="v1",
        help="with a SOCI index beside the image (v1, the default), or, with --as, in a new image (v2)",
    )
    command.add_argument(
        "--as", dest="new", metavar="NEW", help="the name of the image that names its SOCI index"
    )
    command.set_defaults(index=Policy.VERIFIED)


def _add_ls(actions: Commands) -> None:
    command = _action(
        actions,
        "ls",
        "list the indexes beside an image",
        """\
Lists what has been published beside IMAGE, by whom, and what it weighs.

Examples:
  imgfs index ls registry.example.com/team/app:v2
  imgfs index ls --json registry.example.com/team/app:v2 | jq -r '.[].digest'
""",
    )
    _image_options(command)
    json_option(command)


def _add_rm(actions: Commands) -> None:
    command = _action(
        actions,
        "rm",
        "remove indexes from beside an image",
        """\
Removes what imgfs has published beside IMAGE, or the indexes that are named. Needs a registry that allows
deletion; where it does not, the indexes are at least not listed any more, if the registry keeps no list of
its own.

Examples:
  imgfs index rm registry.example.com/team/app:v2
  imgfs index rm registry.example.com/team/app:v2 sha256:0f3c…
""",
    )
    _image_options(command)
    command.add_argument("digests", metavar="DIGEST", nargs="*", help="as `imgfs index ls` shows them")


def _action(actions: Commands, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    command = actions.add_parser(name, help=summary, description=description, formatter_class=RAW)
    command.set_defaults(run=lazily("index", name))
    return command


def _image_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("image", metavar="IMAGE", help="an image's name, or oci:DIR[:TAG]")
    registry_options(command, platform="instead of this machine's")
    store_option(command)
    command.set_defaults(offline=None)  # nothing can stand in for the registry
