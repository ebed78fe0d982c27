"""What this machine lets a container have: a runtime, cgroups, capabilities.

What is decided is decided from text, so that a test can be any machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imgfs.errors import MountError
from imgfs.runtime.host_facts import HostFacts
from imgfs.runtime.request import ContainerRequest
from imgfs.runtime.resources import capped_ulimits
from imgfs.runtime.security import EVERY_CAPABILITY

if TYPE_CHECKING:
    from imgfs.runtime.spec import RuntimeConfig

_RUNTIMES = ("crun", "runc")  # the faster one first
_MORE_PLACES = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"  # users' PATHs lack the first


class RuntimeCommand(NamedTuple):
    """An OCI runtime's command."""

    path: str

    @property
    def is_crun(self) -> bool:
        """Whether it takes crun's options."""
        return Path(self.path).name == "crun"

    def binds_as_mounted(self, config: RuntimeConfig) -> bool:
        """Return True if the root that it binds for a config.json keeps the flags that it is mounted with.

        runc (libcontainer/rootfs_linux.go, prepareRoot, setReadonly) sets flags of its own only for a root
        that is read-only; crun always does, and others may.
        """
        return Path(self.path).name == "runc" and not config["root"]["readonly"]


class Cgroups(NamedTuple):
    """Where a cgroup can be made: `parent`, None if nowhere, and what can be limited there.

    `unified` is version 2 alone; `hidden` the directory of a version 2 beside version 1, which crun refuses.
    """

    parent: str | None = None
    controllers: frozenset[str] = frozenset()
    unified: bool = False
    hidden: str | None = None


def find_runtime(wanted: str | None) -> RuntimeCommand:
    """Return the runtime asked for, else the first there is; raises MountError."""
    for name in (wanted,) if wanted else _RUNTIMES:
        path = shutil.which(name) or shutil.which(name, path=_MORE_PLACES)
        if path:
            return RuntimeCommand(path)
    if wanted:
        raise MountError(f"{wanted}: no such runtime")
    raise MountError("there is no OCI runtime (Debian: apt install crun)")


def capabilities() -> frozenset[str]:
    """Return the capabilities this process may pass on."""
    return bounding(Path("/proc/self/status").read_text())


def bounding(status: str) -> frozenset[str]:
    """Return the capabilities of the bounding set (CapBnd) in the text of proc(5)'s status."""
    mask = next((line.split()[1] for line in status.splitlines() if line.startswith("CapBnd:")), "0")
    held = int(mask, 16)
    return frozenset(name for number, name in enumerate(EVERY_CAPABILITY) if held & (1 << number))


def cgroups_of_this_machine() -> Cgroups:
    """Return where this process can make cgroups."""
    return find_cgroups(
        Path("/proc/self/mountinfo").read_text(errors="replace"),
        Path("/proc/self/cgroup").read_text(errors="replace"),
        lambda path: os.access(path, os.W_OK),
        _words,
    )


def find_cgroups(
    mountinfo: str, own: str, is_writable: Callable[[str], bool], words: Callable[[str], list[str] | None]
) -> Cgroups:
    """Return where cgroups can be made, from proc(5)'s mountinfo and cgroup and two looks at the file system.

    `words` gives what a file of a cgroup lists, None if there is no such file. See cgroups(7).
    """
    found = list(_hierarchies(mountinfo))
    first = [place for place, kind, _ in found if kind == "cgroup"]
    second = [place for place, kind, _ in found if kind == "cgroup2"]
    if first:
        named = frozenset(word for _, kind, options in found if kind == "cgroup" for word in options)
        parent = "" if all(map(is_writable, first)) else None
        return Cgroups(parent, named, hidden=second[0] if second else None)
    return _unified(second[0], own, is_writable, words) if second else Cgroups()


