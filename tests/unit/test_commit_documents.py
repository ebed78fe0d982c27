"""`imgfs commit`: what the documents of the new image say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imgfs.oci.image import DOCKER_CONFIG, DOCKER_MANIFEST, OCI_MANIFEST
from tests.support import committed
from tests.support.committed import LAYERS, commit
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, documents
from tests.support.umoci_oracle import differences, walk_directory

pytestmark = pytest.mark.kernel
needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")

image, at = committed.image, committed.at


def document(layout: Path, digest: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()
    )
    return found


def config_of(layout: Path, digest: str) -> dict[str, Any]:
    return document(layout, document(layout, digest)["config"]["digest"])


def test_the_documents_tell_of_the_commit(imgfs: Imgfs, at: Path, tmp_path: Path) -> None:
    words = [
        "--message",
        "a message",
        "--author",
        "A. U. Thor",
        "--change",
        'CMD ["x", "y"]',
        "-c",
        "ENV A=b",
    ]
    digest = commit(imgfs, at, f"oci:{tmp_path}/made:v1", *words)
    manifest, config = document(tmp_path / "made", digest), config_of(tmp_path / "made", digest)
    assert [layer["digest"] for layer in manifest["layers"][:2]] == [
        one.descriptor()["digest"] for one in LAYERS
    ]
    assert config["rootfs"]["diff_ids"][:2] == [one.diff_id for one in LAYERS]
    assert len(manifest["layers"]) == len(config["rootfs"]["diff_ids"]) == 3
    assert config["config"] == {"Env": ["PATH=/bin", "A=b"], "Cmd": ["x", "y"]}
    assert config["author"] == "A. U. Thor"
    assert config["created"] == "2020-09-13T12:26:40Z"  # its newest file's
    assert config["history"][-1] == {
        "created": config["created"],
        "created_by": "imgfs commit",
        "author": "A. U. Thor",
        "comment": "a message",
    }


@needs_skopeo
@pytest.mark.parts
def test_skopeo_sees_the_new_config(imgfs: Imgfs, at: Path, tmp_path: Path) -> None:
    commit(imgfs, at, f"oci:{tmp_path}/made:v1", "-m", "message", "-c", "LABEL a=b", "-c", "USER 1:2")
    words = ["skopeo", "inspect", "--config", f"oci:{tmp_path}/made:v1"]
    config = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    assert (config["config"]["Labels"], config["config"]["User"]) == ({"a": "b"}, "1:2")
    assert config["history"][-1]["comment"] == "message"


def test_the_date_may_be_given(imgfs: Imgfs, at: Path, tmp_path: Path) -> None:
    imgfs.environment["SOURCE_DATE_EPOCH"] = "86400"
    digest = commit(imgfs, at, f"oci:{tmp_path}/made:v1")
    assert config_of(tmp_path / "made", digest)["created"] == "1970-01-02T00:00:00Z"


def test_without_changes_there_is_no_new_layer(imgfs: Imgfs, image: str, tmp_path: Path) -> None:
    at = imgfs.mount(image, "--rw")
    digest = commit(imgfs, at, f"oci:{tmp_path}/made:v1", "--change", "CMD x")
    assert len(document(tmp_path / "made", digest)["layers"]) == 2
    config = config_of(tmp_path / "made", digest)
    assert config["history"][-1]["empty_layer"] is True
    assert config["config"]["Cmd"] == ["/bin/sh", "-c", "x"]
    new = imgfs.mount(f"oci:{tmp_path}/made:v1", at=imgfs.mountpoint("new"))
    assert differences(walk_directory(at), walk_directory(new)) == []


def test_on_an_earlier_layer_those_above_are_left_out(imgfs: Imgfs, image: str, tmp_path: Path) -> None:
    at = imgfs.mount(image, "--rw", "--upto-layer", "1")
    (at / "new").touch()
    digest = commit(imgfs, at, f"oci:{tmp_path}/made:v1")
    layers = document(tmp_path / "made", digest)["layers"]
    assert [one["digest"] for one in layers][:-1] == [LAYERS[0].descriptor()["digest"]]
    new = imgfs.mount(f"oci:{tmp_path}/made:v1", at=imgfs.mountpoint("new"))
    assert sorted(os.listdir(new)) == ["a", "b", "new"]
    assert (new / "a").read_bytes() == b"first"


def test_the_name_of_the_base_may_be_taken(imgfs: Imgfs, image: str, at: Path) -> None:
    """The scratch goes on lying on the image that had the name before."""
    commit(imgfs, at, image)
    assert imgfs.ok("cat", image, "a") == "changed"
    said = imgfs.ok("diff", at)
    assert said == "C /\nC /a\nD /b\n"
    imgfs.umount(at)
    assert imgfs.ok("diff", "work") == said
    commit(imgfs, "work", image)
    assert json.loads(imgfs.ok("inspect", "--json", image))["layers"][2:] != []


def test_a_docker_image_stays_one_in_a_registry_and_is_an_oci_image_in_a_layout(
    imgfs: Imgfs, tmp_path: Path
) -> None:
    with FaultServer() as server:
        made = documents(LAYERS)
        manifest = json.loads(made.manifest)
        manifest["mediaType"], manifest["config"]["mediaType"] = DOCKER_MANIFEST, DOCKER_CONFIG
        for layer in manifest["layers"]:
            layer["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
        server.blobs.update(made.blobs)
        server.add_manifest("app", "v1", json.dumps(manifest).encode(), DOCKER_MANIFEST)
        at = imgfs.mount(f"{server.host}/app:v1", "--rw")
        (at / "new").touch()
        commit(imgfs, at, f"{server.host}/app:v2")
        kind, body = server.manifests["app", "v2"]
        assert (kind, json.loads(body)["mediaType"]) == (DOCKER_MANIFEST, DOCKER_MANIFEST)
        assert {one["mediaType"] for one in json.loads(body)["layers"]} == {
            manifest["layers"][0]["mediaType"]
        }
        digest = commit(imgfs, at, f"oci:{tmp_path}/made:v2")
        assert document(tmp_path / "made", digest)["mediaType"] == OCI_MANIFEST
        assert imgfs.ok("ls", f"oci:{tmp_path}/made:v2").split() == ["a", "b", "c", "new"]
        commit(imgfs, at, f"{server.host}/app:v3", "--compression", "zstd")
        assert server.manifests["app", "v3"][0] == OCI_MANIFEST  # schema 2 has no zstd
        imgfs.umount(at)
