"""Whole images copied: what is sent, in which order, and what is not; then by the command, for others."""

from __future__ import annotations

import base64
import json
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imgfs.errors import IntegrityError, InvalidImage, NotFound, Unavailable, UsageError
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.image import DOCKER_CONFIG, DOCKER_LIST, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from imgfs.oci.reference import parse_reference
from imgfs.registry.retry import Timeouts
from imgfs.transport.connect import open_source
from imgfs.transport.copy import copy, mountable, put_image
from imgfs.transport.destination import Destination
from imgfs.transport.open_destination import open_destination
from imgfs.transport.parcel import Document, Parcel, blob_in, blob_of, blob_with, convert_to_oci, image_of
from tests.mount.test_registry import HTPASSWD, PASSWORD
from tests.support.docker_registry import (
    as_json,
    docker_registry,
    needs_docker_registry,
    push_image,
    push_index,
)
from tests.support.fake_source import FakeSource
from tests.support.fault_server import LAYER, Fault, FaultServer
from tests.support.mounted import Imgfs, Ran, Stored, Wire, gzipped, on_terminal, sha256, write_image
from tests.support.patience import allowed
from tests.support.tarmake import archive, file

FAST = Timeouts(connect=5.0, read=5.0, deadline=10.0, backoff=0.001)
RANDOM = random.Random(7)
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


class Log:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.begun: list[Digest] = []
        self.sent: dict[Digest, int] = {}
        self.ended: list[Digest] = []
        self.expected: list[Digest] = []
        self.skipped: list[Digest] = []
        self._lock = threading.Lock()

    def expects(self, layers: Iterable[Descriptor]) -> None:
        self.expected += (layer.digest for layer in layers)

    def skips(self, layer: Descriptor) -> None:
        self.skipped.append(layer.digest)

    def layer_begins(self, layer: Descriptor) -> None:
        self.begun.append(layer.digest)

    def layer_advances(self, layer: Descriptor, count: int) -> None:
        with self._lock:
            self.sent[layer.digest] = self.sent.get(layer.digest, 0) + count

    def layer_ends(self, layer: Descriptor) -> None:
        self.ended.append(layer.digest)


class Images(FakeSource):
    """A source that images are added to."""

    def layer(self, size: int = 1000, media_type: str = LAYER, **more: Any) -> dict[str, Any]:
        """A layer of random bytes, as a manifest names it."""
        return as_json(self.add(RANDOM.randbytes(size), media_type)) | more

    def image(self, *layers: dict[str, Any], docker: bool = False, **more: Any) -> Descriptor:
        """A manifest; it becomes the root."""
        kinds = (DOCKER_MANIFEST, DOCKER_CONFIG) if docker else (OCI_MANIFEST, OCI_CONFIG)
        config = self.add(json.dumps({"x": RANDOM.random()}).encode(), kinds[1])
        return self.document_of(kinds[0], config=as_json(config), layers=list(layers), **more)

    def index(
        self, *manifests: tuple[Descriptor, dict[str, Any]], media_type: str = OCI_INDEX, **more: Any
    ) -> Descriptor:
        """An index; it becomes the root."""
        entries = [as_json(manifest) | fields for manifest, fields in manifests]
        return self.document_of(media_type, manifests=entries, **more)

    def document_of(self, kind: str, **fields: Any) -> Descriptor:
        self.root = self.add(json.dumps({"schemaVersion": 2, "mediaType": kind, **fields}).encode(), kind)
        return self.root

    def lose(self, layer: dict[str, Any]) -> None:
        self.broken.add(Digest.parse(layer["digest"]))


def platform(architecture: str) -> dict[str, Any]:
    return {"platform": {"os": "linux", "architecture": architecture}}


@pytest.fixture
def images() -> Images:
    return Images()


@pytest.fixture
def destination(server: FaultServer) -> Iterator[Destination]:
    destination = open_destination(parse_reference(f"{server.host}/ns/app:v1"), timeouts=FAST)
    yield destination
    destination.close()


def send(
    images: FakeSource,
    destination: Destination,
    wanted: str | None = None,
    log: Log | None = None,
    **more: Any,
) -> Digest:
    chosen = Platform.from_text(wanted) if wanted else None
    return copy(images, destination, platform=chosen, reporter=log or Log(), **more)


