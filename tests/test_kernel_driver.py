"""Mounts by the kernel's own file systems: the same tree, bytes, commands and errors as by FUSE."""

from __future__ import annotations

import errno
import gzip
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.mounts import RUNTIME, mount_at, mounts
from tests import tarmake as tar
from tests.fault_server import FaultServer
from tests.mounted import (
    Imgfs,
    Stored,
    Wire,
    drop_caches,
    gzipped,
    is_alive,
    mount_flags,
    mount_of,
    plain,
    serve,
    sha256,
    until,
    write_image,
    zstd,
)
from tests.test_mount import NOISE, errno_of, highest, lowest, middle
from tests.test_mount_registry import GONE, LAYER
from tests.tocmake import chunked_layer, estargz_layer
from tests.umoci_oracle import differences, walk_directory

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount EROFS"),
]

PIECES = [(0, b"a" * 100), (1000, b"b" * 7), (4000, NOISE[:3000])]  # of a file that lies at no whole blocks
TORN = tar.archive(tar.sparse_old("torn", 10_000, PIECES))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def kernel(imgfs: Imgfs) -> Imgfs:
    """The command, mounting by the kernel."""
    imgfs.driver = "kernel"
    return imgfs


@pytest.fixture
def image(tmp_path: Path) -> str:
    return write_image(tmp_path / "layout", [gzipped(LAYER), plain(TORN)])


def runtime_directories(pid: int) -> list[Path]:
    return list(RUNTIME.glob(f"{pid}-*"))


def is_erofs(at: Path) -> bool:
    found = mount_of(at)
    return found is not None and found.filesystem == "erofs"


# -- what there is to see ------------------------------------------------------------------------------------


def test_both_drivers_show_the_same_tree(kernel: Imgfs, tmp_path: Path) -> None:
    layers = [gzipped(lowest()), zstd(middle(), 50_000), gzipped(highest()), plain(TORN)]
    image = write_image(tmp_path / "layout", layers)
    native = kernel.mount(image)
    kernel.driver = "fuse"
    by_fuse = kernel.mount(image, at=kernel.mountpoint("fuse"))
    assert is_erofs(native)
    assert differences(walk_directory(by_fuse), walk_directory(native)) == []


@pytest.mark.parametrize("kind", ["estargz", "chunked"])
def test_layers_of_other_spaces_than_tars_are_the_same_too(kernel: Imgfs, tmp_path: Path, kind: str) -> None:
    tar_stream = tar.archive(
        tar.file("noise", NOISE), tar.file("zeros", bytes(70_000)), tar.file("small", b"s")
    )
    made = estargz_layer(tar_stream, chunk=100_000) if kind == "estargz" else chunked_layer(tar_stream)
    flat = gzip.decompress(made.blob) if kind == "estargz" else tar_stream
    layer = Stored(made.blob, sha256(flat), made.layer.media_type, annotations=made.layer.annotations)
    at = kernel.mount(write_image(tmp_path / "layout", [layer]), "--index=any")
    assert is_erofs(at)
    assert kernel.status(at)["layers"][0]["bytes_fetched"] < len(made.blob) / 2
    assert (at / "small").read_bytes() == b"s"
    assert (at / "noise").read_bytes() == NOISE
    assert (at / "zeros").read_bytes() == bytes(70_000)


def test_a_mount_says_what_it_is(kernel: Imgfs, image: str) -> None:
    at = kernel.mount(image)
    assert {"ro", "nosuid", "nodev"} <= mount_flags(at)
    assert kernel.status(at)["driver"] == "kernel"
    assert kernel.status(at)["image"] == image
    assert f"image     {image}\n" in kernel.ok("status", at)
    kernel.umount(at)
    kernel.mount(image, "-o", "suid,dev,noexec,noatime", at=at)
    assert {"suid", "dev"}.isdisjoint(mount_flags(at))
    assert {"noexec", "noatime"} <= mount_flags(at)


def test_what_is_evicted_under_a_mount_is_fetched_again(kernel: Imgfs, image: str) -> None:
    at = kernel.mount(image)
    assert (at / "noise").read_bytes() == NOISE
    kernel.evict(image)
    drop_caches()
    assert (at / "noise").read_bytes() == NOISE
    layers = kernel.status(at)["layers"]
    assert any(layer["spans_present"] < layer["spans"] for layer in layers)


def test_the_image_is_removed_with_its_tree(kernel: Imgfs, image: str) -> None:
    at = kernel.mount(image)
    kernel.umount(at)
    assert len(list((kernel.store / "erofs").iterdir())) == 1
    kernel.ok("store", "rm", "--all")
    assert list((kernel.store / "erofs").iterdir()) == []


# -- which driver --------------------------------------------------------------------------------------------


