"""What the command line may say, and what its help teaches."""

from __future__ import annotations

import argparse
import contextlib
import importlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

from imgfs import __version__

_LONGEST_WAIT = 60  # seconds
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


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; `run` of the result carries it out. Exits by itself for --help and errors."""
    parser = argparse.ArgumentParser(
        prog="imgfs", description=_SUMMARY, epilog=_EXAMPLES, formatter_class=_Raw
    )
    parser.add_argument("--version", action="version", version=f"imgfs {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        _mount,
        _umount,
        _status,
        _ls,
        _cat,
        _inspect,
        _diff,
        _commit,
        _scratch,
        _copy,
        _push,
        _store,
        _version,
    ):
        add(commands)
    return parser.parse_args(arguments)


_Raw = argparse.RawDescriptionHelpFormatter
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _mount(commands: _Commands) -> None:
    command = _command(
        commands,
        "mount",
        "mount",
        "mount an image",
        """\
Mounts IMAGE at MOUNTPOINT, an empty directory, and returns when it answers. The image itself never changes:
with --rw or --scratch, changes are kept beside it.
A layer seen for the first time is streamed once; after that it is read lazily.

Examples:
  imgfs mount debian:12 /mnt
  imgfs mount --squash-owner registry.example.com/team/app:v2 ~/app
  imgfs mount --platform linux/arm64 debian:12 /mnt
  imgfs mount --rw debian:12 /mnt      change it; the changes go when it is unmounted
  imgfs mount --scratch work debian:12 /mnt
  imgfs mount -f -o suid,dev debian:12 /mnt
  mount -t fuse.imgfs debian:12 /mnt -o platform=linux/arm64
""",
    )
    _image_options(command)
    command.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory")
    command.add_argument("-f", "--foreground", action="store_true", help="stay until it is unmounted")
    command.add_argument(
        "--squash-owner", action="store_true", help="show every file as your own, so that you may read it"
    )
    command.add_argument(
        "--upto-layer",
        metavar="N|DIGEST",
        help="the image as it was after an earlier layer, counted from 1 as `imgfs inspect` lists them",
    )
    command.add_argument(
        "--rw", action="store_true", help="with a writable scratch on top, which goes with the mount"
    )
    command.add_argument(
        "--scratch",
        metavar="NAME|DIR",
        help="with a scratch that is kept: by a name in the store, or in a directory (has a slash)",
    )
    command.add_argument(
        "--write-through",
        action="store_true",
        help="lose nothing written to a scratch even if the daemon is killed; slower",
    )
    command.add_argument(
        "-o",
        dest="fuse_options",
        metavar="OPT[,OPT…]",
        action="append",
        default=[],
        help="FUSE options: allow_other (root: always), suid, dev, noexec, nonempty, …",
    )
    command.add_argument(
        "--log-level",
        default="info",
        type=str.lower,
        choices=["debug", "info", "warning", "error"],
        help="how much the daemon logs (default: info)",
    )


def _umount(commands: _Commands) -> None:
    command = _command(
        commands,
        "umount",
        "mount",
        "unmount",
        """\
Unmounts MOUNTPOINT and waits for its daemon to end. `umount` and `fusermount3 -u` do as well.

Examples:
  imgfs umount /mnt
  imgfs umount --lazy /mnt             although something still uses it
""",
    )
    command.add_argument("mountpoint", metavar="MOUNTPOINT")
    command.add_argument("-l", "--lazy", action="store_true", help="detach now, end when nobody uses it")


def _status(commands: _Commands) -> None:
    command = _command(
        commands,
        "status",
        "mount",
        "show what a mount has fetched and served",
        """\
Shows what is mounted at MOUNTPOINT, what it has fetched, and how much of each layer is here.

Examples:
  imgfs status /mnt
  imgfs status --json /mnt | jq .bytes_fetched
""",
    )
    command.add_argument("mountpoint", metavar="MOUNTPOINT")
    _json_option(command)


def _ls(commands: _Commands) -> None:
    command = _command(
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
    _image_options(command)
    command.add_argument("path", metavar="PATH", nargs="?", default="/")
    command.add_argument("-l", dest="long", action="store_true", help="with mode, owner, size and time")
    command.add_argument("-R", dest="recursive", action="store_true", help="with everything below")


def _cat(commands: _Commands) -> None:
    command = _command(
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
    _image_options(command)
    command.add_argument("paths", metavar="PATH", nargs="+")


def _inspect(commands: _Commands) -> None:
    command = _command(
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
    _image_options(command)
    _json_option(command)


def _diff(commands: _Commands) -> None:
    command = _command(
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
    _json_option(command)


def _commit(commands: _Commands) -> None:
    command = _command(
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
    _connection_options(command)
    _store_option(command)


def _scratch(commands: _Commands) -> None:
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
        formatter_class=_Raw,
    )
    actions = command.add_subparsers(metavar="ls|rm|reset", required=True)
    ls = actions.add_parser("ls", help="list them with their sizes and images")
    _json_option(ls)
    rm = actions.add_parser("rm", help="remove scratches with all their changes")
    reset = actions.add_parser("reset", help="throw away all changes")
    for action, name in ((ls, "ls"), (rm, "rm"), (reset, "reset")):
        action.set_defaults(run=_lazily("scratch", name))
        _store_option(action)
        if action is not ls:
            action.add_argument(
                "names", metavar="NAME|DIR", nargs="+", help="as `imgfs scratch ls` shows them"
            )


def _copy(commands: _Commands) -> None:
    command = _command(
        commands,
        "copy",
        "transfer",
        "copy an image to a registry or an OCI layout",
        """\
