"""The configuration files: options of commands by their long names, in TOML.

    [all]                                       every command that has the option
    platform = "linux/arm64"
    [mount]                                     one command; [store.prune] is an action of one
    rw = true
    [registry."registry.example.com:5000"]      how to connect to one registry
    plain-http = true

They become words of the command line, before those that were typed: so they are read by the same rules, the
last one counts, and lists are added to. What is said of a registry counts for that registry before what is
said of all, unless it was typed. An unknown key and a wrong value raise UsageError with file and line.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from imgfs.cli.commands import COMMANDS
from imgfs.cli.options import connection_options
from imgfs.cli.parser import Parser, describe, meant, options_of
from imgfs.errors import UsageError

Values = Mapping[str, object]  # of options, by the names that they have in a parsed command line

_ALL, _REGISTRY = "all", "registry"
_LINES = 1000  # of a file in which the line of a key is looked for
_PATHS = ("store", "tls-ca")  # relative ones would depend on where a command is run
_CONNECTION = ("plain_http", "tls_ca", "insecure", "read_timeout", "peers")


class Settings(NamedTuple):
    """What configuration files say of a command: words, each with the options that exclude it; values of what
    was not typed; and how to connect to registries, by their names (`config_file`)."""

    words: tuple[tuple[tuple[str, ...], frozenset[str]], ...]
    values: Mapping[str, object]
    registries: Mapping[str, Mapping[str, object]]

    def before(self, typed: Sequence[str]) -> list[str]:
        """Return the words that come before those that were typed."""
        options = {word.partition("=")[0] for word in typed}
        return [word for words, rivals in self.words if not rivals & options for word in words]

    def complete(self, found: argparse.Namespace) -> None:
        """Add what was not typed."""
        typed = {name for name in self.values if hasattr(found, name)}
        for name in self.values.keys() - typed:
            setattr(found, name, self.values[name])
        said = self.registries.items()
        found.registries = {
            host: {name: value for name, value in one.items() if name not in typed} for host, one in said
        }


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A configuration file."""

    path: str
    text: str = field(repr=False)
    fields: Mapping[str, object] = field(repr=False)

    @classmethod
    def parse(cls, path: str, body: bytes) -> ConfigFile:
        """Parse a file's bytes; raises UsageError."""
        try:
            text = body.decode()
            return cls(path, text, tomllib.loads(text))
        except UnicodeDecodeError as error:
            line = body.count(b"\n", 0, error.start) + 1
            raise UsageError(f"{path}: line {line}: not UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}: not TOML: {' '.join(str(error).split())[:200]}") from error

    def table(self, *keys: str) -> Mapping[str, object]:
        """Return a table, empty if there is none."""
        found: object = self.fields
        for number, key in enumerate(keys, 1):
            found = found.get(key, {}) if isinstance(found, dict) else {}
            if not isinstance(found, dict):
                self.refuse(keys[:number], "expected a table")
        return found if isinstance(found, dict) else {}

    def refuse(self, keys: Sequence[str], why: str) -> NoReturn:
        """Raise UsageError about a key."""
        name = ".".join(f'"{key}"' if "." in key else key for key in keys)[:200]
        name = name if name.isprintable() else repr(name)
        line = self._line(keys)
        raise UsageError(f"{self.path}: {f'line {line}: ' if line else ''}{name}: {why}")

    def _line(self, keys: Sequence[str]) -> int:
        """Return the line where a key is, 0 if that would take long to find.

        tomllib does not tell. But of the beginnings of the file that are TOML, the first that has the key
        ends with it.
        """
        lines, before = self.text.splitlines(), 0
        for end in range(1, min(len(lines), _LINES) + 1):
            try:
                found: object = tomllib.loads("\n".join(lines[:end]))
            except ValueError:
                continue  # inside a value of several lines
            for key in keys:
                found = found.get(key) if isinstance(found, dict) else None
            if found is not None:
                return before + 1
            before = end
        return 0


@dataclass(frozen=True, slots=True)
class _Key:
    """A key that a file has, where a command's option may be meant."""

    file: ConfigFile
    keys: tuple[str, ...]
    value: object

    @property
    def name(self) -> str:
        return self.keys[-1]

    def refuse(self, why: str) -> NoReturn:
        self.file.refuse(self.keys, why)


def configure(parser: Parser, files: Sequence[ConfigFile], *, has_store: bool) -> None:
    """Have `parser`, and those of commands below it, begin with what the files say, the first file first.

    `has_store`: $IMGFS_STORE is set, and counts. Raises UsageError.
    """
    for file in files:
        _check_tables(file)
    registries = _registries(files)
    for path, command in _commands(parser, ()):
        settings = _settings(command, path, files, registries, has_store=has_store)
        command.configured = None if any(_actions(command)) else settings  # one of actions only passes on


def _settings(
    command: Parser,
    path: Sequence[str],
    files: Sequence[ConfigFile],
    registries: Mapping[str, Values],
    *,
    has_store: bool,
) -> Settings:
    options, words, others = options_of(command), dict[str, list[str]](), dict[str, object]()
    for key in _keys_for(command, path, files, options):
        if key.name == "store" and has_store:
            continue
        if key.name in options:
            words[key.name] = list(_words(command, options[key.name], key))
        elif key.name == "store":
            others["store"] = _text(key, is_typed=False)
    if registries:
        others |= _suppress_connection(options, words)
    rivals = {name: _rivals(command, options[name]) for name in words}
    return Settings(tuple((tuple(said), rivals[name]) for name, said in words.items()), others, registries)


