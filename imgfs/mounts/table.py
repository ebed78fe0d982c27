"""The mounts of this machine, as the kernel lists them (proc(5), mountinfo)."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import MountError

FILESYSTEM = "fuse.imgfs"  # type of imgfs's FUSE mounts in mountinfo
RUNTIME = Path("/run/imgfs")  # has a directory for each mount of the kernel's own file systems
STATUS_SOCKET = "status"  # in that: a socket that answers the status
REFERENCE = "reference"  # there, too: the full reference of the mounted image
_KERNEL_FILESYSTEMS = ("erofs", "overlay")
_OURS = b"imgfs"  # in each line of FILESYSTEM, and below RUNTIME
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """A line of mountinfo."""

    mountpoint: Path
    filesystem: str
    source: str
    device: str  # major:minor
    user: int = 0  # uid that mounted it (FUSE), else 0
    flags: tuple[str, ...] = ()  # of the mount, like "nosuid"; "ro" is its superblock's, too

    @property
    def runtime(self) -> Path | None:
        """The directory in RUNTIME of a mount of the kernel's own file systems; None for any other mount."""
        source = Path(self.source)
        is_imgfs = self.filesystem in _KERNEL_FILESYSTEMS and RUNTIME in source.parents
        below = source.relative_to(RUNTIME).parts if is_imgfs else ()
        return RUNTIME / below[0] if len(below) > 1 else None

    @property
    def name(self) -> str:
        """Return what is mounted, for people."""
        if self.runtime is None:
            return self.source
        try:
            return os.fsdecode((self.runtime / REFERENCE).read_bytes())
        except OSError:  # only root may look: the source's path ends in it
            return str(Path(self.source).relative_to(self.runtime))

    @property
    def is_imgfs(self) -> bool:
        """Return True if imgfs has mounted it."""
        return self.filesystem == FILESYSTEM or self.runtime is not None


def mounts() -> list[Mount]:
    """Return all mounts that this process sees, the latest last."""
    with open("/proc/self/mountinfo", "rb") as lines:
        return [_parse(line) for line in lines]


def imgfs_mounts() -> list[Mount]:
    """Return the mounts of imgfs, the latest last."""
    with open("/proc/self/mountinfo", "rb") as lines:
        found = [_parse(line) for line in lines if _OURS in line]  # a machine may have thousands of others
    return [mount for mount in found if mount.is_imgfs]


def mount_at(path: Path) -> Mount | None:
    """Return the topmost mount at exactly `path`, without touching it: it may be dead, or hang."""
    parent = Path(os.path.realpath(path.absolute().parent))
    wanted = str(parent if path.name in ("", "..") else parent / path.name)
    with open("/proc/self/mountinfo", "rb") as lines:
        at_path = [line for line in lines if unescaped(line.split(b" ", 5)[4]) == wanted]
    return _parse(at_path[-1]) if at_path else None


def imgfs_mount_at(path: Path) -> Mount:
    """Return the imgfs mount at `path`. Raises MountError if there is none."""
    mount = mount_at(path) or (mount_at(Path(os.path.realpath(path))) if path.is_symlink() else None)
    if mount is None:
        raise MountError(f"{path}: nothing is mounted here")
    if not mount.is_imgfs:
        raise MountError(f"{path}: this is a {mount.filesystem} mount, not one of imgfs")
    return mount


def process_with_mount(mount: Mount) -> int | None:
    """Return the pid of a process that has the file system of a mount in another mount namespace.

    None if there is none that this user may look at. The kernel gives the device of one that is gone to the
    next that is mounted, so what it is and its source have to be the same, too.
    """
    seen = {os.readlink("/proc/self/ns/mnt")}
    wanted = os.fsencode(mount.device)
    for pid in pids():
        with suppress(OSError):  # it has ended, or is another user's
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in seen:
                seen.add(namespace)
                lines = Path(f"/proc/{pid}/mountinfo").read_bytes().splitlines()
                found = (_parse(line) for line in lines if line.split()[2] == wanted)
                if any((one.filesystem, one.source) == (mount.filesystem, mount.source) for one in found):
                    return pid
    return None


def pids() -> list[int]:
    """Return the pids of all processes that are seen here, the oldest first."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _parse(line: bytes) -> Mount:
    before, _, after = line.partition(b" - ")
    fields = [unescaped(field) for field in (*before.split(), *after.split())]
    separator = len(before.split())
    user = next((option for option in fields[-1].split(",") if option.startswith("user_id=")), "user_id=0")
    return Mount(
        Path(fields[4]),
        fields[separator],
        fields[separator + 1],
        fields[2],
        int(user.removeprefix("user_id=")),
        (*fields[5].split(","), *({"ro"} & set(fields[-1].split(",")))),
    )


def unescaped(field: bytes) -> str:
    """Decode the octal escapes of spaces and the like in a field of mountinfo."""
    if b"\\" not in field:
        return os.fsdecode(field)
    return os.fsdecode(_ESCAPE.sub(lambda octal: bytes((int(octal[1], 8),)), field))
