"""The parser of the command line: the table of commands, and what is said of a mistyped line.

Only the command that the line names is described, if it names one: start-up time is felt. The table has their
summaries, and `imgfs --help` imports no command.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from imgfs import __version__
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


class Command(NamedTuple):
    """The module of `imgfs.cli` whose function add_COMMAND describes a command, and the command's summary."""

    module: str
    summary: str


COMMANDS = {
    "mount": Command("mount", "mount an image"),
    "umount": Command("umount", "unmount"),
    "ps": Command("ps", "list the mounts"),
    "status": Command("status", "show what a mount has fetched and served"),
    "run": Command("container_options", "run a container of an image"),
    "bundle": Command("container_options", "make an OCI runtime bundle of an image, for another engine"),
    "pull": Command("pull", "fetch an image whole, to use it offline"),
    "ls": Command("look", "list files of an image without mounting it"),
    "cat": Command("look", "write files of an image to standard output"),
    "inspect": Command("inspect", "show digest, platform, config, layers and history of an image"),
    "diff": Command("diff", "list what a scratch has changed"),
    "commit": Command("commit", "make an image of what a scratch shows"),
    "scratch": Command("scratch", "list, remove or reset scratches"),
    "copy": Command("copy", "copy an image to a registry or an OCI layout"),
    "push": Command("copy", "copy an image to a registry"),
    "index": Command("index", "index images, and publish the indexes beside them"),
    "login": Command("login", "keep a user name and password for a registry"),
    "logout": Command("login", "forget what is kept for a registry"),
    "store": Command("store", "show, limit, prune or check what is kept in the cache directory"),
    "help": Command("help", "show the manual"),
    "version": Command("version", "show imgfs's version and the machine's FUSE"),
}  # in the order of the help
_HIDDEN = {"complete": Command("complete", "")}  # for shells


class HelpFormatter(argparse.HelpFormatter):
    """Wraps paragraphs at the terminal's width; lines that are indented are examples, and stay as typed."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        import textwrap

        blocks = re.findall(r"(?:^\S.*\n?)+|(?:^(?:\s.*)?\n)+|(?:^\s.*\n?)+", text, flags=re.MULTILINE)
        return "".join(
            textwrap.fill(block, width, initial_indent=indent, subsequent_indent=indent) + "\n"
            if block[:1].strip()
            else block
            for block in blocks
        )


class Parser(argparse.ArgumentParser):
    """Parses a command's arguments; an error prints the usage of that command, and what may be meant.

    Options are not abbreviated: what `--re` means would change with the next option.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **more})

    def error(self, message: str) -> NoReturn:
        """Print usage and error, in text that a terminal does not obey: it quotes what was typed."""
        super().error(printable(message))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what this parser does not know here, not in the parser above, which has another usage."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = self._option_string_actions
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant(unknown[0], known)}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            hint = meant(str(value), choices) or f"; choose from {', '.join(choices)}"
            raise argparse.ArgumentError(action, f"invalid choice: {str(value)!r}{hint}")


def meant(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message that names the word of `known` most like `word`; '' if none is."""
    import difflib

    close = difflib.get_close_matches(word.partition("=")[0], known, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; `run` of the result carries it out. Exits by itself for --help and errors."""
    name = arguments[0] if arguments else "-"
    known = {**COMMANDS, **_HIDDEN}
    if name in known:
        return describe({name: known[name]}).parse_args(arguments)
    parser = describe({})
    _list(parser)
    if not name.startswith("-"):
        parser.error(f"there is no command {name!r}{meant(name, COMMANDS)} (see: imgfs --help)")
    return parser.parse_args(arguments)


def describe(commands: Mapping[str, Command]) -> Parser:
    """Return the parser of the command line with these of its commands."""
    parser = Parser(prog="imgfs", description=_SUMMARY, epilog=_EXAMPLES)
    parser.add_argument("--version", action="version", version=f"imgfs {__version__}")
    if commands:
        actions = parser.add_subparsers(metavar="COMMAND", required=True)
        for name, command in commands.items():
            getattr(importlib.import_module(f"imgfs.cli.{command.module}"), f"add_{name}")(actions)
    return parser


def _list(parser: Parser) -> None:
    """Add the commands by their summaries alone."""
    actions = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        actions.add_parser(name, help=command.summary, add_help=False)
