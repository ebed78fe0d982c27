"""What the command line of run and bundle asks for, as the wishes it is."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path

from imgfs.cli.arguments.confining import resources_of, security_of
from imgfs.config import variables
from imgfs.errors import UsageError
from imgfs.runtime.request import Bind, ContainerRequest


def request_of(options: argparse.Namespace) -> ContainerRequest:
    """What the command line asks for; raises UsageError."""
    return ContainerRequest(
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
        resources=resources_of(options),
        security=security_of(options),
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
    return one._replace(source=source, options=_options(one, source))


def _options(one: Bind, source: str) -> tuple[str, ...]:
    """How a bind is mounted: a device, or what is in /dev, is shown to be opened."""
    is_of_devices = Path("/dev") in (Path(source), *Path(source).parents)
    if is_of_devices or Path(source).is_char_device() or Path(source).is_block_device():
        return tuple(option for option in one.options if option != "nodev")
    return one.options
