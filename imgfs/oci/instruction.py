"""Instructions that change an image's runtime config: those of `docker commit --change` and `podman commit`.

Their meaning is the Dockerfile's (Docker's Dockerfile reference), the fields they set are those of OCI
image-spec config.md, plus Docker's own Healthcheck and OnBuild (moby image spec v1.2). A line is split into
words as in a Dockerfile ("Environment replacement"): a part of what a shell knows, and no shell runs.
"""

from __future__ import annotations

import copy
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from signal import Signals

from imgfs.errors import UsageError
from imgfs.oci.fields import object_at, text_in, texts_in
from imgfs.oci.reference import LAST_PORT

_WHERE = "config.config"
_LAST_SIGNAL = 64  # signal(7)
_SHELL = ("/bin/sh", "-c")
_TEXT = re.compile(r"([A-Za-z]+)(?:\s+|=)(\S.*)", re.DOTALL)
_PORT = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_REALTIME = re.compile(r"(RTMIN|RTMAX)[+-][0-9]{1,2}")
_HEALTH_OPTION = re.compile(r"--([a-z-]+)=(\S*)\s*")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_NANOSECONDS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9}
_NANOSECONDS |= {"m": 60 * 10**9, "h": 3600 * 10**9}
_HEALTH_TIMES = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}
_NO_TRIGGERS = ("ONBUILD", "FROM", "MAINTAINER")

_WORD = re.compile(r"""(?:[^\s'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+""", re.DOTALL)
_VARIABLE = r"""\$(?:(?P<name>\w+)|\{(?P<braced>\w+)(?::(?P<rule>[-+])(?P<word>[^{}]*))?\}|(?P<wrong>\{))"""
_PIECE = re.compile(
    r"""'(?P<literal>[^']*)'|"(?P<quoted>(?:[^"\\]|\\.)*)"|\\(?P<escaped>.)|""" + _VARIABLE,
    re.DOTALL | re.ASCII,
)
_QUOTED_PIECE = re.compile(r'\\(?P<escaped>["$\\])|' + _VARIABLE, re.ASCII)

