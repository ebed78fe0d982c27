"""What a container is to be: the defaults of its image's config, and the command line's request."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from imgfs.errors import InvalidImage, UsageError
from imgfs.oci.fields import text_in, texts_in
from imgfs.runtime.resources import Resources
from imgfs.runtime.security import Security

_WHERE = "config.config"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")  # a host's name has at most 63 characters


class Network(StrEnum):
    """Which network a container sees: this machine's, or its own, connected by pasta, or only a loopback."""

    HOST = "host"
    PASTA = "pasta"
    NONE = "none"


class PortMapping(NamedTuple):
    """A port of this machine's that leads to one of the container; `address` is empty for all addresses."""

    address: str
    host: int
    container: int
    protocol: str = "tcp"

    def __str__(self) -> str:
        """ADDRESS:HOST:CONTAINER/PROTOCOL."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.host}:{self.container}/{self.protocol}"


class Bind(NamedTuple):
    """A file or directory of this machine's, shown in the container at `target`.

    It is the named `volume`, if that is not empty, and a volume without a name if `source` is empty, too.
    `options` are mount(8)'s: devices in it cannot be opened, and set-user-ID bits count for nothing, unless
    the user says otherwise.
    """

    source: str
    target: str
    read_only: bool = False
    options: tuple[str, ...] = ("nosuid", "nodev")
    volume: str = ""


class Tmpfs(NamedTuple):
    """A file system in memory; `options` are mount(8)'s."""

    target: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageDefaults:
    """What an image's config says of running it (OCI image-spec config.md); paths are absolute.

    These fields are all that a container gets of a config. Labels are for people and programs that list
    images: none of them reaches a runtime.
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    workdir: str = "/"
    user: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()

    @classmethod
    def parse(cls, config: Mapping[str, object]) -> ImageDefaults:
        """Read a config's runtime part; raises InvalidImage with the JSON path."""
        found = cls(
            entrypoint=_texts(config, "Entrypoint"),
            cmd=_texts(config, "Cmd"),
            env=_variables(_texts(config, "Env")),
            workdir=_absolute(_text(config, "WorkingDir")),
            user=_text(config, "User"),
            stop_signal=_text(config, "StopSignal"),
            exposed=tuple(_object(config, "ExposedPorts")),
            volumes=tuple(dict.fromkeys(_absolute(path) for path in _object(config, "Volumes"))),
        )
        if "/" in found.volumes:
            raise InvalidImage("the whole image cannot be a volume", where=f"{_WHERE}.Volumes")
        return found


@dataclass(frozen=True, slots=True)
class ContainerRequest:
    """What the user requests; None and empty leave it to the image.

    `volumes` are those without a name, `publish_all` says that the image's ports are published, too.
    `env` has the command line's variables, `hosts` names of hosts with their addresses, `annotations` labels
    too; `stop_timeout` is in seconds, `init` whether the first process is one that reaps.
    """

    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    user: str | None = None
    workdir: str | None = None
    hostname: str | None = None
    terminal: bool = False
    network: Network = Network.HOST
    ports: tuple[PortMapping, ...] = ()
    publish_all: bool = False
    volumes: tuple[Bind, ...] = ()
    read_only: bool = False
    binds: tuple[Bind, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    read_only_tmpfs: bool = True
    resources: Resources = field(default_factory=Resources)
    security: Security = field(default_factory=Security)
    hosts: tuple[tuple[str, str], ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    stop_signal: str | None = None
    stop_timeout: int | None = None
    init: bool = False

    def workdir_over(self, defaults: ImageDefaults) -> str:
        """Return the working directory."""
        return _absolute(self.workdir) if self.workdir else defaults.workdir

    def volumes_over(self, defaults: ImageDefaults) -> list[Bind]:
        """Return the volumes without a name: those asked for, and the image's that nothing covers."""
        mounted: tuple[Bind | Tmpfs, ...] = (*self.binds, *self.tmpfs, *self.volumes)
        taken = {posixpath.normpath(one.target) for one in mounted}
        return [*self.volumes, *(Bind("", path) for path in defaults.volumes if path not in taken)]


def check_name(name: str) -> None:
    """Raise UsageError unless a container can be called so."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a name for a container (letters, digits, '_', '.', '-'; at most 63)"
        )


def arguments(defaults: ImageDefaults, request: ContainerRequest) -> list[str]:
    """Return the command to run: the image's Cmd is for its own Entrypoint.

    Raises UsageError if there is none.
    """
    if request.entrypoint is not None:
        words = [*request.entrypoint, *request.command]
    else:
        words = [*defaults.entrypoint, *(request.command or defaults.cmd)]
    if not words or not words[0]:
        raise UsageError("the image names no command: say one after its name")
    return words


def _texts(config: Mapping[str, object], name: str) -> tuple[str, ...]:
    return tuple(_clean(text, name) for text in texts_in(config, name, _WHERE))


def _text(config: Mapping[str, object], name: str) -> str:
    return _clean(text_in(config, name, _WHERE, default=""), name)


def _object(config: Mapping[str, object], name: str) -> dict[str, object]:
    value = config.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidImage("expected an object", where=f"{_WHERE}.{name}")
    return {_clean(key, name): entry for key, entry in value.items()}


def _clean(text: str, name: str) -> str:
    """Text that a system call can be given."""
    if "\0" in text:
        raise InvalidImage("there is a NUL in it", where=f"{_WHERE}.{name}")
    return text


def _variables(texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE each; what is not is no variable."""
    pairs = (text.partition("=") for text in texts)
    return {name: value for name, equals, value in pairs if name and equals}


def _absolute(path: str) -> str:
    """Return a path of the image: what is relative there starts from its root."""
    return "/" + posixpath.normpath(f"/{path}").lstrip("/")


def environment(
    defaults: ImageDefaults,
    request: ContainerRequest,
    home: str,
    hostname: str,
    fixed: Sequence[tuple[str, str]],
) -> dict[str, str]:
    """Return the container's variables.

    The command line's go before the image's, and those before `fixed`.
    """
    own = {**dict(fixed), "HOSTNAME": hostname}
    given = {**own, **defaults.env, **request.env}
    given.setdefault("HOME", home)
    return given
