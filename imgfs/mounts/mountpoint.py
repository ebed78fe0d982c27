"""Checks before a mount: the directory, /dev/fuse, fusermount3, the user's account."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

from imgfs.errors import MountError
from imgfs.mounts.status_client import DaemonSilent, read_status
from imgfs.mounts.table import Mount, mount_at


def check_mountable(mountpoint: Path, *, nonempty: bool) -> None:
    """Raise MountError, saying what to do, if `mountpoint` cannot be mounted on."""
    _check_mountpoint(mountpoint, nonempty)
    if not os.path.exists("/dev/fuse"):
        raise MountError("/dev/fuse is missing: load the kernel's fuse module (modprobe fuse)")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountError(
            "/dev/fuse: you may not open it: as root, chmod 0666 /dev/fuse, as distributions have it"
        )
    if os.geteuid() and shutil.which("fusermount3") is None:
        raise MountError("fusermount3 is not installed (Debian: apt install fuse3)")
    if os.geteuid():
        _check_account(os.geteuid())


def _check_account(uid: int) -> None:
    """Raise MountError if the user has no name, which fusermount3 looks up."""
    try:
        pwd.getpwuid(uid)
    except KeyError as error:
        raise MountError(
            f"uid {uid} has no entry in /etc/passwd, without which fusermount3 mounts nothing"
        ) from error


def _check_mountpoint(path: Path, nonempty: bool) -> None:
    mounted = mount_at(path)
    if mounted and (
        mounted.is_imgfs or mounted.filesystem.startswith("fuse")
    ):  # may be dead: do not touch it
        raise MountError(f"{path}: {mounted.name} is mounted here already{_what_to_do(mounted)}")
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


def _what_to_do(mounted: Mount) -> str:
    """Return what to do about a mount that is in the way; its daemon may be dead, or not answer."""
    if mounted.is_imgfs:
        try:
            read_status(mounted)
        except DaemonSilent as error:
            return f", and {error.why}"
        except MountError:
            pass
    return f" (imgfs umount {mounted.mountpoint})"
