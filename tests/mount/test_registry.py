"""Mounts from a registry: what is asked of it, who may ask, and what happens when it goes away."""

from __future__ import annotations

import base64
import errno
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from imgfs.oci.image import OCI_INDEX
from tests.mount.test_mount import NOISE
from tests.support import tarmake as tar
from tests.support.docker_registry import docker_registry, needs_docker_registry, push_image, push_index
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import (
    Imgfs,
    Stored,
    Wire,
    documents,
    drop_caches,
    errno_of,
    gzipped,
    plain,
    serve,
    sha256,
    until,
    zstd,
)
from tests.support.patience import allowed
from tests.support.pythons import MORE_MODULES

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.drivers("fuse", "kernel"),
    pytest.mark.skipif(os.geteuid() != 0, reason="drops the kernel's caches"),
]

CACHED = b"cached " * 1000


@cache
def image_layer() -> bytes:
    return tar.archive(
        tar.file("cached", CACHED),
        tar.file("noise", NOISE),
        tar.file("padding", NOISE * 5),  # spans of megabytes lie between the first file and the last
        tar.file("last", random.Random(3).randbytes(1 << 20)),
    )


@cache
def packed_layer() -> Stored:
    return gzipped(image_layer())


HTPASSWD = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"  # secret
PASSWORD = ("user", "secret")
GONE = "(ERROR|WARNING) .*(refused|timed out|Connection reset|cut short|too slow|no answer|nothing arrived)"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


# -- a real registry -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.mark.parts
@needs_docker_registry
def test_an_image_is_mounted_by_tag_by_digest_and_by_both(imgfs: Imgfs, registry: str) -> None:
    pushed = push_image(registry, "team/app", "v1", [packed_layer().blob])
    digest = pushed.manifest.digest
    for name in ("team/app:v1", f"team/app@{digest}", f"team/app:v1@{digest}", f"team/app:moved@{digest}"):
        at = imgfs.mount(f"{registry}/{name}")
        assert (at / "noise").read_bytes() == NOISE
        assert imgfs.status(at)["digest"] == str(digest)
        imgfs.umount(at)


@pytest.mark.parts
@needs_docker_registry
def test_a_tag_that_has_moved_is_noticed_at_the_next_mount(imgfs: Imgfs, registry: str) -> None:
    for body in (b"old", b"new"):
        push_image(registry, "moving", "latest", [gzipped(tar.archive(tar.file("version", body))).blob])
        at = imgfs.mount(f"{registry}/moving")
        assert (at / "version").read_bytes() == body
        imgfs.umount(at)


@pytest.mark.parts
@needs_docker_registry
def test_a_tag_that_is_not_there_names_those_that_are(imgfs: Imgfs, registry: str) -> None:
    for tag in ("one", "two"):
        push_image(registry, "tagged", tag, [])
    said = imgfs.run("mount", f"{registry}/tagged:three", imgfs.mountpoint()).complaint()
    assert said == f"{registry}/tagged has no tag 'three'; there are: one, two"


@pytest.mark.parts
@needs_docker_registry
def test_a_repository_that_is_not_there_is_named(imgfs: Imgfs, registry: str) -> None:
    said = imgfs.run("mount", f"{registry}/no/where:v1", imgfs.mountpoint()).complaint()
    assert said == f"{registry}/no/where has no tag 'v1'; no such repository"
    assert imgfs.run("tags", f"{registry}/no/where").complaint() == f"{registry}/no/where: no such repository"
    said = imgfs.run("mount", f"{registry}/no/where@{sha256(b'')}", imgfs.mountpoint()).complaint()
    assert said == f"{registry}/no/where has no manifest {sha256(b'')}"