def wait_until_written(imgfs: Imgfs) -> None:
    """Wait for what a first mount writes for the second."""
    place = imgfs.store / "erofs"
    until(lambda: any(path.name.startswith("sha256") for path in place.glob("*")), "the tree is written")


def test_auto_is_the_kernel_for_root_from_the_second_mount_on(imgfs: Imgfs, image: str) -> None:
    imgfs.driver = "auto"
    at = imgfs.mount(image)
    assert not is_erofs(at)
    wait_until_written(imgfs)
    imgfs.umount(at)
    assert is_erofs(imgfs.mount(image))


def test_a_first_mount_may_end_before_it_has_written_anything(imgfs: Imgfs, image: str) -> None:
    imgfs.driver = "auto"
    for _ in range(3):
        at = imgfs.mount(image)
        assert (at / "noise").read_bytes() == NOISE
        imgfs.umount(at)
    assert not list((imgfs.store / "erofs").glob("sha256*"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--squash-owner"], "--squash-owner is for FUSE"),
        (["-o", "dirsync"], "-o dirsync is for FUSE"),
    ],
)
def test_auto_is_fuse_where_the_kernel_cannot_and_the_log_says_why(
    imgfs: Imgfs, image: str, options: list[str], reason: str
) -> None:
    imgfs.driver = "auto"
    at = imgfs.mount(image, *options)
    assert not is_erofs(at)
    assert (at / "noise").read_bytes() == NOISE
    assert any(f"by FUSE, not by EROFS: {reason}" in line for line in imgfs.logged())
    imgfs.umount(at)
    imgfs.expected.append(f"ERROR imgfs.daemon: {reason}")
    ran = imgfs.run("mount", "--driver=kernel", *options, image, at)
    assert reason in ran.complaint()


def test_auto_is_fuse_if_the_kernel_refuses_at_the_last_moment(imgfs: Imgfs, tmp_path: Path) -> None:
    """An upper directory on a file system that overlayfs cannot have one on."""
    image = write_image(tmp_path / "layout", [gzipped(LAYER)])
    imgfs.driver = "auto"
    below = imgfs.mount(image, "--rw", at=imgfs.mountpoint("below"))
    over = f"lowerdir={below},upperdir={imgfs.mountpoint('u')},workdir={imgfs.mountpoint('w')}"
    deep = imgfs.mountpoint("deep")
    subprocess.run(["mount", "-t", "overlay", "x", "-o", over, deep], check=True)
    try:
        (deep / "scratch").mkdir()
        wait_until_written(imgfs)
        at = imgfs.mount(image, "--scratch", str(deep / "scratch"))
        assert not is_erofs(at)
        (at / "new").write_text("new")
        assert (at / "noise").read_bytes() == NOISE
        assert any("by FUSE, not by EROFS: overlayfs: " in line for line in imgfs.logged())
        imgfs.umount(at)
    finally:
        subprocess.run(["umount", deep], check=True)


def test_an_ordinary_user_is_told_who_may(nobody: Imgfs, open_path: Path) -> None:
    image = write_image(open_path / "layout", [gzipped(LAYER)])
    nobody.expected.append("ERROR imgfs.daemon: only root may")
    ran = nobody.run("mount", "--driver=kernel", image, nobody.mountpoint())
    assert "only root may mount EROFS" in ran.complaint()
    nobody.umount(nobody.mount(image, "--driver=auto"))
    assert any("by FUSE, not by EROFS: only root may" in line for line in nobody.logged())


# -- the end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scratch", [[], ["--rw"]], ids=["read-only", "scratch"])
@pytest.mark.parametrize(
    "words",
    [("umount", "{at}"), ("umount", "-l", "{at}"), ("kill", "{pid}"), ("kill", "-INT", "{pid}")],
    ids=["umount", "lazily", "SIGTERM", "SIGINT"],
)
def test_however_it_ends_nothing_is_left(
    kernel: Imgfs, image: str, words: tuple[str, ...], scratch: list[str]
) -> None:
    at = kernel.mount(image, *scratch)
    pid = kernel.pid(at)
    assert runtime_directories(pid) != []
    done = kernel.program(*(word.format(at=at, pid=pid) for word in words))
    assert (done.code, done.err) == (0, "")
    until(lambda: not is_alive(pid), "the daemon has ended")
    assert (mount_at(at), runtime_directories(pid)) == (None, [])
    assert not any(mount.source.startswith(f"{RUNTIME}/{pid}-") for mount in mounts())
    assert list((kernel.store / "scratch").glob("*")) == []
    kernel.gone(at)


def test_a_mount_goes_on_for_who_has_a_file_open_after_a_lazy_umount(kernel: Imgfs, image: str) -> None:
    at = kernel.mount(image)
    pid = kernel.pid(at)
    with open(at / "noise", "rb") as file:
        kernel.umount(at, "--lazy")
        drop_caches()
        assert file.read() == NOISE
        assert is_alive(pid)
    until(lambda: not is_alive(pid), "the daemon has ended")


