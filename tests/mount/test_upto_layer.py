"""`imgfs mount --upto-layer`: the image as it was after an earlier layer, read-only or with a scratch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, gzipped, serve, write_image

pytestmark = [pytest.mark.kernel, pytest.mark.drivers("fuse", "kernel")]

LAYERS = [
    gzipped(tar.archive(tar.file("a", b"first"), tar.file("x", b"x"))),
    gzipped(tar.archive(tar.file("a", b"second"), tar.whiteout("x"))),
    gzipped(tar.archive(tar.file("a", b"third"), tar.file("new", b""))),
]
SHOWN = [(["a", "x"], b"first"), (["a"], b"second"), (["a", "new"], b"third")]


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    return write_image(imgfs.directory / "layout", LAYERS)


def shown(at: Path) -> tuple[list[str], bytes]:
    return sorted(os.listdir(at)), (at / "a").read_bytes()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_layer_is_named_by_number_digest_or_diff_id(imgfs: Imgfs, image: str, number: int) -> None:
    layer = LAYERS[number - 1]
    digest = layer.descriptor()["digest"]
    assert json.loads(imgfs.ok("inspect", "--json", image))["layers"][number - 1]["digest"] == digest
    names = [str(number), digest, digest[7:19], layer.diff_id, layer.diff_id[7:20]]
    for name in names if number == 2 else names[: 1 + number]:
        at = imgfs.mount(image, "--upto-layer", name)
        assert shown(at) == SHOWN[number - 1]
        imgfs.umount(at)


def test_what_is_no_layer_is_exit_code_2(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mountpoint()
    for name in ("0", "4"):
        said = imgfs.run("mount", "--upto-layer", name, image, at).complaint(2)
        assert said == f"there is no layer {name}: the image has 3 (see: imgfs inspect)"
    for name in ("-1", "", "sha256:", "0" * 64, LAYERS[0].diff_id[7:18], "1.0", "²"):
        said = imgfs.run("mount", f"--upto-layer={name}", image, at).complaint(2)
        assert said == f"{name!r} is not a layer of the image: say its number or digest (see: imgfs inspect)"


def test_layers_above_are_not_fetched(imgfs: Imgfs) -> None:
    with FaultServer() as server:
        image = serve(server, "app", "v1", LAYERS)
        at = imgfs.mount(image, "--upto-layer", "1")
        assert shown(at) == SHOWN[0]
        fetched = {one.path.rpartition("/")[2] for one in server.seen("/blobs/", "GET")}
        digests = [layer.descriptor()["digest"] for layer in LAYERS]
        assert fetched & set(digests) == {digests[0]}
        imgfs.umount(at)


def test_a_scratch_lies_on_the_layers_it_was_made_on(imgfs: Imgfs, image: str) -> None:
    imgfs.expected.append(" ERROR ")
    at = imgfs.mount(image, "--upto-layer", "2", "--scratch", "work")
    (at / "x").write_bytes(b"anew")
    (at / "a").unlink()
    said = imgfs.run("diff", at).text
    assert said == "C /\nD /a\nA /x\n"
    imgfs.umount(at)
    assert imgfs.ok("diff", "work") == said
    refused = imgfs.run("mount", "--scratch", "work", image, at).complaint()
    assert " up to layer 2: mount that, or begin anew" in refused
    imgfs.mount(image, "--upto-layer", LAYERS[1].diff_id, "--scratch", "work", at=at)
    assert sorted(os.listdir(at)) == ["x"]


def test_all_layers_are_the_whole_image(imgfs: Imgfs, image: str) -> None:
    imgfs.umount(imgfs.mount(image, "--upto-layer", "3", "--scratch", "work"))
    at = imgfs.mount(image, "--scratch", "work")
    assert shown(at) == SHOWN[2]
    assert imgfs.ok("diff", at) == ""


def test_a_layer_that_comes_twice_means_its_last_place(imgfs: Imgfs) -> None:
    twice = [LAYERS[0], LAYERS[1], LAYERS[0], LAYERS[2]]
    image = write_image(imgfs.directory / "layout", twice)
    at = imgfs.mount(image, "--rw", "--upto-layer", LAYERS[0].diff_id)
    assert shown(at) == SHOWN[0]
    (at / "a").write_bytes(b"written")
    assert shown(at) == (["a", "x"], b"written")
