"""Where things are mounted in a container: found in its image, and made there, before a runtime is started.

Runtimes differ in what they do with a target that is missing or lies below a dangling symbolic link, that is
a file, or is in /proc: one mounts over /proc, another refuses, with words of its own. So nothing of that is
left to them: a target is settled here, by podman's answers, or the container is refused.

What lies below something else that is mounted is the runtime's to find: here it cannot be seen yet.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.owned.opening import kind
from imgfs.runtime.rootfs import NOT_EXECUTABLE, NOT_FOUND, Refused, Rootfs

if TYPE_CHECKING:
    from imgfs.runtime.spec import RuntimeMount

_KERNELS = ("/proc", "/dev", "/sys")
# Files of /proc that runc lets a file be shown at, for LXCFS (rootfs_linux.go, checkProcMount)
_SHOWN_IN_PROC = re.compile(
    "/proc/(cpuinfo|diskstats|meminfo|stat|swaps|uptime|loadavg|slabinfo|net/dev|"
    "sys/kernel/ns_last_pid|sys/crypto/fips_enabled)"
)
_LONGEST_LINE = 65_535  # bytes of a passwd or a group, as runc and podman read them (Go's bufio.Scanner)
# links to descriptors of the process that looks, as each container has them (config-linux.md, "Dev symlinks")
_LINKS_TO_PROC = ("fd", "stdin", "stdout", "stderr")
_DEVICES = ("console", "full", "null", "ptmx", "random", "tty", "urandom", "zero")


def resolve_mounts(rootfs: Rootfs, mounts: Sequence[RuntimeMount]) -> list[RuntimeMount]:
    """Return the mounts of a config.json with targets that are there and fit, in their order.

    Raises Refused.
    """
    _check_kernels(rootfs)
    covered = dict.fromkeys(_KERNELS, "")
    settled: list[RuntimeMount] = []
    for one in mounts:
        if not _is_kernels(one):
            place = _settle(rootfs, one, covered)
            covered[place] = one["source"] if one["type"] == "bind" else ""
            one = {**one, "destination": place}
        settled.append(one)
    return settled


def check_volume(rootfs: Rootfs, path: str) -> None:
    """Raise Refused for an image's volume that cannot be one."""
    place = _resolve(rootfs, path, _KERNELS, "the volume")
    if place == "/dev":
        raise Refused(f"the volume {path} of the image: it would hide the devices in /dev", NOT_FOUND)
    if _is_within(place, "/proc"):
        raise Refused(f"the volume {path} of the image: nothing is mounted in /proc")
    if place == "/":
        raise Refused(f"the volume {path} of the image: the whole image cannot be a volume")


def make_workdir(rootfs: Rootfs, path: str, owner: tuple[int, int] | None) -> None:
    """Have the working directory there, made for `owner` if it is missing; raises Refused.

    It is never a directory of a process's: there a runtime may still have one of the machine's open, out of
    which paths lead (CVE-2024-21626).
    """
    what = "the working directory"
    place = _resolve(rootfs, path, (), what)
    first, _, rest = place.lstrip("/").partition("/")
    if f"/{first}" in _KERNELS:
        _check_kernels_workdir(path, first, rest)
        return
    try:
        rootfs.make_directory(place, owner)
    except OSError as error:
        raise Refused(f"{what} {path} of the image: {_reason(error)}") from error


def read_accounts(rootfs: Rootfs, path: str) -> bytes:
    """Return what a passwd or a group of the image says; raises Refused.

    runc reads them too, in the container, as far as they go: they may not lead to one of the kernel's files.
    """
    try:
        place = rootfs.resolve(path)
        if any(_is_within(place, one) for one in _KERNELS):
            raise Refused(f"{path} of the image leads to {place}: it has to be a file", NOT_FOUND)
        body = rootfs.read(place)
    except OSError as error:
        raise Refused(f"{path} of the image: {error.strerror}") from error
    if len(max(body.split(b"\n"), key=len)) > _LONGEST_LINE:
        raise Refused(f"{path} of the image: it has a line of more than {_LONGEST_LINE} bytes")
    return body


