"""The parser of the command line, and what is said of a mistyped line.

Only the command that the line names is described, if it names one: start-up time is felt.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence

from imgfs import __version__
from imgfs.cli.commands import COMMANDS, HEADINGS, Command
from imgfs.errors import UsageError
from imgfs.quoting import printable
from imgfs.variables import config_files, variables

TYPE_CHECKING = False  # as that of `typing`, which takes long to load
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from _typeshed import SupportsWrite

    from imgfs.cli.config_file import Settings

_ANY_WIDTH = 80  # columns, where nothing is shown
_LARGEST = 256 * 1024  # bytes of a configuration file
_SUMMARY = "Mount a container image straight from its registry: lazily, unprivileged, unconverted."
_EXAMPLES = """\
IMAGE is what docker calls it, or where it is:
  debian:12                            docker.io/library/debian:12
  registry.example.com:5000/team/app   its tag latest
  app@sha256:0f3c…                     one image for ever
  oci:DIR:TAG                          an OCI layout directory
  oci-archive:FILE, docker-archive:FILE, dir:PATH, tar:FILE
                                       what skopeo, docker save and tar have written
  containers-storage:NAME              podman's own store
  docker-daemon:NAME, containerd:[NAMESPACE/]NAME
                                       what a running engine has

Examples:
  imgfs mount debian:12 /mnt           mount it; its daemon stays
  grep -r TODO /mnt/usr/share          bytes are fetched as they are read
  imgfs umount /mnt
  imgfs ls -l debian:12 /etc           look without mounting

Each command has its own help: imgfs mount --help. The manual: imgfs help
"""


def _untranslated(text: str) -> str:
    return text


# What argparse says is left in English, as all else here; it would look for each text's translation anew, in
# up to eight files that are not there, which takes longer than to parse.
setattr(argparse, "_", _untranslated)  # noqa: B010  (typeshed does not know it)


_TOLERANT = ("umount", "help", "version", "complete")  # of a wrong configuration file
_HIDDEN = {"complete": Command("complete", "")}  # for shells
_ELSEWHERE = {  # what docker, podman, skopeo and crane call it
    **dict.fromkeys(("images", "df"), "store ls"),
    **dict.fromkeys(("mounts", "list", "top", "stats"), "ps"),
    **dict.fromkeys(("create", "start"), "run -d"),
    **dict.fromkeys(("system", "cache"), "store"),
    **dict.fromkeys(("unpack", "extract"), "export"),
    "info": "version",
    "search": "catalog",
    "layers": "inspect",
    "rmi": "store rm",
    "prune": "store prune",
    **dict.fromkeys(("manifest", "config", "digest"), "inspect"),
    **dict.fromkeys(("save", "load", "tag"), "copy"),
    "attach": "logs -f",
}
_OWN_H = ("ls", "du", "run", "bundle")  # commands whose -h means what ls(1), du(1) and podman mean by it
_FEW = 4  # options that a usage lists


class _Colourless:
    """A theme of argparse (Python 3.14): each of its colours is no text."""

    def __getattr__(self, name: str) -> str:
        return ""


class HelpFormatter(argparse.HelpFormatter):
    """Wraps paragraphs at the terminal's width; lines that are indented are examples, and stay as typed.

    A usage has no list of many options: it is a line above an error, and the help has them below it.
    """

    def _set_color(self, *_: object, **__: object) -> None:
        """Take no colours, for which Python 3.14 loads `inspect`: help looks alike by each Python."""
        self._theme = _Colourless()
        self._decolor = str

    def _format_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], groups: Any, prefix: str | None
    ) -> str:
        words = [action for action in actions if not action.option_strings]
        if usage is not None or len([*actions]) - len(words) <= _FEW:
            return super()._format_usage(usage, actions, groups, prefix)
        whole, self._prog = self._prog, f"{self._prog} [OPTIONS]"
        try:
            return super()._format_usage(None, words, (), prefix)
        finally:
            self._prog = whole

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        import textwrap

        blocks = re.findall(r"(?:^\S.*\n?)+|(?:^(?:\s.*)?\n)+|(?:^\s.*\n?)+", text, flags=re.MULTILINE)
        return "".join(
            textwrap.fill(block, width, initial_indent=indent, subsequent_indent=indent) + "\n"
            if block[:1].strip()
            else block
            for block in blocks
        )


def _width() -> int:
    """Return the terminal's width but for two columns, as argparse does by `shutil`, which loads a lot."""
    try:
        columns = int(variables().get("COLUMNS") or os.get_terminal_size(1).columns)
    except (OSError, ValueError):
        columns = 0
    return (columns or _ANY_WIDTH) - 2


