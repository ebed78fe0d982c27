"""How much a container may use: limits of its cgroup, and of each process (setrlimit(2))."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import NamedTuple

UNLIMITED = -1
_NAMES = (  # getrlimit(2); podman has them in small letters
    "AS CORE CPU DATA FSIZE MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME SIGPENDING STACK"
)
ULIMITS = {name.lower(): getattr(resource, f"RLIMIT_{name}") for name in _NAMES.split()}
_MOST_PROCESSES = 2048  # as with podman
_PERIOD = 100_000  # microseconds that a share of the processors counts in
_INFINITY = (1 << 64) - 1  # RLIM_INFINITY


class Ulimit(NamedTuple):
    """A limit of one process, by its name in ULIMITS; UNLIMITED is none."""

    name: str
    soft: int
    hard: int


class Resources(NamedTuple):
    """What the user allows at most: `memory` and `shm` (of /dev/shm) in bytes, `cpus` in processors.

    `pids` is how many processes there may be at once, UNLIMITED as many as there can.
    """

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    shm: int | None = None
    ulimits: tuple[Ulimit, ...] = ()

    def by_controller(self) -> dict[str, object]:
        """Return what was asked for, by the cgroup controllers that are to hold it."""
        pids = None if self.pids == UNLIMITED else self.pids
        return {"memory": self.memory, "cpu": self.cpus, "pids": pids}


def cgroup_resources(
    resources: Resources, controllers: frozenset[str], devices: Sequence[Mapping[str, object]]
) -> dict[str, object]:
    """Return what a cgroup with these controllers holds (runtime-spec config-linux.md, Control groups)."""
    found: dict[str, object] = {"devices": list(devices)} if devices else {}
    pids = _MOST_PROCESSES if resources.pids is None else resources.pids
    if "pids" in controllers and pids != UNLIMITED:
        found["pids"] = {"limit": pids}
    if resources.memory is not None and "memory" in controllers:
        found["memory"] = {"limit": resources.memory}
    if resources.cpus is not None and "cpu" in controllers:
        found["cpu"] = {"quota": max(1000, round(resources.cpus * _PERIOD)), "period": _PERIOD}
    return found


def ceilings() -> dict[str, int]:
    """Return the limits that this process cannot go beyond without CAP_SYS_RESOURCE, by their names."""
    return {name: resource.getrlimit(number)[1] for name, number in ULIMITS.items()}


def capped_ulimits(ulimits: Sequence[Ulimit], ceilings: Mapping[str, int]) -> list[Ulimit]:
    """Return the limits as they can be set under these ceilings; what has none can be set as it is."""
    return [
        Ulimit(one.name, *(_lower(value, ceilings.get(one.name, UNLIMITED)) for value in one[1:]))
        for one in ulimits
    ]


def rlimits(ulimits: Sequence[Ulimit]) -> list[dict[str, str | int]]:
    """Return the limits as a runtime takes them (runtime-spec config.md, POSIX process)."""
    return [
        {
            "type": f"RLIMIT_{one.name.upper()}",
            "soft": _INFINITY if one.soft == UNLIMITED else one.soft,
            "hard": _INFINITY if one.hard == UNLIMITED else one.hard,
        }
        for one in ulimits
    ]


def _lower(value: int, ceiling: int) -> int:
    if ceiling == UNLIMITED:
        return value
    return ceiling if value == UNLIMITED else min(value, ceiling)
