"""imgfs run: a container of an image that nobody has pulled.

This is the parent's part: it reads the command line, and then stands for the container outside. It imports
little: all else is loaded by the child, once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imgfs.cli.arguments.confining import limits_of, rights_of
from imgfs.config import variables
from imgfs.errors import ImgfsError, UsageError
from imgfs.runtime.ids import Maps, id_maps
from imgfs.runtime.namespace import Apart
from imgfs.runtime.signals import Relay
from imgfs.runtime.wishes import Bind, Wishes, check_name

OUR_FAULT, INTERRUPTED = 125, 130  # podman's exit code for its own failures, and the shell's for SIGINT


def run(options: argparse.Namespace) -> int:
    """Run a container; the exit code of its command."""
    try:
        return _run(options)
    except ImgfsError as error:
        return complain(error)
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror}" if error.filename else error)


def bundle(options: argparse.Namespace) -> int:
    """Make a bundle for another engine."""
    from imgfs.cli.container import make_bundle

    make_bundle(wishes_of(options), options)
    return 0


def _run(options: argparse.Namespace) -> int:
    if options.tty and not os.isatty(0):
        raise UsageError("-t: standard input is not a terminal")
    wishes = wishes_of(options)
    name = options.name or os.urandom(6).hex()
    check_name(name)
    maps = id_maps() if os.geteuid() else None
    start = Start(wishes, name, maps, options)
    apart = Apart(lambda enter: _inside(enter, start), maps)
    with _terminal_as_it_was(), Relay() as relay:
        return apart.wait(relay)


@dataclass(frozen=True, slots=True)
class Start:
    """A container about to be started: all that the command line says. `maps` are a user namespace's ids."""

    wishes: Wishes
    name: str
    maps: Maps | None
    options: argparse.Namespace


def _inside(enter: Callable[[], None], start: Start) -> int:
    """What the child does, out of everybody's sight; an error is told there."""
    try:
        enter()
        from imgfs.mount import Mounting

        with Mounting(start.options.driver) as mounting:
            from imgfs.cli.container import run_container

            return run_container(start, mounting)
    except ImgfsError as error:
        return complain(error)
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror}" if error.filename else error)
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED


def wishes_of(options: argparse.Namespace) -> Wishes:
    """What the command line asks for; raises UsageError."""
    return Wishes(
        command=tuple(options.command),
        entrypoint=_entrypoint(options.entrypoint),
        env=_variables(options),
        user=options.user,
        workdir=options.workdir,
        hostname=options.hostname,
        terminal=options.tty,
        network=options.network,
        read_only=options.read_only,
        binds=tuple(_existing(one) for one in options.volume),
        tmpfs=tuple(options.tmpfs),
        read_only_tmpfs=options.read_only_tmpfs,
        limits=limits_of(options),
        rights=rights_of(options),
        hosts=tuple(options.add_host),
        annotations=dict(options.annotation),
        stop_signal=options.stop_signal,
        init=options.init,
    )


def _entrypoint(text: str | None) -> tuple[str, ...] | None:
    """One word, or those of a JSON array, as podman reads it."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        words = json.loads(text)
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return tuple(words)
    return (text,) if text else ()


def _variables(options: argparse.Namespace) -> dict[str, str]:
    """Those of the files, then those given one by one."""
    lines = [line for path in options.env_file for line in Path(path).read_text().splitlines()]
    texts = [line.lstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    here = variables()
    found = {}
    for text in (*texts, *options.env):
        name, has_value, value = text.partition("=")
        if not name:
            raise UsageError(f"{text!r} is no variable: NAME=VALUE, or NAME")
        if has_value or name in here:
            found[name] = value if has_value else here[name]
    return found


def _existing(one: Bind) -> Bind:
    source = os.path.abspath(one.source)
    if not os.path.exists(source):
        raise UsageError(f"{one.source}: there is no such file or directory to show at {one.target}")
    return one._replace(source=source)


@contextlib.contextmanager
def _terminal_as_it_was() -> Iterator[None]:
    """A runtime that is killed leaves the terminal raw."""
    try:
        before = termios.tcgetattr(0)
    except (termios.error, OSError):
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def warn(text: str) -> None:
    """Say what is not as it was asked for."""
    print(f"imgfs: warning: {text}", file=sys.stderr, flush=True)


def complain(error: object) -> int:
    """Say what failed; the exit code for it."""
    print(f"imgfs: {error}", file=sys.stderr, flush=True)
    return OUR_FAULT
