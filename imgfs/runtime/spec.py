"""From an image's config and the user's request to a config.json (OCI runtime-spec 1.0.2, config-linux.md).

Pure: no file is read and none is made. Where the specification leaves a choice it is podman's, so
that a container is the same here as there.

What is mounted in a container over its image: the kernel's file systems, and what the user asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from imgfs.oci.image import ImageConfig
from imgfs.runtime.edits import EditMount
from imgfs.runtime.host_facts import INIT, HostFacts, IdRange
from imgfs.runtime.request import (
    Bind,
    ContainerRequest,
    ImageDefaults,
    Network,
    Tmpfs,
    arguments,
    environment,
)
from imgfs.runtime.resources import capped_ulimits, cgroup_resources, rlimits
from imgfs.runtime.seccomp import SeccompFilter
from imgfs.runtime.security import device_files, device_rules
from imgfs.runtime.user import User

_TTY_GROUP = 5
_SHM = 65_536 * 1024  # bytes
_OUR_TMPFS = ("rw", "nosuid", "nodev", "tmpcopyup")  # begins with what the image has there
_SCRATCH_PLACES = ("/run", "/tmp", "/var/tmp")  # where a read-only container may write, as with podman
_PLAIN = ("nosuid", "noexec", "nodev")
_HOOK = 30  # seconds
_SHELL, _AFTER_STATE = "/bin/sh", 'while read -r _; do :; done; exec "$@"'


class RuntimeMount(TypedDict):
    """A mount of a config.json."""

    destination: str
    type: str
    source: str
    options: list[str]


class RuntimeRoot(TypedDict):
    """The root file system of a config.json."""

    path: str
    readonly: bool


class RuntimeProcess(TypedDict):
    """The container's process in a config.json."""

    terminal: bool
    user: dict[str, int | list[int]]
    args: list[str]
    env: list[str]
    cwd: str
    capabilities: dict[str, list[str]]
    noNewPrivileges: bool
    rlimits: NotRequired[list[dict[str, str | int]]]
    consoleSize: NotRequired[dict[str, int]]


class RuntimeLinux(TypedDict):
    """What is Linux's own of a config.json."""

    namespaces: list[dict[str, str]]
    maskedPaths: NotRequired[list[str]]
    readonlyPaths: NotRequired[list[str]]
    uidMappings: NotRequired[list[dict[str, int]]]
    gidMappings: NotRequired[list[dict[str, int]]]
    devices: NotRequired[list[dict[str, str | int]]]
    cgroupsPath: NotRequired[str]
    resources: NotRequired[dict[str, object]]
    intelRdt: NotRequired[dict[str, object]]
    seccomp: NotRequired[SeccompFilter]


class RuntimeConfig(TypedDict):
    """A config.json."""

    ociVersion: str
    hostname: str
    root: RuntimeRoot
    process: RuntimeProcess
    mounts: list[RuntimeMount]
    annotations: dict[str, str]
    linux: RuntimeLinux
    hooks: NotRequired[dict[str, list[dict[str, object]]]]


def kernel_mounts(request: ContainerRequest, host: HostFacts) -> list[RuntimeMount]:
    """/proc, /dev and /sys, and the container's own cgroup if it has one."""
    tty = [] if host.groups is not None and host.groups <= _TTY_GROUP else [f"gid={_TTY_GROUP}"]
    pts = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *tty)
    shm = (*_PLAIN, "mode=1777", f"size={request.resources.shm or _SHM}")
    writable = "rw" if request.security.privileged else "ro"
    mounts = [
        _mount("/proc", "proc", "proc", *_PLAIN),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "noexec", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", *pts),
        _mount("/dev/mqueue", "mqueue", "mqueue", *_PLAIN),
        _mount("/dev/shm", "tmpfs", "shm", *shm),
    ]
    is_ours = (
        not host.is_namespaced or request.network is not Network.HOST
    )  # only the owner of the network namespace may mount a sysfs
    sys = ("sysfs", "sysfs") if is_ours else ("none", "/sys", "rbind")
    mounts.append(_mount("/sys", *sys, *_PLAIN, writable))
    if host.cgroup and (is_ours or host.own_cgroup_namespace):
        mounts.append(_mount("/sys/fs/cgroup", "cgroup", "cgroup", *_PLAIN, "relatime", writable))
    return mounts