@pytest.mark.parts
@needs_docker_registry
def test_an_index_gives_the_image_of_the_platform(imgfs: Imgfs, registry: str) -> None:
    entries = []
    for architecture in ("amd64", "arm64"):
        layer = gzipped(tar.archive(tar.file("arch", architecture.encode())))
        config = {"architecture": architecture}
        pushed = push_image(registry, "many", None, [layer.blob], config=config)
        entries.append((pushed.manifest, {"platform": {"os": "linux", "architecture": architecture}}))
    push_index(registry, "many", "all", entries)
    for architecture in ("amd64", "arm64"):
        assert imgfs.ok("cat", "--platform", f"linux/{architecture}", f"{registry}/many:all", "arch") == (
            architecture
        )
    at = imgfs.mount(f"{registry}/many:all", "--platform", "linux/arm64")
    assert ((at / "arch").read_bytes(), imgfs.status(at)["platform"]) == (b"arm64", "linux/arm64")
    imgfs.umount(at)
    said = imgfs.run("mount", "--platform", "linux/s390x", f"{registry}/many:all", at).complaint()
    assert "linux/s390x" in said
    assert "linux/amd64" in said
    assert "linux/arm64" in said


@pytest.mark.parts
@needs_docker_registry
def test_a_private_registry_takes_the_credentials_of_a_file(imgfs: Imgfs, tmp_path: Path) -> None:
    def allow(user: str, password: str) -> None:
        auth = base64.b64encode(f"{user}:{password}".encode()).decode()
        (tmp_path / "auth.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
        imgfs.environment["REGISTRY_AUTH_FILE"] = str(tmp_path / "auth.json")

    with docker_registry(tmp_path / "private", htpasswd=HTPASSWD) as host:
        push_image(host, "app", "v1", [packed_layer().blob], auth=PASSWORD)
        image = f"{host}/app:v1"
        said = imgfs.run("mount", image, imgfs.mountpoint()).complaint()
        assert "401" in said
        assert f"no credentials for {host} (see: imgfs login)" in said
        allow("user", "wrong")
        said = imgfs.run("mount", image, imgfs.mountpoint()).complaint()
        assert "401" in said
        assert said.endswith("; user user was refused")
        assert "wrong" not in said
        allow(*PASSWORD)
        at = imgfs.mount(image)
        imgfs.evict(image)
        assert (at / "noise").read_bytes() == NOISE
        imgfs.umount(at)


# -- what is asked -------------------------------------------------------------------------------------------


def test_a_tag_that_has_not_moved_costs_one_head(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [packed_layer()])
    imgfs.umount(imgfs.mount(image))
    server.log.clear()
    at = imgfs.mount(image)
    assert (at / "noise").read_bytes() == NOISE
    imgfs.umount(at)
    assert [(one.method, one.path) for one in server.log] == [("HEAD", "/v2/app/manifests/v1")]


def test_a_mount_of_what_is_here_loads_nothing_that_speaks_http(
    imgfs: Imgfs, server: FaultServer, tmp_path: Path
) -> None:
    """Another process asks what the tag means, while this one loads what else a mount takes."""
    image, at = serve(server, "app", "v1", [packed_layer()]), imgfs.mountpoint()
    imgfs.ok("ls", image)
    code = (
        "import sys; from imgfs.cli import main; main(sys.argv[1:]);"
        "print(*sys.modules.keys() & {'ssl', 'http.client', 'urllib3'}, len(sys.modules))"
    )
    words = [sys.executable, "-c", code, *imgfs.command("mount", image, at)[3:]]
    said = subprocess.check_output(words, env=imgfs.environment, text=True).split()
    imgfs.watch(at)
    imgfs.umount(at)
    assert len(said) == 1, said
    assert int(said[0]) <= 210 + MORE_MODULES


def test_a_digest_that_is_in_the_store_needs_no_registry(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [packed_layer()])
    digest = json.loads(imgfs.ok("inspect", "--json", image))["digest"]
    pinned = f"{server.host}/app@{digest}"
    imgfs.umount(imgfs.mount(pinned))
    server.log.clear()
    imgfs.umount(imgfs.mount(pinned))
    assert server.log == []


def test_a_layer_is_streamed_once(imgfs: Imgfs, server: FaultServer) -> None:
    stored = packed_layer()
    at = imgfs.mount(serve(server, "app", "v1", [stored]))
    assert (at / "noise").read_bytes() == NOISE
    assert len(server.seen("/blobs/")) == 2  # config and layer
    imgfs.umount(at)


@pytest.mark.parametrize(
    "store", [gzipped, plain, lambda body: zstd(body, 1 << 18)], ids=["gzip", "tar", "zstd"]
)
def test_a_small_file_of_a_large_layer_costs_a_few_spans(
    imgfs: Imgfs, server: FaultServer, store: Callable[[bytes], Stored]
) -> None:
    chance = random.Random(4)
    files = {f"f{number:02}": chance.randbytes(1 << 20) for number in range(24)}
    stored = store(tar.archive(*(tar.file(name, body) for name, body in files.items())))
    image = serve(server, "app", "v1", [stored])
    at = imgfs.mount(image)
    imgfs.evict(image)
    server.log.clear()
    with open(at / "f12", "rb") as file:
        assert os.pread(file.fileno(), 4096, 1 << 19) == files["f12"][1 << 19 :][:4096]
    ranges = [re.fullmatch(r"bytes=(\d+)-(\d+)", one.headers["range"]) for one in server.seen("/blobs/")]
    fetched = sum(int(found[2]) - int(found[1]) + 1 for found in ranges if found)
    assert 0 < fetched < len(stored.blob) // 3
    status = imgfs.status(at)
    assert status["layers"][0]["bytes_fetched"] == fetched
    assert 0 < status["layers"][0]["spans_present"] < status["layers"][0]["spans"]
    assert {path.name: path.read_bytes() for path in at.iterdir()} == files
    imgfs.umount(at)


def test_a_single_zstd_frame_is_fetched_whole_and_right(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [zstd(image_layer())])
    at = imgfs.mount(image)
    imgfs.evict(image)
    assert (at / "cached").read_bytes() == CACHED
    assert (at / "noise").read_bytes() == NOISE
    layer = imgfs.status(at)["layers"][0]
    assert (layer["spans"], layer["bytes_fetched"]) == (1, len(zstd(image_layer()).blob))
    imgfs.umount(at)


def test_readers_of_one_missing_file_share_its_fetches(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [packed_layer()])
    at = imgfs.mount(image)
    imgfs.evict(image)
    server.log.clear()
    words = " & ".join([f"cmp {at}/noise {imgfs.directory}/noise"] * 6)
    (imgfs.directory / "noise").write_bytes(NOISE)
    done = imgfs.program("sh", "-c", f"{words} & wait")
    assert (done.code, done.out, done.err) == (0, b"", "")
    assert imgfs.status(at)["layers"][0]["bytes_fetched"] <= len(packed_layer().blob) * 1.01
    imgfs.umount(at)


# -- when it goes away ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "stall"])
def test_a_mount_whose_registry_is_gone_fails_reads_in_time_and_recovers(
    imgfs: Imgfs, server: FaultServer, how: str
) -> None:
    imgfs.expected.append(GONE)
    with Wire(server.host) as wire:
        image = serve(server, "app", "v1", [packed_layer()], wire.host)
        at = imgfs.mount(image, "--read-timeout", "2")
        imgfs.evict(image)
        assert (at / "cached").read_bytes() == CACHED
        getattr(wire, how)()
        imgfs.evict(image)  # the rest of the layer may have come along
        began = time.monotonic()
        assert errno_of(lambda: (at / "last").read_bytes()) == errno.EIO
        assert time.monotonic() - began < allowed(10)
        assert sorted(os.listdir(at)) == ["cached", "last", "noise", "padding"]
        wire.mend()
        assert (at / "noise").read_bytes() == NOISE
        imgfs.umount(at)
    logged = [line for line in imgfs.logged() if "EIO" in line]
    # the kernel driver names the file that a request begins in, which may be one before: it reads ahead
    named = ("/last: ",) if imgfs.driver == "fuse" else ("/last: ", "/padding: ", "/noise: ")
    assert any(name in line for line in logged for name in named), logged


def test_what_is_cached_is_read_at_once_while_the_registry_hangs(imgfs: Imgfs, server: FaultServer) -> None:
    imgfs.expected.append(GONE)
    with Wire(server.host) as wire:
        image = serve(server, "app", "v1", [packed_layer()], wire.host)
        at = imgfs.mount(image, "--read-timeout", "9")
        imgfs.evict(image)
        assert (at / "cached").read_bytes() == CACHED
        wire.stall()
        drop_caches()
        with ExitStack() as stack:
            offsets = range(0, 1 << 20, 1 << 17)
            readers = [stack.enter_context(_cat(at / "last", offset)) for offset in offsets]
            until(lambda: imgfs.status(at)["requests_fetched"] > 1, "reads are under way")
            began = time.monotonic()
            assert (at / "cached").read_bytes() == CACHED
            assert imgfs.status(at)["bytes_served"] >= len(CACHED)
            assert time.monotonic() - began < allowed(5)
            assert all(reader.poll() is None for reader in readers)
            wire.cut()
            assert [reader.wait(20) != 0 for reader in readers] == [True] * len(readers)
        imgfs.umount(at)


def _cat(path: Path, offset: int) -> subprocess.Popen[bytes]:
    words = [
        "dd",
        f"if={path}",
        "of=/dev/null",
        "bs=4096",
        "count=1",
        f"skip={offset // 4096}",
        "status=none",
    ]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL)