class Parser(argparse.ArgumentParser):
    """Parses a command's arguments; an error prints the usage of that command, and what may be meant.

    Options are not abbreviated: what `--re` means would change with the next option. A word that begins with
    a minus and a digit is no option, unless there is just that one: `--size -1k`.
    """

    def __init__(self, **more: Any) -> None:
        self._is_shown = False
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **more})
        self.configured: Settings | None = None

    def _get_formatter(self) -> argparse.HelpFormatter:
        """Return a formatter; argparse makes one for each argument, where the width is a waste."""
        width = _width() if self._is_shown else _ANY_WIDTH
        return self.formatter_class(prog=self.prog, width=width)  # type: ignore[call-arg]  # it is one

    def format_help(self) -> str:
        """Return the help, as wide as the terminal."""
        self._is_shown = True
        return super().format_help()

    def format_usage(self) -> str:
        """Return the usage, as wide as the terminal."""
        self._is_shown = True
        return super().format_usage()

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """Write a message; argparse of Python 3.11.7 on drops what cannot be written, as to a full disk."""
        if file is not sys.stdout:
            super()._print_message(message, file)
        elif message:
            file.write(message)

    def error(self, message: str) -> NoReturn:
        """Print usage and error, in text that a terminal does not obey: it quotes what was typed."""
        message = re.sub(r"argument (-\w)\b.*: ignored explicit argument '(.+)'", r"there is no -\2", message)
        super().error(printable(message))

    def _parse_optional(self, arg_string: str) -> Any:
        if re.match("-[0-9]", arg_string) and arg_string not in self._option_string_actions:
            return None
        return super()._parse_optional(arg_string)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what this parser does not know here, not in the parser above, which has another usage."""
        words = list(args or ())
        _add_negations(self, words)
        before = self.configured.before(words) if self.configured else []
        found, unknown = super().parse_known_args([*before, *words], namespace)
        if self.configured:
            self.configured.complete(found)
        if unknown:
            known = self._option_string_actions
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant(unknown[0], known)}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            hint = meant(str(value), choices) or f"; choose from {', '.join(choices)}"
            raise argparse.ArgumentError(action, f"invalid choice: {str(value)!r}{hint}")


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return the options of a command by their long names, by a letter if they have no other."""
    found: dict[str, argparse.Action] = {}
    for action in parser._actions:
        longs = [option for option in action.option_strings if option.startswith("--")]
        if action.help != argparse.SUPPRESS and action.dest not in ("help", "version"):
            found |= {option.lstrip("-"): action for option in longs or action.option_strings}
    return found


def _add_negations(parser: argparse.ArgumentParser, words: Iterable[str]) -> None:
    """Add `--no-NAME`, where it is typed, for a flag NAME: it takes back what a configuration file says."""
    options = parser._option_string_actions
    for word in words:
        flag = options.get(f"--{word.removeprefix('--no-')}") if word.startswith("--no-") else None
        if isinstance(flag, argparse._StoreTrueAction) and word not in options:
            parser.add_argument(
                word, dest=flag.dest, action="store_false", default=flag.default, help=argparse.SUPPRESS
            )