def put_order(server: FaultServer) -> list[str]:
    """What was stored, in order: digests of blobs, names of manifests."""
    puts = [seen.path for seen in server.seen("/v2/", "PUT")]
    return [path.rpartition("digest=")[2] if "digest=" in path else path.rpartition("/")[2] for path in puts]


# what is sent


def test_an_image_arrives_byte_for_byte(
    images: Images, server: FaultServer, destination: Destination
) -> None:
    layers = [images.layer(), images.layer(0), images.layer(100_000)]
    root = images.image(*layers)
    assert send(images, destination) == root.digest
    assert server.manifests["ns/app", "v1"] == (OCI_MANIFEST, images.bodies[root.digest])
    for layer in layers:
        assert server.blobs[layer["digest"]] == images.bodies[Digest.parse(layer["digest"])]


def test_layers_come_before_the_config_and_the_manifest_last(
    images: Images, server: FaultServer, destination: Destination
) -> None:
    layers = {images.layer()["digest"] for _ in range(3)}
    root = images.image(*(as_json(Descriptor(LAYER, Digest.parse(name), 1000)) for name in layers))
    send(images, destination)
    order = put_order(server)
    config = json.loads(images.bodies[root.digest])["config"]["digest"]
    assert (set(order[:3]), order[3:]) == (layers, [config, "v1"])


