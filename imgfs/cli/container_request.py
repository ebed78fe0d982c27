"""What run and bundle are asked for: the options and the files that they name, as a ContainerRequest."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imgfs.cli.container_security import resources_of, security_of
from imgfs.cli.output import warn
from imgfs.config import Environment
from imgfs.errors import UsageError
from imgfs.runtime.host_facts import IdMaps
from imgfs.runtime.names import SHORT, new_id, random_name
from imgfs.runtime.request import Bind, ContainerRequest, Network, check_name
from imgfs.variables import variables

if TYPE_CHECKING:
    import argparse


class Start(NamedTuple):
    """A container about to be started: what the command line and the environment say.

    `maps` are a user namespace's ids, `tell` is a pipe to the process that waits, for a container that is
    detached from it.
    """

    request: ContainerRequest
    id: str
    name: str
    maps: IdMaps | None
    options: argparse.Namespace
    environment: Environment
    tell: int


def start_of(options: argparse.Namespace, maps: IdMaps | None, environment: Environment, tell: int) -> Start:
    """Read what the command line says; raises UsageError."""
    if options.tty and not options.detach and not os.isatty(0):
        raise UsageError("-t: standard input is not a terminal")
    if options.name:
        check_name(options.name)
    _check_new(options.cidfile, "--cidfile")
    identity = new_id()
    request = request_of(options)
    request = replace(request, hostname=request.hostname or options.name or identity[:SHORT])
    return Start(request, identity, options.name or random_name(), maps, options, environment, tell)


def _check_new(path: str | None, option: str) -> None:
    """Raise UsageError if a file that is to be made is there."""
    if path is not None and os.path.lexists(path):
        raise UsageError(f"{option} {path}: already exists")


def request_of(options: argparse.Namespace) -> ContainerRequest:
    """Return what the command line asks for; raises UsageError."""
    return ContainerRequest(
        command=tuple(options.command),
        entrypoint=_entrypoint(options.entrypoint),
        env=variables_of(options),
        user=options.user,
        workdir=options.workdir,
        hostname=options.hostname,
        terminal=options.tty,
        network=_network(options),
        ports=tuple(one for some in getattr(options, "publish", ()) for one in some),
        publish_all=_publishes_all(options),
        read_only=options.read_only,
        binds=tuple(_existing(one) for one in options.volume if one.source),
        volumes=tuple({one.target: one for one in options.volume if not one.source}.values()),
        tmpfs=tuple(options.tmpfs),
        read_only_tmpfs=options.read_only_tmpfs,
        resources=resources_of(options),
        security=security_of(options),
        hosts=tuple(options.add_host),
        annotations=dict(options.annotation),
        stop_signal=options.stop_signal,
        init=options.init,
    )


def _network(options: argparse.Namespace) -> Network:
    """Return the network asked for; ports need one of the container's own, unless the user says otherwise."""
    published, publishes_all = getattr(options, "publish", ()), _publishes_all(options)
    if options.network is None:
        return Network.PASTA if published or publishes_all else Network.HOST
    found = Network(options.network)
    if (published or publishes_all) and found is not Network.PASTA:
        warn(f"{'-p' if published else '-P'} has no effect with --network {found}")
    return found


def _publishes_all(options: argparse.Namespace) -> bool:
    return bool(getattr(options, "publish_all", False))


def _entrypoint(text: str | None) -> tuple[str, ...] | None:
    """One word, or those of a JSON array, as podman reads it."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        words = json.loads(text)
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return tuple(words)
    return (text,) if text else ()


def variables_of(options: argparse.Namespace) -> dict[str, str]:
    """Return the variables of --env-file, then those of --env; raises UsageError."""
    lines = [line for path in options.env_file for line in _read_text(Path(path)).splitlines()]
    texts = [line.lstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    here = variables()
    found = {}
    for text in (*texts, *options.env):
        name, has_value, value = text.partition("=")
        if not name or "\0" in text:
            raise UsageError(f"{text!r} is not a variable: NAME=VALUE, or NAME")
        if has_value or name in here:
            found[name] = value if has_value else here[name]
    return found


def _read_text(path: Path) -> str:
    """Read a file of variables; raises OSError, UsageError."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8, from byte {error.start} on") from error


def _existing(one: Bind) -> Bind:
    if one.volume:
        return one
    source = os.path.abspath(one.source)
    if not os.path.exists(source):
        raise UsageError(f"{one.source}: no such file or directory to show at {one.target}")
    return one._replace(source=source, options=_options(one, source))


def _options(one: Bind, source: str) -> tuple[str, ...]:
    """Return how a bind is mounted: a device, or what is in /dev, is shown to be opened."""
    is_of_devices = Path("/dev") in (Path(source), *Path(source).parents)
    if is_of_devices or Path(source).is_char_device() or Path(source).is_block_device():
        return tuple(option for option in one.options if option != "nodev")
    return one.options
