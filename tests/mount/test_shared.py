"""What images have in common, by indexes alone or by contents."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from imgfs.cli import main
from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import gzipped, plain, serve, write_image, zstd

BASE = tar.archive(
    tar.directory("etc"),
    tar.file("etc/same", b"same" * 100),
    tar.file("etc/other", b"one"),
    tar.hardlink("etc/link", "etc/same"),
    tar.file("etc/empty", b""),
    tar.symlink("link", "etc"),
)
FIRST = tar.archive(tar.file("app", b"app 1"), tar.file("lib", b"lib"))
SECOND = tar.archive(tar.file("lib", b"lib"), tar.file("app", b"app 2"), tar.file("etc/other", b"two"))


class Images:
    def __init__(self, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.layout = path / "layout"
        self.first = write_image(self.layout, [gzipped(BASE), plain(FIRST)], tag="v1")
        self.second = write_image(self.layout, [gzipped(BASE), plain(SECOND)], tag="v2")
        self.zstd = write_image(self.layout, [zstd(BASE)], tag="zstd")
        self.none = write_image(self.layout, [plain(tar.archive(tar.symlink("app", "x")))], tag="none")
        self._capture = capfd
        self._store = str(path / "store")

    def __call__(self, *words: str, code: int = 0) -> str:
        assert main(["shared", "--store", self._store, *words]) == code
        out, err = self._capture.readouterr()
        return out or err


@pytest.fixture
def images(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Images:
    return Images(tmp_path, capfd)


def test_layers_and_files_in_common_are_counted(images: Images) -> None:
    found = json.loads(images("--json", images.first, images.second))
    assert [layer["images"] for layer in found["layers"]] == [[1, 2]]
    assert found["files"] == {"count": 3, "size": 400}
    assert images("--files", images.first, images.second).split() == ["/etc/empty", "/etc/link", "/etc/same"]
    assert images("--files", "--content", images.first, images.second).split() == [
        "/etc/empty",
        "/etc/link",
        "/etc/same",
        "/lib",
    ]
    assert images(images.first, images.second).splitlines()[-1] == "3 files in all images, 400 B"


def test_a_layer_compressed_otherwise_is_the_same_but_is_stored_twice(images: Images) -> None:
    found = json.loads(images("--json", images.first, images.zstd))
    assert len(found["layers"][0]["blobs"]) == 2
    assert found["files"]["count"] == 4
    assert "1 shared layer, 0 B stored once" in images(images.first, images.zstd)


def test_images_that_share_nothing_say_so(images: Images) -> None:
    assert images(images.first, images.none).splitlines()[-2:] == [
        "0 shared layers, 0 B stored once",
        "0 files in all images, 0 B",
    ]
    assert json.loads(images("--json", images.first, images.second, images.none))["layers"][0]["images"] == [
        1,
        2,
    ]
    assert "arguments are required" in images(images.first, code=2)
    assert "no tag" in images(images.first, images.first.replace("v1", "v9"), code=1)


@pytest.mark.skipif(shutil.which("umoci") is None or os.geteuid() != 0, reason="no umoci for root")
def test_contents_in_common_are_those_of_unpacked_trees(images: Images, tmp_path: Path) -> None:
    seen = []
    for tag in ("v1", "v2"):
        words = ["umoci", "unpack", "--image", f"{images.layout}:{tag}", str(tmp_path / tag)]
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        root = tmp_path / tag / "rootfs"
        files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
        seen.append(
            {(str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}
        )
    expected = sorted(f"/{path}" for path, _ in seen[0] & seen[1])
    assert sorted(images("--files", "--content", images.first, images.second).split()) == expected


def test_nothing_of_files_is_fetched_of_indexed_images(images: Images) -> None:
    with FaultServer() as server:
        names = [
            serve(server, "app", tag, [gzipped(BASE), plain(last)])
            for tag, last in (("1", FIRST), ("2", SECOND))
        ]
        images(*names)
        server.log.clear()
        images("--files", *names)
        assert server.seen("/blobs/") == []