def test_an_index_comes_with_all_its_manifests_children_first(
    images: Images, server: FaultServer, destination: Destination
) -> None:
    amd, arm, note = images.image(images.layer()), images.image(images.layer()), images.image(images.layer())
    attested = {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    inner = images.index((arm, platform("arm64")), (note, platform("unknown") | attested))
    root = images.index((amd, platform("amd64")), (inner, {}), (amd, {}))
    assert send(images, destination) == root.digest
    names = [str(one.digest) for one in (amd, arm, note, inner)]
    assert [name for name in put_order(server) if name not in server.blobs] == [*names, "v1"]
    assert server.tags == {"ns/app": ["v1"]}
    assert len(server.blobs) == 6


def test_a_platform_is_copied_alone(images: Images, server: FaultServer, destination: Destination) -> None:
    amd, arm = images.image(images.layer()), images.image(images.layer())
    inner = images.index((arm, platform("arm64")))
    images.index((amd, platform("amd64")), (inner, platform("arm64")))
    assert send(images, destination, "linux/arm64") == arm.digest
    assert server.manifests["ns/app", "v1"][1] == images.bodies[arm.digest]
    assert len(server.blobs) == 2


def test_an_index_of_which_images_are_missing_says_which_and_what_to_do(
    images: Images, server: FaultServer, destination: Destination
) -> None:
    amd, arm = images.image(images.layer()), images.image(images.layer())
    images.index((arm, platform("arm64")), (amd, platform("amd64")))  # as `docker save` writes it
    images.broken.add(arm.digest)
    with pytest.raises(NotFound, match=r"; so the image for linux/arm64 is missing: .*--platform"):
        send(images, destination)
    assert not server.blobs
    assert send(images, destination, "linux/amd64") == amd.digest


def test_a_platform_that_is_not_there_is_an_error(images: Images, destination: Destination) -> None:
    images.index((images.image(images.layer()), platform("amd64")))
    with pytest.raises(InvalidImage, match="no image for linux/s390x"):
        send(images, destination, "linux/s390x")


def test_docker_s_media_types_are_kept(images: Images, server: FaultServer, destination: Destination) -> None:
    image = images.image(images.layer(media_type=DOCKER_LAYER), docker=True)
    images.index((image, platform("amd64")), media_type=DOCKER_LIST)
    send(images, destination)
    assert server.manifests["ns/app", "v1"][0] == DOCKER_LIST
    assert server.manifests["ns/app", str(image.digest)][0] == DOCKER_MANIFEST


def test_a_manifest_that_does_not_say_what_it_is_gets_its_type(
    images: Images, server: FaultServer, destination: Destination
) -> None:
    root = images.image(images.layer())
    bare = {key: value for key, value in json.loads(images.bodies[root.digest]).items() if key != "mediaType"}
    images.root = Descriptor("", images.add(json.dumps(bare).encode()).digest, -1)
    send(images, destination)
    assert server.manifests["ns/app", "v1"][0] == OCI_MANIFEST


def test_an_artifact_is_copied_like_an_image(
    images: Images, server: FaultServer, destination: Destination
) -> None:
    empty = images.add(b"{}", "application/vnd.oci.empty.v1+json")
    chart = images.layer(media_type="application/vnd.cncf.helm.chart.content.v1.tar+gzip")
    root = images.document_of(OCI_MANIFEST, artifactType="a/b", config=as_json(empty), layers=[chart])
    assert send(images, destination) == root.digest


@pytest.mark.parametrize("depth", [5, 6])
def test_endless_indexes_are_refused(images: Images, destination: Destination, depth: int) -> None:
    inner = images.image(images.layer())
    for _ in range(depth):
        inner = images.index((inner, platform("amd64")))
    for wanted in (None, "linux/amd64"):
        with pytest.raises(InvalidImage, match="deep"):
            send(images, destination, wanted)


# what is not sent


def test_blobs_that_are_there_are_not_read(
    images: Images, server: FaultServer, destination: Destination
) -> None:
    there, missing = images.layer(), images.layer()
    server.add_blob(images.bodies[Digest.parse(there["digest"])])
    images.image(there, missing)
    log = Log()
    send(images, destination, log=log)
    assert [str(name) for name in log.begun[:1]] == [missing["digest"]]
    assert len(log.begun) == 2  # and the config
    assert {str(name) for name in log.skipped} == {there["digest"]}
    assert set(log.expected) == {*log.ended, *log.skipped}
    send(images, destination, log=(again := Log()))
    assert again.begun == []
    assert sorted(again.skipped, key=str) == sorted(again.expected, key=str)  # several threads ask


def test_a_blob_that_is_named_twice_is_sent_once(
    images: Images, server: FaultServer, destination: Destination
) -> None:
    layer = images.layer()
    first, second = images.image(layer, layer), images.image(layer)
    images.index((first, platform("amd64")), (second, platform("arm64")))
    send(images, destination)
    assert len([path for path in put_order(server) if path == layer["digest"]]) == 1


def test_blobs_of_the_same_registry_are_mounted(
    images: Images, server: FaultServer, destination: Destination
) -> None:
    server.mounts = {"ns/other"}
    images.image(images.layer(), images.layer())
    for body in images.bodies.values():
        server.add_blob(body)
    server.inject(Fault(status=404, undone=True), method="HEAD", times=3)
    images.ranges.clear()
    send(images, destination, mount_from="ns/other")
    assert images.ranges == []
    assert put_order(server) == ["v1"]
    assert destination.traffic().bytes == 0


@pytest.mark.parametrize(
    ("source", "target", "repository"),
    [
        ("h:1/a:x", "h:1/b", "a"),
        ("h:1/a:x", "h:1/a:y", None),
        ("h:1/a", "h:2/b", None),
        ("alpine", "docker.io/me/alpine", "library/alpine"),
        ("oci:d:x", "h:1/b", None),
        ("h:1/a", "oci:d:x", None),
    ],
)
def test_only_another_repository_of_one_registry_lends_blobs(
    source: str, target: str, repository: str | None
) -> None:
    assert mountable(parse_reference(source), parse_reference(target)) == repository


@pytest.mark.parametrize("media_type", [FOREIGN, DOCKER_FOREIGN])
def test_a_layer_that_may_not_be_distributed_stays_where_it_is(
    images: Images, server: FaultServer, destination: Destination, media_type: str
) -> None:
    away = images.layer(media_type=media_type, urls=["http://127.0.0.1:1/layer"])
    images.lose(away)
    here = images.layer(media_type=media_type, urls=["http://127.0.0.1:1/layer"])
    images.image(away, here)
    send(images, destination)
    assert away["digest"] not in server.blobs
    assert here["digest"] in server.blobs


def test_a_layer_without_urls_must_be_there(images: Images, destination: Destination) -> None:
    for media_type in (FOREIGN, LAYER):
        away = images.layer(media_type=media_type)
        images.lose(away)
        images.image(away)
        with pytest.raises(NotFound):
            send(images, destination)


# what goes wrong


def test_a_source_that_lies_leaves_no_image_behind(
    images: Images, server: FaultServer, destination: Destination
) -> None:
    root = images.image(images.layer(), images.layer(500_000))
    images.flips[300_000] = 100
    with pytest.raises(IntegrityError, match="digest of blob"):
        send(images, destination)
    assert server.manifests == {}
    assert str(root.digest) not in server.blobs
    assert all(str(Digest.of(body)) == name for name, body in server.blobs.items())


def test_a_source_that_cuts_is_an_error(
    images: Images, server: FaultServer, destination: Destination
) -> None:
    images.image(images.layer(500_000))
    images.cut_at = 200_000
    with pytest.raises(IntegrityError, match="size of blob"):
        send(images, destination)
    assert server.manifests == {}


def test_a_name_that_pins_another_image_costs_nothing(images: Images, server: FaultServer) -> None:
    images.image(images.layer())
    destination = open_destination(parse_reference(f"{server.host}/ns/app@{Digest.of(b'other')}"))
    with pytest.raises(UsageError, match="names one image for ever"):
        send(images, destination)
    assert server.log == []


def test_the_first_error_ends_the_other_blobs(
    images: Images, server: FaultServer, destination: Destination
) -> None:
    broken = images.layer(3_000_000)
    images.lose(broken)
    images.image(broken, *(images.layer() for _ in range(40)))
    with pytest.raises(NotFound):
        send(images, destination)
    assert len(images.ranges) < 20
    assert server.manifests == {}
    assert server.uploads == {}


def test_several_blobs_are_under_way_at_once(images: Images, destination: Destination) -> None:
    barrier = threading.Barrier(4, timeout=allowed(20))

    class Together(Log):
        def layer_begins(self, layer: Descriptor) -> None:
            super().layer_begins(layer)
            barrier.wait()

    images.image(*(images.layer() for _ in range(4)))
    config = image_of(images)
    put_image(destination, Parcel(config.layers, (), config.documents), Together())


def test_every_byte_is_reported_once_although_it_was_sent_twice(
    images: Images, server: FaultServer, destination: Destination
) -> None:
    layer = images.layer(600_000)
    images.image(layer)
    server.inject(Fault(take=100_000), on="/uploads/", method="PUT")
    log = Log()
    send(images, destination, log=log)
    assert log.sent[Digest.parse(layer["digest"])] == 600_000
    assert log.begun == log.ended


# an image put together


def test_a_new_image_is_base_layers_a_file_and_new_documents(
    images: Images, server: FaultServer, destination: Destination, tmp_path: Path
) -> None:
    base = images.layer(50_000)
    images.image(base)
    body = RANDOM.randbytes(3_000_000)
    path = tmp_path / "layer"
    path.write_bytes(body)
    layer = Descriptor(LAYER, Digest.of(body), len(body))
    lower = blob_of(images, Descriptor.parse(base, where="layer"), mount_from="ns/base")
    config = blob_with(b'{"new": true}', OCI_CONFIG)
    manifest = json.dumps({"config": as_json(config.descriptor), "layers": [base, as_json(layer)]}).encode()
    document = Document(Descriptor(OCI_MANIFEST, Digest.of(manifest), len(manifest)), manifest)
    server.inject(Fault(take=1_500_000), on="/uploads/", method="PUT", times=1)
    digest = put_image(destination, Parcel((lower, blob_in(path, layer)), (config,), (document,)), Log())
    assert digest == document.descriptor.digest
    assert server.blobs[str(layer.digest)] == body
    assert server.blobs[str(config.descriptor.digest)] == b'{"new": true}'
    assert [seen.path.rpartition("from=")[2] for seen in server.seen("mount=")] == ["ns/base"]


def test_a_file_that_cannot_be_read_is_one_line(destination: Destination, tmp_path: Path) -> None:
    layer = blob_in(tmp_path / "gone", Descriptor(LAYER, Digest.of(b"x"), 1))
    document = Document(Descriptor(OCI_MANIFEST, Digest.of(b"{}"), 2), b"{}")
    with pytest.raises(Unavailable, match="gone: No such file"):
        put_image(destination, Parcel((layer,), (), (document,)), Log())


# the command, and other readers


SMALL = gzipped(archive(file("hello", b"world\n")))


def incompressible(size: int) -> Stored:
    body = RANDOM.randbytes(size)
    return Stored(body, sha256(body))


def skopeo(*words: object) -> Ran:
    done = subprocess.run(["skopeo", *map(str, words)], capture_output=True, timeout=allowed(60), check=False)
    return Ran(done.returncode, done.stdout, done.stderr.decode())


needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="no skopeo")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


