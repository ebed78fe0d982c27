"""`imgfs index`, and mounts that use what it has published, or what other formats bring along."""

from __future__ import annotations

import gzip
import json
import random
from functools import cache
from pathlib import Path

import pytest

from imgfs.oci.published import TREE
from tests.support import tarmake as tar
from tests.support.blobs import prose
from tests.support.docker_registry import docker_registry, push_image
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import (
    Imgfs,
    Stored,
    gzipped,
    gzipped_in_members,
    plain,
    serve,
    sha256,
    until,
    zstd,
)
from tests.support.tocmake import Made, chunked_layer, estargz_layer

pytestmark = pytest.mark.kernel

NOISE = random.Random(3).randbytes(600_000)
EVERY_FORMAT = pytest.mark.parametrize(
    "name",
    [
        "estargz",
        "gzip",
        "gzip members",
        "tar",
        "zstd",
        "zstd frames",
        "zstd:chunked",
        "zstd:chunked, surplus",
    ],
)


@cache
def files() -> dict[str, bytes]:
    """What is in the layer, by path; made when a test first asks, as all of this: collecting does without."""
    return {
        "etc/hostname": b"here\n",
        "usr/share/noise": NOISE,
        "usr/share/prose": prose(5_000_000, 1),
        **{f"usr/lib/{number}": prose(3000 + number, number) for number in range(200)},
    }


def with_toc(made: Made, flat: bytes) -> Stored:
    """A layer with a table of contents."""
    layer = made.layer
    return Stored(made.blob, sha256(flat), layer.media_type, annotations=layer.annotations)


@cache
def layer_in(name: str) -> Stored:
    """The layer in one of the formats."""
    members = (tar.file(path, body) for path, body in files().items())
    flat = tar.archive(*members, tar.hardlink("link", "etc/hostname"))
    match name:
        case "tar":
            return plain(flat)
        case "gzip":
            return gzipped(flat, 6)
        case "gzip members":
            return gzipped_in_members(flat)
        case "zstd":
            return zstd(flat)
        case "zstd frames":
            return zstd(flat, 300_000)
        case "estargz":
            made = estargz_layer(flat, chunk=1 << 20)
            return with_toc(made, gzip.decompress(made.blob))
        case "zstd:chunked":
            return with_toc(chunked_layer(flat, chunk=1 << 20), flat)
        case _:
            return with_toc(chunked_layer(flat, surplus=True), flat)


def contents(at: Path) -> dict[str, bytes]:
    """All files, by path."""
    return {str(path.relative_to(at)): path.read_bytes() for path in at.rglob("*") if path.is_file()}


def expected() -> dict[str, bytes]:
    """What a mount of the layer shows, by path."""
    return {**files(), "link": files()["etc/hostname"]}


def another_machine(imgfs: Imgfs) -> None:
    """Have a store that knows nothing."""
    imgfs.ok("store", "rm", "--all", "--force")


@EVERY_FORMAT
def test_a_layer_of_any_format_shows_the_same_files(imgfs: Imgfs, server: FaultServer, name: str) -> None:
    image = serve(server, "app", "v1", [layer_in(name)])
    assert contents(imgfs.mount(image)) == expected()


@EVERY_FORMAT
def test_a_published_index_spares_streaming_and_shows_the_same_files(
    imgfs: Imgfs, server: FaultServer, name: str
) -> None:
    image = serve(server, "app", "v1", [layer_in(name)])
    imgfs.ok("index", "push", "--repack", image)
    another_machine(imgfs)
    at = imgfs.mount(image)
    layer = imgfs.status(at)["layers"][0]
    assert (layer["index"], layer["spans_present"]) == (f"{server.host}/app", 0)
    assert contents(at) == expected()


@pytest.mark.parametrize("name", ["estargz", "zstd:chunked"])
def test_a_table_of_contents_spares_streaming(imgfs: Imgfs, server: FaultServer, name: str) -> None:
    image = serve(server, "app", "v1", [layer_in(name)])
    at = imgfs.mount(image)
    layer = imgfs.status(at)["layers"][0]
    assert (layer["format"], layer["index"], layer["spans_present"]) == (name, "verified", 0)
    assert (at / "etc/hostname").read_bytes() == b"here\n"
    assert imgfs.status(at)["layers"][0]["bytes_fetched"] < len(layer_in(name).blob) * 3 / 4


