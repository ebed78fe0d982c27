"""Plain lines: flags, options with values and words in their usual order, which need no argparse.

It takes longer to load than most commands that are typed all day take to run. What a command's `add_…` says
of its options is noted here instead, and read by argparse's rules as far as those are simple. Any other line,
a wrong one above all, is argparse's, with the same description; so is every line if there is a configuration
file, which says more of the options.
"""

from __future__ import annotations

import os
from importlib import import_module

from imgfs.cli.commands import COMMANDS
from imgfs.variables import config_files, variables

TYPE_CHECKING = False  # as that of `typing`, which takes long to load
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any, NoReturn

REMAINDER, SUPPRESS = "...", "==SUPPRESS=="  # argparse's
_DEFAULTS = {"store_true": False, "store_false": True, "help": SUPPRESS, "version": SUPPRESS}
_SEVERAL = ("?", "*", "+", REMAINDER)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line, as `parser.parse`, which see."""
    plain: argparse.Namespace | None = parse_plain(words)
    if plain:
        return plain
    from imgfs.cli import parser  # here: it loads argparse

    return parser.parse(words)


def parse_plain(words: Sequence[str]) -> Any:
    """Return what argparse would make of a plain line; None of any other, right or wrong."""
    name = words[0] if words else ""
    if name not in COMMANDS or any(map(_may_be_there, config_files(variables()))):
        return None
    table = PlainCommand(())
    getattr(import_module(f"imgfs.cli.{COMMANDS[name].module}"), f"add_{name}")(table)
    try:
        return table.read(words)
    except _NotPlainError:
        return None


def _may_be_there(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


class PlainOptions:
    """The options of a plain line, as attributes."""


class _NotPlainError(Exception):
    """The line is one for argparse."""


class PlainArgument:
    """What was said of an option, or of words, as `add_argument` has it."""

    def __init__(self, names: Sequence[str], group: PlainGroup | None, **said: Any) -> None:
        self.names = names
        self.is_option = names[0].startswith("-")
        long = next((name for name in names if name.startswith("--")), names[0])
        self.dest: str = said.get("dest") or long.lstrip("-").replace("-", "_")
        self.action = said.get("action", "store")
        self.nargs = said.get("nargs")
        self.default = said.get("default", _DEFAULTS.get(self.action))
        self.required = said.get("required", False)
        self.group = group
        self._type = said.get("type")
        self._choices = said.get("choices")

    def begins(self) -> Any:
        """Return the value where none is given."""
        return self._converted(self.default) if isinstance(self.default, str) else self.default

    def value(self, text: str) -> Any:
        """Return a value that is given; `--` ends options even there."""
        found = self._converted(text)
        if text == "--" or (self._choices is not None and found not in self._choices):
            raise _NotPlainError
        return found

    def _converted(self, text: str) -> Any:
        try:
            return self._type(text) if self._type else text
        except Exception as error:  # argparse says what is wrong with it
            raise _NotPlainError from error


class PlainGroup:
    """Options of which a line has one at most; `required`: one at least, too."""

    def __init__(self, command: PlainCommand, *, required: bool = False) -> None:
        self._command = command
        self.required = required

    def add_argument(self, *names: str, **said: Any) -> PlainArgument:
        """Note an option."""
        return self._command.add_argument(*names, group=self, **said)


class PlainCommand:
    """A command, or the table of its actions, in the place of argparse's parser or its table of those."""

    def __init__(self, path: Sequence[str]) -> None:
        self._path = path
        self._actions: dict[str, PlainCommand] = {}
        self._arguments: list[PlainArgument] = []
        self._defaults: dict[str, object] = {}
        self.usage: str | None = None
        self.prefix_chars = "-"  # what an option may begin with

    def add_parser(self, name: str, **_: object) -> PlainCommand:
        """Note an action."""
        self._actions[name] = made = PlainCommand((*self._path, name))
        return made

    def add_subparsers(self, **_: object) -> PlainCommand:
        """Return what actions are added to."""
        return self

    def add_argument_group(self, *_: object) -> PlainCommand:
        """Return what options are added to: a group is for the help."""
        return self

    def add_mutually_exclusive_group(self, *, required: bool = False) -> PlainGroup:
        """Return what options are added to of which a line has one at most."""
        return PlainGroup(self, required=required)

    def add_argument(self, *names: str, group: PlainGroup | None = None, **said: Any) -> PlainArgument:
        """Note an option, or words."""
        self._arguments.append(made := PlainArgument(names, group, **said))
        return made

    def set_defaults(self, **values: object) -> None:
        """Note what the options have beside those that are typed."""
        self._defaults |= values

    def error(self, message: str) -> NoReturn:
        """End with an error, as argparse's parser of the command does."""
        from imgfs.cli.parser import parser_of

        parser_of(self._path).error(message)
        raise AssertionError  # `error` ends the program

    def read(self, words: Sequence[str]) -> PlainOptions:
        """Return the options of a line."""
        if self._actions:
            if self._arguments or not words or words[0] not in self._actions:
                raise _NotPlainError
            return self._actions[words[0]].read(words[1:])
        if self.prefix_chars != "-":
            raise _NotPlainError
        given: dict[str, Any] = {}
        used: list[PlainArgument] = []
        at = self._read_options(words, 0, given, used)
        end = self._read_words(words, at, given)
        if self._read_options(words, end, given, used) < len(words):
            raise _NotPlainError
        self._check(used)
        found = PlainOptions()
        for one in self._arguments:
            if one.dest not in given and one.default != SUPPRESS:
                given[one.dest] = one.begins()
        found.__dict__.update({**self._defaults, **given})
        return found

    def _read_options(
        self, words: Sequence[str], at: int, given: dict[str, Any], used: list[PlainArgument]
    ) -> int:
        """Read options from `words[at:]`; return where they end."""
        known = {name: one for one in self._arguments if one.is_option for name in one.names}
        while at < len(words) and words[at].startswith("-"):
            name, has_value, text = words[at].partition("=")
            one, at = known.get(name), at + 1
            if one is None:
                raise _NotPlainError
            used.append(one)
            if one.action == "store_true" and not has_value:
                given[one.dest] = True
            elif one.action == "store" and one.nargs is None and (has_value or words[at:]):
                if has_value and not name.startswith("--"):
                    raise _NotPlainError
                if not has_value:
                    text, at = words[at], at + 1
                    if text.startswith("-"):
                        raise _NotPlainError
                given[one.dest] = one.value(text)
            else:
                raise _NotPlainError
        return at

    def _read_words(self, words: Sequence[str], at: int, given: dict[str, Any]) -> int:
        """Read words from `words[at:]` on; return where they end. Only the last may be several."""
        places = [one for one in self._arguments if not one.is_option]
        if any(one.action != "store" for one in places):
            raise _NotPlainError
        several = places.pop() if places and places[-1].nargs in _SEVERAL else None
        end = at + next((n for n, word in enumerate(words[at:]) if word.startswith("-")), len(words) - at)
        rest = at + len(places)
        if end < rest or any(one.nargs is not None for one in places):
            raise _NotPlainError
        for one, word in zip(places, words[at:rest], strict=True):
            given[one.dest] = one.value(word)
        if several is None:
            return rest
        if several.nargs == REMAINDER:
            end = len(words)
        if several.nargs == "?":
            end = min(end, rest + 1)
        texts = words[rest:end]
        if several.nargs == "+" and not texts:
            raise _NotPlainError
        if texts or several.nargs == REMAINDER:
            values = [several.value(text) for text in texts]
            given[several.dest] = values[0] if several.nargs == "?" else values
        return end

    def _check(self, used: Sequence[PlainArgument]) -> None:
        """Have argparse refuse what lacks an option, or has two of which it may have one."""
        groups = [one.group for one in used if one.group]
        wanted = {one.group for one in self._arguments if one.group and one.group.required}
        lacks = any(one.required and one.is_option and one not in used for one in self._arguments)
        if lacks or len(groups) > len(set(groups)) or not wanted <= set(groups):
            raise _NotPlainError