def requested_mounts(
    request: ContainerRequest, files: Sequence[Bind], edits: Sequence[EditMount] = ()
) -> list[RuntimeMount]:
    """Binds and tmpfs, those that others lie on first.

    What the user asks for goes before what we bring, and what a device needs before both.
    """
    places = _SCRATCH_PLACES if request.read_only and request.read_only_tmpfs else ()
    ours: list[Bind | Tmpfs | EditMount] = [
        Tmpfs(path, ("mode=1777",) if path != "/run" else ()) for path in places
    ]
    chosen = {one.target: one for one in (*ours, *files, *request.tmpfs, *request.binds, *edits)}
    by_depth = sorted(chosen.values(), key=lambda one: one.target.rstrip("/").count("/"))
    return [_runtime_mount(one) for one in by_depth]


def _runtime_mount(one: Bind | Tmpfs | EditMount) -> RuntimeMount:
    if isinstance(one, Bind):
        return _bind(one)
    if isinstance(one, EditMount):
        return _mount(one.target, one.kind, one.source, *one.options)
    return _mount(one.target, "tmpfs", "tmpfs", *_OUR_TMPFS, *one.options)


def _bind(one: Bind) -> RuntimeMount:
    writable = "ro" if one.read_only else "rw"
    return _mount(one.target, "bind", one.source, "rbind", "rprivate", *one.options, writable)


def with_nodev_root(config: RuntimeConfig, rootfs: Path, mount: str) -> RuntimeConfig:
    """Return a config.json whose container finds the image mounted `nodev`, by a hook.

    `mount` is mount(8)'s path.

    The image is mounted so. But a runtime binds it again, where crun always and runc for a read-only root
    sets flags of its own. A createContainer hook comes after that (runtime-spec config.md, "POSIX-platform
    Hooks"), and so does what it says of writing: a runtime that did it later would forget `nodev` again.
    The shell reads the container's state, which a runtime writes to a hook's stdin: crun starts no
    container whose hook has ended before that (EPIPE), as mount(8) alone often has on a busy machine.
    With a source, which means nothing here, mount(8) does not look for the mount in mountinfo.
    """
    options = "remount,bind,nodev" + (",ro" if config["root"]["readonly"] else "")
    hook: dict[str, object] = {
        "path": _SHELL,
        "args": ["sh", "-c", _AFTER_STATE, "sh", mount, "-n", "-o", options, "none", str(rootfs)],
        "env": [],
        "timeout": _HOOK,
    }
    hooks = config.get("hooks", {})  # of devices: they come first, for they may have to write
    return {
        **config,
        "root": {**config["root"], "readonly": False},
        "hooks": {**hooks, "createContainer": [*hooks.get("createContainer", ()), hook]},
    }


def _mount(destination: str, kind: str, source: str, *options: str) -> RuntimeMount:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UMASK = 0o022


@dataclass(frozen=True, slots=True)
class Container:
    """One container: its name, the user it runs as, and the files shown in it beside its image."""

    name: str
    user: User
    files: tuple[Bind, ...] = ()


def runtime_config(
    image: ImageConfig, request: ContainerRequest, container: Container, host: HostFacts
) -> RuntimeConfig:
    """Return the config.json of a container whose image is at `rootfs` beside it. Raises ImgfsError."""
    defaults = ImageDefaults.parse(image.config)
    found: RuntimeConfig = {
        "ociVersion": "1.0.2",
        "hostname": request.hostname or container.name,
        "root": {"path": "rootfs", "readonly": request.read_only},
        "process": _process(defaults, request, container, host),
        "mounts": [
            *kernel_mounts(request, host),
            *requested_mounts(request, (*container.files, *host.binds), host.edits.mounts),
        ],
        "annotations": annotations_of(image, defaults, request),
        "linux": _linux(request, container.user, host),
    }
    if host.edits.hooks:
        found["hooks"] = host.edits.hooks_by_time()
    return found