def test_no_index_of_others_is_used_if_nobody_wants_one(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [layer_in("estargz")])
    imgfs.ok("index", "push", image)
    another_machine(imgfs)
    at = imgfs.mount(image, "--index", "none")
    layer = imgfs.status(at)["layers"][0]
    assert layer["spans_present"] == layer["spans"]
    assert contents(at) == expected()


def test_a_digest_trusts_the_registry_only_if_told_to(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [layer_in("gzip")])
    imgfs.ok("index", "push", image)
    digest = json.loads(imgfs.ok("inspect", "--json", image))["digest"]
    pinned = f"{server.host}/app@{digest}"
    for policy, origin in (("any", f"{server.host}/app"), ("auto", "verified"), ("verified", "verified")):
        another_machine(imgfs)
        at = imgfs.mount(pinned, "--index", policy)
        assert imgfs.status(at)["layers"][0]["index"] == origin
        imgfs.umount(at)


def test_an_index_taken_on_trust_does_not_count_for_a_digest_later(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [layer_in("gzip")])
    imgfs.ok("index", "push", image)
    another_machine(imgfs)
    digest = json.loads(imgfs.ok("inspect", "--json", image))["digest"]
    imgfs.umount(imgfs.mount(image))
    at = imgfs.mount(f"{server.host}/app@{digest}")
    assert imgfs.status(at)["layers"][0]["index"] == "verified"
    assert contents(at) == expected()


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_damaged_published_index_is_done_without(imgfs: Imgfs, server: FaultServer, place: str) -> None:
    image = serve(server, "app", "v1", [layer_in("gzip")])
    before = dict(server.blobs)
    imgfs.ok("index", "push", "--soci", "none", image)
    for digest in server.blobs.keys() - before.keys():
        body = bytearray(server.blobs[digest])
        body[{"first": 0, "middle": len(body) // 2, "last": -1}[place]] ^= 0xFF
        server.blobs[digest] = bytes(body)
    another_machine(imgfs)
    at = imgfs.mountpoint()
    ran = imgfs.run("mount", image, at)
    imgfs.watch(at)
    assert ran.code == 0
    assert "imgfs: warning: the tree published with the image is not used: " in ran.err
    assert contents(at) == expected()


def test_what_is_recorded_travels_with_the_index_and_is_replayed(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [layer_in("gzip")])
    at = imgfs.mount(image, "--record", "start")
    assert (at / "usr/share/noise").read_bytes() == NOISE
    imgfs.umount(at)
    imgfs.ok("index", "push", image)
    assert json.loads(imgfs.ok("index", "ls", "--json", image))[0]["digest"].startswith("sha256:")
    another_machine(imgfs)
    at = imgfs.mount(image, "--replay", "start")
    assert (at / "usr/share/noise").read_bytes() == NOISE
    replayed = imgfs.status(at)["layers"][0]["brought"]["replay"]
    assert replayed["spans"] == replayed["spans_used"] > 0


def record_and_push(imgfs: Imgfs, image: str) -> None:
    """Publish an image's index with a profile of its noise, and forget both here."""
    at = imgfs.mount(image, "--record", "start")
    assert (at / "usr/share/noise").read_bytes() == NOISE
    imgfs.umount(at)
    imgfs.ok("index", "push", "--soci", "none", image)
    another_machine(imgfs)


def tree_of(server: FaultServer) -> str:
    """The digest of the tree that is published with an image."""
    manifests = [json.loads(body) for _, body in server.manifests.values()]
    parts = [part for manifest in manifests for part in manifest.get("layers", ())]
    (tree,) = {part["digest"] for part in parts if part["mediaType"] == TREE}
    return str(tree)


def test_a_profile_is_replayed_while_the_tree_is_on_its_way(imgfs: Imgfs, server: FaultServer) -> None:
    layer = layer_in("gzip")
    image = serve(server, "app", "v1", [layer])
    record_and_push(imgfs, image)
    tree = tree_of(server)
    begun: list[bool] = []

    def replay_begins() -> None:
        until(lambda: any("range" in one.headers for one in server.seen(sha256(layer.blob))), "the replay")
        begun.append(True)

    server.inject(Fault(meanwhile=replay_begins), on=tree)
    at = imgfs.mount(image, "--replay", "start", "--no-predict")
    assert begun
    assert contents(at) == expected()
    found = imgfs.status(at)["layers"][0]
    replayed = found["brought"]["replay"]
    assert replayed["spans"] == replayed["spans_used"] > 0
    fetched = sum(brought["spans"] for brought in found["brought"].values())
    assert fetched == found["spans"] == found["spans_present"]  # none twice, all counted


def test_what_is_read_first_is_on_its_way_before_the_indexes_are_here(
    imgfs: Imgfs, server: FaultServer
) -> None:
    layer = layer_in("gzip")
    image = serve(server, "app", "v1", [layer])
    at = imgfs.mount(image)
    assert (at / "usr/share/noise").read_bytes() == NOISE
    imgfs.umount(at)
    imgfs.ok("index", "push", "--soci", "none", image)
    another_machine(imgfs)
    blob, tree = sha256(layer.blob), tree_of(server)
    begun: list[bool] = []

    def first_ranges() -> list[str]:
        return [one.headers["range"] for one in server.seen(blob) if "range" in one.headers]

    def is_fetched() -> None:
        until(first_ranges, "the first ranges")
        begun.append(True)

    artifact = next(digest for (_, digest), (_, body) in server.manifests.items() if tree.encode() in body)
    server.inject(Fault(meanwhile=is_fetched), on=artifact)
    at = imgfs.mount(image, "--no-predict")
    assert begun
    assert contents(at) == expected()
    found = imgfs.status(at)["layers"][0]
    assert found["brought"]["replay"]["spans_used"] > 0
    asked = first_ranges()
    assert len(set(asked)) == len(asked)
    fetched = sum(brought["spans"] for brought in found["brought"].values())
    assert fetched == found["spans"] == found["spans_present"]  # none twice


def test_a_replay_that_has_begun_is_given_up_if_another_index_is_used(
    imgfs: Imgfs, server: FaultServer
) -> None:
    image = serve(server, "app", "v1", [layer_in("gzip")])
    record_and_push(imgfs, image)
    tree = tree_of(server)
    server.blobs[tree] = server.blobs[tree][:-1] + bytes([server.blobs[tree][-1] ^ 0xFF])
    at = imgfs.mountpoint()
    ran = imgfs.run("mount", "--replay", "start", image, at)
    imgfs.watch(at)
    assert (ran.code, ran.err.count("the tree published with the image is not used: ")) == (0, 1)
    assert contents(at) == expected()
    found = imgfs.status(at)["layers"][0]
    assert found["spans_present"] == found["spans"]


def test_a_profile_that_is_not_there_is_told(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [layer_in("gzip")])

    def warned(*options: str) -> str:
        at = imgfs.mountpoint()
        ran = imgfs.run("mount", *options, image, at)
        imgfs.watch(at)
        assert ran.code == 0
        assert (at / "usr/share/noise").read_bytes() == NOISE
        imgfs.umount(at)
        return ran.err

    said = (
        "imgfs: warning: --replay stort: the image has no profile of that name, so nothing is fetched ahead; "
    )
    assert warned("--replay", "stort", "--record", "start") == f"{said}there are none yet (see --record)\n"
    assert warned("--replay", "stort") == f"{said}there are: start\n"
    assert warned("--replay", "start") == warned("--replay", "none") == warned() == ""


def test_fill_brings_everything(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [layer_in("gzip")])
    imgfs.ok("index", "push", image)
    another_machine(imgfs)
    at = imgfs.mount(image, "--fill", "--limit-rate", "100M")
    until(lambda: (imgfs.status(at)["fill"] or {})["state"] == "done", "the fill to end")
    assert all(layer["spans_present"] == layer["spans"] for layer in imgfs.status(at)["layers"])


def test_an_index_that_a_list_outlived_is_not_listed(imgfs: Imgfs, server: FaultServer) -> None:
    server.referrers_api = False
    image = serve(server, "app", "v1", [layer_in("gzip")])
    imgfs.ok("index", "push", image)
    (listed,) = json.loads(imgfs.ok("index", "ls", "--json", image))
    del server.manifests["app", listed["digest"]]
    assert json.loads(imgfs.ok("index", "ls", "--json", image)) == []


def test_indexes_are_listed_and_removed(imgfs: Imgfs, tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as registry:
        push_image(registry, "app", "v1", [layer_in("gzip").blob])
        image = f"{registry}/app:v1"
        imgfs.ok("index", "push", image)
        listed = json.loads(imgfs.ok("index", "ls", "--json", image))
        assert [one["kind"] for one in listed] == ["imgfs"]
        imgfs.ok("index", "rm", image)
        assert json.loads(imgfs.ok("index", "ls", "--json", image)) == []
        assert imgfs.run("index", "rm", image).complaint() == f"{image}: there is no index by imgfs beside it"