def _keys_for(
    command: Parser, path: Sequence[str], files: Sequence[ConfigFile], options: Mapping[str, argparse.Action]
) -> Iterator[_Key]:
    """Yield the keys that are for a command, in order: of each file those for all, then the command's own."""
    below = {name for name, _ in _actions(command)}
    for file in files:
        for name, value in file.table(_ALL).items():
            key = _Key(file, (_ALL, name), value)
            if name not in options and name != "store":
                _check_known(key)
            yield key
        for name, value in file.table(*path).items() if path else ():
            key = _Key(file, (*path, name), value)
            if name in options:
                yield key
            elif not (name in below and isinstance(value, dict)):
                key.refuse(f"imgfs {' '.join(path)} has no such option{meant(name, [*options, *below])}")


def _check_tables(file: ConfigFile) -> None:
    """Refuse what is no table of a command, of all or of registries."""
    for name, value in file.fields.items():
        if not isinstance(value, dict) and name not in COMMANDS:
            file.refuse([name], f"stands in no table: [{_ALL}], that of a command, or of a registry")
        if name not in (_ALL, _REGISTRY, *COMMANDS):
            file.refuse([name], f"no such command{meant(name, [_ALL, _REGISTRY, *COMMANDS])}")
        file.table(name)


def _check_known(key: _Key) -> None:
    """Refuse an option for all commands that none of them has."""
    parsers = [command for _, command in _commands(describe(COMMANDS), ())]
    known = {name for command in parsers for name in options_of(command)}
    if key.name not in known:
        key.refuse(f"no command has such an option{meant(key.name, known)}")


def _registries(files: Sequence[ConfigFile]) -> dict[str, Values]:
    """Return how to connect to registries, by their names."""
    parser = _connection_parser()
    options, found = options_of(parser), dict[str, dict[str, object]]()
    for file in files:
        for registry in file.table(_REGISTRY):
            for name, value in file.table(_REGISTRY, registry).items():
                key = _Key(file, (_REGISTRY, registry, name), value)
                if name not in options:
                    key.refuse(
                        f"is said of no registry{meant(name, options)}; choose from {', '.join(options)}"
                    )
                parsed = vars(parser.parse_args(list(_words(parser, options[name], key))))
                found.setdefault(registry.lower(), {})[options[name].dest] = parsed[options[name].dest]
    return dict(found)


def _suppress_connection(
    options: Mapping[str, argparse.Action], words: dict[str, list[str]]
) -> dict[str, object]:
    """Take how to connect out of the words and the defaults, and return it: what is typed then stands out."""
    found: dict[str, object] = {}
    for action in options.values():
        if action.dest in _CONNECTION:
            found[action.dest] = action.default
            action.default = argparse.SUPPRESS
    taken = [word for name in options if options[name].dest in _CONNECTION for word in words.pop(name, [])]
    return {**found, **_connection(taken)} if found else {}


def _connection(words: Sequence[str]) -> dict[str, object]:
    """Return the values that words give; nothing of what they do not name."""
    parser = _connection_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return vars(parser.parse_args(words))


def _connection_parser() -> Parser:
    parser = Parser(prog="imgfs")
    connection_options(parser)
    return parser


def _words(command: Parser, action: argparse.Action, key: _Key) -> Iterator[str]:
    """Yield the words that give an option the value of a key."""
    several = not isinstance(action, (argparse._StoreAction, argparse._StoreConstAction))
    if isinstance(key.value, list) and several:
        for one in key.value:
            yield from _words(command, action, _Key(key.file, key.keys, one))
        return
    option = next(option for option in action.option_strings if option.lstrip("-") == key.name)
    if action.nargs in (0, "?") and isinstance(key.value, bool):
        yield from [option] * key.value
        return
    if action.nargs == 0:
        key.refuse("expected true or false")
    is_typed = action.type is not None
    text = (
        _truth(key, action) if isinstance(key.value, bool) else _text(key, is_typed=is_typed, several=several)
    )
    try:
        command._check_value(action, command._get_value(action, text))
    except argparse.ArgumentError as error:
        key.refuse(error.message)
    if option.startswith("--"):
        yield f"{option}={text}"
    else:  # without a text of its own a short one takes the next word
        yield from [f"{option}{text}"] if text else [option, text]


def _truth(key: _Key, action: argparse.Action) -> str:
    if action.metavar != "true|false":
        key.refuse("expected a value, not true or false")
    return "true" if key.value else "false"


def _text(key: _Key, *, is_typed: bool, several: bool = False) -> str:
    """Return a value as it would be typed."""
    value = key.value
    if isinstance(value, int | float) and is_typed:
        return str(value)
    if not isinstance(value, str) or "\0" in value:
        number = "a number or " if is_typed else ""
        key.refuse(f"expected {number}a string{', or an array of them' if several else ''}")
    if key.name in _PATHS:
        value = os.path.expanduser(value)
        if not os.path.isabs(value):
            key.refuse("expected a path that begins with / or ~")
    return value


def _rivals(command: Parser, action: argparse.Action) -> frozenset[str]:
    """Return the options that exclude one: if one of them is typed, the file's does not count."""
    groups = [group._group_actions for group in command._mutually_exclusive_groups]
    others = [other for group in groups if action in group for other in group if other is not action]
    return frozenset(option for other in others for option in other.option_strings)


def _commands(parser: Parser, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Parser]]:
    """Yield a parser and those of the commands below it, each with the words that call it."""
    yield path, parser
    for name, command in _actions(parser):
        yield from _commands(command, (*path, name))


def _actions(parser: Parser) -> Iterator[tuple[str, Parser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()
