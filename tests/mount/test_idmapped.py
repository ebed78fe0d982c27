"""A mount that is shown again with other owners (mount_setattr(2), MOUNT_ATTR_IDMAP), as containerd does."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs import syscalls
from tests.support import tarmake
from tests.support.mounted import Imgfs, gzipped, until, write_image

AT_EMPTY_PATH, AT_RECURSIVE, OPEN_TREE_CLONE = 0x1000, 0x8000, 1
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
MOUNT_ATTR_IDMAP = 0x00100000
RELEASE = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0 or RELEASE < (6, 12), reason="needs root, and Linux 6.12"),
]


class MountAttributes(ctypes.Structure):
    """struct mount_attr (linux/mount.h)."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def system_call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


@contextmanager
def user_namespace(uids: str) -> Iterator[int]:
    """A user namespace with a map of uids and gids, open."""
    sleeping = subprocess.Popen(["unshare", "-U", "sleep", "1000"])
    try:
        own = os.readlink("/proc/self/ns/user")
        until(lambda: os.readlink(f"/proc/{sleeping.pid}/ns/user") != own, "it has a namespace of its own")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{sleeping.pid}/{name}").write_text(uids)
        fd = os.open(f"/proc/{sleeping.pid}/ns/user", os.O_RDONLY)
        yield fd
        os.close(fd)
    finally:
        sleeping.send_signal(signal.SIGKILL)
        sleeping.wait()


@contextmanager
def idmapped(source: Path, target: Path, uids: str) -> Iterator[Path]:
    """Show a mount at another place, its owners mapped."""
    with user_namespace(uids) as namespace:
        tree = system_call(SYS_OPEN_TREE, syscalls.AT_FDCWD, os.fsencode(source), OPEN_TREE_CLONE)
        wanted = MountAttributes(MOUNT_ATTR_IDMAP, 0, 0, namespace)
        size = ctypes.c_size_t(ctypes.sizeof(wanted))
        flags = AT_EMPTY_PATH | AT_RECURSIVE
        system_call(SYS_MOUNT_SETATTR, tree, b"", flags, ctypes.byref(wanted), size)
        target.mkdir()
        moved = syscalls.AT_FDCWD, os.fsencode(target), syscalls.MOVE_MOUNT_F_EMPTY_PATH
        system_call(SYS_MOVE_MOUNT, tree, b"", *moved)
        os.close(tree)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.mark.drivers("fuse", "kernel")
def test_owners_are_shown_by_the_map_and_files_are_read(imgfs: Imgfs, tmp_path: Path) -> None:
    body = gzipped(
        tarmake.archive(
            tarmake.file("roots", b"r", mode=0o600), tarmake.file("users", b"u", uid=7, gid=8, mode=0o640)
        )
    )
    mountpoint = imgfs.mount(write_image(tmp_path / "layout", [body]))
    with idmapped(mountpoint, tmp_path / "mapped", "0 70000 1000") as place:
        found = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in place.iterdir()}
        assert found == {"roots": (70000, 70000), "users": (70007, 70008)}
        assert (place / "users").read_bytes() == b"u"
        assert os.stat(mountpoint / "users").st_uid == 7
    imgfs.umount(mountpoint)