Copies what SRC names to DST byte for byte, so that it keeps its digest: an index with the images of all its
platforms, or with --platform only the image for that one. What DST has already is not sent again. Writes
DST and the digest to standard output.

Examples:
  imgfs copy debian:12 registry.example.com/mirror/debian:12
  imgfs copy --platform linux/arm64 debian:12 oci:DIR:12
  imgfs copy oci:DIR:v1 registry.example.com/team/app:v1
""",
    )
    _transfer_options(command, "an image's name, or oci:DIR[:TAG]")


def _push(commands: _Commands) -> None:
    command = _command(
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


def _transfer_options(command: argparse.ArgumentParser, source: str) -> None:
    command.add_argument("source", metavar="SRC", help=source)
    command.add_argument("destination", metavar="DST", help="the name it gets (tag: latest)")
    _registry_options(command, platform="the image for this platform alone")


def _store(commands: _Commands) -> None:
    command = commands.add_parser(
        "store",
        help="show or remove what is kept in the cache directory",
        description="""\
Indexes, trees and cached bytes are kept in one directory, shared by all mounts and images.

Examples:
  imgfs store path
  imgfs store ls                       images and layers, with sizes
  imgfs store rm debian:12             an image, and the layers only it uses
  imgfs store rm --data debian:12      its cached bytes; its indexes stay
  imgfs store rm --all
""",
        formatter_class=_Raw,
    )
    actions = command.add_subparsers(metavar="path|ls|rm", required=True)
    path = actions.add_parser("path", help="say where it is")
    path.set_defaults(run=_lazily("store", "path"))
    ls = actions.add_parser("ls", help="list images and layers with their sizes")
    ls.set_defaults(run=_lazily("store", "ls"))
    _json_option(ls)
    rm = actions.add_parser("rm", help="remove images, layers or cached bytes")
    rm.set_defaults(run=_lazily("store", "rm"))
    rm.add_argument("names", metavar="IMAGE|DIGEST", nargs="*", help="as `imgfs store ls` shows them")
    rm.add_argument("--all", action="store_true", help="everything")
    rm.add_argument("--data", action="store_true", help="only cached bytes: what is needed is fetched again")
    rm.add_argument("--force", action="store_true", help="also what a mount is using")
    for action in (path, ls, rm):
        _store_option(action)


def _version(commands: _Commands) -> None:
    _command(
        commands,
        "version",
        "look",
        "show imgfs's version and the machine's FUSE",
        "Examples:\n  imgfs version\n",
    )


def _command(
    commands: _Commands, name: str, module: str, summary: str, description: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=description, formatter_class=_Raw)
    command.set_defaults(run=_lazily(module, name))
    return command


def _lazily(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    """The function `name` of `imgfs.cli.MODULE`, imported when it is called: start-up time is felt."""

    def run(options: argparse.Namespace) -> int:
        code: int = getattr(importlib.import_module(f"imgfs.cli.{module}"), name)(options)
        return code

    return run


def _image_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("image", metavar="IMAGE", help="an image's name, or oci:DIR[:TAG]")
    _registry_options(command, platform="instead of this machine's")
    _store_option(command)


def _registry_options(command: argparse.ArgumentParser, *, platform: str) -> None:
    command.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help=platform)
    _connection_options(command)


def _connection_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--plain-http", action="store_true", help="talk to the registry without TLS (loopback: by itself)"
    )
    command.add_argument(
        "--read-timeout",
        metavar="SECONDS",
        type=_seconds,
        help="fail a read for which the registry sends nothing for so long (default: 30)",
    )


def _seconds(text: str) -> float:
    """A time to wait; `content.PATIENCE` is never exceeded."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= _LONGEST_WAIT:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds up to {_LONGEST_WAIT}")


def _store_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--store", metavar="DIR", help="the cache directory (default: $IMGFS_STORE)")


def _json_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="for programs")
