"""From an image's config and the user's wishes to a config.json (OCI runtime-spec 1.0.2, config-linux.md).

Pure: nothing is looked at and nothing is made. Where the specification leaves a choice it is podman's, so
that a container is the same here as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imgfs.oci.image import ImageConfig
from imgfs.runtime.filesystems import asked_for, kernel_mounts
from imgfs.runtime.ids import Ids
from imgfs.runtime.limits import lowered, resources, rlimits
from imgfs.runtime.place import INIT, Place
from imgfs.runtime.rights import device_files, device_rules
from imgfs.runtime.user import User
from imgfs.runtime.wishes import Bind, Defaults, Network, Wishes, arguments, environment

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UMASK = 0o022


@dataclass(frozen=True, slots=True)
class Container:
    """One container: what it is called, whom it runs as, and what is shown in it beside its image."""

    name: str
    user: User
    files: tuple[Bind, ...] = ()


def runtime_config(image: ImageConfig, wishes: Wishes, container: Container, place: Place) -> dict[str, Any]:
    """The config.json of a container whose image is at `rootfs` beside it. Raises ImgfsError."""
    defaults = Defaults.parse(image.config)
    return {
        "ociVersion": "1.0.2",
        "hostname": wishes.hostname or container.name,
        "root": {"path": "rootfs", "readonly": wishes.read_only},
        "process": _process(defaults, wishes, container, place),
        "mounts": [
            *kernel_mounts(wishes, place),
            *asked_for(wishes, (*container.files, *place.binds)),
        ],
        "annotations": notes(image, defaults, wishes),
        "linux": _linux(wishes, place),
    }


def notes(image: ImageConfig, defaults: Defaults, wishes: Wishes) -> dict[str, str]:
    """The annotations: what the user says, and the fields of a config that have one of their own.

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
        f"{prefix}.stopSignal": wishes.stop_signal or defaults.stop_signal,
    }
    found = {name: value for name, value in known.items() if value}
    return {**found, **wishes.annotations}


def _process(defaults: Defaults, wishes: Wishes, container: Container, place: Place) -> dict[str, Any]:
    user, hostname = container.user, wishes.hostname or container.name
    fixed = (("PATH", _PATH), ("TERM", "xterm"), ("container", "imgfs"))
    variables = environment(defaults, wishes, user.home, hostname, fixed)
    ulimits = rlimits(lowered(wishes.limits.ulimits, place.ceilings))
    return {
        "terminal": wishes.terminal,
        "user": {
            "uid": user.uid,
            "gid": user.gid,
            "umask": _UMASK,
            **({"additionalGids": list(user.groups)} if user.groups else {}),
        },
        "args": [*((INIT, "--") if place.init else ()), *arguments(defaults, wishes)],
        "env": [f"{name}={value}" for name, value in variables.items()],
        "cwd": wishes.workdir_over(defaults),
        "capabilities": wishes.rights.capabilities(place.capabilities, is_root=user.uid == 0),
        "noNewPrivileges": wishes.rights.no_new_privileges,
        **({"rlimits": ulimits} if ulimits else {}),
        **({"consoleSize": _size(place.console)} if place.console else {}),
    }


def _size(console: tuple[int, int]) -> dict[str, int]:
    """The terminal's size to begin with: crun asks for it only when it changes."""
    return {"width": console[0], "height": console[1]}


def _linux(wishes: Wishes, place: Place) -> dict[str, Any]:
    kinds = ["pid", "ipc", "uts", "mount"]
    kinds += ["network"] if wishes.network is Network.NONE else []
    kinds += ["cgroup"] if place.own_cgroup_namespace else []
    kinds += ["user"] if place.maps else []
    found: dict[str, Any] = {"namespaces": [{"type": kind} for kind in kinds], **wishes.rights.masks()}
    if place.maps:
        found["uidMappings"], found["gidMappings"] = (_mappings(ids) for ids in place.maps)
    if place.made_devices:
        found["devices"] = device_files(place.made_devices)
    if place.cgroup:
        rules = device_rules(place.made_devices, privileged=wishes.rights.privileged)
        rules = [] if place.unguarded else rules
        found["cgroupsPath"] = place.cgroup
        found["resources"] = resources(wishes.limits, place.controllers, rules)
    if place.seccomp:
        found["seccomp"] = place.seccomp.filter(frozenset(wishes.rights.bounding(place.capabilities)))
    return found


def _mappings(ids: Sequence[Ids]) -> list[Mapping[str, int]]:
    return [{"containerID": one.inside, "hostID": one.outside, "size": one.size} for one in ids]
