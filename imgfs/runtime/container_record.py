"""What a container's directory says of it, in three files, each written once by its monitor.

    container.json   what it is: id, name, image, command; before its first process is started
    running.json     since when it runs, and its processes
    exit.json        empty until its end: then when that was, and its exit code

The monitor, the process that runs the container, has the directory locked (`owned.writing`). So what is true
is found without asking a process: locked is alive; not locked and with an exit code has ended; neither of
both means that the monitor was killed, and the first process, named so that no other can be meant
(`runtime.process_id`), says whether the container goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from imgfs.errors import StoreError
from imgfs.owned.opening import open_owned_directory, open_owned_file, read_owned_file
from imgfs.owned.writing import os_errors, write_all
from imgfs.runtime.names import CONTAINERS
from imgfs.runtime.process_id import ProcessId

RECORD, RUNNING, EXIT = "container.json", "running.json", "exit.json"
UNKNOWN_CODE = 255  # of a container whose monitor was killed: podman's for such a one
_PART = ".part"
SpecProcess: TypeAlias = Mapping[str, Any]  # as JSON has it (runtime-spec config.md, Process)
SpecMount: TypeAlias = Mapping[str, Any]  # likewise (config.md, Mounts)


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """What a container is. `created` is in seconds since 1970, `process` its config.json's process.

    `image` is its reference, `digest` its manifest's and `image_id` its config's digest; `ports` are as
    `publish.PortMapping` reads them, `volumes` the names of those in the store. `capabilities` are those that
    root and that other users have in it.
    """

    id: str
    name: str
    image: str
    digest: str
    image_id: str
    created: float
    runtime: str
    detached: bool = False
    auto_remove: bool = False
    stop_signal: str = ""
    stop_timeout: int = 10
    network: str = "host"
    command: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    mounts: tuple[SpecMount, ...] = field(default=(), hash=False)
    process: SpecProcess = field(default_factory=dict, hash=False)
    capabilities: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict, hash=False)

    @property
    def is_kept(self) -> bool:
        """Whether it is listed after its end, until it is removed."""
        return self.detached and not self.auto_remove

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> ContainerRecord:
        """Read what `write` has written; raises KeyError, TypeError, ValueError."""
        known = {one.name for one in fields(cls)}
        lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        return cls(**{name: value for name, value in {**found, **lists}.items() if name in known})

    def write(self, directory: Path) -> None:
        """Write it, and the empty file of the exit code; raises StoreError."""
        with os_errors(directory):
            os.close(open_owned_file(directory / EXIT, os.O_WRONLY | os.O_CREAT))
        _write(directory, RECORD, asdict(self))


class RunningRecord(NamedTuple):
    """The processes of a container that has been started: `init` is its first, `daemon` serves its image."""

    started: float
    init: ProcessId | None
    monitor: ProcessId | None
    daemon: ProcessId | None
    network: ProcessId | None = None

    def write(self, directory: Path) -> None:
        """Write it; raises StoreError."""
        processes = {
            "init": self.init,
            "monitor": self.monitor,
            "daemon": self.daemon,
            "network": self.network,
        }
        named = {name: one.to_json() if one else None for name, one in processes.items()}
        _write(directory, RUNNING, {"started": self.started, **named})

    @classmethod
    def read(cls, directory: Path) -> RunningRecord | None:
        """Read it; None if it is not there, or damaged."""
        found = _read(directory, RUNNING)
        if not found or not isinstance(found.get("started"), int | float):
            return None
        names = ("init", "monitor", "daemon", "network")
        return cls(found["started"], *(ProcessId.parse(found.get(name)) for name in names))


class ExitRecord(NamedTuple):
    """How a container ended, and when, in seconds since 1970."""

    code: int
    finished: float

    def write(self, directory: Path) -> None:
        """Write it into the existing file, which waiting processes have open. Raises StoreError."""
        with os_errors(directory), open(open_owned_file(directory / EXIT, os.O_WRONLY), "wb") as file:
            write_all(file.fileno(), json.dumps(self._asdict()).encode())

    @classmethod
    def parse(cls, body: bytes) -> ExitRecord | None:
        """Read the file's content; None if it says nothing yet."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found = json.loads(body)
            return cls(int(found["code"]), float(found["finished"]))
        return None


