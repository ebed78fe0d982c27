"""What a container is given of this machine beside its image: a seccomp profile, devices, an init."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from imgfs.errors import UsageError
from imgfs.runtime.edits import ContainerEdits, DeviceNode
from imgfs.runtime.host import capabilities
from imgfs.runtime.host_facts import HostFacts
from imgfs.runtime.request import ContainerRequest
from imgfs.runtime.resources import ceilings
from imgfs.runtime.rootfs import NOT_FOUND, Refused
from imgfs.runtime.seccomp import LARGEST, PROFILES, Machine, SeccompProfile, built_in, parse_profile
from imgfs.runtime.security import UNCONFINED, Device, DeviceRequest, Security

_INITS = ("catatonit", "tini", "docker-init")
_INIT_PLACES = "/usr/libexec/podman:/usr/lib/podman:/usr/libexec/docker:/usr/bin:/usr/local/bin:/bin:/sbin"
_BROUGHT = ("console", "full", "null", "ptmx", "random", "tty", "urandom", "zero")  # by the runtime
_ELSEWHERE = ("fd", "hugepages", "mqueue", "pts", "shm")  # directories of /dev with something else in them
_ANY_USER = 0o666  # a runtime's mode for a device that says none
_KERNEL = re.compile(r"([0-9]+)\.([0-9]+)")


def complete_host_facts(host: HostFacts, request: ContainerRequest) -> HostFacts:
    """Complete the facts with what this machine has for a request.

    Raises UsageError, Refused where it lacks it.
    """
    held, edits = capabilities(), find_edits(request.security)
    may_raise = not host.is_namespaced and "CAP_SYS_RESOURCE" in held
    return replace(
        host,
        capabilities=held,
        ceilings={} if may_raise else ceilings(),
        devices=find_devices(request.security, edits.nodes, is_root=not host.is_namespaced),
        edits=edits,
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
    """Return what seccomp profiles ask of it."""
    match = _KERNEL.match(os.uname().release)
    return Machine(os.uname().machine, (int(match[1]), int(match[2])) if match else (0, 0))


def find_profile(security: Security, places: tuple[str, ...] = PROFILES) -> SeccompProfile | None:
    """Return which system calls a container may make, None if all.

    Raises UsageError for a profile that is none.

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
        raise UsageError(f"{security.seccomp}: no such seccomp profile (unconfined: none)")
    return built_in(this_machine())


def find_init() -> str:
    """Return a program that reaps; raises UsageError."""
    for name in _INITS:
        path = shutil.which(name, path=_INIT_PLACES)
        if path:
            return path
    raise UsageError("--init: there is no catatonit or tini on this machine (Debian: apt install catatonit)")


def find_mount() -> str | None:
    """mount(8), None if this machine has none."""
    return shutil.which("mount", path="/usr/bin:/bin:/usr/sbin:/sbin")


def find_edits(security: Security) -> ContainerEdits:
    """Return what is added for the devices requested by name; raises Refused if they cannot be had."""
    if not security.named:
        return ContainerEdits()
    from imgfs.runtime.cdi import DIRECTORIES, CdiRegistry  # here: few containers have such a device

    edits = CdiRegistry.read(security.cdi_directories or DIRECTORIES).edits(security.named)
    needed = [one.source for one in edits.mounts if one.kind == "bind"]
    needed += [one.path for one in edits.hooks if one.when != "startContainer"]  # that one is the image's
    for path in needed:
        if not os.path.exists(path):
            raise Refused(f"setting up CDI devices: {path}: no such file", NOT_FOUND)
    return edits


def find_devices(
    security: Security, nodes: Sequence[DeviceNode] = (), *, is_root: bool
) -> tuple[Device, ...]:
    """Return the devices requested and, with privileges, all that this user can open.

    `nodes` are those of named devices. Raises UsageError, Refused.
    """
    everything = () if not security.privileged else tuple(_all_devices(is_root=is_root))
    requested = [_device(one) for one in security.devices]
    requested += [_named_device(one, is_root=is_root) for one in nodes]
    return tuple({one.path: one for one in (*everything, *requested)}.values())


def _named_device(node: DeviceNode, *, is_root: bool) -> Device:
    """Return a named device's file; what its description lacks, the machine's file says, as with podman."""
    kind, numbers = node.kind, (node.major, node.minor)
    if not is_root or not kind or (kind != "p" and not node.major):
        where = f"setting up CDI devices: {node.host_path}"
        try:
            found = os.stat(node.host_path)
        except OSError as error:
            raise Refused(f"{where}: {error.strerror}", NOT_FOUND) from error
        there = _kind(found.st_mode)
        if not there or kind not in ("", there):
            raise Refused(f"{where}: not a device file" + (f" of type {kind}" if kind else ""))
        numbers = numbers if node.major else (os.major(found.st_rdev), os.minor(found.st_rdev))
        kind = there
    mode = _ANY_USER if node.mode is None else node.mode
    return Device(node.host_path, node.path, kind, *numbers, mode, node.uid, node.gid, node.access)


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISCHR, "c"), (stat.S_ISBLK, "b"), (stat.S_ISFIFO, "p"))
    return next((kind for is_one, kind in kinds if is_one(mode)), "")


def _device(wish: DeviceRequest) -> Device:
    try:
        found = os.stat(wish.source)
    except OSError as error:
        raise UsageError(f"--device {wish.source}: {error.strerror}") from error
    kind = _kind(found.st_mode)
    if kind not in ("c", "b"):
        raise UsageError(f"--device {wish.source}: not a device file")
    numbers = os.major(found.st_rdev), os.minor(found.st_rdev)
    owner = found.st_uid, found.st_gid
    return Device(wish.source, wish.target, kind, *numbers, found.st_mode, *owner, wish.access)


def _all_devices(*, is_root: bool) -> Iterator[Device]:
    """Yield those below /dev, without what a runtime brings itself."""
    for top, names, files in os.walk("/dev"):
        names[:] = [name for name in names if name not in _ELSEWHERE]
        for path in (Path(top, name) for name in files if name not in _BROUGHT):
            is_device = path.is_char_device() or path.is_block_device()
            if is_device and not path.is_symlink() and (is_root or os.access(path, os.R_OK | os.W_OK)):
                yield _device(DeviceRequest(str(path), str(path)))


def _has_seccomp() -> bool:
    """Return whether the kernel knows of filters (proc(5), status)."""
    return "\nSeccomp:" in Path("/proc/self/status").read_text()
