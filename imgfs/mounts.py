"""The mounts of this machine, as the kernel lists them (proc(5), mountinfo), and how to end one."""

from __future__ import annotations

import bz2
import errno
import json
import os
import re
import select
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgfs.errors import MountError

FILESYSTEM = "fuse.imgfs"  # as mountinfo names our mounts
RUNTIME = Path("/run/imgfs")  # has a directory for each mount of the kernel's own file systems
STATUS_SOCKET = "status"  # in that: answers whoever connects
REFERENCE = "reference"  # there, too: the whole name of what is mounted
_KERNEL_FILESYSTEMS = ("erofs", "overlay")
_ESCAPE = re.compile(rb"\\([0-7]{3})")
STATUS_XATTR = "user.imgfs.status"  # on a mount's root: answered by the daemon, never listed
_LARGEST_PLAIN = 48 << 10  # bytes: an attribute has 64 KiB at most (xattr(7)), an image over a hundred layers
_PATIENCE = 20.0  # seconds for the daemon to end once its mount is gone,
_PATIENCE_WITH_SCRATCH = 600.0  # or has files to complete or to remove


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo."""

    mountpoint: Path
    filesystem: str
    source: str
    device: str  # major:minor

    @property
    def runtime(self) -> Path | None:
        """The directory in RUNTIME of a mount of the kernel's own file systems; None for any other mount."""
        source = Path(self.source)
        is_ours = self.filesystem in _KERNEL_FILESYSTEMS and source.parent.parent == RUNTIME
        return source.parent if is_ours else None

    @property
    def name(self) -> str:
        """What is mounted, for people."""
        if self.runtime is None:
            return self.source
        try:
            return os.fsdecode((self.runtime / REFERENCE).read_bytes())
        except OSError:  # only root may look
            return Path(self.source).name

    @property
    def is_ours(self) -> bool:
        """Whether imgfs has mounted it."""
        return self.filesystem == FILESYSTEM or self.runtime is not None


def mounts() -> list[Mount]:
    """All mounts that this process sees, the latest last."""
    with open("/proc/self/mountinfo", "rb") as lines:
        return [_parse(line) for line in lines]


def mount_at(path: Path) -> Mount | None:
    """The topmost mount at exactly `path`. The mount itself is not touched: it may be dead, or hang."""
    parent = Path(os.path.realpath(path.absolute().parent))
    wanted = parent if path.name in ("", "..") else parent / path.name
    found = [mount for mount in mounts() if mount.mountpoint == wanted]
    return found[-1] if found else None


def our_mount_at(path: Path) -> Mount:
    """The imgfs mount at `path`; raises MountError if there is none."""
    mount = mount_at(path) or (mount_at(path.resolve()) if path.is_symlink() else None)
    if mount is None:
        raise MountError(f"{path}: nothing is mounted here")
    if not mount.is_ours:
        raise MountError(f"{path}: this is a {mount.filesystem} mount, not one of imgfs")
    return mount


def check_mountable(mountpoint: Path, *, nonempty: bool) -> None:
    """Raise MountError, saying what to do, if nothing can be mounted at `mountpoint`."""
    _check_mountpoint(mountpoint, nonempty)
    if not os.path.exists("/dev/fuse"):
        raise MountError("/dev/fuse is missing: load the kernel's fuse module (modprobe fuse)")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountError(
            "/dev/fuse: you may not open it: as root, chmod 0666 /dev/fuse, as distributions have it"
        )
    if os.geteuid() and shutil.which("fusermount3") is None:
        raise MountError("fusermount3 is not installed (Debian: apt install fuse3)")


