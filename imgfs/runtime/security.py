"""What a container may do beyond using its files: capabilities, devices, groups, what of /proc it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from imgfs.errors import UsageError

ALL, UNCONFINED = "ALL", "unconfined"
CAPABILITIES = (  # podman's: what root in a container needs
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
_BY_NUMBER = (  # linux/capability.h
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE"
)
EVERY_CAPABILITY = tuple(f"CAP_{name}" for name in _BY_NUMBER.split())
_MASKED = (
    "/proc/acpi",
    "/proc/interrupts",  # by their moments keys typed elsewhere are guessed, as by the energy of powercap
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
)
_UNWRITABLE = ("/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class DeviceRequest(NamedTuple):
    """A device of this machine's to be had at `target`; `access` is of the letters r, w and m (mknod)."""

    source: str
    target: str
    access: str = "rwm"


class Device(NamedTuple):
    """A device file a container gets; `kind` is c, b or p (a FIFO), `mode` as stat(2) has it.

    An owner that is None is the container's process.
    """

    source: str
    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int | None
    gid: int | None
    access: str


@dataclass(frozen=True, slots=True)
class Security:
    """What the user grants and takes away; capabilities by name, or all of them (ALL).

    `seccomp` is a profile's path or UNCONFINED, `unmasked` paths or ALL, `groups` names or numbers, `named`
    are devices that files in `cdi_directories` describe, in the usual ones if there are none.
    """

    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    privileged: bool = False
    seccomp: str | None = None
    no_new_privileges: bool = False
    masked: tuple[str, ...] = ()
    unmasked: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    devices: tuple[DeviceRequest, ...] = ()
    named: tuple[str, ...] = ()
    cdi_directories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        both = set(self.added) & set(self.dropped)
        if both:
            raise UsageError(f"{min(both)} cannot be added and dropped at once")

    def bounding(self, held: frozenset[str]) -> list[str]:
        """Return the capabilities that its processes can have, of those that this one may pass on."""
        if self.privileged:
            return sorted(held)
        if ALL in self.dropped:
            found = set(self.added)
        else:
            found = (set(held) if ALL in self.added else {*CAPABILITIES, *self.added}) - set(self.dropped)
        return sorted(found & held)

    def capabilities(self, held: frozenset[str], *, is_root: bool) -> dict[str, list[str]]:
        """Return the sets of capabilities(7). Root has all; others have what was added, or a file's."""
        bounding = self.bounding(held)
        if is_root:
            return {"bounding": bounding, "effective": bounding, "permitted": bounding}
        own = [] if self.privileged else [name for name in bounding if {name, ALL} & set(self.added)]
        found = {"bounding": bounding, "effective": own, "permitted": own}
        return {**found, "inheritable": own, "ambient": own} if own else found

    def missing(self, held: frozenset[str]) -> list[str]:
        """Return the capabilities that were asked for by name and cannot be given."""
        return [name for name in self.added if name != ALL and name not in held]

    def masks(self) -> tuple[list[str], list[str]] | None:
        """Return the paths that are hidden, and those that cannot be written; None with privileges."""
        if self.privileged:
            return None
        shown = set(self.unmasked)
        masked, unwritable = ([] if ALL in shown else list(paths) for paths in (_MASKED, _UNWRITABLE))
        hidden = [*(path for path in masked if path not in shown), *self.masked]
        return hidden, [path for path in unwritable if path not in shown]


def capability(text: str) -> str:
    """Return a capability by its name, in any case, with CAP_ or without; raises UsageError."""
    name = text.upper()
    if name == ALL:
        return ALL
    name = name if name.startswith("CAP_") else f"CAP_{name}"
    if name not in EVERY_CAPABILITY:
        raise UsageError(f"{text!r} is not a capability, like NET_ADMIN or ALL")
    return name


def device_files(devices: Sequence[Device], uid: int, gid: int) -> list[dict[str, str | int]]:
    """Return the devices a runtime is to make for a process with this user and group."""
    return [
        {
            "path": one.path,
            "type": one.kind,
            **({"major": one.major, "minor": one.minor} if one.kind != "p" else {}),
            "fileMode": one.mode,
            "uid": uid if one.uid is None else one.uid,
            "gid": gid if one.gid is None else one.gid,
        }
        for one in devices
    ]


def device_rules(devices: Sequence[Device], *, privileged: bool) -> list[dict[str, object]]:
    """Return which devices a cgroup's processes may open; without rules, those that the runtime brings."""
    if privileged:
        return [{"allow": True, "access": "rwm"}]
    allowed: list[dict[str, object]] = [
        {"allow": True, "type": one.kind, "major": one.major, "minor": one.minor, "access": one.access}
        for one in devices
        if one.kind != "p"
    ]
    return [{"allow": False, "access": "rwm"}, *allowed]
