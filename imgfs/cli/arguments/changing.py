"""diff, commit, scratch, copy, push: what they may be told, and what their help teaches."""

from __future__ import annotations

import argparse

from imgfs.cli.arguments.options import (
    RAW,
    Commands,
    add_command,
    connection_options,
    json_option,
    lazily,
    registry_options,
    store_option,
)


def add_diff(commands: Commands) -> None:
    """`imgfs diff`."""
    command = add_command(
        commands,
        "diff",
        "scratch",
        "list what a scratch has changed",
        """\
Lists what the scratch of a mount, or a scratch that is kept, changes in its image: A added, C changed,
D deleted.

Examples:
  imgfs diff /mnt
  imgfs diff --stat work
  imgfs diff --json work | jq -r '.[] | select(.change == "added").path'
""",
    )
    _changed_options(command)
    command.add_argument(
        "--stat", action="store_true", help="with how much each file has grown, and a summary"
    )
    json_option(command)


def add_commit(commands: Commands) -> None:
    """`imgfs commit`."""
    command = add_command(
        commands,
        "commit",
        "commit",
        "make an image of what a scratch shows",
        """\
Makes one layer of what a scratch changes, puts it on the image's own and gives the result the name NEW: in a
registry, or in an OCI layout. Only what is not there yet is sent. The same changes make the same image.

Examples:
  imgfs commit /mnt registry.example.com/team/app:v2
  imgfs commit work oci:build:v2 --message "with curl" --author "A. U. Thor"
  imgfs commit work oci:build:v2 --change 'CMD ["python3", "-m", "app"]' --change 'ENV DEBUG=1'
  imgfs commit work oci:build:v2 --compression zstd
""",
    )
    _changed_options(command)
    command.add_argument("new", metavar="NEW", help="an image's name, or oci:DIR[:TAG]")
    command.add_argument("--message", "-m", default="", help="what the image's history says of it")
    command.add_argument("--author", "-a", default="", help="who made it")
    command.add_argument("--compression", choices=["gzip", "zstd"], default="gzip", help="default: gzip")
    command.add_argument(
        "--change",
        "-c",
        action="append",
        default=[],
        metavar="'INSTRUCTION …'",
        help="as in a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, VOLUME, WORKDIR, …",
    )


def _changed_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("scratch", metavar="MNT|NAME", help="a mount, or a scratch by its name or directory")
    connection_options(command)
    store_option(command)


def add_scratch(commands: Commands) -> None:
    """`imgfs scratch`."""
    command = commands.add_parser(
        "scratch",
        help="list, remove or reset scratches",
        description="""\
A scratch that has a name is kept in the store, with all that was changed in the image it lies on.

Examples:
  imgfs mount --scratch work debian:12 /mnt
  imgfs scratch ls
  imgfs scratch reset work             back to the image as it is
  imgfs scratch rm work
""",
        formatter_class=RAW,
    )
    actions = command.add_subparsers(metavar="ls|rm|reset", required=True)
    ls = actions.add_parser("ls", help="list them with their sizes and images")
    json_option(ls)
    rm = actions.add_parser("rm", help="remove scratches with all their changes")
    reset = actions.add_parser("reset", help="throw away all changes")
    for action, name in ((ls, "ls"), (rm, "rm"), (reset, "reset")):
        action.set_defaults(run=lazily("scratch", name))
        store_option(action)
        if action is not ls:
            action.add_argument(
                "names", metavar="NAME|DIR", nargs="+", help="as `imgfs scratch ls` shows them"
            )


def add_copy(commands: Commands) -> None:
    """`imgfs copy`."""
    command = add_command(
        commands,
        "copy",
        "transfer",
        "copy an image to a registry or an OCI layout",
        """\
Copies what SRC names to DST byte for byte, so that it keeps its digest: an index with the images of all its
platforms, or with --platform only the image for that one. What DST has already is not sent again. Writes
DST and the digest to standard output.

A Docker-format image gets OCI media types in a layout, where skopeo, podman and umoci read no others, and so
another digest; its layers and configs stay as they are. --preserve-digests, or a digest in DST, keeps it.

Examples:
  imgfs copy debian:12 registry.example.com/mirror/debian:12
  imgfs copy --platform linux/arm64 debian:12 oci:DIR:12
  imgfs copy oci:DIR:v1 registry.example.com/team/app:v1
""",
    )
    _transfer_options(command, "an image's name, or oci:DIR[:TAG]")
    command.add_argument(
        "--preserve-digests",
        action="store_true",
        help="write a Docker-format image into a layout as it is, under its own digest",
    )


def add_push(commands: Commands) -> None:
    """`imgfs push`."""
    command = add_command(
        commands,
        "push",
        "transfer",
        "copy an image to a registry",
        """\
Copies what SRC names, an OCI layout for the most part, to the registry's repository that DST names. As
`imgfs copy`, which also writes layouts.

Examples:
  imgfs push oci:build:v1 registry.example.com/team/app:v1
  imgfs push registry.example.com/team/app:v1 registry.example.com/team/app:stable
""",
    )
    _transfer_options(command, "what to push: oci:DIR[:TAG], or an image's name")
    command.set_defaults(preserve_digests=True)  # a registry takes both formats


def _transfer_options(command: argparse.ArgumentParser, source: str) -> None:
    command.add_argument("source", metavar="SRC", help=source)
    command.add_argument("destination", metavar="DST", help="the name it gets (tag: latest)")
    registry_options(command, platform="the image for this platform alone")
