"""Where things come from: history, which, platforms and tags, of small images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from imgfs.cli import main
from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import documents, gzipped, plain, serve, write_image

FIRST = tar.archive(
    tar.directory("usr"),
    tar.directory("usr/bin"),
    tar.symlink("bin", "usr/bin"),
    tar.file("usr/bin/app", b"one"),
    tar.file("usr/bin/key", b"secret", mode=0o600),
)
SECOND = tar.archive(tar.file("usr/bin/app", b"two"), tar.file("usr/bin/new", b"new"))
THIRD = tar.archive(tar.whiteout("usr/bin/key"), tar.whiteout("usr/bin/app"))
FOURTH = tar.archive(tar.file("usr/bin/app", b"four"))
HISTORY = [
    {"created": "2024-05-01T10:00:00Z", "created_by": "ADD rootfs /"},
    {"created_by": "ENV A=1", "empty_layer": True},
    {"created_by": "RUN build\n  app"},
    {"comment": "cleanup"},
]


class Image:
    def __init__(self, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        layers = [gzipped(FIRST), plain(SECOND), plain(THIRD), plain(FOURTH)]
        self.documents = documents(layers, {"history": HISTORY})
        self.name = write_image(path / "layout", layers, {"history": HISTORY}, tag="v1")
        self._capture = capfd
        self._store = str(path / "store")

    def __call__(self, command: str, *words: str | Path, code: int = 0, store: bool = True) -> str:
        options = ["--store", self._store] if store else []
        assert main([command, *options, *map(str, words)]) == code
        out, err = self._capture.readouterr()
        return err if code else out


@pytest.fixture
def image(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Image:
    return Image(tmp_path, capfd)


def test_the_history_has_each_step_with_its_layer(image: Image) -> None:
    rows = [line.split(maxsplit=5) for line in image("history", image.name).splitlines()[1:]]
    assert [row[0] for row in rows] == ["1", "-", "2", "3", "4"]
    assert rows[1][1:5] == ["-", "0", "B", "-"]
    assert rows[2][-1] == "RUN build app"
    steps = json.loads(image("history", "--json", image.name))
    assert [step["command"] for step in steps] == ["ADD rootfs /", "ENV A=1", "RUN build app", "cleanup", ""]
    assert sum(step["size"] for step in steps) == sum(
        layer["size"] for layer in json.loads(image.documents.manifest)["layers"]
    )


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="no skopeo")
def test_the_history_is_that_of_skopeo(image: Image) -> None:
    words = ["skopeo", "inspect", "--config", image.name]
    theirs = json.loads(subprocess.run(words, check=True, capture_output=True, timeout=60).stdout)["history"]
    ours = json.loads(image("history", "--json", image.name))
    assert [step["layer"] is None for step in ours[:4]] == [bool(step.get("empty_layer")) for step in theirs]


def test_which_tells_every_version_and_who_deleted_it(image: Image) -> None:
    said = image("which", image.name, "/usr/bin/app", "/bin/key").split("\n\n")
    assert [line.split()[:3] for line in said[0].splitlines()[1:]] == [
        ["A", "layer", "4"],
        ["D", "layer", "3"],
        ["C", "layer", "2"],
        ["A", "layer", "1"],
    ]
    assert [line.split()[:3] for line in said[1].splitlines()[1:]] == [
        ["D", "layer", "3"],
        ["A", "layer", "1"],
    ]
    assert "RUN build app" in said[0]
    [found] = json.loads(image("which", "--json", f"{image.name}:/usr/bin/new"))
    assert [(one["layer"], one["change"], one["file"]["size"]) for one in found["versions"]] == [
        (2, "added", 3)
    ]
    assert "/x: in no layer" in image("which", image.name, "/x", code=1)


def test_which_restores_what_upper_layers_hide(image: Image, tmp_path: Path) -> None:
    image("which", f"{image.name}:/bin/key", "--restore", tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    image("which", image.name, "/bin/app", "--restore", tmp_path / "app")
    assert (tmp_path / "app").read_bytes() == b"two"
    image("which", image.name, "/bin/app", "--layer", "1", "--restore", tmp_path / "first")
    assert (tmp_path / "first").read_bytes() == b"one"
    assert "already exists" in image("which", image.name, "/bin/app", "--restore", tmp_path / "app", code=2)
    assert "layer 3 does not bring" in image(
        "which", image.name, "/bin/app", "--layer", "3", "--restore", tmp_path / "x", code=2
    )
    assert "no earlier version" in image("which", image.name, "/usr", "--restore", tmp_path / "x", code=2)
    assert not os.path.lexists(tmp_path / "x")


def test_platforms_and_tags_of_a_layout(image: Image, tmp_path: Path) -> None:
    assert image("platforms", image.name).split()[0] == "linux/amd64"
    write_image(tmp_path / "layout", [plain(FOURTH)], tag="v2")
    write_image(tmp_path / "layout", [plain(FOURTH)], tag=f"sha256-{'a' * 64}.sig")
    assert image("tags", f"oci:{tmp_path / 'layout'}", store=False).split() == ["v1", "v2"]
    assert len(json.loads(image("tags", "--json", "--all", f"oci:{tmp_path / 'layout'}", store=False))) == 3
    assert "one image, without tags" in image("tags", f"tar:{tmp_path / 'x'}", code=2, store=False)


def test_tags_and_platforms_of_a_registry(image: Image) -> None:
    with FaultServer() as server:
        name = serve(server, "team/app", "v1", [gzipped(FIRST)])
        assert image("tags", f"{server.host}/team/app", store=False).split() == ["v1"]
        assert image("platforms", name).startswith("linux/amd64")
