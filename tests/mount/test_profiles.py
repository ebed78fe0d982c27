"""A profile that one mount has recorded serves others: of another tag, and of another registry."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from imgfs.status import BroughtStatus
from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, Stored, gzipped, serve, until

pytestmark = pytest.mark.kernel


@cache
def wanted_body() -> bytes:
    return random.Random(5).randbytes(3_000_000)


@cache
def other_body() -> bytes:
    return random.Random(6).randbytes(3_000_000)


@cache
def lower_body() -> bytes:
    return random.Random(7).randbytes(3_000_000)


@cache
def lowest_layer() -> Stored:
    return gzipped(tar.archive(tar.file("lower", lower_body()), tar.file("unread", other_body()[::-1])))


def upper(*more: bytes) -> Stored:
    """A layer of which a program reads `wanted`; `more` lies before that."""
    return gzipped(tar.archive(*more, tar.file("other", other_body()), tar.file("opt/wanted", wanted_body())))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def recorded(imgfs: Imgfs, image: str) -> None:
    """Mount an image, and read two of its files."""
    at = imgfs.mount(image)
    assert (at / "opt/wanted").read_bytes() == wanted_body()
    assert (at / "lower").read_bytes() == lower_body()
    imgfs.umount(at)


def replayed(imgfs: Imgfs, image: str, *options: str) -> list[BroughtStatus]:
    """What a mount of an image that has an index fetches by replay, of each layer."""
    imgfs.umount(imgfs.mount(image, "--replay", "none"))
    imgfs.evict(image)
    at = imgfs.mount(image, "--no-predict", *options)

    def layers() -> list[BroughtStatus]:
        return [BroughtStatus(**layer["brought"]["replay"]) for layer in imgfs.status(at)["layers"]]

    until(lambda: all(layer.bytes > 2_500_000 for layer in layers()), "the replay has come")
    requests = imgfs.status(at)["requests_fetched"]
    assert (at / "opt/wanted").read_bytes() == wanted_body()
    assert imgfs.status(at)["requests_fetched"] == requests
    found = layers()
    imgfs.umount(at)
    return found


@pytest.mark.drivers("fuse")
def test_another_tag_has_the_profile_of_the_one_before(imgfs: Imgfs, server: FaultServer) -> None:
    recorded(imgfs, serve(server, "app", "v1", [lowest_layer(), upper()]))
    after = serve(server, "app", "v2", [lowest_layer(), upper(tar.file("new", other_body()[:1_500_000]))])
    lower, changed = replayed(imgfs, after)
    assert lower.bytes < 5_000_000
    assert 3_000_000 < changed.bytes < 6_000_000
    assert changed.bytes_used >= len(wanted_body())


def test_another_registry_and_a_named_profile_serve_as_well(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [lowest_layer(), upper()])
    at = imgfs.mount(image, "--record", "start")
    assert (at / "opt/wanted").read_bytes() == wanted_body()
    assert (at / "lower").read_bytes() == lower_body()
    imgfs.umount(at)
    with FaultServer() as another:
        moved = serve(another, "app", "v2", [lowest_layer(), upper(tar.file("x", b"x"))])
        assert len(replayed(imgfs, moved, "--replay", "start")) == 2


def test_another_repository_has_no_use_for_it(imgfs: Imgfs, server: FaultServer, tmp_path: Path) -> None:
    recorded(imgfs, serve(server, "app", "v1", [lowest_layer(), upper()]))
    stranger = serve(server, "stranger", "v1", [lowest_layer(), upper(tar.file("x", b"x"))])
    imgfs.umount(imgfs.mount(stranger, "--replay", "none"))
    imgfs.evict(stranger)
    at = imgfs.mount(stranger, "--no-predict")
    assert (at / "opt/wanted").read_bytes() == wanted_body()
    assert all(layer["brought"]["replay"]["spans"] == 0 for layer in imgfs.status(at)["layers"])