Config = dict[str, object]  # the `config` object of an image's config


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One instruction: its name in capitals, and what follows it, as it was written."""

    instruction: str
    argument: str

    def __str__(self) -> str:
        return f"{self.instruction} {self.argument}"


def parse_change(text: str) -> ConfigChange:
    """Read `INSTRUCTION ARGUMENT`, or podman's `INSTRUCTION=ARGUMENT`; raises UsageError, saying why.

    What an argument means may hang on the image: one with a variable is judged by `apply_changes`.
    """
    match = _TEXT.fullmatch(text.strip())
    instruction = match[1].upper() if match else text.strip().upper()[:40]
    if instruction not in _APPLIERS:
        raise UsageError(f"change {text!r}: the instructions are {', '.join(_APPLIERS)}")
    if match is None:
        raise UsageError(f"change {text!r}: {instruction} needs an argument")
    if "\n" in match[2]:
        raise UsageError(f"change {text!r}: one instruction at a time, on one line")
    change = ConfigChange(instruction, match[2])
    if "$" not in change.argument or instruction not in _EXPANDED:
        _apply(change, {})
    return change


def apply_changes(config: Mapping[str, object], changes: Iterable[ConfigChange]) -> Config:
    """Return the runtime config `config` after `changes`, in their order; it stays as it is.

    A new ENTRYPOINT without a CMD drops the old one's CMD (Dockerfile reference, "Understand how CMD and
    ENTRYPOINT interact"). Raises UsageError naming the change, InvalidImage for fields of the wrong type.
    """
    changed = copy.deepcopy(dict(config))
    changes = list(changes)
    if any(change.instruction == "ENTRYPOINT" for change in changes):
        changed.pop("Cmd", None)
    for change in changes:
        _apply(change, changed)
    return changed


def _apply(change: ConfigChange, config: Config) -> None:
    try:
        _APPLIERS[change.instruction](change.argument, config)
        json.dumps([change.argument, config], ensure_ascii=False).encode()
    except UsageError as error:
        raise UsageError(f"change {str(change)!r}: {error}") from error
    except UnicodeEncodeError as error:
        raise UsageError(f"change {str(change)!r}: not UTF-8") from error


def _set_command(argument: str, config: Config) -> None:
    _set(config, "Cmd", _command(argument, config))


def _set_entrypoint(argument: str, config: Config) -> None:
    _set(config, "Entrypoint", _command(argument, config))


def _set_environment(argument: str, config: Config) -> None:
    lines = texts_in(config, "Env", _WHERE)
    for name, value in _pairs(argument, _environment(config)):
        at = next((at for at, line in enumerate(lines) if line.partition("=")[0] == name), len(lines))
        lines[at : at + 1] = [f"{name}={value}"]
    config["Env"] = lines


def _set_labels(argument: str, config: Config) -> None:
    labels = _object(config, "Labels")
    labels.update(_pairs(argument, _environment(config)))


def _set_ports(argument: str, config: Config) -> None:
    ports = _object(config, "ExposedPorts")
    for word in words(argument):
        ports.update((port, {}) for port in _ports(expand(word, _environment(config))))


def _set_user(argument: str, config: Config) -> None:
    config["User"] = _one_word(argument, config)


def _set_volumes(argument: str, config: Config) -> None:
    volumes = _object(config, "Volumes")
    listed = _json_form(argument)
    paths = [expand(word, _environment(config)) for word in (words(argument) if listed is None else listed)]
    if not paths or not all(paths):
        raise UsageError("a volume needs a path")
    volumes.update((path, {}) for path in paths)


def _set_directory(argument: str, config: Config) -> None:
    former = text_in(config, "WorkingDir", _WHERE, default="")
    path = posixpath.join("/", former, expand(argument, _environment(config)))
    config["WorkingDir"] = "/" + posixpath.normpath(path).lstrip("/")


def _set_signal(argument: str, config: Config) -> None:
    word = _one_word(argument, config)
    name = _REALTIME.sub(r"\1", word.upper().removeprefix("SIG"))
    is_number = word.isascii() and word.isdecimal() and 0 < int(word) <= _LAST_SIGNAL
    if not is_number and f"SIG{name}" not in Signals.__members__:
        raise UsageError(f"{word!r} is not a signal, like SIGTERM, SIGRTMIN+3 or 15")
    config["StopSignal"] = word


def _add_trigger(argument: str, config: Config) -> None:
    trigger = argument.split()[0].upper()
    if trigger in _NO_TRIGGERS:
        raise UsageError(f"{trigger} is not allowed as an ONBUILD trigger")
    config["OnBuild"] = [*texts_in(config, "OnBuild", _WHERE), argument]


def _set_health(argument: str, config: Config) -> None:
    health: Config = {}
    while match := _HEALTH_OPTION.match(argument):
        health.update([_health_option(match[1], match[2])])
        argument = argument[match.end() :]
    kind, _, command = argument.partition(" ")
    if kind.upper() == "NONE" and not command and not health:
        health = {"Test": ["NONE"]}
    elif kind.upper() == "CMD" and command.strip():
        listed = _json_form(command.strip())
        health = {"Test": ["CMD-SHELL", command.strip()] if listed is None else ["CMD", *listed], **health}
    else:
        raise UsageError("HEALTHCHECK takes NONE, or [--interval=30s …] CMD and a command")
    config["Healthcheck"] = health


def _health_option(name: str, value: str) -> tuple[str, int]:
    if name in _HEALTH_TIMES:
        return _HEALTH_TIMES[name], _duration(value)
    if name == "retries" and value.isdecimal() and value.isascii() and len(value) < 10:
        return "Retries", int(value)
    raise UsageError(
        f"--{name}={value} is none of --retries=N, {', '.join(f'--{it}=TIME' for it in _HEALTH_TIMES)}"
    )


def _duration(text: str) -> int:
    """Return nanoseconds of a time as Go writes it, `1m30s`; Docker wants a millisecond or more, or 0."""
    parts = list(_DURATION.finditer(text))
    if "".join(part[0] for part in parts) != text or not parts:
        raise UsageError(f"{text!r} is not a time, like 30s or 1m30s")
    total = int(sum(Fraction(part[1]) * _NANOSECONDS[part[2]] for part in parts))
    if 0 < total < 10**6 or total >= 1 << 63:
        raise UsageError(f"{text!r} is less than a millisecond, or too long")
    return total


def _ports(text: str) -> Iterator[str]:
    match = _PORT.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if match is None or not 0 < first <= last <= LAST_PORT:
        raise UsageError(f"{text!r} is not a port, like 80, 53/udp or 8000-8010/tcp")
    return (f"{port}/{(match[3] or 'tcp').lower()}" for port in range(first, last + 1))


def _command(argument: str, config: Config) -> list[str]:
    """Return a command's words; in the shell form the shell's and the line."""
    listed = _json_form(argument)
    return [*(texts_in(config, "Shell", _WHERE) or _SHELL), argument] if listed is None else listed


def _json_form(argument: str) -> list[str] | None:
    """Return the words of a JSON array.

    None if it is none: a line for a shell may begin with a bracket too.
    """
    try:
        value = json.loads(argument) if argument.startswith("[") else None
    except (ValueError, RecursionError):
        return None
    if value is not None and not all(isinstance(word, str) for word in value):
        raise UsageError("the words of a JSON array must be strings")
    return value


def _pairs(argument: str, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the names and values, expanded."""
    pairs = [(expand(name, environment), expand(value, environment)) for name, value in _written(argument)]
    if not all(name for name, _ in pairs):
        raise UsageError("a name must not be empty")
    return pairs