def test_copy_prints_the_name_and_the_digest(imgfs: Imgfs, server: FaultServer, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [SMALL])
    digest = json.loads((tmp_path / "layout/index.json").read_text())["manifests"][0]["digest"]
    assert imgfs.ok("copy", image, f"{server.host}/ns/app") == f"{server.host}/ns/app:latest@{digest}\n"
    assert imgfs.ok("push", image, f"{server.host}/ns/app:v2") == f"{server.host}/ns/app:v2@{digest}\n"
    pinned = f"{server.host}/ns/app@{digest}"
    assert imgfs.ok("push", image, pinned) == f"{pinned}\n"
    back = f"oci:{tmp_path / 'back'}:v3"
    assert imgfs.ok("copy", pinned, back) == f"{back}@{digest}\n"
    assert imgfs.ok("cat", back, "/hello") == "world\n"


def test_push_wants_a_registry(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [SMALL])
    ran = imgfs.run("push", image, f"oci:{tmp_path}/other:v1")
    assert "imgfs copy" in ran.complaint(code=2)


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        ("oci:missing:v1", "127.0.0.1:1/a", 2),
        ("oci:{layout}:nope", "127.0.0.1:1/a", 1),
        ("oci:{layout}:test", "127.0.0.1:1/UPPER", 2),
        ("oci:{layout}:test", "https://host/a", 2),
        ("oci:{layout}:test", "oci:/proc/none:v1", 1),
        ("oci:{layout}:test", "127.0.0.1:1/a", 1),
    ],
)
def test_a_copy_that_cannot_be_is_one_line(
    imgfs: Imgfs, tmp_path: Path, source: str, target: str, code: int
) -> None:
    write_image(tmp_path / "layout", [SMALL])
    ran = imgfs.run("copy", source.format(layout=tmp_path / "layout"), target, "--read-timeout", "2")
    ran.complaint(code=code)


