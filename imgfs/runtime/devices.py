"""What a container is given of this machine beside its image: a seccomp profile, devices, an init."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from imgfs.errors import UsageError
from imgfs.runtime.host import capabilities
from imgfs.runtime.host_facts import HostFacts
from imgfs.runtime.request import ContainerRequest
from imgfs.runtime.resources import ceilings
from imgfs.runtime.seccomp import LARGEST, PROFILES, Machine, SeccompProfile, built_in, parse_profile
from imgfs.runtime.security import UNCONFINED, Device, DeviceRequest, Security

_INITS = ("catatonit", "tini", "docker-init")
_INIT_PLACES = "/usr/libexec/podman:/usr/lib/podman:/usr/libexec/docker:/usr/bin:/usr/local/bin:/bin:/sbin"
_BROUGHT = ("console", "full", "null", "ptmx", "random", "tty", "urandom", "zero")  # by the runtime
_ELSEWHERE = ("fd", "hugepages", "mqueue", "pts", "shm")  # directories of /dev with something else in them
_KERNEL = re.compile(r"([0-9]+)\.([0-9]+)")


def complete_host_facts(host: HostFacts, request: ContainerRequest) -> HostFacts:
    """Complete the facts with what this machine has for a request; raises UsageError where it lacks it."""
    held = capabilities()
    may_raise = not host.is_namespaced and "CAP_SYS_RESOURCE" in held
    return replace(
        host,
        capabilities=held,
        ceilings={} if may_raise else ceilings(),
        devices=find_devices(request.security, is_root=not host.is_namespaced),
        init=find_init() if request.init else None,
        seccomp=find_profile(request.security),
        console=_console() if request.terminal else None,
        mount_program=None if host.is_namespaced or request.security.privileged else find_mount(),
    )


def _console() -> tuple[int, int] | None:
    try:
        return os.get_terminal_size(0)
    except OSError:
        return None


def this_machine() -> Machine:
    """What seccomp profiles ask of it."""
    match = _KERNEL.match(os.uname().release)
    return Machine(os.uname().machine, (int(match[1]), int(match[2])) if match else (0, 0))


def find_profile(security: Security, places: tuple[str, ...] = PROFILES) -> SeccompProfile | None:
    """Which system calls a container may make, None if all. Raises UsageError for a profile that is none.

    It is the profile asked for, else podman's on this machine, else a short list of imgfs's own.
    """
    if security.seccomp == UNCONFINED or security.privileged or not _has_seccomp():
        return None
    for path in places if security.seccomp is None else (security.seccomp,):
        try:
            with open(path, "rb") as file:
                body = file.read(LARGEST)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        return parse_profile(body, path, this_machine())
    if security.seccomp is not None:
        raise UsageError(f"{security.seccomp}: there is no such seccomp profile (unconfined: none)")
    return built_in(this_machine())


def find_init() -> str:
    """A program that reaps; raises UsageError."""
    for name in _INITS:
        path = shutil.which(name, path=_INIT_PLACES)
        if path:
            return path
    raise UsageError("--init: there is no catatonit or tini on this machine (Debian: apt install catatonit)")


def find_mount() -> str | None:
    """mount(8), None if this machine has none."""
    return shutil.which("mount", path="/usr/bin:/bin:/usr/sbin:/sbin")


def find_devices(security: Security, *, is_root: bool) -> tuple[Device, ...]:
    """Return the devices requested and, with privileges, all that this user can open; raises UsageError."""
    everything = () if not security.privileged else tuple(_all_devices(is_root=is_root))
    named = [_device(one) for one in security.devices]
    return tuple({one.path: one for one in (*everything, *named)}.values())


def _device(wish: DeviceRequest) -> Device:
    try:
        found = os.stat(wish.source)
    except OSError as error:
        raise UsageError(f"--device {wish.source}: {error.strerror}") from error
    kind = "c" if stat.S_ISCHR(found.st_mode) else "b" if stat.S_ISBLK(found.st_mode) else ""
    if not kind:
        raise UsageError(f"--device {wish.source}: this is no device file")
    numbers = os.major(found.st_rdev), os.minor(found.st_rdev)
    owner = found.st_uid, found.st_gid
    return Device(wish.source, wish.target, kind, *numbers, found.st_mode, *owner, wish.access)


def _all_devices(*, is_root: bool) -> Iterator[Device]:
    """Those below /dev, without what a runtime brings itself."""
    for top, names, files in os.walk("/dev"):
        names[:] = [name for name in names if name not in _ELSEWHERE]
        for path in (Path(top, name) for name in files if name not in _BROUGHT):
            is_device = path.is_char_device() or path.is_block_device()
            if is_device and not path.is_symlink() and (is_root or os.access(path, os.R_OK | os.W_OK)):
                yield _device(DeviceRequest(str(path), str(path)))


def _has_seccomp() -> bool:
    """Whether the kernel knows of filters (proc(5), status)."""
    return "\nSeccomp:" in Path("/proc/self/status").read_text()