def _check_mountpoint(path: Path, nonempty: bool) -> None:
    mounted = mount_at(path)
    if mounted and (mounted.is_ours or mounted.filesystem.startswith("fuse")):  # may be dead: do not touch it
        raise MountError(f"{path}: {mounted.name} is mounted here already (imgfs umount {path})")
    try:
        names = os.listdir(path)
    except FileNotFoundError as error:
        raise MountError(f"{path}: no such directory: create it first (mkdir {path})") from error
    except NotADirectoryError as error:
        raise MountError(f"{path}: not a directory") from error
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}") from error
    if names and not nonempty:
        raise MountError(
            f"{path}: not empty: its {len(names)} entries would be hidden (-o nonempty to do it)"
        )
    if os.geteuid() and not os.access(path, os.W_OK):
        raise MountError(f"{path}: you may not write to it, so you may not mount on it")


def read_status(mount: Mount) -> dict[str, Any]:
    """What the daemon of `mount` says of itself; raises MountError if it does not answer."""
    try:
        body = _ask(mount.runtime) if mount.runtime else os.getxattr(mount.mountpoint, STATUS_XATTR)
    except OSError as error:
        dead = error.errno in (errno.ENOTCONN, errno.ECONNREFUSED)
        dead |= mount.runtime is not None and error.errno == errno.ENOENT  # what it left was swept
        reason = "its daemon has died" if dead else error.strerror
        hint = f"; clear it with: imgfs umount {mount.mountpoint}" if dead else ""
        raise MountError(f"{mount.mountpoint}: no status: {reason}{hint}") from error
    return decode_status(body)


def _ask(runtime: Path) -> bytes:
    """What the socket of a mount says; raises OSError."""
    with socket.socket(socket.AF_UNIX) as asking, asking.makefile("rb") as answer:
        asking.settimeout(_PATIENCE)
        asking.connect(str(runtime / STATUS_SOCKET))
        body = answer.read()
    if not body:
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    return body


def encode_status(status: dict[str, Any]) -> bytes:
    """A status as its daemon answers it: JSON, packed if it would not fit into an attribute otherwise."""
    body = json.dumps(status).encode()
    return bz2.compress(body) if len(body) > _LARGEST_PLAIN else body


def decode_status(body: bytes) -> dict[str, Any]:
    """The inverse of `encode_status`."""
    status: dict[str, Any] = json.loads(body if body.startswith(b"{") else bz2.decompress(body))
    return status


def unmount(mount: Mount, *, lazy: bool = False) -> None:
    """Unmount, and wait until the daemon has ended. Raises MountError, for example when the mount is busy."""
    try:
        status = read_status(mount)
    except MountError:
        status = {"pid": 0}  # dead already: there is nobody to wait for
    # -i: umount(8) may have been told to ask us (`umount.fuse.imgfs`)
    command = ["umount", "-i"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    if lazy:
        command.append("-l" if os.geteuid() == 0 else "-z")
    if shutil.which(command[0]) is None:
        raise MountError(f"{command[0]} is not installed (Debian: apt install fuse3)")
    done = subprocess.run([*command, str(mount.mountpoint)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"{command[0]} failed"]
        busy = "; some process still uses it (see: fuser -vm)" if "busy" in reason[0] else ""
        raise MountError(f"{mount.mountpoint}: cannot unmount: {reason[0]}{busy}")
    if mount.runtime and not status["pid"]:
        shutil.rmtree(mount.runtime, ignore_errors=True)
    if status["pid"] and not lazy:
        _wait_for_end(int(status["pid"]), _PATIENCE_WITH_SCRATCH if status.get("scratch") else _PATIENCE)


def _wait_for_end(pid: int, patience: float) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([fd], [], [], patience)
    finally:
        os.close(fd)
    if not ended:
        raise MountError(f"unmounted, but its daemon (pid {pid}) has not ended within {patience:.0f} s")


def _parse(line: bytes) -> Mount:
    before, _, after = line.partition(b" - ")
    fields = [_unescaped(field) for field in (*before.split(), *after.split())]
    separator = len(before.split())
    return Mount(Path(fields[4]), fields[separator], fields[separator + 1], fields[2])


def _unescaped(field: bytes) -> str:
    """Spaces and the like stand as octal escapes."""
    return os.fsdecode(_ESCAPE.sub(lambda octal: bytes((int(octal[1], 8),)), field))