def test_a_refused_push_is_one_line_that_names_repository_and_reason(
    imgfs: Imgfs, server: FaultServer, tmp_path: Path
) -> None:
    server.inject(
        Fault(status=403, body=b'{"errors":[{"code":"DENIED","message":"no"}]}', undone=True),
        method="POST",
        times=9,
    )
    ran = imgfs.run("push", write_image(tmp_path / "layout", [SMALL]), f"{server.host}/ns/app")
    assert f"cannot push to {server.host}/ns/app: the registry does not allow it" in ran.complaint()


def test_progress_is_drawn_on_a_terminal(imgfs: Imgfs, server: FaultServer, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [incompressible(2_000_000)])
    ran = on_terminal(imgfs.command("push", image, f"{server.host}/ns/app"), imgfs.environment)
    assert ran.code == 0
    assert "2 MB of 2 MB" in ran.err
    assert "copied" in ran.err
    assert ran.text.count("\n") == 1


def test_an_interrupted_copy_leaves_no_image(imgfs: Imgfs, server: FaultServer, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [SMALL])
    server.inject(Fault(stall_after=0, headers={"Content-Length": "5"}, undone=True), method="PUT", times=9)
    process = imgfs.start("push", image, f"{server.host}/ns/app")
    while not server.seen("/uploads/", "PUT"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=allowed(60))
    assert (process.returncode, errors) == (130, b"imgfs: interrupted\n")
    assert server.manifests == {}


@pytest.mark.parts
@needs_docker_registry
@needs_skopeo
def test_skopeo_and_umoci_read_what_was_copied(imgfs: Imgfs, registry: str, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [SMALL, gzipped(archive(file("more", b"x" * 100_000)))])
    name = imgfs.ok("push", image, f"{registry}/ns/app:v1").strip()
    digest = name.partition("@")[2]
    seen = skopeo("inspect", "--tls-verify=false", f"docker://{registry}/ns/app:v1")
    assert json.loads(seen.out)["Digest"] == digest
    copied = skopeo(
        "copy", "--src-tls-verify=false", f"docker://{registry}/ns/app:v1", f"oci:{tmp_path}/skopeo:v1"
    )
    assert copied.code == 0, copied.err
    imgfs.ok("copy", name, f"oci:{tmp_path}/ours:v1")
    theirs, ours = tmp_path / "skopeo/blobs/sha256", tmp_path / "ours/blobs/sha256"
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    again = skopeo("copy", f"oci:{tmp_path}/ours:v1", f"dir:{tmp_path}/dir")
    assert again.code == 0, again.err
    if shutil.which("umoci"):
        unpacked = imgfs.program(
            "umoci", "unpack", "--rootless", "--image", f"{tmp_path}/ours:v1", tmp_path / "bundle"
        )
        assert unpacked.code == 0, unpacked.err
        assert (tmp_path / "bundle/rootfs/hello").read_bytes() == b"world\n"