def meant(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message that names the word of `known` most like `word`; '' if none is."""
    import difflib

    close = difflib.get_close_matches(word.partition("=")[0], known, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; `run` of the result carries it out. Exits by itself for --help and errors."""
    name = arguments[0] if arguments else "--help"
    known = {**COMMANDS, **_HIDDEN}
    if name in known:
        parser = _described.pop(name, None) or describe({name: known[name]})
        asks_help = ["--help"] if name in _OWN_H else ["--help", "-h"]
        if not set(asks_help).intersection(arguments[1:2]):
            _configure(parser, name)
        return parser.parse_args(arguments)
    parser = describe({})
    _list(parser)
    if not arguments:
        parser.error("name a command (see: imgfs --help)")
    if name in ("-h", "--help", "--version"):
        return parser.parse_args(arguments)
    parser.error(f"{_no_command(name)} (see: imgfs --help)")
    raise AssertionError  # `error` ends the program


def _no_command(name: str) -> str:
    if name.startswith("-"):
        return f"{name}: options stand behind the command: imgfs COMMAND {name} …"
    hint = f"; it is called {_ELSEWHERE[name]}" if name in _ELSEWHERE else meant(name, COMMANDS)
    return f"there is no command {name!r}{hint}"


def _configure(parser: Parser, name: str) -> None:
    """Apply the configuration files; a mistake there keeps no mount from being ended."""
    try:
        apply_config_files(parser)
    except UsageError as error:
        if name not in _TOLERANT:
            raise
        if name not in _HIDDEN:
            from imgfs.cli.output import warn

            warn(error)


def apply_config_files(parser: Parser) -> None:
    """Have a parser begin with what the configuration files say, if there are any; raises UsageError."""
    found = [(path, body) for path in config_files(variables()) if (body := _read(path)) is not None]
    if found:
        has_store = bool(variables().get("IMGFS_STORE"))
        module = importlib.import_module("imgfs.cli.config_file")
        files = [module.ConfigFile.parse(path, body) for path, body in found]
        module.configure(parser, files, has_store=has_store)


def _read(path: str) -> bytes | None:
    """Return a configuration file's bytes, None if there is none; raises UsageError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{path}: not a regular file")
        if found.st_mode & stat.S_IWOTH:
            raise UsageError(f"{path}: other users may write to it: take that from them (chmod o-w)")
        if found.st_size > _LARGEST:
            raise UsageError(f"{path}: larger than {_LARGEST} bytes")
        with open(fd, "rb", closefd=False) as file:
            return file.read(_LARGEST)
    finally:
        os.close(fd)


_described: dict[str, Parser] = {}  # by command; one is used once, as a configuration file changes it


def describe_ahead(*names: str) -> None:
    """Have the parsers of these commands be there when they are wanted, once: in a process forked later."""
    _described.update((name, describe({name: COMMANDS[name]})) for name in names)


def parser_of(path: Sequence[str]) -> Parser:
    """Return the parser of a command, or of an action of one, by their names."""
    found = describe({path[0]: COMMANDS[path[0]]})
    for name in path:
        (actions,) = (one for one in found._actions if isinstance(one, argparse._SubParsersAction))
        found = actions.choices[name]
    return found


def describe(commands: Mapping[str, Command]) -> Parser:
    """Return the parser of the command line with these of its commands."""
    parser = Parser(prog="imgfs", description=_SUMMARY, epilog=_EXAMPLES)
    parser.add_argument("--version", action="version", version=f"imgfs {__version__}")
    if commands:
        actions = parser.add_subparsers(metavar="COMMAND", required=True, prog=parser.prog)
        for name, command in commands.items():
            getattr(importlib.import_module(f"imgfs.cli.{command.module}"), f"add_{name}")(actions)
        if len(commands) > 1:
            _add_headings(parser, actions)
    _suppress(parser)
    return parser


def _suppress(parser: argparse.ArgumentParser) -> None:
    """Have argparse see what is to be suppressed: it looks for its own object, and descriptions do without.

    They have `plain_line.SUPPRESS`, which is its equal.
    """
    for action in parser._actions:
        action.help = argparse.SUPPRESS if action.help == argparse.SUPPRESS else action.help
        action.default = argparse.SUPPRESS if action.default == argparse.SUPPRESS else action.default
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _suppress(command)


def _list(parser: Parser) -> None:
    """Add the commands by their summaries alone."""
    actions = parser.add_subparsers(metavar="COMMAND", required=True, prog=parser.prog)
    for name, command in COMMANDS.items():
        actions.add_parser(name, help=command.summary, add_help=False)
    _add_headings(parser, actions)


def _add_headings(parser: Parser, actions: argparse._SubParsersAction[Any]) -> None:
    """Have the help list the commands under their headings, before the options, which come last."""
    summaries = {choice.dest: choice for choice in actions._choices_actions}
    parser._positionals._group_actions.remove(actions)
    before = list(parser._action_groups)
    for heading, commands in HEADINGS.items():
        group = parser.add_argument_group(heading)
        group._group_actions += [summaries[name] for name in commands if name in summaries]
    parser._action_groups = [*parser._action_groups[len(before) :], *before]
