"""Facts about this machine that a container's config.json depends on, and the ids of a user namespace.

An ordinary user's container has the users and groups that subuid(5) and subgid(5) give its user.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from imgfs.runtime.edits import ContainerEdits
from imgfs.runtime.request import Bind
from imgfs.runtime.seccomp import SeccompProfile
from imgfs.runtime.security import CAPABILITIES, Device

_FIRST_IDS = 65_536  # as many ids as an image is expected to use
INIT = "/run/imgfs-init"  # where a container finds the machine's init


class IdRange(NamedTuple):
    """A range of ids of a user namespace: `size` of them from `inside` on, which are others outside."""

    inside: int
    outside: int
    size: int


IdMaps: TypeAlias = "tuple[tuple[IdRange, ...], tuple[IdRange, ...]]"  # of users, and of groups


def has_single_id(maps: IdMaps) -> bool:
    """Return True if a user namespace has one id only, which needs no newuidmap(1)."""
    return all(len(ids) == 1 and ids[0].size == 1 for ids in maps)


def has_id(ids: Sequence[IdRange], number: int) -> bool:
    """Return whether a user or group of the container is among them."""
    return any(one.inside <= number < one.inside + one.size for one in ids)


def id_maps() -> IdMaps:
    """Return the ids of this user's namespace: their own as root, then those of subuid(5) and subgid(5).

    Without ranges, or without newuidmap(1) to use them, he is alone in it.
    """
    uid, gid = os.geteuid(), os.getegid()
    alone = ((IdRange(0, uid, 1),), (IdRange(0, gid, 1),))
    if not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        return alone
    uids = id_ranges(_read("/etc/subuid"), _names(uid))
    gids = id_ranges(_read("/etc/subgid"), _names(uid))
    return ((*alone[0], *uids), (*alone[1], *gids)) if uids and gids else alone


def id_ranges(text: str, names: Sequence[str]) -> tuple[IdRange, ...]:
    """Return the ranges of a subuid(5) that a user of these names has, laid end to end from 1 on inside."""
    found: list[IdRange] = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in names and all(map(str.isdecimal, fields[1:])):
            inside = found[-1].inside + found[-1].size if found else 1
            count = min(int(fields[2]), _FIRST_IDS - inside + 1)
            if count > 0:
                found.append(IdRange(inside, int(fields[1]), count))
    return tuple(found)


def _names(uid: int) -> tuple[str, ...]:
    try:
        return (pwd.getpwuid(uid).pw_name, str(uid))
    except KeyError:
        return (str(uid),)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The machine as a container of it sees it.

    `cgroup` is the path of a new cgroup, None if none can be made, `controllers` what it can limit,
    `no_device_cgroup` why it does not limit devices, None if it or a user namespace does.
    In a `user_namespace` that is there already `single_id` says that it has one id only; `maps` are the ids
    of a user namespace to be made. `edits` are what devices with names add, except for device files, which
    are among `devices`. `ceilings` are the limits by name that cannot be raised, `init` is the
    machine's program that reaps, `seccomp` None where system calls are not filtered, `console` are the
    columns and lines of the terminal it is started on, `network` is the file
    of a network namespace to join, `emulators` are programs that a container has to have where they are
    here, `mount_program` is mount(8), None where the image's
    devices cannot be opened anyway, or may be.
    """

    cgroup: str | None = None
    controllers: frozenset[str] = frozenset()
    own_cgroup_namespace: bool = False
    user_namespace: bool = False
    single_id: bool = False
    capabilities: frozenset[str] = frozenset(CAPABILITIES)
    maps: IdMaps | None = None
    ceilings: Mapping[str, int] = field(default_factory=dict, hash=False)
    devices: tuple[Device, ...] = ()
    edits: ContainerEdits = field(default_factory=ContainerEdits)
    no_device_cgroup: str | None = None
    mount_program: str | None = None
    init: str | None = None
    seccomp: SeccompProfile | None = None
    console: tuple[int, int] | None = None
    network: str | None = None
    emulators: tuple[str, ...] = ()

    @property
    def is_namespaced(self) -> bool:
        """Whether the container is in a user namespace."""
        return self.user_namespace or self.maps is not None

    @property
    def groups(self) -> int | None:
        """How many groups a container can have, None if all there are."""
        if self.single_id:
            return 1
        return None if self.maps is None else sum(ids.size for ids in self.maps[1])

    @property
    def made_devices(self) -> tuple[Device, ...]:
        """The devices that the runtime makes; in a user namespace mknod(2) is refused."""
        return () if self.is_namespaced else self.devices

    @property
    def binds(self) -> tuple[Bind, ...]:
        """What else of the machine's is shown."""
        devices = self.devices if self.is_namespaced else ()
        init = (Bind(self.init, INIT, read_only=True),) if self.init else ()
        emulators = (Bind(path, path, read_only=True) for path in self.emulators)
        return (*init, *emulators, *(Bind(one.source, one.path, options=("nosuid",)) for one in devices))