# Docker's format in a layout


def to_layout(images: Images, path: Path) -> dict[str, Any]:
    """Copy into a new layout with OCI media types; the document that its index.json names."""
    destination = open_destination(parse_reference(f"oci:{path}:v1"))
    put_image(destination, convert_to_oci(image_of(images)), Log())
    (entry,) = json.loads((path / "index.json").read_text())["manifests"]
    document: dict[str, Any] = blob_json(path, entry)
    assert document["mediaType"] == entry["mediaType"]
    return document


def blob_json(layout: Path, descriptor: dict[str, Any]) -> Any:
    """A document of a layout, whose digest and size are those of its descriptor."""
    body = (layout / "blobs/sha256" / descriptor["digest"].removeprefix("sha256:")).read_bytes()
    assert (sha256(body), len(body)) == (descriptor["digest"], descriptor["size"])
    return json.loads(body)


def test_a_docker_image_gets_oci_media_types_in_a_layout(images: Images, tmp_path: Path) -> None:
    layer = images.layer(media_type=DOCKER_LAYER)
    image = images.image(layer, docker=True)
    config = json.loads(images.document(image))["config"]
    manifest = to_layout(images, tmp_path / "layout")
    assert manifest["mediaType"] == OCI_MANIFEST
    assert manifest["config"] == config | {"mediaType": OCI_CONFIG}
    assert manifest["layers"] == [layer | {"mediaType": LAYER}]


def test_a_docker_list_becomes_an_index_of_the_converted(images: Images, tmp_path: Path) -> None:
    docker = images.image(images.layer(media_type=DOCKER_LAYER), docker=True)
    oci = images.image(images.layer())
    images.index((docker, platform("amd64")), (oci, platform("arm64")), media_type=DOCKER_LIST)
    index = to_layout(images, tmp_path / "layout")
    assert index["mediaType"] == OCI_INDEX
    converted, kept = index["manifests"]
    assert (converted["mediaType"], converted["platform"]["architecture"]) == (OCI_MANIFEST, "amd64")
    assert converted["digest"] != str(docker.digest)
    assert blob_json(tmp_path / "layout", converted)["layers"][0]["mediaType"] == LAYER
    assert kept == as_json(oci) | platform("arm64")


def test_what_is_oci_stays_byte_for_byte_in_a_layout(images: Images) -> None:
    images.index((images.image(images.layer()), platform("amd64")), annotations={"a": "b"})
    assert convert_to_oci(image_of(images)).documents == image_of(images).documents


@pytest.mark.parts
@needs_docker_registry
@needs_skopeo
def test_others_read_a_docker_image_that_was_copied_to_a_layout(
    imgfs: Imgfs, registry: str, tmp_path: Path, open_path: Path
) -> None:
    image = write_image(tmp_path / "layout", [SMALL])
    name = f"{registry}/ns/docker:v1"
    made = skopeo("copy", "--format", "v2s2", "--dest-tls-verify=false", image, f"docker://{name}")
    assert made.code == 0, made.err
    old = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{name}").out)["Digest"]
    ran = imgfs.run("copy", name, f"oci:{tmp_path}/out:v1")
    new = ran.text.strip().partition("@")[2]
    assert ran.err.endswith(
        f"imgfs: converted to OCI media types: {old} is now {new} (--preserve-digests keeps it)\n"
    )
    seen = skopeo("inspect", f"oci:{tmp_path}/out:v1")
    assert (seen.code, json.loads(seen.out)["Digest"]) == (0, new), seen.err
    if shutil.which("umoci"):
        image, bundle = f"{tmp_path}/out:v1", tmp_path / "bundle"
        assert imgfs.program("umoci", "unpack", "--rootless", "--image", image, bundle).code == 0
    if shutil.which("podman"):
        storage = "--root", open_path / "root", "--runroot", open_path / "run", "--storage-driver", "vfs"
        pulled = imgfs.program("podman", *storage, "pull", f"oci:{tmp_path}/out:v1")
        assert pulled.code == 0, pulled.err
    kept = imgfs.ok("copy", "--preserve-digests", name, f"oci:{tmp_path}/kept:v1").strip()
    assert kept.partition("@")[2] == old


