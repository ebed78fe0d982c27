"""Mounts by the kernel's own file systems: the same tree, bytes, commands and errors as by FUSE."""

from __future__ import annotations

import errno
import fcntl
import gzip
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.image.image import Image
from imgfs.image.verify import Verifier
from imgfs.kernel.erofs_image import write
from imgfs.kernel.passthrough import Passthrough
from imgfs.mounts.table import RUNTIME, mount_at, mounts
from imgfs.store.store import Store
from tests.mount.test_mount import NOISE, highest, lowest, middle
from tests.mount.test_registry import GONE, image_layer, packed_layer
from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import (
    Imgfs,
    Stored,
    Wire,
    drop_caches,
    errno_of,
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
from tests.support.offerings import offering, prepared
from tests.support.patience import allowed
from tests.support.tocmake import chunked_layer, estargz_layer
from tests.support.umoci_oracle import differences, walk_directory

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
    return write_image(tmp_path / "layout", [packed_layer(), plain(TORN)])


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


# -- layers that the kernel reads itself ---------------------------------------------------------------------


@pytest.fixture
def alone(kernel: Imgfs) -> Imgfs:
    """The command, mounting by the kernel, which reads whole layers itself."""
    kernel.passthrough = True
    return kernel


def pins(imgfs: Imgfs) -> list[Path]:
    return list((imgfs.store / "layers").glob("*/*/pin-*"))


def test_what_is_in_the_store_whole_is_read_without_us(alone: Imgfs, image: str) -> None:
    at = alone.mount(image)
    pid = alone.pid(at)
    os.kill(pid, signal.SIGSTOP)
    try:
        drop_caches()
        assert (at / "noise").read_bytes() == NOISE
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (alone.status(at)["bytes_served"], alone.status(at)["passthrough"]) == (0, 2)
    assert len((at / "torn").read_bytes()) == 10_000  # lies at no whole blocks: put together by us
    assert alone.status(at)["bytes_served"] > 0


@pytest.mark.parametrize("missing", [120, 60], ids=["no padding", "half of it"])
def test_a_layer_that_ends_right_after_a_files_bytes_is_read_to_its_end(
    alone: Imgfs, tmp_path: Path, missing: int
) -> None:
    layer = tar.archive(tar.file("first", b"f"), tar.file("last", NOISE[:5000]))[: -1024 - missing]
    image = write_image(tmp_path / "layout", [plain(layer)])
    for _ in range(2):  # from the second time on, the kernel reads the file itself
        at = alone.mount(image)
        drop_caches()
        assert (at / "last").read_bytes() == NOISE[:5000]
        assert (at / "first").read_bytes() == b"f"
        alone.umount(at)


def test_what_is_recorded_or_is_to_be_served_is_served(alone: Imgfs, image: str) -> None:
    for options in (["--record", "work"], ["-o", "nopassthrough"]):
        at = alone.mount(image, *options)
        assert (at / "noise").read_bytes() == NOISE
        assert alone.status(at)["bytes_served"] >= len(NOISE)
        assert pins(alone) == []
        alone.umount(at)


def test_a_layer_of_which_something_is_missing_is_served(alone: Imgfs, image: str) -> None:
    alone.umount(alone.mount(image))
    alone.evict(image)
    at = alone.mount(image)
    assert pins(alone) == []
    assert (at / "noise").read_bytes() == NOISE


def test_what_the_kernel_reads_itself_outlives_its_eviction(alone: Imgfs, image: str) -> None:
    at = alone.mount(image)
    alone.evict(image)
    assert (at / "noise").read_bytes() == NOISE
    other = alone.mount(image, at=alone.mountpoint("other"))
    assert len((other / "last").read_bytes()) == 1 << 20
    alone.evict(image)
    assert (at / "noise").read_bytes() == NOISE
    assert (other / "noise").read_bytes() == NOISE
    for mountpoint in (at, other):
        alone.umount(mountpoint)
    assert pins(alone) == []


@pytest.mark.parametrize("how", ["umount", "SIGTERM", "SIGKILL"])
def test_no_pin_is_left_that_holds_anything(alone: Imgfs, image: str, how: str) -> None:
    at = alone.mount(image)
    pid = alone.pid(at)
    assert pins(alone) != []
    if how != "umount":
        os.kill(pid, getattr(signal, how))
        until(lambda: not is_alive(pid), "the daemon has ended")
    if how != "SIGTERM":
        alone.umount(at)
    alone.evict(image)
    assert pins(alone) == []
    assert all(path.stat().st_blocks * 512 < 1 << 20 for path in alone.store.glob("layers/*/*/flat"))
    if how == "SIGTERM":
        alone.gone(at)


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGTERM"])
def test_a_file_that_is_open_is_read_on_when_the_daemon_is_gone_and_all_is_evicted(
    alone: Imgfs, image: str, signal_name: str
) -> None:
    at = alone.mount(image)
    pid = alone.pid(at)
    with open(at / "noise", "rb") as file:
        os.kill(pid, getattr(signal, signal_name))
        until(lambda: not is_alive(pid), "the daemon has ended")
        alone.evict(image)
        assert file.read() == NOISE
    if signal_name == "SIGKILL":
        alone.umount(at)
    else:
        alone.gone(at)


def test_a_layer_is_served_as_long_as_only_a_registry_vouches_for_its_index(tmp_path: Path) -> None:
    made = offering(tmp_path / "theirs", [packed_layer()])
    made.refer()
    store = Store(tmp_path / "mine")
    resolved, _ = prepared(made.source, store)
    with Image(resolved, made.source, store) as image:
        layer = image.content.layers[0]
        layer.read(0, layer.table.flat_size)
        assert layer.is_complete()
        assert Passthrough.pin(image.content.layers).files == (None,)
        Verifier(image, store).verify_complete()
        passthrough = Passthrough.pin(image.content.layers)
        assert passthrough.files[0]
        assert passthrough.files[0].read_bytes() == image_layer()
        passthrough.release()
        assert not passthrough.files[0].exists()


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


def test_a_first_mount_may_end_before_that_is_written(imgfs: Imgfs, image: str) -> None:
    imgfs.driver = "auto"
    at = imgfs.mount(image)
    imgfs.umount(at)
    wait_until_written(imgfs)
    at = imgfs.mount(image)
    assert is_erofs(at)
    assert (at / "noise").read_bytes() == NOISE


def test_of_a_daemon_that_ends_while_idle_it_is_written_then(imgfs: Imgfs, image: str) -> None:
    imgfs.driver = "auto"
    imgfs.umount(imgfs.mount(image, "--restart", "--exit-idle", "1000"))
    assert not (imgfs.store / "erofs").exists(), "no process has begun"
    at = imgfs.mount(image, "--restart", "--exit-idle", "1")
    assert not is_erofs(at)
    wait_until_written(imgfs)
    imgfs.umount(at)
    assert is_erofs(imgfs.mount(image))


def test_a_pulled_image_is_mounted_by_the_kernel_at_once(imgfs: Imgfs, image: str) -> None:
    imgfs.ok("pull", "--quiet", image)
    imgfs.driver = "auto"
    assert is_erofs(imgfs.mount(image))


def test_only_one_process_writes_a_tree_and_none_that_is_gone(imgfs: Imgfs, image: str) -> None:
    imgfs.umount(imgfs.mount(image))
    store = Store(imgfs.store)
    (digest,) = store.trees()
    path = store.tree(digest)
    assert path
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write(digest, [len(image_layer()), len(TORN)], store)
    assert not (imgfs.store / "erofs").exists()
    write(digest, [len(image_layer()), len(TORN)], store)
    assert len(list((imgfs.store / "erofs").iterdir())) == 1
    store.remove_tree(digest)
    write(digest, [len(image_layer()), len(TORN)], store)
    assert list((imgfs.store / "erofs").iterdir()) == []


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
    imgfs.expected.append(f"ERROR imgfs.daemonize: {reason}")
    ran = imgfs.run("mount", "--driver=kernel", *options, image, at)
    assert reason in ran.complaint()


def test_auto_is_fuse_if_the_kernel_refuses_at_the_last_moment(imgfs: Imgfs, tmp_path: Path) -> None:
    """An upper directory on a file system that overlayfs cannot have one on."""
    image = write_image(tmp_path / "layout", [packed_layer()])
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
        assert pins(imgfs) == []
        (at / "new").write_text("new")
        assert (at / "noise").read_bytes() == NOISE
        assert any("by FUSE, not by EROFS: overlayfs: " in line for line in imgfs.logged())
        imgfs.umount(at)
    finally:
        subprocess.run(["umount", deep], check=True)


def test_an_ordinary_user_is_told_who_may(nobody: Imgfs, open_path: Path) -> None:
    image = write_image(open_path / "layout", [packed_layer()])
    nobody.expected.append("ERROR imgfs.daemonize: only root may")
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
        kernel.expected.append("ERROR imgfs.daemonize: scratch kept is in use")
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
    # by this mount, or by another on this machine that is at it and has it locked
    until(lambda: runtime_directories(pid) == [], "what the dead one has left is swept")


# -- trouble -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "stall"])
def test_a_mount_whose_registry_is_gone_fails_reads_in_time_and_recovers(
    kernel: Imgfs, server: FaultServer, how: str
) -> None:
    kernel.expected.append(GONE)
    with Wire(server.host) as wire:
        image = serve(server, "app", "v1", [packed_layer()], wire.host)
        at = kernel.mount(image, "--read-timeout", "2")
        kernel.evict(image)
        getattr(wire, how)()
        began = time.monotonic()
        assert errno_of(lambda: (at / "last").read_bytes()) == errno.EIO
        assert time.monotonic() - began < allowed(15)
        assert sorted(os.listdir(at)) == ["cached", "last", "noise", "padding"]
        wire.mend()
        time.sleep(6)  # what has just failed is not asked for again at once
        assert (at / "noise").read_bytes() == NOISE
        assert len((at / "last").read_bytes()) == 1 << 20
        kernel.umount(at)
    assert any("EIO: /" in line for line in kernel.logged())


# -- readers of whole trees ----------------------------------------------------------------------------------


def test_what_the_reader_of_a_tree_will_read_next_is_fetched_ahead(kernel: Imgfs, tmp_path: Path) -> None:
    chance = random.Random(4)
    names = [f"{number:04}" for number in range(700)]
    layer = tar.archive(*(tar.file(name, chance.randbytes(20_000)) for name in names))
    image = write_image(tmp_path / "layout", [gzipped(layer)])
    kernel.umount(kernel.mount(image))
    kernel.evict(image)
    at = kernel.mount(image)
    assert all(len((at / name).read_bytes()) == 20_000 for name in names)
    brought = kernel.status(at)["layers"][0]["brought"]
    assert brought["sweep"]["bytes_used"] > brought["miss"]["bytes"]


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
