"""From an image's config and the user's wishes to a config.json (OCI runtime-spec 1.0.2, config-linux.md).

Pure: nothing is looked at and nothing is made. Where the specification leaves a choice it is podman's, so
that a container is the same here as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imgfs.oci.image import ImageConfig
from imgfs.runtime.ids import Ids, Maps
from imgfs.runtime.user import User
from imgfs.runtime.wishes import Bind, Defaults, Network, Tmpfs, Wishes, arguments, environment

CAPABILITIES = (  # podman's: what a root that is none of the machine's needs
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
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UMASK = 0o022
_MOST_PROCESSES = 2048
_PERIOD = 100_000  # microseconds that a share of the processors counts in
_TTY_GROUP = 5
_MASKED = (
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/firmware",
    "/sys/fs/selinux",
)
_UNWRITABLE = ("/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_OUR_TMPFS = ("rw", "nosuid", "nodev", "tmpcopyup")  # begins with what the image has there
_SCRATCH_PLACES = ("/run", "/tmp", "/var/tmp")  # where a read-only container may write, as with podman


@dataclass(frozen=True, slots=True)
class Place:
    """What the runtime will find where it is started.

    `cgroup` is the path of a new cgroup, None if none can be made, `controllers` what it can limit; in a
    `user_namespace` that is there already `lone` says that it has a single id. `maps` are the ids of a user
    namespace to be made.
    """

    cgroup: str | None = None
    controllers: frozenset[str] = frozenset()
    own_cgroup_namespace: bool = False
    user_namespace: bool = False
    lone: bool = False
    capabilities: frozenset[str] = frozenset(CAPABILITIES)
    maps: Maps | None = None


@dataclass(frozen=True, slots=True)
class Container:
    """One container: what it is called, whom it runs as, and what is shown in it beside its image."""

    name: str
    user: User
    files: tuple[Bind, ...] = ()


def runtime_config(image: ImageConfig, wishes: Wishes, container: Container, place: Place) -> dict[str, Any]:
    """The config.json of a container whose image is at `rootfs` beside it. Raises ImgfsError."""
    defaults = Defaults.parse(image.config)
    namespaced = place.user_namespace or place.maps is not None
    return {
        "ociVersion": "1.0.2",
        "hostname": wishes.hostname or container.name,
        "root": {"path": "rootfs", "readonly": wishes.read_only},
        "process": _process(defaults, wishes, container, place),
        "mounts": [
            *_kernel_mounts(wishes.network, place, namespaced=namespaced),
            *_asked_for(wishes, container.files),
        ],
        "annotations": notes(image, defaults),
        "linux": _linux(wishes, place),
    }


def notes(image: ImageConfig, defaults: Defaults) -> dict[str, str]:
    """Labels, and what else of a config is kept as annotations (image-spec conversion.md)."""
    prefix = "org.opencontainers.image"
    known = {
        f"{prefix}.os": image.platform.os,
        f"{prefix}.architecture": image.platform.architecture,
        f"{prefix}.variant": image.platform.variant,
        f"{prefix}.created": image.created,
        f"{prefix}.stopSignal": defaults.stop_signal,
    }
    return {name: value for name, value in known.items() if value} | dict(defaults.labels)


def _process(defaults: Defaults, wishes: Wishes, container: Container, place: Place) -> dict[str, Any]:
    user, hostname = container.user, wishes.hostname or container.name
    fixed = (("PATH", _PATH), ("TERM", "xterm"), ("container", "imgfs"))
    variables = environment(defaults, wishes, user.home, hostname, fixed)
    return {
        "terminal": wishes.terminal,
        "user": {
            "uid": user.uid,
            "gid": user.gid,
            "umask": _UMASK,
            **({"additionalGids": list(user.groups)} if user.groups else {}),
        },
        "args": arguments(defaults, wishes),
        "env": [f"{name}={value}" for name, value in variables.items()],
        "cwd": wishes.workdir_over(defaults),
        "capabilities": _capabilities(place.capabilities, is_root=user.uid == 0),
        "noNewPrivileges": False,
    }


def _capabilities(allowed: frozenset[str], *, is_root: bool) -> dict[str, list[str]]:
    """Root has them; others may have them by way of a file's (capabilities(7))."""
    bounding = [name for name in CAPABILITIES if name in allowed]
    own = bounding if is_root else []
    return {"bounding": bounding, "effective": own, "permitted": own}


def _kernel_mounts(network: Network, place: Place, *, namespaced: bool) -> list[dict[str, Any]]:
    lone = place.lone or (place.maps is not None and sum(ids.size for ids in place.maps[1]) <= _TTY_GROUP)
    tty = [] if lone else [f"gid={_TTY_GROUP}"]
    mounts = [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "noexec", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            *tty,
        ),
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
    ]
    if namespaced and network is Network.HOST:  # the kernel gives a sysfs only to who owns the network
        return [*mounts, _mount("/sys", "none", "/sys", "rbind", "nosuid", "noexec", "nodev", "ro")]
    mounts.append(_mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"))
    if place.cgroup:
        cgroup = ("nosuid", "noexec", "nodev", "relatime", "ro")
        mounts.append(_mount("/sys/fs/cgroup", "cgroup", "cgroup", *cgroup))
    return mounts


def _asked_for(wishes: Wishes, files: Sequence[Bind]) -> list[dict[str, Any]]:
    """Binds and tmpfs, those that others lie on first; what the user asks for goes before what we bring."""
    places = _SCRATCH_PLACES if wishes.read_only else ()
    ours: list[Bind | Tmpfs] = [Tmpfs(path, ("mode=1777",) if path != "/run" else ()) for path in places]
    chosen = {one.target: one for one in (*ours, *files, *wishes.tmpfs, *wishes.binds)}
    by_depth = sorted(chosen.values(), key=lambda one: one.target.rstrip("/").count("/"))
    return [_tmpfs(one) if isinstance(one, Tmpfs) else _bind(one) for one in by_depth]


def _tmpfs(one: Tmpfs) -> dict[str, Any]:
    return _mount(one.target, "tmpfs", "tmpfs", *_OUR_TMPFS, *one.options)


def _bind(one: Bind) -> dict[str, Any]:
    return _mount(one.target, "bind", one.source, "rbind", "rprivate", "ro" if one.read_only else "rw")


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _linux(wishes: Wishes, place: Place) -> dict[str, Any]:
    kinds = ["pid", "ipc", "uts", "mount"]
    kinds += ["network"] if wishes.network is Network.NONE else []
    kinds += ["cgroup"] if place.own_cgroup_namespace else []
    kinds += ["user"] if place.maps else []
    found: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in kinds],
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_UNWRITABLE),
    }
    if place.maps:
        found["uidMappings"], found["gidMappings"] = (_mappings(ids) for ids in place.maps)
    if place.cgroup:
        found["cgroupsPath"] = place.cgroup
        found["resources"] = _resources(wishes, place.controllers)
    return found


def _mappings(ids: Sequence[Ids]) -> list[Mapping[str, int]]:
    return [{"containerID": one.inside, "hostID": one.outside, "size": one.size} for one in ids]


def _resources(wishes: Wishes, controllers: frozenset[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if "pids" in controllers:
        found["pids"] = {"limit": _MOST_PROCESSES}
    if wishes.memory is not None and "memory" in controllers:
        found["memory"] = {"limit": wishes.memory}
    if wishes.cpus is not None and "cpu" in controllers:
        found["cpu"] = {"quota": max(1000, round(wishes.cpus * _PERIOD)), "period": _PERIOD}
    return found
