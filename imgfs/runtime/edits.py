"""What is added to a config.json for a device that a file of this machine's describes (`runtime.cdi`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class DeviceNode(NamedTuple):
    """A device file of a container; what is not said is as `host_path` has it, the owner the process's."""

    path: str
    host_path: str
    kind: str = ""
    major: int = 0
    minor: int = 0
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    access: str = "rwm"


class EditMount(NamedTuple):
    """A mount, in the fields of a config.json."""

    target: str
    source: str
    kind: str
    options: tuple[str, ...]


class Hook(NamedTuple):
    """A program of this machine's that the runtime starts when a container's life is at the point `when`."""

    when: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None

    def to_json(self) -> dict[str, object]:
        """As a config.json has it (runtime-spec config.md, "POSIX-platform Hooks")."""
        found: dict[str, object] = {"path": self.path}
        if self.args:
            found["args"] = list(self.args)
        if self.env:
            found["env"] = list(self.env)
        return found if self.timeout is None else {**found, "timeout": self.timeout}


@dataclass(frozen=True, slots=True)
class ContainerEdits:
    """All that is added; `groups` are numbers, `rdt` is config-linux.md's intelRdt."""

    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    nodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[EditMount, ...] = ()
    hooks: tuple[Hook, ...] = ()
    groups: tuple[int, ...] = ()
    rdt: Mapping[str, object] = field(default_factory=dict, hash=False)

    def __bool__(self) -> bool:
        """Return whether anything is added."""
        return self != ContainerEdits()

    def __add__(self, later: ContainerEdits) -> ContainerEdits:
        """Both; of what both say, the later."""
        return ContainerEdits(
            {**self.env, **later.env},
            tuple({one.path: one for one in (*self.nodes, *later.nodes)}.values()),
            tuple({one.target: one for one in (*self.mounts, *later.mounts)}.values()),
            (*self.hooks, *later.hooks),
            tuple(dict.fromkeys((*self.groups, *later.groups))),
            {**self.rdt, **later.rdt},
        )

    def hooks_by_time(self) -> dict[str, list[dict[str, object]]]:
        """Return the hooks as a config.json has them."""
        found: dict[str, list[dict[str, object]]] = {}
        for hook in self.hooks:
            found.setdefault(hook.when, []).append(hook.to_json())
        return found