@pytest.mark.parts
@needs_docker_registry
def test_a_layer_of_many_chunks_reaches_a_real_registry(imgfs: Imgfs, registry: str, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [incompressible((32 << 20) + 12_345)])
    name = imgfs.ok("copy", image, f"{registry}/ns/large:v1").strip()
    imgfs.ok("copy", name, f"oci:{tmp_path}/back:v1")
    assert {path.name for path in (tmp_path / "back/blobs/sha256").iterdir()} == {
        path.name for path in (tmp_path / "layout/blobs/sha256").iterdir()
    }


@pytest.mark.parts
@needs_docker_registry
@needs_skopeo
def test_an_index_is_copied_between_real_registries(imgfs: Imgfs, registry: str, tmp_path: Path) -> None:
    pushed = [
        push_image(registry, "ns/multi", None, [SMALL.blob], config={"architecture": name})
        for name in ("amd64", "arm64")
    ]
    both = [(one.manifest, platform(name)) for one, name in zip(pushed, ("amd64", "arm64"), strict=True)]
    index = push_index(registry, "ns/multi", "v1", both)
    with docker_registry(tmp_path / "other") as other:
        name = imgfs.ok("copy", f"{registry}/ns/multi:v1", f"{other}/ns/copy:v1").strip()
        assert name.endswith(str(index.digest))
        raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{other}/ns/copy:v1")
        assert Digest.of(raw.out) == index.digest
        arm = imgfs.ok("copy", "--platform", "linux/arm64", f"{other}/ns/copy:v1", f"{other}/ns/arm").strip()
        assert arm.endswith(str(pushed[1].manifest.digest))


@pytest.mark.parts
@needs_docker_registry
def test_a_real_registry_mounts_blobs_of_its_own(registry: str, tmp_path: Path) -> None:
    pushed = push_image(registry, "ns/lender", "v1", [RANDOM.randbytes(100_000)])
    names = parse_reference(f"{registry}/ns/lender:v1"), parse_reference(f"{registry}/ns/borrower:v1")
    source, destination = open_source(names[0]), open_destination(names[1])
    digest = copy(source, destination, platform=None, reporter=Log(), mount_from=mountable(*names))
    assert digest == pushed.manifest.digest
    assert destination.traffic().bytes == 0
    source.close()
    destination.close()


@pytest.mark.parts
@needs_docker_registry
def test_a_push_over_a_line_that_breaks_reaches_a_real_registry(registry: str) -> None:
    body = RANDOM.randbytes(40 << 20)
    layer = Descriptor(LAYER, Digest.of(body), len(body))
    breaks = [39 << 20, 20 << 20, 5 << 20]
    with Wire(registry) as wire:

        def open_at(offset: int) -> Iterator[bytes]:
            for at in range(offset, len(body), 1 << 20):
                if breaks and at >= breaks[-1]:
                    breaks.pop()
                    wire.cut()
                    wire.mend()
                yield body[at : at + (1 << 20)]

        destination = open_destination(parse_reference(f"{wire.host}/ns/broken"), timeouts=FAST)
        destination.put_blob(layer, open_at)
        assert destination.has(layer)
        destination.close()
    assert breaks == []


@pytest.mark.parts
@needs_docker_registry
def test_credentials_are_used_and_their_lack_is_said(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [SMALL])
    with docker_registry(tmp_path / "private", htpasswd=HTPASSWD) as host:
        complaint = imgfs.run("push", image, f"{host}/ns/app:v1").complaint()
        assert f"cannot push to {host}/ns/app" in complaint
        assert "no credentials" in complaint
        entry = {"auth": base64.b64encode(":".join(PASSWORD).encode()).decode()}
        auth = tmp_path / "auth.json"
        auth.write_text(json.dumps({"auths": {host: entry}}))
        imgfs.environment["REGISTRY_AUTH_FILE"] = str(auth)
        imgfs.ok("push", image, f"{host}/ns/app:v1")


@pytest.mark.parts
@needs_docker_registry
def test_a_pull_through_cache_is_said_to_be_one(imgfs: Imgfs, registry: str, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [SMALL])
    with docker_registry(tmp_path / "cache", mirrors=registry) as host:
        assert "pull-through cache" in imgfs.run("push", image, f"{host}/ns/app:v1").complaint()
