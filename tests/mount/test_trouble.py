"""Mounts that begin badly, and how mounts end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from io import FileIO
from pathlib import Path

import pytest

from tests.mount.test_mount import NOISE
from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import (
    CHECKOUT,
    Imgfs,
    Wire,
    drop_caches,
    errno_of,
    gzipped,
    is_alive,
    mount_flags,
    mount_of,
    plain,
    serve,
    until,
    write_image,
)
from tests.support.patience import allowed

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.drivers("fuse", "kernel"),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems of other kinds"),
]

# What is read of a mount whose daemon was killed fails so; by the kernel, what it has not in its cache.
DEAD = {"fuse": (errno.ENOTCONN,), "kernel": (errno.EIO,)}


@cache
def image_layer() -> bytes:
    return tar.archive(tar.directory("d"), tar.file("d/noise", NOISE), tar.file("small", b"small"))


@pytest.fixture
def image(tmp_path: Path) -> str:
    return write_image(tmp_path / "layout", [gzipped(image_layer())])


# -- the end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [("umount", "{at}"), ("kill", "{pid}"), ("kill", "-INT", "{pid}")],
    ids=["umount", "SIGTERM", "SIGINT"],
)
def test_the_daemon_ends_and_the_mount_with_it(imgfs: Imgfs, image: str, words: tuple[str, ...]) -> None:
    at = imgfs.mount(image)
    pid = imgfs.pid(at)
    done = imgfs.program(*(word.format(at=at, pid=pid) for word in words))
    assert (done.code, done.err) == (0, "")
    until(lambda: not is_alive(pid), "the daemon has ended")
    assert mount_of(at) is None
    assert "INFO imgfs.mount: unmounted" in imgfs.logged()[-1]
    imgfs.gone(at)


@pytest.mark.drivers("fuse")
def test_fusermount3_ends_a_mount_by_fuse(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    pid = imgfs.pid(at)
    done = imgfs.program("fusermount3", "-u", at)
    assert (done.code, done.err) == (0, "")
    until(lambda: not is_alive(pid), "the daemon has ended")
    assert mount_of(at) is None
    imgfs.gone(at)


def test_umount_returns_when_the_daemon_has_ended(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    pid = imgfs.pid(at)
    imgfs.umount(at)
    assert (is_alive(pid), mount_of(at)) == (False, None)


def test_the_daemon_keeps_a_log_of_its_own(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    assert any(f"INFO imgfs.mount: mounted {image} at {at}" in line for line in imgfs.logged())
    pid = imgfs.pid(at)
    assert {os.readlink(f"/proc/{pid}/fd/{fd}").startswith(str(imgfs.store)) for fd in (1, 2)} == {True}
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    imgfs.umount(at)


def test_in_the_foreground_it_stays_until_it_is_unmounted(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mountpoint()
    process = imgfs.start("mount", "-f", image, at)
    until(lambda: mount_of(at), "mounted")
    assert (at / "small").read_bytes() == b"small"
    assert process.poll() is None
    imgfs.ok("umount", at)
    assert process.wait(20) == 0


def test_in_the_foreground_ctrl_c_unmounts(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mountpoint()
    process = imgfs.start("mount", "-f", image, at)
    until(lambda: mount_of(at) and (at / "small").exists(), "mounted")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=allowed(60))
    assert process.returncode == 0
    assert b"Traceback" not in said
    assert mount_of(at) is None


def test_a_busy_mount_stays_and_umount_says_so(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    with open(at / "small", "rb") as small:
        said = imgfs.run("umount", at).complaint()
        pid = os.getpid()
        assert re.fullmatch(
            f"{at}: cannot unmount: it is busy: process {pid} \\(.+\\) uses it; or imgfs umount --lazy {at}",
            said,
        )
        assert mount_of(at)
        assert small.read() == b"small"
    imgfs.umount(at)


def test_a_mount_with_another_in_it_names_that(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    subprocess.run(["mount", "-t", "tmpfs", "none", at / "d"], check=True)
    try:
        said = imgfs.run("umount", at).complaint()
    finally:
        subprocess.run(["umount", at / "d"], check=True)
    todo = f"{at}/d is mounted in it: umount {at}/d"
    assert said == f"{at}: cannot unmount: it is busy: {todo}; or imgfs umount --lazy {at}"
    imgfs.umount(at)


def test_an_overlay_that_stands_on_a_mount_is_named_at_once(imgfs: Imgfs, image: str, tmp_path: Path) -> None:
    """The kernel lets the mount go, and its file system goes on below the overlay."""
    at, over = imgfs.mount(image), tmp_path / "o:v,er"
    twice, empty = tmp_path / "twice", tmp_path / "empty"
    for place in (over, twice, empty):
        place.mkdir()
    escaped = str(over).replace(":", "\\:").replace(",", "\\,")
    pid = imgfs.pid(at)
    subprocess.run(["mount", "-t", "overlay", "none", over, "-o", f"lowerdir={at}:{empty}"], check=True)
    subprocess.run(
        ["mount", "-t", "overlay", "none", twice, "-o", f"lowerdir={empty}:{escaped}:{at}/d"], check=True
    )
    try:
        ran = imgfs.run("umount", at)
        stands = f"the overlay at {twice} stands on it: umount {twice} {over}"
        warning = f"imgfs: warning: {at}: unmounted here, but its daemon (pid {pid}) goes on: {stands}\n"
        assert (ran.code, ran.err) == (0, warning)
        assert (over / "small").read_bytes() == b"small"
    finally:
        subprocess.run(["umount", twice, over], check=True)
    until(lambda: not is_alive(pid), "the daemon has ended")
    imgfs.gone(at)


def test_a_busy_mount_can_be_detached_and_ends_with_its_last_user(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    pid = imgfs.pid(at)
    with open(at / "d/noise", "rb") as noise:
        imgfs.umount(at, "--lazy")
        assert mount_of(at) is None
        assert noise.read() == NOISE
        assert is_alive(pid)
    until(lambda: not is_alive(pid), "the daemon has ended")


def test_a_killed_daemon_leaves_a_mount_that_is_explained_and_can_be_cleared(
    imgfs: Imgfs, image: str
) -> None:
    at = imgfs.mount(image)
    os.kill(imgfs.pid(at), signal.SIGKILL)
    drop_caches()
    until(lambda: errno_of(lambda: (at / "d/noise").read_bytes()) in DEAD[imgfs.driver], "the mount is dead")
    assert imgfs.run("status", at).complaint() == (
        f"{at}: no status: its daemon has died; clear it with: imgfs umount {at}"
    )
    assert imgfs.run("mount", image, at).complaint() == (
        f"{at}: {image} is mounted here already, and its daemon has died: imgfs umount {at}"
    )
    (row,) = [row for row in json.loads(imgfs.ok("ps", "--json")) if row["mountpoint"] == str(at)]
    assert (row["pid"], row["state"]) == (None, "dead")
    assert re.search(rf"^{at} .* dead +\?", imgfs.ok("ps"), re.MULTILINE)
    imgfs.umount(at)
    at = imgfs.mount(image)
    assert (at / "d/noise").read_bytes() == NOISE
    imgfs.umount(at)


def test_a_daemon_killed_while_it_fetches_leaves_a_store_that_is_right(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [gzipped(image_layer() * 8)])
    for delay in (0.0, 0.02, 0.05):
        at = imgfs.mount(image)
        imgfs.evict(image)
        with subprocess.Popen(["cat", str(at / "d/noise")], stdout=subprocess.DEVNULL, stderr=-3) as reading:
            time.sleep(delay)  # any moment will do
            os.kill(imgfs.pid(at), signal.SIGKILL)
            reading.wait(20)
        imgfs.umount(at)
        at = imgfs.mount(image)
        assert (at / "d/noise").read_bytes() == NOISE
        imgfs.umount(at)


# -- the mount point -----------------------------------------------------------------------------------------


def test_an_empty_mount_point_is_not_the_working_directory(imgfs: Imgfs, image: str) -> None:
    assert imgfs.run("mount", image, "").complaint(2) == "MOUNTPOINT is empty: name a directory"


def test_a_missing_mount_point_is_named(imgfs: Imgfs, image: str, tmp_path: Path) -> None:
    said = imgfs.run("mount", image, tmp_path / "none").complaint()
    assert said == f"{tmp_path}/none: no such directory: create it first (mkdir {tmp_path}/none)"


def test_a_file_is_no_mount_point(imgfs: Imgfs, image: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert imgfs.run("mount", image, tmp_path / "file").complaint() == f"{tmp_path}/file: not a directory"
    assert "not a directory" in imgfs.run("mount", image, tmp_path / "file/below").complaint()


def test_a_mount_does_not_hide_files_unless_asked_to(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mountpoint()
    (at / "mine").touch()
    said = imgfs.run("mount", image, at).complaint()
    assert said == f"{at}: not empty: what is in it would be hidden (-o nonempty to do it)"
    imgfs.mount(image, "-o", "nonempty")
    assert sorted(os.listdir(at)) == ["d", "small"]
    imgfs.umount(at)
    assert os.listdir(at) == ["mine"]


def test_an_image_is_not_mounted_over_another(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    said = imgfs.run("mount", image, at).complaint()
    assert said == f"{at}: {image} is mounted here already (imgfs umount {at})"
    imgfs.umount(at)


def test_umount_and_status_refuse_what_is_not_ours(imgfs: Imgfs, tmp_path: Path) -> None:
    assert imgfs.run("umount", tmp_path).complaint() == f"{tmp_path}: nothing is mounted here"
    assert imgfs.run("status", tmp_path / "none").complaint() == f"{tmp_path}/none: nothing is mounted here"
    assert imgfs.run("umount", "/proc").complaint() == "/proc: this is a proc mount, not one of imgfs"


@pytest.mark.parametrize("name", ["with space", "tab\tand\\backslash", "comma,equals=", "ümlaut"])
def test_mount_points_and_images_of_any_name(imgfs: Imgfs, tmp_path: Path, name: str) -> None:
    image = write_image(tmp_path / name, [gzipped(image_layer())])
    at = imgfs.mount(image, at=imgfs.mountpoint(name))
    assert (at / "small").read_bytes() == b"small"
    assert imgfs.status(at)["mountpoint"] == str(at)
    imgfs.umount(at)


def test_a_mount_point_through_a_symlink(imgfs: Imgfs, image: str, tmp_path: Path) -> None:
    at = imgfs.mountpoint()
    (tmp_path / "link").symlink_to(at)
    imgfs.ok("mount", image, tmp_path / "link")
    imgfs.watch(tmp_path / "link")
    assert (at / "small").read_bytes() == b"small"
    imgfs.umount(tmp_path / "link")


def test_a_relative_mount_point(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mountpoint()
    imgfs.ok("mount", image, ".", cwd=at)
    imgfs.watch(at)
    assert imgfs.ok("status", "mnt/", cwd=at.parent).startswith(f"image     {image}")
    imgfs.umount(at)


# -- the machine ---------------------------------------------------------------------------------------------


def test_without_the_kernels_fuse_the_module_is_named(imgfs: Imgfs, image: str) -> None:
    script = f"mount -t tmpfs none /dev; mknod /dev/null c 1 3; exec {' '.join(imgfs.command('mount'))} $0 $1"
    ran = imgfs.program("unshare", "-m", "sh", "-c", script, image, imgfs.mountpoint())
    assert ran.complaint().startswith(
        "/dev/fuse is missing: load the kernel's fuse module (modprobe fuse), or "
    )


def test_an_option_that_nobody_knows_is_refused(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mountpoint()
    imgfs.expected.append("ERROR imgfs\\.(daemonize|mount): .*not_an_option")
    assert "not_an_option" in imgfs.run("mount", "-o", "not_an_option", image, at).complaint(2)
    assert mount_of(at) is None


LOOP_SET_FD, LOOP_CLR_FD, LOOP_CTL_GET_FREE = 0x4C00, 0x4C01, 0x4C82  # loop(4)


@contextlib.contextmanager
def loop_device(disk: Path) -> Iterator[Path]:
    """A block device of a file, until it is unmounted; by nodes of our own, as a container has none."""
    control, node = disk.with_name("loop-control"), disk.with_name("loop")
    os.mknod(control, stat.S_IFCHR | 0o600, os.makedev(10, 237))
    with disk.open("r+b") as file, control.open("rb") as free:
        device = None
        while device is None:
            device = _taken(node, fcntl.ioctl(free, LOOP_CTL_GET_FREE), file.fileno())
        with device:
            try:
                yield node
            finally:
                fcntl.ioctl(device, LOOP_CLR_FD)  # once nothing uses it


def _taken(node: Path, number: int, file: int) -> FileIO | None:
    """A loop device, for a file: None if another test has been faster."""
    node.unlink(missing_ok=True)
    os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(7, number))
    device = FileIO(node, "r+")
    try:
        fcntl.ioctl(device, LOOP_SET_FD, file)
    except OSError as taken:
        device.close()
        if taken.errno != errno.EBUSY:
            raise
        return None
    return device


@pytest.fixture
def small_disk(imgfs: Imgfs, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for the store, of 16 MB; ext4, as EROFS does not take its image from tmpfs."""
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(16 << 20)
    words = ["mkfs.ext4", "-q", "-m", "0", "-N", "400", "-O", "^has_journal", str(disk)]
    subprocess.run(words, check=True)
    imgfs.store.mkdir()
    with loop_device(disk) as device:
        subprocess.run(["mount", "-t", "ext4", "-o", "sync", device, imgfs.store], check=True)
    yield imgfs.store
    imgfs.close()
    subprocess.run(["umount", "-l", str(imgfs.store)], check=True)