class StoredContainer(NamedTuple):
    """A container as its directory shows it."""

    directory: Path
    record: ContainerRecord

    @classmethod
    def read(cls, directory: Path) -> StoredContainer | None:
        """Read a container's directory; None if it is none, or being made."""
        found = _read(directory, RECORD)
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if found:
                return cls(directory, ContainerRecord.parse(found))
        return None

    @property
    def running(self) -> RunningRecord | None:
        """Its processes, once it has been started."""
        return RunningRecord.read(self.directory)

    @property
    def ended(self) -> ExitRecord | None:
        """How it ended, None if it has not."""
        with contextlib.suppress(OSError, StoreError):
            return ExitRecord.parse(read_owned_file(self.directory / EXIT))
        return None

    @property
    def is_held(self) -> bool:
        """Whether its monitor is alive."""
        return is_held(self.directory)

    @property
    def state(self) -> str:
        """podman's word for its state, and `unknown` for one whose monitor was killed, and that has ended."""
        if self.ended:
            return "exited"
        running = self.running
        if self.is_held:
            return "running" if running else "created"
        if self.ended:  # meanwhile
            return "exited"
        return "running" if running and running.init and running.init.is_alive else "unknown"

    @property
    def is_running(self) -> bool:
        """Whether its first process runs."""
        return self.state == "running"

    @property
    def exit_code(self) -> int:
        """Its exit code, 0 as long as it runs, as podman has it."""
        ended = self.ended
        if ended:
            return ended.code
        return UNKNOWN_CODE if self.state == "unknown" else 0

    def wait(self, deadline: float | None = None) -> int | None:
        """Wait for its end, and return its exit code; None if the deadline (time.monotonic) has passed.

        The file of the exit code is open before: a container that removes itself takes only its name.
        """
        try:
            held = open_owned_directory(self.directory)
            code = open_owned_file(self.directory / EXIT, os.O_RDONLY, names=None)
        except (StoreError, FileNotFoundError):
            return UNKNOWN_CODE
        try:
            if not _lock_shared(held, deadline):
                return None
            while not self._has_ended():
                if deadline is not None and time.monotonic() > deadline:
                    return None
                time.sleep(0.1)
            found = ExitRecord.parse(os.pread(code, 4096, 0))
            return found.code if found else UNKNOWN_CODE
        finally:
            os.close(held)
            os.close(code)

    def _has_ended(self) -> bool:
        """Return whether a container without its monitor has ended."""
        running = self.running
        return not (running and running.init and running.init.is_alive)


def _lock_shared(fd: int, deadline: float | None) -> bool:
    """Wait until a directory's holder has ended."""
    if deadline is None:
        fcntl.flock(fd, fcntl.LOCK_SH)
        return True
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


def is_held(directory: Path) -> bool:
    """Return whether a living process has a container's directory locked."""
    try:
        fd = open_owned_directory(directory)
    except StoreError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def is_to_stay(directory: Path) -> bool:
    """Return whether to leave a directory without a monitor: it is kept, or its container still runs."""
    found = StoredContainer.read(directory)
    return found is not None and (found.record.is_kept or found.is_running)


def containers_in(store_root: Path) -> Iterator[StoredContainer]:
    """Yield the containers of a store, in the order of their creation."""
    place = store_root / CONTAINERS
    try:
        os.close(open_owned_directory(place))
    except StoreError:
        if os.path.lexists(place):
            raise
        return
    found = (StoredContainer.read(path) for path in place.iterdir() if not path.name.startswith("."))
    yield from sorted((one for one in found if one), key=lambda one: one.record.created)


def _write(directory: Path, name: str, found: Mapping[str, object]) -> None:
    with os_errors(directory):
        part = directory / f"{name}{_PART}"
        with open(open_owned_file(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            write_all(file.fileno(), json.dumps(found).encode("utf-8", "surrogateescape"))
        part.rename(directory / name)


def _read(directory: Path, name: str) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, StoreError, ValueError):
        found = json.loads(read_owned_file(directory / name))
        return found if isinstance(found, dict) else None
    return None