def _written(argument: str) -> list[tuple[str, str]]:
    """`NAME=VALUE …`, or the older `NAME VALUE`, where the value is the rest of the line."""
    listed = words(argument)
    value = argument[len(listed[0]) :].strip()
    if "=" not in listed[0] and value:
        return [(listed[0], value)]
    if bare := [word for word in listed if "=" not in word]:
        raise UsageError(f"{bare[0]!r} is not NAME=VALUE")
    return [(name, value) for name, _, value in (word.partition("=") for word in listed)]


def _one_word(argument: str, config: Config) -> str:
    word = expand(argument, _environment(config))
    if len(word.split()) != 1:
        raise UsageError(f"takes one word, not {word!r}")
    return word


def _environment(config: Config) -> dict[str, str]:
    lines = (line.partition("=") for line in texts_in(config, "Env", _WHERE))
    return {name: value for name, _, value in lines}


def _object(config: Config, name: str) -> Config:
    """Return the object `config[name]`, made if there is none, to be changed."""
    found = config[name] = object_at(config.get(name) or {}, f"{_WHERE}.{name}")
    return found


def _set(config: Config, name: str, value: list[str]) -> None:
    """Set a field; an empty list is a field left out."""
    config[name] = value
    if not value:
        del config[name]


_APPLIERS: dict[str, Callable[[str, Config], None]] = {
    "CMD": _set_command,
    "ENTRYPOINT": _set_entrypoint,
    "ENV": _set_environment,
    "EXPOSE": _set_ports,
    "HEALTHCHECK": _set_health,
    "LABEL": _set_labels,
    "ONBUILD": _add_trigger,
    "STOPSIGNAL": _set_signal,
    "USER": _set_user,
    "VOLUME": _set_volumes,
    "WORKDIR": _set_directory,
}
_EXPANDED = frozenset(("ENV", "EXPOSE", "LABEL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"))


def words(line: str) -> list[str]:
    """Split a line at the spaces outside quotes, which stay; raises UsageError for a quote left open."""
    if _WORD.sub("", line).strip():
        raise UsageError("a quote is not closed, or a backslash ends the line")
    return _WORD.findall(line)


def expand(text: str, environment: Mapping[str, str]) -> str:
    """`text` without its quotes and backslashes, and with the values of its variables; raises UsageError.

    Variables are `$NAME`, `${NAME}`, `${NAME:-WORD}` and `${NAME:+WORD}`; one that is not set is empty.
    """
    words(text)
    return _PIECE.sub(lambda match: _expanded(match, environment), text)


def _expanded(match: re.Match[str], environment: Mapping[str, str]) -> str:
    found = match.groupdict()
    kept = found["escaped"] if found["escaped"] is not None else found.get("literal")
    if kept is not None:
        return str(kept)
    if found.get("quoted") is not None:
        return _QUOTED_PIECE.sub(lambda inner: _expanded(inner, environment), found["quoted"])
    return _value(found, environment)


def _value(found: Mapping[str, str | None], environment: Mapping[str, str]) -> str:
    if found["wrong"]:
        raise UsageError("a variable is $NAME, ${NAME}, ${NAME:-WORD} or ${NAME:+WORD}")
    value = environment.get(found["name"] or found["braced"] or "", "")
    if found["rule"] is None:
        return value
    other = expand(found["word"] or "", environment)
    return value or other if found["rule"] == "-" else value and other