def _unified(
    top: str, own: str, is_writable: Callable[[str], bool], words: Callable[[str], list[str] | None]
) -> Cgroups:
    """In version 2 root makes cgroups at the top, others below their own, if that is delegated to them."""
    inside = next((line.partition("::")[2] for line in own.splitlines() if line.startswith("0::")), "/")
    parents = ("", inside.rstrip("/"))
    for parent in dict.fromkeys(parents):
        place = f"{top}{parent}"
        if is_writable(place) and is_writable(f"{place}/cgroup.procs"):
            is_real_top = words(f"{place}/cgroup.type") is None
            listed = words(f"{place}/{'cgroup.controllers' if is_real_top else 'cgroup.subtree_control'}")
            return Cgroups(parent, frozenset(listed or ()), unified=True)
    return Cgroups(unified=True)


def remove_cgroup(path: str) -> None:
    """Remove the cgroup that a runtime has made and left, in each hierarchy; one that has processes stays.

    crun makes it, fails where it cannot join it, and then keeps no state by which it could be told to delete.
    """
    for place, _, _ in _hierarchies(Path("/proc/self/mountinfo").read_text(errors="replace")):
        for directory, _, _ in os.walk(f"{place}{path}", topdown=False):
            with suppress(OSError):
                os.rmdir(directory)


def no_device_cgroup(runtime: RuntimeCommand, cgroups: Cgroups) -> str | None:
    """Return why no cgroup limits the access to devices, None if one does.

    In version 2 that is done by BPF, for which crun raises a limit.
    """
    if cgroups.parent is None:
        return "cgroups cannot be written"
    if not cgroups.unified:
        return None if "devices" in cgroups.controllers else "its cgroup controller is not here"
    if runtime.is_crun and "CAP_SYS_RESOURCE" not in capabilities():
        return "for that, crun needs CAP_SYS_RESOURCE (runc does not)"
    return None


def unmet_requests(request: ContainerRequest, host: HostFacts, cgroups: Cgroups) -> list[str]:
    """Return a line on each thing asked for, or usual, that will not be so."""
    found = unenforced_limits(request.resources.by_controller(), cgroups)
    lines = [] if found is None else [found]
    missing = request.security.missing(host.capabilities)
    if missing:
        lines.append(f"{' and '.join(missing)} cannot be given: imgfs itself has no such capability")
    for wanted, given in zip(
        request.resources.ulimits, capped_ulimits(request.resources.ulimits, host.ceilings), strict=True
    ):
        if wanted != given:
            lines.append(
                f"the limit of {wanted.name} is {given.soft}:{given.hard}: raising it needs CAP_SYS_RESOURCE"
            )
    if host.no_device_cgroup and not request.security.privileged:
        lines.append(f"no access to devices is limited: {host.no_device_cgroup}")
    unbarred = unbarred_devices(request, host)
    return [*lines, unbarred] if unbarred else lines


def unbarred_devices(request: ContainerRequest, host: HostFacts) -> str | None:
    """Return a line if device files of the image are to be barred (`nodev`) and cannot be, None otherwise.

    The kernel opens none in a user namespace, and a privileged container may open all.
    """
    if host.mount_program or host.is_namespaced or request.security.privileged:
        return None
    return "device files of the image are not barred: there is no mount(8) (Debian: apt install mount)"


def unenforced_limits(requested: Mapping[str, object], cgroups: Cgroups) -> str | None:
    """One line on the limits, by their controllers, that will not hold; None if all do."""
    wanted = [name for name, value in requested.items() if value is not None]
    held = cgroups.controllers if cgroups.parent is not None else frozenset[str]()
    missing = [name for name in wanted if name not in held]
    if not missing:
        return None
    reason = "cgroups cannot be written" if cgroups.parent is None else "its cgroup controller is not here"
    return f"no limit of {' and '.join(missing)} is enforced: {reason}"


def _hierarchies(mountinfo: str) -> Iterator[tuple[str, str, list[str]]]:
    """Mount point, type and options of every cgroup file system."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.partition(" ")
        if kind in ("cgroup", "cgroup2"):
            yield before.split()[4], kind, options.split()[-1].split(",")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _words(path: str) -> list[str] | None:
    return _read(path).split() if os.path.exists(path) else None