def fill_up(disk: Path, *, leaving: int = 0) -> Path:
    """Fill a disk but for some bytes; the file that takes all the room."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as full:
                assert full.errno == errno.ENOSPC  # noqa: PT017  (the loop's only end)
        file.truncate(file.tell() - leaving)
    return filler


def use_inodes_up(disk: Path, *, leaving: int = 0) -> list[Path]:
    """Have a disk take but some more files; those that take all its inodes."""
    fillers = []
    for number in range(os.statvfs(disk).f_ffree - leaving):
        fillers.append(disk / f"filler{number}")
        fillers[-1].touch()
    return fillers


@pytest.mark.parametrize("room", [8 << 10, 64 << 10, 1 << 20, 3 << 20], ids="{} bytes".format)
def test_a_full_disk_is_one_line_and_nothing_is_mounted(
    imgfs: Imgfs, small_disk: Path, image: str, room: int
) -> None:
    filler = fill_up(small_disk, leaving=room)
    at = fails_for_want_of_room(imgfs, image)
    filler.unlink()
    imgfs.mount(image)  # what the failure left behind is in nobody's way
    assert (at / "d/noise").read_bytes() == NOISE
    imgfs.umount(at)


@pytest.mark.parametrize("files", [8, 16, 18])
def test_a_disk_of_too_few_inodes_is_one_line_and_nothing_is_mounted(
    imgfs: Imgfs, small_disk: Path, image: str, files: int
) -> None:
    fillers = use_inodes_up(small_disk, leaving=files)
    at = fails_for_want_of_room(imgfs, image)
    for filler in fillers:
        filler.unlink()
    imgfs.mount(image)
    assert (at / "d/noise").read_bytes() == NOISE
    imgfs.umount(at)


def fails_for_want_of_room(imgfs: Imgfs, image: str) -> Path:
    at = imgfs.mountpoint()
    said = imgfs.run("mount", image, at).complaint()
    assert "No space left on device" in said or "disk is full" in said or "disk I/O error" in said
    assert "store" in said
    assert mount_of(at) is None
    return at


def test_a_disk_too_full_for_the_log_is_one_line(imgfs: Imgfs, small_disk: Path, image: str) -> None:
    imgfs.ok("ls", image)
    fillers = use_inodes_up(small_disk)
    at = imgfs.mountpoint()
    said = imgfs.run("mount", image, at).complaint()
    assert "No space left on device" in said
    assert str(small_disk) in said
    assert mount_of(at) is None
    for filler in fillers:
        filler.unlink()


def test_a_disk_that_fills_up_under_a_mount_fails_reads_and_nothing_else(
    imgfs: Imgfs, small_disk: Path, image: str
) -> None:
    imgfs.expected.append("ERROR imgfs.fuse.errors: EIO: .*No space left on device")
    at = imgfs.mount(image)
    imgfs.evict(image)
    filler = fill_up(small_disk)
    assert errno_of(lambda: (at / "d/noise").read_bytes()) == errno.EIO
    assert sorted(os.listdir(at / "d")) == ["noise"]
    filler.unlink()
    assert (at / "d/noise").read_bytes() == NOISE
    imgfs.umount(at)


def test_a_store_damaged_under_a_mount_fails_reads_and_nothing_else(imgfs: Imgfs, image: str) -> None:
    imgfs.expected.append("ERROR imgfs.fuse.errors: EIO: (/d/noise: )?.*ends at")
    at = imgfs.mount(image)
    (flat,) = imgfs.store.glob("layers/*/*/flat")
    os.truncate(flat, 0)
    drop_caches()
    assert errno_of(lambda: (at / "d/noise").read_bytes()) == errno.EIO
    assert sorted(os.listdir(at)) == ["d", "small"]
    imgfs.ok("store", "rm", "--data", image)
    assert (at / "d/noise").read_bytes() == NOISE
    imgfs.umount(at)


def test_a_store_that_is_no_directory_is_named(imgfs: Imgfs, image: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = imgfs.run("mount", "--store", tmp_path / "file/store", image, imgfs.mountpoint()).complaint()
    assert said == f"{tmp_path}/file/store: Not a directory"
    said = imgfs.run("ls", "--store", tmp_path / "file", image).complaint()
    assert said == f"{tmp_path}/file: Not a directory"


# -- mount(8) and fstab --------------------------------------------------------------------------------------

HELPER = Path("/sbin/mount.fuse.imgfs")


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[None]:
    """The helper where mount(8) looks for it, as scripts/install puts it."""
    if HELPER.exists():
        yield
        return
    HELPER.unlink(missing_ok=True)  # a link to a checkout that is no more
    script = tmp_path / "mount.fuse.imgfs"
    code = "import sys; from imgfs.cli import mount_helper; sys.exit(mount_helper())"
    script.write_text(f"#!/bin/sh\nPYTHONPATH='{CHECKOUT}' exec '{sys.executable}' -c '{code}' \"$@\"\n")
    script.chmod(0o755)
    HELPER.symlink_to(script)
    yield
    HELPER.unlink()


def test_mount_8_mounts_an_image(imgfs: Imgfs, helper: None, image: str) -> None:
    at = imgfs.mountpoint()
    done = imgfs.program("mount", "-t", "fuse.imgfs", image, at, "-o", f"ro,noexec,nodev,store={imgfs.store}")
    assert (done.code, done.err) == (0, "")
    imgfs.watch(at)
    assert (at / "small").read_bytes() == b"small"
    assert {"noexec", "nodev", "ro"} <= mount_flags(at)
    assert "nosuid" not in mount_flags(at)  # what is not said is as for every other file system
    done = imgfs.program("umount", at)
    assert (done.code, done.err) == (0, "")
    imgfs.gone(at)


def test_fstab_mounts_an_image(imgfs: Imgfs, helper: None, image: str, tmp_path: Path) -> None:
    at = imgfs.mountpoint()
    table = tmp_path / "fstab"
    table.write_text(
        f"{image} {at} fuse.imgfs defaults,nofail,_netdev,x-systemd.automount,platform=linux/amd64,"
        f"squash_owner,read_timeout=5,log_level=debug,store={imgfs.store} 0 0\n"
    )
    done = imgfs.program("mount", "-a", "-T", table)
    assert (done.code, done.err) == (0, "")
    imgfs.watch(at)
    assert (at / "small").read_bytes() == b"small"
    done = imgfs.program("mount", "-a", "-T", table)  # mounted already: nothing to do
    assert (done.code, done.err) == (0, "")
    imgfs.umount(at)


def test_mount_8_passes_on_why_it_failed(imgfs: Imgfs, helper: None, tmp_path: Path) -> None:
    done = imgfs.program("mount", "-t", "fuse.imgfs", f"oci:{tmp_path}/none", imgfs.mountpoint())
    assert done.code != 0
    assert done.err.startswith(f"imgfs: {tmp_path}/none: not an OCI image layout")
    assert "Traceback" not in done.err


# -- a request that hangs ------------------------------------------------------------------------------------


def test_the_daemon_ends_at_once_although_a_read_waits_for_a_dead_registry(imgfs: Imgfs) -> None:
    with FaultServer() as server, Wire(server.host) as wire:
        image = serve(server, "app", "v1", [plain(image_layer())], wire.host)
        at = imgfs.mount(image)
        imgfs.evict(image)
        wire.stall()
        before = imgfs.status(at)["requests_fetched"]
        with subprocess.Popen(["cat", str(at / "d/noise")], stdout=subprocess.DEVNULL, stderr=-3) as reading:
            until(lambda: imgfs.status(at)["requests_fetched"] > before, "the read is under way")
            began = time.monotonic()
            os.kill(imgfs.pid(at), signal.SIGTERM)
            reading.wait(20)
            until(lambda: mount_of(at) is None, "unmounted")
        assert time.monotonic() - began < allowed(9)  # a read may take 10 s
    imgfs.gone(at)


def test_ctrl_c_ends_the_foreground_although_a_read_waits_for_a_dead_registry(imgfs: Imgfs) -> None:
    with FaultServer() as server, Wire(server.host) as wire:
        image = serve(server, "app", "v1", [plain(image_layer())], wire.host)
        at = imgfs.mountpoint()
        process = imgfs.start("mount", "-f", image, at)
        until(lambda: mount_of(at) and (at / "small").exists(), "mounted")
        imgfs.evict(image)
        wire.stall()
        with subprocess.Popen(["cat", str(at / "d/noise")], stdout=subprocess.DEVNULL, stderr=-3) as reading:
            until(lambda: imgfs.status(at)["requests_fetched"] > 0, "the read is under way")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=allowed(5))
            reading.wait(20)
        assert (process.returncode, mount_of(at)) == (0, None)
        assert b"Traceback" not in said