def test_a_mount_survives_a_registry_that_restarts(imgfs: Imgfs, server: FaultServer) -> None:
    """Nobody notices an outage that ends within the time allowed."""
    with Wire(server.host) as wire:
        image = serve(server, "app", "v1", [packed_layer()], wire.host)
        at = imgfs.mount(image)
        imgfs.evict(image)
        wire.cut()
        mending = threading.Timer(0.7, wire.mend)
        mending.start()
        assert (at / "noise").read_bytes() == NOISE
        mending.join()
        imgfs.umount(at)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500, body=b"oops"),
        Fault(status=429, headers={"Retry-After": "0"}, body=b""),
        Fault(drop=True),
        Fault(cut_after=10_000),
        Fault(ignore_range=True),
    ],
    ids=["500", "429", "dropped", "cut", "range ignored"],
)
def test_a_read_survives_what_passes(imgfs: Imgfs, server: FaultServer, fault: Fault) -> None:
    image = serve(server, "app", "v1", [packed_layer()])
    at = imgfs.mount(image)
    imgfs.evict(image)
    server.inject(fault, on="/blobs/", times=2)
    assert (at / "noise").read_bytes() == NOISE
    imgfs.umount(at)


def test_bytes_that_are_not_the_layers_are_never_shown(imgfs: Imgfs, server: FaultServer) -> None:
    imgfs.expected.append("ERROR imgfs.fuse.errors: EIO: /noise: layer [0-9a-f]{12}, ")
    stored = plain(image_layer())
    image = serve(server, "app", "v1", [stored])
    at = imgfs.mount(image)
    imgfs.evict(image)
    spoiled = bytearray(stored.blob)
    spoiled[image_layer().index(NOISE[:100]) + 1000] ^= 1
    server.blobs[sha256(stored.blob)] = bytes(spoiled)
    assert errno_of(lambda: (at / "noise").read_bytes()) == errno.EIO
    server.blobs[sha256(stored.blob)] = stored.blob
    assert (at / "noise").read_bytes() == NOISE
    imgfs.umount(at)


def test_credentials_that_expire_under_a_mount_are_had_anew(imgfs: Imgfs, server: FaultServer) -> None:
    server.token_server = server.url
    image = serve(server, "app", "v1", [packed_layer()])
    at = imgfs.mount(image)
    imgfs.evict(image)
    server.valid_tokens.clear()
    assert (at / "noise").read_bytes() == NOISE
    imgfs.umount(at)


def test_a_nested_index_is_followed(imgfs: Imgfs, server: FaultServer) -> None:
    made = documents([packed_layer()])
    server.blobs.update(made.blobs)
    inner = server.add_manifest("app", None, made.manifest)
    platform = {"os": "linux", "architecture": "amd64"}
    for tag in (None, "v1"):
        entry = {"mediaType": inner.media_type, "digest": str(inner.digest), "size": inner.size}
        body = json.dumps(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{**entry, "platform": platform}]}
        )
        inner = server.add_manifest("app", tag, body.encode(), OCI_INDEX)
    at = imgfs.mount(f"{server.host}/app:v1")
    assert (at / "cached").read_bytes() == CACHED
    imgfs.umount(at)
