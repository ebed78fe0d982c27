"""What mount(8) and umount(8) do to a mount that is there; and access times, by relatime."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from imgfs.cli.fstab import flags_after, umount_arguments
from imgfs.errors import UsageError
from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, Ran, caches_kept, gzipped, is_alive, mount_flags, write_image

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may remount"),
    pytest.mark.drivers("fuse", "kernel"),
]

LAYER = tar.archive(tar.directory("./", mode=0o755, mtime_ns=1), tar.file("a", b"a"))

# See scratch.md: since util-linux 2.39 mount(8) uses fsconfig(2), by which FUSE and overlayfs change nothing.
BY_MOUNT_2 = ("env", "LIBMOUNT_FORCE_MOUNT2=always")


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    return write_image(imgfs.directory / "layout", [gzipped(LAYER)])


def helper(imgfs: Imgfs, name: str, *words: str | Path) -> Ran:
    """A helper as mount(8) and umount(8) call it: where they look is not the tests' to change."""
    code = f"import sys; from imgfs.cli import {name}_helper; sys.exit({name}_helper())"
    return imgfs.program(sys.executable, "-c", code, *words)


def remount(imgfs: Imgfs, at: Path, options: str, *, plain: bool = False) -> Ran:
    """What `mount -o remount,OPTIONS MOUNTPOINT` comes to: overlayfs and EROFS have no helper."""
    if plain or imgfs.driver == "kernel":
        return imgfs.program(*BY_MOUNT_2, "mount", "-i", "-o", f"remount,{options}", at)
    return helper(imgfs, "mount", "oci:none:v1", at, "-o", f"rw,remount,{options}")


@pytest.mark.parametrize("plain", [False, True], ids=["helper", "plain"])
def test_a_scratch_is_made_read_only_and_writable_again(imgfs: Imgfs, image: str, plain: bool) -> None:
    at = imgfs.mount(image, "--scratch", "work")
    (at / "before").write_bytes(b"before")
    assert remount(imgfs, at, "ro", plain=plain).code == 0
    assert "ro" in mount_flags(at)
    with pytest.raises(OSError, match="Read-only file system"):
        (at / "meanwhile").touch()
    assert (at / "before").read_bytes() == b"before"
    assert remount(imgfs, at, "rw,noexec", plain=plain).code == 0
    assert {"rw", "noexec"} <= mount_flags(at)
    assert remount(imgfs, at, "noatime", plain=plain).code == 0
    assert {"rw", "noexec", "noatime"} <= mount_flags(at)  # what is not named stays
    (at / "after").write_bytes(b"after")
    assert sorted(os.listdir(at)) == ["a", "after", "before"]
    imgfs.umount(at)


def test_a_file_that_is_open_for_writing_keeps_it_writable(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--scratch", "work")
    with open(at / "new", "wb", buffering=0) as file:
        ran = remount(imgfs, at, "ro")
        assert ran.code != 0
        assert "busy" in ran.err
        file.write(b"new")
    assert remount(imgfs, at, "ro").code == 0
    imgfs.umount(at)


def test_without_a_scratch_it_stays_read_only(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    ran = remount(imgfs, at, "rw")
    if imgfs.driver == "fuse":
        assert "has no scratch, so it stays read-only" in ran.err
        assert ran.code != 0
    with pytest.raises(OSError, match="Read-only file system"):
        (at / "new").touch()
    assert remount(imgfs, at, "ro,noexec").code == 0
    assert "noexec" in mount_flags(at)
    imgfs.umount(at)


def test_umount_8_waits_for_the_daemon(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--scratch", "work")
    pid = imgfs.pid(at)
    done = helper(imgfs, "umount", at, "-n")
    assert (done.code, done.err) == (0, "")
    imgfs.gone(at)
    assert not is_alive(pid)
    at = imgfs.mount(image, "--scratch", "work")
    imgfs.umount(at)


@pytest.mark.parametrize(
    ("shown", "given", "after"),
    [
        ("rw,nosuid,relatime", "remount,ro", "nosuid,ro,relatime"),
        ("ro,nosuid,nodev,noexec,relatime", "rw,suid,dev,exec", "relatime"),
        ("rw,noatime,nodiratime,nosymfollow", "ro,diratime,symfollow", "ro,noatime"),
        ("rw,relatime", "ro,rw,strictatime,noatime", "noatime"),
        ("rw", "noexec,nosuid,suid", "strictatime,noexec"),
        ("rw", "nostrictatime", "relatime"),
        ("rw,noatime", "atime", "relatime"),
        ("rw,relatime", "atime,scratch=work,_netdev", "relatime"),
    ],
)
def test_a_remount_changes_the_flags_that_it_names_alone(shown: str, given: str, after: str) -> None:
    assert flags_after(shown.split(","), given.split(",")) == set(after.split(","))


@pytest.mark.parametrize(
    ("asked", "ours"),
    [
        (["/mnt"], ["umount", "--", "/mnt"]),
        (["/mnt", "-l"], ["umount", "--lazy", "--", "/mnt"]),
        (["-f", "-l", "/mnt"], ["umount", "--force", "--lazy", "--", "/mnt"]),
        (["-nrv", "-t", "fuse.imgfs", "-N", "/proc/1/ns/mnt", "/mnt"], ["umount", "--", "/mnt"]),
    ],
)
def test_umount_8_is_understood(asked: list[str], ours: list[str]) -> None:
    assert umount_arguments(asked) == ours


@pytest.mark.parametrize("asked", [[], ["/a", "/b"], ["-x", "/a"]])
def test_what_umount_8_does_not_ask_is_refused(asked: list[str]) -> None:
    with pytest.raises(UsageError):
        umount_arguments(asked)


def check_large_file(imgfs: Imgfs, at: Path) -> None:
    """What has just been written is read from the kernel's pages, and the access time moves all the same."""
    path = at / "large"
    path.write_bytes(bytes(8 << 20))
    before, read_before = os.stat(path), bytes_read(imgfs, at)
    times = []
    for _ in range(2):
        time.sleep(0.02)
        assert path.read_bytes() == bytes(8 << 20)
        times.append(os.stat(path).st_atime_ns)
    assert times[0] == times[1] > before.st_atime_ns
    assert bytes_read(imgfs, at) - read_before < 1 << 20


def bytes_read(imgfs: Imgfs, at: Path) -> int:
    """How many bytes the mount's process has read, by whatever system call (proc(5), rchar)."""
    return int(Path(f"/proc/{imgfs.pid(at)}/io").read_text().split()[1])


def test_access_times_move_once_after_each_change(imgfs: Imgfs, image: str) -> None:
    """As `relatime` has it, in the mount that wrote the file as well as in the next."""
    at = imgfs.mount(image, "--scratch", "work")
    path = at / "new"
    path.write_bytes(b"new")
    for change in (lambda: os.utime(path, (1, 2)), lambda: path.write_bytes(b"changed"), lambda: None):
        change()
        time.sleep(0.02)
        before = os.stat(path)
        path.read_bytes()
        first = os.stat(path)
        time.sleep(0.02)
        path.read_bytes()
        second = os.stat(path)
        moved = before.st_atime_ns <= max(before.st_mtime_ns, before.st_ctime_ns)
        assert (first.st_atime_ns > before.st_atime_ns) == moved
        assert second.st_atime_ns == first.st_atime_ns
        assert (second.st_mtime_ns, second.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    shown = os.stat(path).st_atime_ns
    with caches_kept():
        check_large_file(imgfs, at)
    imgfs.umount(at)
    at = imgfs.mount(image, "--scratch", "work")
    assert os.stat(path).st_atime_ns == shown
    imgfs.umount(at)