@pytest.mark.parametrize("scratch", [[], ["--scratch", "kept"]], ids=["read-only", "scratch"])
def test_umount_clears_what_a_killed_daemon_left(kernel: Imgfs, image: str, scratch: list[str]) -> None:
    at = kernel.mount(image, *scratch)
    pid = kernel.pid(at)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid), "it is dead")
    drop_caches()
    assert errno_of(lambda: (at / "noise").read_bytes()) == errno.EIO
    assert "noise" in os.listdir(at)
    assert "its daemon has died; clear it with: imgfs umount" in kernel.run("status", at).complaint()
    assert "imgfs umount" in kernel.run("mount", image, at).complaint()
    if scratch:
        kernel.expected.append("ERROR imgfs.daemon: scratch kept is in use")
        ran = kernel.run("mount", *scratch, image, kernel.mountpoint("other"))
        assert f"scratch kept is in use: mounted at {at} by overlayfs" in ran.complaint()
    kernel.umount(at)
    assert (mount_at(at), runtime_directories(pid)) == (None, [])
    kernel.mount(image, *scratch, at=at)
    assert (at / "noise").read_bytes() == NOISE


def test_what_killed_daemons_left_in_the_runtime_directory_is_swept(kernel: Imgfs, image: str) -> None:
    at = kernel.mount(image)
    pid = kernel.pid(at)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid), "it is dead")
    other = kernel.mount(image, at=kernel.mountpoint("other"))
    assert runtime_directories(pid) != []  # still mounted
    subprocess.run(["umount", at], check=True)
    kernel.gone(at)
    kernel.umount(other)
    kernel.mount(image, at=other)
    assert runtime_directories(pid) == []


# -- trouble -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "stall"])
def test_a_mount_whose_registry_is_gone_fails_reads_in_time_and_recovers(
    kernel: Imgfs, server: FaultServer, how: str
) -> None:
    kernel.expected.append(GONE)
    with Wire(server.host) as wire:
        image = serve(server, "app", "v1", [gzipped(LAYER)], wire.host)
        at = kernel.mount(image, "--read-timeout", "2")
        kernel.evict(image)
        getattr(wire, how)()
        began = time.monotonic()
        assert errno_of(lambda: (at / "last").read_bytes()) == errno.EIO
        assert time.monotonic() - began < 15
        assert sorted(os.listdir(at)) == ["cached", "last", "noise", "padding"]
        wire.mend()
        time.sleep(6)  # what has just failed is not asked for again at once
        assert (at / "noise").read_bytes() == NOISE
        assert len((at / "last").read_bytes()) == 1 << 20
        kernel.umount(at)
    assert any("EIO: /" in line for line in kernel.logged())


# -- a scratch -----------------------------------------------------------------------------------------------


def test_changes_are_kept_and_both_drivers_know_them(kernel: Imgfs, image: str, tmp_path: Path) -> None:
    at = kernel.mount(image, "--scratch", "work")
    with open(at / "noise", "r+b") as file:
        file.write(b"changed")
    (at / "directory").mkdir()
    (at / "directory/new").write_text("new")
    (at / "cached").unlink()
    (at / "padding").chmod(0o600)
    (at / "last").rename(at / "directory/last")
    found = kernel.ok("diff", at).splitlines()
    seen = walk_directory(at)
    assert kernel.status(at)["scratch"]["name"] == "work"
    kernel.umount(at)
    assert sorted(kernel.ok("diff", "work").splitlines()) == sorted(found)
    assert {"D /cached", "A /directory", "A /directory/new"} <= set(found)
    kernel.driver = "fuse"
    by_fuse = walk_directory(kernel.mount(image, "--scratch", "work", at=at))
    assert differences(seen, by_fuse) == []
    with open(at / "torn", "ab") as file:
        file.write(b"more")
    kernel.umount(at)
    kernel.driver = "kernel"
    again = walk_directory(kernel.mount(image, "--scratch", "work", at=at))
    assert again[b"torn"].size == 10_004
    assert differences({**seen, b"torn": again[b"torn"]}, again) == []


def test_a_mount_is_committed_as_it_is(kernel: Imgfs, image: str, tmp_path: Path) -> None:
    at = kernel.mount(image, "--rw")
    (at / "new").write_text("new")
    (at / "cached").unlink()
    made = f"oci:{tmp_path / 'made'}:v1"
    kernel.ok("commit", at, made)
    other = kernel.mount(made, at=kernel.mountpoint("other"))
    assert sorted(os.listdir(other)) == ["last", "new", "noise", "padding", "torn"]
    assert (other / "new").read_text() == "new"
