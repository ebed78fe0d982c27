"""ls, cat, inspect, version: what they may be told, and what their help teaches."""

from __future__ import annotations

from imgfs.cli.arguments.options import (
    Commands,
    add_command,
    image_options,
    json_option,
)


def add_ls(commands: Commands) -> None:
    """`imgfs ls`."""
    command = add_command(
        commands,
        "ls",
        "look",
        "list files of an image without mounting it",
        """\
Lists PATH (default: /) of IMAGE.

Examples:
  imgfs ls debian:12
  imgfs ls -l debian:12 /etc
  imgfs ls -R debian:12 /usr/share/doc
""",
    )
    image_options(command)
    command.add_argument("path", metavar="PATH", nargs="?", default="/")
    command.add_argument("-l", dest="long", action="store_true", help="with mode, owner, size and time")
    command.add_argument("-R", dest="recursive", action="store_true", help="with everything below")


def add_cat(commands: Commands) -> None:
    """`imgfs cat`."""
    command = add_command(
        commands,
        "cat",
        "look",
        "write files of an image to standard output",
        """\
Writes the file PATH of IMAGE to standard output, symbolic links followed inside the image.

Examples:
  imgfs cat debian:12 /etc/os-release
  imgfs cat oci:build:latest /app/config.json | jq .
""",
    )
    image_options(command)
    command.add_argument("paths", metavar="PATH", nargs="+")


def add_inspect(commands: Commands) -> None:
    """`imgfs inspect`."""
    command = add_command(
        commands,
        "inspect",
        "look",
        "show digest, platform, config and layers of an image",
        """\
Shows what IMAGE is, from its documents alone: no layer is fetched.

Examples:
  imgfs inspect debian:12
  imgfs inspect --json --platform linux/arm64 debian:12 | jq .config.Env
""",
    )
    image_options(command)
    json_option(command)


def add_version(commands: Commands) -> None:
    """`imgfs version`."""
    add_command(
        commands,
        "version",
        "look",
        "show imgfs's version and the machine's FUSE",
        "Examples:\n  imgfs version\n",
    )
