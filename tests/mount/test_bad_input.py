"""Images and registries that are broken or hostile: one line, exit code 1, and nothing of it is shown."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imgfs.oci.image import OCI_CONFIG, OCI_INDEX
from tests.support import tarmake as tar
from tests.support.blobs import zstd_bomb
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import (
    Imgfs,
    Stored,
    documents,
    gzipped,
    mount_of,
    plain,
    serve,
    sha256,
    write_documents,
    write_image,
    zstd,
)
from tests.support.patience import allowed

NOISE = random.Random(1).randbytes(1 << 20)
LAYER = tar.archive(tar.file("a", b"a"), tar.file("noise", NOISE), tar.file("b", b"b"))
WRONG = sha256(b"something else")


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def refused(imgfs: Imgfs, image: str, *options: str) -> str:
    """What is said of an image that is refused, by every command in the same way."""
    said = imgfs.run("ls", *options, image).complaint()
    found = json.loads(imgfs.ok("store", "ls", "--json"))
    assert [layer for layer in found["layers"] if layer.get("state") == "indexed"] == []
    return said


# -- layers --------------------------------------------------------------------------------------------------


def spoiled(stored: Stored, at: int, honest: bool) -> Stored:
    """The layer with a byte changed; with an honest descriptor, which is about the changed blob."""
    blob = bytearray(stored.blob)
    blob[at] ^= 0xFF
    return stored._replace(blob=bytes(blob), digest=None if honest else sha256(stored.blob))


def spoiled_header() -> Stored:
    """A tar with a checksum that is wrong in mid-archive, where lenient readers see its end."""
    second = LAYER.index(b"noise\0")
    return plain(LAYER[: second + 148] + b"7777777\0" + LAYER[second + 156 :])


BAD_LAYERS: dict[str, tuple[Callable[[], Stored], str]] = {
    "another blob than its digest": (
        lambda: plain(LAYER)._replace(digest=WRONG),
        "layer 2: layer blob: expected",
    ),
    "another DiffID": (lambda: gzipped(LAYER)._replace(diff_id=WRONG), "(DiffID): expected"),
    "a flipped byte": (lambda: spoiled(plain(LAYER), 50_000, honest=False), "layer 2: layer blob: expected"),
    "a flipped byte in gzip": (lambda: spoiled(gzipped(LAYER), 50_000, honest=False), "expected"),
    "a blob too short": (
        lambda: Stored(LAYER[:-2048], sha256(LAYER), digest=sha256(LAYER), size=len(LAYER)),
        "expected",
    ),
    "a blob too long": (lambda: Stored(LAYER + bytes(512), sha256(LAYER), size=len(LAYER)), "expected"),
    "gzip that ends in the middle": (
        lambda: gzipped(LAYER)._replace(blob=gzipped(LAYER).blob[:500_000]),
        "",
    ),
    "gzip that is corrupt in the middle": (lambda: spoiled(gzipped(LAYER), 500_000, honest=True), ""),
    "gzip with rubbish behind it": (
        lambda: gzipped(LAYER)._replace(blob=gzipped(LAYER).blob + b"rubbish" * 9),
        "",
    ),
    "zstd that ends in the middle": (lambda: zstd(LAYER)._replace(blob=zstd(LAYER).blob[:500_000]), ""),
    "zstd that is corrupt in the middle": (lambda: spoiled(zstd(LAYER, 1 << 18), 500_000, honest=True), ""),
    "tar that ends inside a file": (lambda: plain(LAYER[:600_000]), "truncated"),
    "tar that ends inside a header": (lambda: plain(LAYER[:1300]), ""),
    "tar with a wrong header in the middle": (lambda: spoiled_header(), "checksum"),
    "no tar at all": (lambda: plain(NOISE), ""),
    "text": (lambda: gzipped(b"<html>404</html>" * 1000), ""),
    "nothing": (lambda: plain(b"")._replace(blob=b"", diff_id=sha256(b"x")), "expected"),
}


@pytest.mark.parametrize("kind", BAD_LAYERS)
def test_a_layer_that_is_broken_is_refused_and_named(imgfs: Imgfs, tmp_path: Path, kind: str) -> None:
    made, expected = BAD_LAYERS[kind]
    stored = made()
    image = write_image(tmp_path / "layout", [gzipped(tar.archive(tar.file("good"))), stored])
    said = imgfs.run("ls", image).complaint()
    assert expected in said
    assert (stored.digest or sha256(stored.blob))[7:19] in said or str(tmp_path / "layout") in said
    found = json.loads(imgfs.ok("store", "ls", "--json"))
    shown = [layer for layer in found["layers"] if layer["state"] == "indexed"]
    assert [layer["entries"] for layer in shown] in ([], [1])  # the good one may be kept


@pytest.mark.kernel
def test_a_broken_image_is_not_mounted(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [gzipped(LAYER)._replace(diff_id=WRONG)])
    at = imgfs.mountpoint()
    assert "(DiffID)" in imgfs.run("mount", image, at).complaint()
    assert mount_of(at) is None
    assert imgfs.logged() == []


def test_a_known_layer_under_a_false_diff_id_is_refused(imgfs: Imgfs, tmp_path: Path) -> None:
    good = write_image(tmp_path / "layout", [gzipped(LAYER)], tag="good")
    bad = write_image(tmp_path / "layout", [gzipped(LAYER)._replace(diff_id=WRONG)], tag="bad")
    imgfs.ok("ls", good)
    assert "DiffID" in imgfs.run("ls", bad).complaint()


def test_a_bomb_of_zeros_does_not_fill_the_disk(imgfs: Imgfs, tmp_path: Path) -> None:
    """What is implausible is refused outright (test_scan); what is merely large must fit the disk."""
    bomb = Stored(zstd_bomb(10_000), WRONG)  # 1.3 GB in 40 kB
    assert "expected" in imgfs.run("ls", write_image(tmp_path / "layout", [bomb])).complaint()
    used = sum(path.stat().st_blocks * 512 for path in imgfs.store.rglob("*") if path.is_file())
    assert used < 1 << 20


# -- names ---------------------------------------------------------------------------------------------------


def listed(imgfs: Imgfs, tmp_path: Path, *layers: bytes) -> list[str]:
    image = write_image(tmp_path / "layout", [plain(layer) for layer in layers])
    return [line for line in imgfs.ok("ls", "-R", image).splitlines() if line and not line.endswith(":")]


def test_names_that_climb_or_are_absolute_stay_inside(imgfs: Imgfs, tmp_path: Path) -> None:
    layer = tar.archive(
        tar.file("../../../climbed", b"1"),
        tar.file("/absolute", b"2"),
        tar.file("a/../../b/./c//d", b"3"),
        tar.symlink("out", "../../../.."),
        tar.file("out/through", b"4"),
        tar.hardlink("hard", "../../../etc/../climbed"),
    )
    names = listed(imgfs, tmp_path, layer)
    assert {"climbed", "absolute", "b", "c", "d", "out", "through", "hard"} <= set(names)
    image = f"oci:{tmp_path}/layout:test"
    assert imgfs.ok("cat", image, "/b/c/d", "/../../climbed", "/through", "/hard") == "3141"
    assert imgfs.run("cat", image, "/out/etc/passwd").code == 1


def test_a_whiteout_without_a_name_is_refused(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [plain(tar.archive(tar.file("d/.wh.")))])
    assert ".wh." in imgfs.run("ls", image).complaint()


def test_link_loops_end(imgfs: Imgfs, tmp_path: Path) -> None:
    layer = tar.archive(tar.symlink("a", "b"), tar.symlink("b", "a"), tar.symlink("self", "self"))
    upper = tar.archive(tar.file("a/below", b"x"))
    image = write_image(tmp_path / "layout", [plain(layer)])
    assert imgfs.run("cat", image, "a").complaint() == "a: Too many levels of symbolic links"
    assert imgfs.run("ls", image, "self/x").complaint() == "self/x: Too many levels of symbolic links"
    ran = imgfs.run("ls", write_image(tmp_path / "layout", [plain(layer), plain(upper)], tag="two"))
    assert ran.code == 0 or "a/below" in ran.complaint()


def test_a_hard_link_to_nothing_is_refused_or_left_out(imgfs: Imgfs, tmp_path: Path) -> None:
    layer = tar.archive(tar.hardlink("h", "none"), tar.hardlink("x", "y"), tar.hardlink("y", "x"))
    ran = imgfs.run("ls", write_image(tmp_path / "layout", [plain(layer)]))
    assert ran.code == 0 or "a hard link to" in ran.complaint()


def test_an_entry_below_a_file_is_refused_or_replaces_it(imgfs: Imgfs, tmp_path: Path) -> None:
    layer = tar.archive(tar.file("f", b"file"), tar.file("f/below", b"x"))
    ran = imgfs.run("ls", "-R", write_image(tmp_path / "layout", [plain(layer)]))
    assert ran.code == 0 or "f/below" in ran.complaint()


def test_names_too_long_for_a_file_system_are_refused(imgfs: Imgfs, tmp_path: Path) -> None:
    ran = imgfs.run("ls", write_image(tmp_path / "layout", [plain(tar.archive(tar.file("n" * 256)))]))
    assert ran.code == 0 or "255" in ran.complaint()


def test_names_do_not_write_on_the_terminal_through_errors(imgfs: Imgfs, tmp_path: Path) -> None:
    layer = tar.archive(tar.file("x", b"1"))
    image = write_image(tmp_path / "layout", [plain(layer)])
    said = imgfs.run("cat", image, "/\x1b[31mred\n").err
    assert said.count("\n") <= 1 or "\x1b" in said


# -- documents -----------------------------------------------------------------------------------------------

CONFIG = documents([]).config


def manifest(**changes: Any) -> bytes:
    fields = json.loads(documents([gzipped(LAYER)]).manifest)
    return json.dumps({**fields, **changes}).encode()


BAD_MANIFESTS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"<html>",
    "not in UTF-8": b'{"\xff": 1}',
    "a list": b"[]",
    "nested deeply": b"[" * 100_000,
    "layers that are a number": manifest(layers=3),
    "a layer that is text": manifest(layers=["x"]),
    "a layer without a digest": manifest(layers=[{"mediaType": "x", "size": 1}]),
    "a digest that climbs": manifest(layers=[{"mediaType": "x", "size": 1, "digest": "sha256:../../x"}]),
    "a digest nobody knows": manifest(layers=[{"mediaType": "x", "size": 1, "digest": "md5:0123"}]),
    "a size below zero": manifest(layers=[{"mediaType": "x", "size": -1, "digest": WRONG}]),
    "a size that is text": manifest(layers=[{"mediaType": "x", "size": "1", "digest": WRONG}]),
    "a size beyond all bounds": manifest(
        config={"mediaType": OCI_CONFIG, "size": 1 << 70, "digest": sha256(CONFIG)}
    ),
    "no config": manifest(config=None),
    "both manifest and index": manifest(manifests=[]),
    "schema 1": b'{"schemaVersion": 1, "fsLayers": [], "history": []}',
    "an encrypted layer": manifest(
        layers=[
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                "size": 1,
                "digest": WRONG,
            }
        ]
    ),
    "fewer layers than DiffIDs": manifest(layers=[]),
}


@pytest.mark.parametrize("kind", BAD_MANIFESTS)
def test_a_malformed_manifest_is_one_line(imgfs: Imgfs, tmp_path: Path, kind: str) -> None:
    blobs = documents([gzipped(LAYER)]).blobs
    refused(imgfs, write_documents(tmp_path / "layout", BAD_MANIFESTS[kind], blobs))


@pytest.mark.parametrize(
    "config",
    [
        {"rootfs": None},
        {"rootfs": {"type": "layers", "diff_ids": None}},
        {"rootfs": {"type": "layers", "diff_ids": ["sha256:x"]}},
        {"rootfs": {"type": "layers", "diff_ids": []}},
        {"rootfs": {"type": "other", "diff_ids": [gzipped(LAYER).diff_id]}},
        {"config": "text"},
        {"history": 5},
        {"architecture": 7},
        {"os": None, "architecture": []},
    ],
    ids=str,
)
def test_a_malformed_config_is_one_line(imgfs: Imgfs, tmp_path: Path, config: dict[str, Any]) -> None:
    assert "config" in refused(imgfs, write_image(tmp_path / "layout", [gzipped(LAYER)], config))


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"{}",
        b"[]",
        b'{"manifests": 1}',
        b'{"manifests": [1]}',
        b'{"schemaVersion": 2, "manifests": []}',
        b'{"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": "sha256:..", "size": 1}]}',
        b"\xff" * 100,
    ],
    ids=str,
)
def test_a_malformed_index_is_one_line(imgfs: Imgfs, tmp_path: Path, index: bytes) -> None:
    image = write_image(tmp_path / "layout", [gzipped(LAYER)])
    (tmp_path / "layout/index.json").write_bytes(index)
    refused(imgfs, image)


def test_an_index_without_the_platform_names_those_there_are(imgfs: Imgfs, tmp_path: Path) -> None:
    body = documents([gzipped(LAYER)]).manifest
    entries = [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": sha256(body),
            "size": len(body),
            "platform": {"os": system, "architecture": architecture},
        }
        for system, architecture in (("linux", "riscv64"), ("windows", "amd64"))
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    image = write_documents(tmp_path / "layout", index, {sha256(body): body}, mediaType=OCI_INDEX)
    said = refused(imgfs, image)
    assert "linux/riscv64" in said
    assert "windows/amd64" in said


def test_an_index_that_holds_itself_ends(imgfs: Imgfs, server: FaultServer) -> None:
    entry = {"mediaType": OCI_INDEX, "size": 500, "platform": {"os": "linux", "architecture": "amd64"}}
    inner = WRONG
    for _ in range(8):
        body = json.dumps({"schemaVersion": 2, "manifests": [{**entry, "digest": inner}]}).encode()
        entry["size"] = len(body)
        inner = str(server.add_manifest("app", None, body, OCI_INDEX).digest)
    server.manifests["app", "v1"] = server.manifests["app", inner]
    assert "nested more than" in refused(imgfs, f"{server.host}/app:v1")


def test_documents_that_are_not_their_digests_are_refused(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [gzipped(LAYER)])
    made = documents([gzipped(LAYER)])
    for digest in (sha256(made.manifest), sha256(made.config)):
        path = tmp_path / "layout/blobs/sha256" / digest.removeprefix("sha256:")
        body = path.read_bytes()
        path.write_bytes(
            body.replace(b"amd64", b"amd46").replace(b'"schemaVersion": 2', b'"schemaVersion": 3')
        )
        assert "expected sha256:" in refused(imgfs, image)
        path.write_bytes(body)
    imgfs.ok("ls", image)


def test_a_blob_that_is_missing_is_named(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [gzipped(LAYER)])
    path = tmp_path / "layout/blobs/sha256" / sha256(gzipped(LAYER).blob).removeprefix("sha256:")
    path.unlink()
    assert refused(imgfs, image) == f"{image}: layer 1 is missing: {path}: no such file"
    os.mkfifo(path)
    refused(imgfs, image)  # does not wait for a writer


def test_a_directory_that_is_no_layout_is_named(imgfs: Imgfs, tmp_path: Path) -> None:
    said = imgfs.run("ls", f"oci:{tmp_path}").complaint(2)
    assert said == f"{tmp_path}: not an OCI image layout: it has no index.json"


def test_a_tag_that_is_not_in_the_layout_names_those_that_are(imgfs: Imgfs, tmp_path: Path) -> None:
    for tag in ("one", "two"):
        write_image(tmp_path / "layout", [gzipped(LAYER)], tag=tag)
    said = refused(imgfs, f"oci:{tmp_path}/layout:three")
    assert said == f"oci:{tmp_path}/layout has no tag 'three'; there are: one, two"


# -- registries ----------------------------------------------------------------------------------------------


def test_a_manifest_of_100_mb_is_refused_unread(imgfs: Imgfs, server: FaultServer) -> None:
    body = manifest() + b" " * (100 << 20)
    server.add_manifest("app", "v1", body)
    server.add_manifest("app", "v2", body)
    began = time.monotonic()
    assert "are allowed" in refused(imgfs, f"{server.host}/app:v1")
    server.inject(Fault(headers={"Content-Length": None}, chunked=True), on="manifests", method="GET")
    assert "are allowed" in refused(imgfs, f"{server.host}/app:v2")
    assert time.monotonic() - began < allowed(30)


@pytest.mark.parametrize(
    ("fault", "where", "expected"),
    [
        (Fault(status=403, body=b"{}"), "/manifests/", "403"),
        (Fault(status=401, body=b"{}"), "/manifests/", "401"),
        (Fault(status=404, body=b"{}"), "/manifests/", "no tag 'v1'"),
        (Fault(status=404, body=b"{}"), "/blobs/", "has no"),
        (Fault(status=418, body=b"teapot"), "/blobs/", "418"),
        (Fault(status=429, body=b"{}"), "/manifests/", "429"),
        (Fault(status=429, body=b"{}"), "/blobs/", "429"),
        (Fault(status=500, body=b"<html>oops"), "/manifests/", "500"),
        (Fault(status=500, body=b"<html>oops"), "/blobs/", "500"),
        (Fault(drop=True), "/manifests/", "no answer"),
        (Fault(cut_after=1000), "/blobs/", "cut short"),
        (Fault(stall_after=1000), "/blobs/", "timed out"),
        (Fault(stall_after=0), "/manifests/", "timed out"),
        (Fault(headers={"Content-Length": "5"}), "/blobs/", ""),
        (Fault(headers={"Location": "/loop"}, status=307), "/blobs/", ""),
        (Fault(headers={"Location": "file:///etc/passwd"}, status=307), "/blobs/", "redirected to"),
        (Fault(body=b"not the manifest"), "/manifests/", ""),
    ],
    ids=lambda value: repr(value)[6:40] if isinstance(value, Fault) else str(value),
)
def test_a_registry_that_fails_is_one_line_in_time(
    imgfs: Imgfs, server: FaultServer, fault: Fault, where: str, expected: str
) -> None:
    image = serve(server, "app", "v1", [gzipped(LAYER)])
    server.inject(fault, on=where, times=100)
    began = time.monotonic()
    said = refused(imgfs, image, "--read-timeout", "2")
    assert time.monotonic() - began < allowed(10)  # seconds a read may take where nothing is said
    assert expected in said
    assert server.host in said


def test_lengths_that_lie_are_noticed(imgfs: Imgfs, server: FaultServer) -> None:
    stored = gzipped(LAYER)
    for change in (-1, 1, 100_000):
        image = serve(
            server, f"app{change}".replace("-", "m"), "v1", [stored._replace(size=len(stored.blob) + change)]
        )
        assert refused(imgfs, image, "--read-timeout", "2")


@pytest.mark.parametrize(
    "fault",
    [
        Fault(ignore_range=True),
        Fault(cut_after=300_000),
        Fault(status=503, body=b"", headers={"Retry-After": "0"}),
        Fault(drop=True),
        Fault(chunked=True),
    ],
    ids=["range ignored", "cut", "503", "dropped", "chunked"],
)
def test_a_download_survives_what_passes(imgfs: Imgfs, server: FaultServer, fault: Fault) -> None:
    image = serve(server, "app", "v1", [gzipped(LAYER)])
    server.inject(fault, on=sha256(gzipped(LAYER).blob), times=2)
    assert imgfs.run("cat", image, "/noise").out == NOISE


def test_a_port_that_nobody_listens_on_is_named(imgfs: Imgfs) -> None:
    said = refused(imgfs, "127.0.0.1:1/app:v1", "--read-timeout", "1")
    assert "127.0.0.1:1" in said
    assert "Connection refused" in said


def test_a_host_that_does_not_exist_is_named(imgfs: Imgfs) -> None:
    said = refused(imgfs, "no-such-host.invalid/app:v1", "--read-timeout", "1")
    assert "no-such-host.invalid" in said


def test_a_registry_without_tls_is_explained_and_can_be_used(imgfs: Imgfs, server: FaultServer) -> None:
    port = server.host.partition(":")[2]
    name = "0.0.0.0"  # this machine, for the kernel, but no address of loopback
    image = serve(server, "app", "v1", [gzipped(LAYER)], f"{name}:{port}")
    assert "--plain-http" in imgfs.run("ls", image).complaint()
    assert imgfs.ok("ls", "--plain-http", image) == "a\nb\nnoise\n"


# -- a store that was tampered with --------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["layers/*/*/index", "trees/*/*", "documents/*/*", "references/*.json"])
@pytest.mark.parametrize("damage", ["emptied", "cut", "garbage"])
def test_a_damaged_file_of_the_store_is_made_anew(
    imgfs: Imgfs, tmp_path: Path, pattern: str, damage: str
) -> None:
    image = write_image(tmp_path / "layout", [gzipped(LAYER)])
    imgfs.ok("ls", image)
    damages: dict[str, Callable[[bytes], bytes]] = {
        "emptied": lambda body: body[:0],
        "cut": lambda body: body[: len(body) // 2],
        "garbage": lambda body: random.Random(2).randbytes(len(body)),
    }
    paths = list(imgfs.store.glob(pattern))
    assert paths
    for path in paths:
        path.write_bytes(damages[damage](path.read_bytes()))
    assert imgfs.ok("ls", image) == "a\nb\nnoise\n"
    assert imgfs.run("cat", image, "/noise").out == NOISE
    imgfs.ok("store", "ls")
    imgfs.ok("store", "rm", "--all")


def test_gzip_of_nothing_is_an_empty_layer(imgfs: Imgfs, tmp_path: Path) -> None:
    empty = Stored(gzip.compress(b""), sha256(b""), "application/vnd.oci.image.layer.v1.tar+gzip")
    ran = imgfs.run("ls", write_image(tmp_path / "layout", [empty]))
    assert ran.code == 0 or ran.complaint()
