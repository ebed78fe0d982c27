"""Containers as podman lists them: rows, and their filters."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from imgfs.cli.format import ago
from imgfs.runtime.container_record import (
    ContainerRecord,
    ExitRecord,
    RunningRecord,
    StoredContainer,
)
from imgfs.runtime.names import SHORT

_HEADS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "Created": "CREATED",
    "Status": "STATUS",
    "Ports": "PORTS",
    "Names": "NAMES",
}
_COMMAND = 17  # characters of a command that lists show, and "..."
_NEVER = -62135596800  # Go's zero time in seconds, which podman prints


def container_filter(text: str) -> tuple[str, str]:
    """KEY=VALUE of --filter."""
    key, equals, value = text.partition("=")
    if key not in _FILTERS or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, with one of {', '.join(_FILTERS)}")
    return key, value


@dataclass(frozen=True, slots=True)
class ContainerRow:
    """A container, its processes and its end, as they are when it is listed."""

    record: ContainerRecord
    running: RunningRecord | None
    ended: ExitRecord | None
    state: str
    exit_code: int

    @classmethod
    def of(cls, container: StoredContainer) -> ContainerRow:
        """Read what a container's directory says now."""
        return cls(container.record, container.running, container.ended, container.state, container.exit_code)

    @property
    def is_over(self) -> bool:
        """Whether it runs no more, and will not again."""
        return self.state in ("exited", "unknown")

    @property
    def pid(self) -> int:
        """Its first process, 0 if it does not run."""
        running = self.running
        return running.init.pid if running and running.init and self.state == "running" else 0

    @property
    def mounts(self) -> list[str]:
        """The volumes by name, and where everything else is shown."""
        return [*self.record.volumes, *(str(one["destination"]) for one in self.record.mounts)]

    @property
    def status(self) -> str:
        """Its state in podman's words, and for how long."""
        if self.state == "running" and self.running:
            return f"Up {ago(time.time() - self.running.started)}"
        if self.ended:
            return f"Exited ({self.ended.code}) {ago(time.time() - self.ended.finished)}"
        return {"created": "Created", "unknown": "Unknown: its monitor was killed"}.get(
            self.state, self.state
        )

    def to_json(self) -> dict[str, object]:
        """Return it as `podman ps --format json` has it."""
        record, running, ended = self.record, self.running, self.ended
        return {
            "AutoRemove": record.auto_remove or not record.detached,
            "Command": list(record.command),
            "CreatedAt": ago(time.time() - record.created),
            "Exited": self.is_over,
            "ExitedAt": int(ended.finished) if ended else _NEVER,
            "ExitCode": self.exit_code,
            "Id": record.id,
            "Image": record.image,
            "ImageID": record.image_id.partition(":")[2],
            "Labels": dict(record.labels) or None,
            "Mounts": self.mounts,
            "Names": [record.name],
            "Networks": [],
            "Pid": self.pid,
            "Ports": [asdict(PublishedPort.parse(text)) for text in record.ports] or None,
            "StartedAt": int(running.started) if running else _NEVER,
            "State": self.state,
            "Status": self.status,
            "Created": int(record.created),
        }

    def shown(self, *, whole: bool = False) -> dict[str, str]:
        """Return what `podman ps` shows of it in a table; templates have the names of the JSON, too."""
        record = self.record
        command = " ".join(record.command).replace("\n", " ")
        if not whole and len(command) > _COMMAND + 3:
            command = f"{command[:_COMMAND]}..."
        since = ago(time.time() - record.created)
        return {
            "ID": record.id if whole else record.id[:SHORT],
            "Image": record.image,
            "Command": command,
            "Created": since,
            "RunningFor": since,
            "Status": self.status,
            "Ports": ", ".join(map(str, map(PublishedPort.parse, record.ports))),
            "Names": record.name,
            "Networks": "",
            "Labels": ",".join(f"{name}={value}" for name, value in record.labels.items()),
        }


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port mapping as podman's JSON has it."""

    host_ip: str
    container_port: int
    host_port: int
    range: int
    protocol: str

    @classmethod
    def parse(cls, text: str) -> PublishedPort:
        """Read the form ADDRESS:HOST:CONTAINER/PROTOCOL, as `runtime.request.PortMapping` writes it."""
        place, _, protocol = text.partition("/")
        address, host, container = place.rsplit(":", 2)
        return cls(address.strip("[]"), int(container), int(host), 1, protocol)

    def __str__(self) -> str:
        return f"{self.host_ip or '0.0.0.0'}:{self.host_port}->{self.container_port}/{self.protocol}"


_FILTERS: dict[str, Callable[[ContainerRow, str], bool]] = {
    "name": lambda row, value: value in row.record.name,
    "id": lambda row, value: row.record.id.startswith(value),
    "status": lambda row, value: row.state == value,
    "exited": lambda row, value: row.is_over and str(row.exit_code) == value,
    "ancestor": lambda row, value: value in row.record.image,
    "volume": lambda row, value: value in row.mounts,
    "label": lambda row, value: _has_label(row.record.labels, value),
}


def _has_label(labels: Mapping[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)


def rows_of(
    containers: Sequence[StoredContainer], filters: Sequence[tuple[str, str]], *, every: bool
) -> list[ContainerRow]:
    """Return the rows of the containers that run, of all if wanted or a filter says so, the latest last."""
    every = every or any(key in ("status", "exited") for key, _ in filters)
    rows = map(ContainerRow.of, containers)
    return [row for row in rows if _passes(row, filters) and (every or row.state == "running")]


def _passes(row: ContainerRow, filters: Sequence[tuple[str, str]]) -> bool:
    """Return whether the filters let a row through: of several with one key any must, of several keys all."""
    keys = dict.fromkeys(key for key, _ in filters)
    return all(any(_FILTERS[key](row, value) for name, value in filters if name == key) for key in keys)


def table(rows: Sequence[ContainerRow], *, whole: bool = False) -> list[str]:
    """Return the lines of `podman ps`."""
    lines: list[tuple[str, ...]] = [tuple(_HEADS.values())]
    for shown in (row.shown(whole=whole) for row in rows):
        lines.append(tuple(shown[name] for name in _HEADS))
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADS))]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