def _check_kernels_workdir(path: str, first: str, rest: str) -> None:
    where = f"the working directory {path} of the image"
    name = rest.partition("/")[0]
    if first == "proc" and (name in ("self", "thread-self") or name.isdecimal()):
        raise Refused(f"{where}: it is a process's, in /proc")
    if first == "dev" and name in _LINKS_TO_PROC:
        raise Refused(f"{where}: it is a process's, in /proc/self/fd")
    if first == "dev" and rest in _DEVICES:
        raise Refused(f"{where}: not a directory")
    if first in ("proc", "sys") and rest and not os.path.isdir(f"/{first}/{rest}"):
        raise Refused(
            f"{where}: none can be made in /{first}", NOT_FOUND if first == "proc" else NOT_EXECUTABLE
        )


def _check_kernels(rootfs: Rootfs) -> None:
    """Raise Refused where /proc or /sys of the image leads elsewhere: what is hidden there would not be."""
    for path in ("/proc", "/sys"):
        try:
            mode = os.lstat(rootfs.top / path[1:]).st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(mode):
            raise Refused(f"{path} of the image is {kind(mode)}: it has to be a directory")


def _settle(rootfs: Rootfs, one: RuntimeMount, covered: Mapping[str, str]) -> str:
    """Return where a mount's target is.

    `covered` are the places of those before, with the sources of binds.
    """
    target = one["destination"]
    is_file = one["type"] == "bind" and not os.path.isdir(one["source"])
    place = _resolve(rootfs, target, tuple(covered), "the mount at")
    if place == "/":
        raise Refused(f"the mount at {target}: nothing is mounted over the whole image")
    if _is_within(place, "/proc") and not (is_file and _SHOWN_IN_PROC.fullmatch(place)):
        raise Refused(f"the mount at {target}: nothing is mounted in /proc")
    above = max((path for path in covered if _is_within(place, path)), key=len, default=None)
    if above is None:
        _make(rootfs, place, target, is_file=is_file)
    elif covered[above]:
        _check_below(Path(covered[above]), place[len(above) + 1 :], target)
    return place


def _check_below(directory: Path, rest: str, target: str) -> None:
    """Raise Refused for a target that is below a file in a directory that is mounted above it."""
    for part in rest.split("/")[:-1]:
        directory /= part
        if not os.path.lexists(directory) or directory.is_symlink():
            return
        if not directory.is_dir():
            raise Refused(f"the mount at {target}: not a directory")


def _make(rootfs: Rootfs, place: str, target: str, *, is_file: bool) -> None:
    """Have something to mount on; what is there already has to be of the same kind."""
    try:
        mode = rootfs.mode(place)
        if mode is None and is_file:
            rootfs.make_file(place)
        elif mode is None:
            rootfs.make_directory(place, None)
        elif stat.S_ISDIR(mode) == is_file:
            wanted = "a file" if is_file else "a directory"
            raise Refused(f"the mount at {target}: there the image has {kind(mode)}, not {wanted}")
    except OSError as error:
        raise Refused(f"the mount at {target}: {_reason(error)}") from error


def _resolve(rootfs: Rootfs, path: str, covered: Sequence[str], what: str) -> str:
    try:
        return rootfs.resolve(path, covered)
    except OSError as error:
        raise Refused(f"{what} {path} of the image: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    is_no_directory = error.errno in (errno.EEXIST, errno.ENOTDIR)
    return "not a directory" if is_no_directory else error.strerror or str(error)


def _is_kernels(one: RuntimeMount) -> bool:
    """Return whether a mount is one of those that each container has: below the three places."""
    is_brought = (
        one["type"] not in ("bind", "tmpfs") or one["source"] == "shm" or one["destination"] == "/dev"
    )
    return is_brought and any(_is_within(one["destination"], place) for place in _KERNELS)


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")