def annotations_of(image: ImageConfig, defaults: ImageDefaults, request: ContainerRequest) -> dict[str, str]:
    """Return the annotations: what the user says, and the fields of a config that have one of their own.

    No label of an image becomes one, although image-spec conversion.md ("Annotation Fields") allows it:
    runtimes obey annotations. crun loads a library, takes another seccomp filter or another handler because
    of one (crun(1), `run.oci.*`, `module.wasm.*`), runc configures systemd and CRIU by them
    (`org.systemd.property.*`, `org.criu.config`). So the keys here are fixed, but for the command line's.
    """
    prefix = "org.opencontainers.image"
    known = {
        f"{prefix}.os": image.platform.os,
        f"{prefix}.architecture": image.platform.architecture,
        f"{prefix}.variant": image.platform.variant,
        f"{prefix}.created": image.created,
        f"{prefix}.stopSignal": request.stop_signal or defaults.stop_signal,
    }
    found = {name: value for name, value in known.items() if value}
    return {**found, **request.annotations}


def _process(
    defaults: ImageDefaults, request: ContainerRequest, container: Container, host: HostFacts
) -> RuntimeProcess:
    user, hostname = container.user, request.hostname or container.name
    fixed = (("PATH", _PATH), ("TERM", "xterm"), ("container", "imgfs"))
    variables = {**environment(defaults, request, user.home, hostname, fixed), **host.edits.env}
    ulimits = rlimits(capped_ulimits(request.resources.ulimits, host.ceilings))
    found: RuntimeProcess = {
        "terminal": request.terminal,
        "user": {
            "uid": user.uid,
            "gid": user.gid,
            "umask": _UMASK,
            **({"additionalGids": list(user.groups)} if user.groups else {}),
        },
        "args": [*((INIT, "--") if host.init else ()), *arguments(defaults, request)],
        "env": [f"{name}={value}" for name, value in variables.items()],
        "cwd": request.workdir_over(defaults),
        "capabilities": request.security.capabilities(host.capabilities, is_root=user.uid == 0),
        "noNewPrivileges": request.security.no_new_privileges,
    }
    if ulimits:
        found["rlimits"] = ulimits
    if host.console:  # to begin with: crun asks for the terminal's size only when it changes
        found["consoleSize"] = {"width": host.console[0], "height": host.console[1]}
    return found


def _linux(request: ContainerRequest, user: User, host: HostFacts) -> RuntimeLinux:
    kinds = ["pid", "ipc", "uts", "mount"]
    kinds += ["cgroup"] if host.own_cgroup_namespace else []
    kinds += ["user"] if host.maps else []
    found: RuntimeLinux = {"namespaces": [{"type": kind} for kind in kinds]}
    if masks := request.security.masks():
        found["maskedPaths"], found["readonlyPaths"] = masks
    if request.network is not Network.HOST:
        joined = {"path": host.network} if host.network else {}
        found["namespaces"].append({"type": "network", **joined})
    if host.maps:
        found["uidMappings"], found["gidMappings"] = (_mappings(ids) for ids in host.maps)
    if host.made_devices:
        found["devices"] = device_files(host.made_devices, user.uid, user.gid)
    if host.cgroup:
        rules = device_rules(host.made_devices, privileged=request.security.privileged)
        rules = [] if host.no_device_cgroup else rules
        found["cgroupsPath"] = host.cgroup
        found["resources"] = cgroup_resources(request.resources, host.controllers, rules)
    if host.edits.rdt:
        found["intelRdt"] = dict(host.edits.rdt)
    if host.seccomp:
        found["seccomp"] = host.seccomp.filter(frozenset(request.security.bounding(host.capabilities)))
    return found


def _mappings(ids: Sequence[IdRange]) -> list[dict[str, int]]:
    return [{"containerID": one.inside, "hostID": one.outside, "size": one.size} for one in ids]
