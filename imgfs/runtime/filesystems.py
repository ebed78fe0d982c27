"""What is mounted in a container over its image: the kernel's file systems, and what the user asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imgfs.runtime.place import Place
from imgfs.runtime.wishes import Bind, Network, Tmpfs, Wishes

_TTY_GROUP = 5
_SHM = 65_536 * 1024  # bytes
_OUR_TMPFS = ("rw", "nosuid", "nodev", "tmpcopyup")  # begins with what the image has there
_SCRATCH_PLACES = ("/run", "/tmp", "/var/tmp")  # where a read-only container may write, as with podman
_PLAIN = ("nosuid", "noexec", "nodev")
_HOOK = 30  # seconds


def kernel_mounts(wishes: Wishes, place: Place) -> list[dict[str, Any]]:
    """/proc, /dev and /sys, and the container's own cgroup if it has one."""
    tty = [] if place.groups is not None and place.groups <= _TTY_GROUP else [f"gid={_TTY_GROUP}"]
    pts = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *tty)
    shm = (*_PLAIN, "mode=1777", f"size={wishes.limits.shm or _SHM}")
    writable = "rw" if wishes.rights.privileged else "ro"
    mounts = [
        _mount("/proc", "proc", "proc", *_PLAIN),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "noexec", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", *pts),
        _mount("/dev/mqueue", "mqueue", "mqueue", *_PLAIN),
        _mount("/dev/shm", "tmpfs", "shm", *shm),
    ]
    is_ours = not place.is_namespaced or wishes.network is Network.NONE  # a sysfs is for who owns the network
    sys = ("sysfs", "sysfs") if is_ours else ("none", "/sys", "rbind")
    mounts.append(_mount("/sys", *sys, *_PLAIN, writable))
    if place.cgroup and (is_ours or place.own_cgroup_namespace):
        mounts.append(_mount("/sys/fs/cgroup", "cgroup", "cgroup", *_PLAIN, "relatime", writable))
    return mounts


def asked_for(wishes: Wishes, files: Sequence[Bind]) -> list[dict[str, Any]]:
    """Binds and tmpfs, those that others lie on first; what the user asks for goes before what we bring."""
    places = _SCRATCH_PLACES if wishes.read_only and wishes.read_only_tmpfs else ()
    ours: list[Bind | Tmpfs] = [Tmpfs(path, ("mode=1777",) if path != "/run" else ()) for path in places]
    chosen = {one.target: one for one in (*ours, *files, *wishes.tmpfs, *wishes.binds)}
    by_depth = sorted(chosen.values(), key=lambda one: one.target.rstrip("/").count("/"))
    return [_tmpfs(one) if isinstance(one, Tmpfs) else _bind(one) for one in by_depth]


def _tmpfs(one: Tmpfs) -> dict[str, Any]:
    return _mount(one.target, "tmpfs", "tmpfs", *_OUR_TMPFS, *one.options)


def _bind(one: Bind) -> dict[str, Any]:
    writable = "ro" if one.read_only else "rw"
    return _mount(one.target, "bind", one.source, "rbind", "rprivate", *one.options, writable)


def without_devices(config: Mapping[str, Any], rootfs: Path, mount: str) -> dict[str, Any]:
    """A config.json whose container finds the image mounted `nodev`, by a hook; `mount` is mount(8)'s path.

    The image is mounted so. But a runtime binds it again, where crun always and runc for a read-only root
    sets flags of its own. A createContainer hook comes after that (runtime-spec config.md, "POSIX-platform
    Hooks"), and so does what it says of writing: a runtime that did it later would forget `nodev` again.
    With a source, which means nothing here, mount(8) does not look for the mount in mountinfo, where it is
    not always found while others mount.
    """
    options = "remount,bind,nodev" + (",ro" if config["root"]["readonly"] else "")
    hook = {
        "path": mount,
        "args": ["mount", "-n", "-o", options, "none", str(rootfs)],
        "env": [],
        "timeout": _HOOK,
    }
    return {
        **config,
        "root": {**config["root"], "readonly": False},
        "hooks": {"createContainer": [hook]},
    }


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}
