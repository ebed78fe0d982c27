"""Facts about this machine that a container's config.json depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from imgfs.runtime.ids import IdMaps
from imgfs.runtime.request import Bind
from imgfs.runtime.seccomp import SeccompProfile
from imgfs.runtime.security import CAPABILITIES, Device

INIT = "/run/imgfs-init"  # where a container finds the machine's init


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The machine as a container of it sees it.

    `cgroup` is the path of a new cgroup, None if none can be made, `controllers` what it can limit,
    `no_device_cgroup` why it does not limit devices, None if it or a user namespace does.
    In a `user_namespace` that is there already `single_id` says that it has one id only; `maps` are the ids
    of a user namespace to be made. `ceilings` are the limits by name that cannot be raised, `init` is the
    machine's program that reaps, `seccomp` None where system calls are not filtered, `console` are the
    columns and lines of the terminal it is started on, `mount_program` is mount(8), None where the image's
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
    no_device_cgroup: str | None = None
    mount_program: str | None = None
    init: str | None = None
    seccomp: SeccompProfile | None = None
    console: tuple[int, int] | None = None

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
        return (*init, *(Bind(one.source, one.path, options=("nosuid",)) for one in devices))
