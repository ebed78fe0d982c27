"""Mounts have names: what mount tables show, `mount -a` twice, `imgfs ps`, several unmounted at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs import __version__
from imgfs.cli import main
from imgfs.kernel.driver import runtime_directory
from imgfs.mounts import table
from imgfs.mounts.table import RUNTIME, imgfs_mount_at
from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, gzipped, mount_of, write_image

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts by the kernel's own file systems"),
    pytest.mark.drivers("fuse", "kernel"),
]

LAYER = tar.archive(tar.directory("./", mode=0o755, mtime_ns=1), tar.file("a", b"a"))


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    return write_image(imgfs.directory / "layout", [gzipped(LAYER)])


@pytest.mark.parametrize("options", [[], ["--rw"]], ids=["plain", "scratch"])
def test_the_source_shown_ends_in_the_images_name(imgfs: Imgfs, image: str, options: list[str]) -> None:
    at = imgfs.mount(image, *options)
    mount = mount_of(at)
    assert mount is not None
    assert mount.source == image or mount.source.endswith(f"/{image}")
    shown = imgfs.program("findmnt", "-n", "-o", "SOURCE", at)
    assert shown.text.strip().endswith(image)
    listed = imgfs.program("findmnt", "-n", "-l", "-t", "fuse.imgfs,erofs,overlay", "-o", "TARGET")
    assert str(at) in listed.text.split()
    assert imgfs_mount_at(at).name == image
    assert imgfs.status(at)["image"] == image
    imgfs.umount(at)


def test_asked_twice_mount_8_finds_it_mounted(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    code = "import sys; from imgfs.cli import mount_helper; sys.exit(mount_helper())"
    options = ["-o", f"rw,store={imgfs.store},driver={imgfs.driver}"]
    again = imgfs.program(sys.executable, "-c", code, image, at, *options)
    assert (again.code, again.out, again.err) == (0, b"", "")
    other = imgfs.program(sys.executable, "-c", code, f"{image}2", at, *options)
    assert other.code == 1
    assert "is mounted here already" in other.err
    imgfs.umount(at)


def test_ps_lists_and_umount_takes_several(imgfs: Imgfs, image: str) -> None:
    places = [imgfs.mount(image, "--scratch", "work", at=imgfs.mountpoint("one"))]
    places.append(imgfs.mount(image, at=imgfs.mountpoint("two")))
    listed = {one["mountpoint"]: one for one in json.loads(imgfs.ok("ps", "--json"))}
    for at, scratch in zip(places, ("work", None), strict=True):
        row = listed[str(at)]
        assert 0 <= row.pop("seconds") < 600
        assert row.pop("fetched") == imgfs.status(at)["bytes_fetched"]
        assert (row.pop("version"), row.pop("restarts")) == (__version__, 0)
        assert row == {
            "mountpoint": str(at),
            "image": image,
            "driver": imgfs.driver,
            "pid": imgfs.pid(at),
            "scratch": scratch,
            "idle": False,
            "state": "served",
        }
        assert str(at) in imgfs.ok("ps")
    absent, loop = imgfs.mountpoint("three"), imgfs.directory / "loop"
    loop.symlink_to(loop)
    ran = imgfs.run("umount", places[0], absent, loop, places[1])
    assert ran.code == 1
    assert ran.err == "".join(f"imgfs: {path}: nothing is mounted here\n" for path in (absent, loop))
    for at in places:
        imgfs.gone(at)
        assert mount_of(at) is None


@contextmanager
def held_open(directory: Path) -> Iterator[None]:
    """Meanwhile a directory is in use."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
    finally:
        os.close(fd)


def test_umount_all_takes_the_latest_first_and_goes_on(
    imgfs: Imgfs, image: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only this test's mounts are listed to it: others run beside it."""
    places = [imgfs.mount(image, at=imgfs.mountpoint(name)) for name in ("one", "two", "three")]
    whole = table.imgfs_mounts
    monkeypatch.setattr(
        table, "imgfs_mounts", lambda: [each for each in whole() if each.mountpoint in places]
    )
    with held_open(places[1]):
        assert main(["umount", "--all"]) == 1
        said = capfd.readouterr().err
        assert said.startswith(f"imgfs: {places[1]}: cannot unmount")
        assert said.count("\n") == 1
    assert main(["umount", "--all"]) == 0
    assert main(["umount", "--all"]) == 0
    for at in places:
        imgfs.gone(at)
        assert mount_of(at) is None


def test_umount_is_told_which(imgfs: Imgfs) -> None:
    assert imgfs.run("umount").complaint(2).startswith("name what to unmount")
    assert imgfs.run("umount", "--all", "/mnt").complaint(2).startswith("name what to unmount")


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("registry.example.com:5000/team/app:v1", "registry.example.com:5000/team/app:v1"),
        ("oci:/srv/lay out:v1", "oci:/srv/lay_out:v1"),
        ("oci:/../../etc/x:v1", "oci:/etc/x:v1"),
        ("status", "_status"),
        ("/", "image"),
        (f"oci:/{'x' * 300}:v1", f"oci:/{'x' * 197}:v1"),
    ],
)
def test_a_name_is_a_path_in_a_directory_of_ours(tmp_path: Path, reference: str, shown: str) -> None:
    with runtime_directory(reference, tmp_path) as (link, _):
        below = link.relative_to(RUNTIME).parts
        assert "/".join(below[1:]) == shown
        assert os.readlink(link) == str(tmp_path)
    assert not (RUNTIME / below[0]).exists()
