"""Images of a containerd, read by ranges of its content store through everything."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from imgfs.transport.grpc import GrpcChannel
from tests.support import tarmake
from tests.support.engines import Containerd, containerd, needs_containerd
from tests.support.mounted import NOBODY, Imgfs, documents, gzipped, plain, sha256, write_documents, zstd

pytestmark = [needs_containerd, pytest.mark.parts]


@cache
def noise_body() -> bytes:
    return random.Random(5).randbytes(9 << 20)  # three reads of containerd's


@cache
def lower_layer() -> bytes:
    return tarmake.archive(
        tarmake.directory("etc"), tarmake.file("etc/name", b"lower"), tarmake.file("noise", noise_body())
    )


REF_NAME = "org.opencontainers.image.ref.name"
CALLS = ("Images.Get", "Images.List", "Content.Info", "Content.Read")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """A containerd with `small` in two namespaces: for amd64 of gzip and zstd layers, for arm64 plain."""
    layout = tmp_path_factory.mktemp("layout")
    for architecture in ("amd64", "arm64"):
        upper = tarmake.archive(tarmake.file("etc/name", architecture.encode()))
        layers = [gzipped(lower_layer()), zstd(upper)] if architecture == "amd64" else [plain(upper)]
        made = documents(layers, {"architecture": architecture})
        write_documents(layout, made.manifest, made.blobs, architecture)
    index = json.loads((layout / "index.json").read_text())
    entries = [
        {**entry, "platform": {"os": "linux", "architecture": entry.pop("annotations")[REF_NAME]}}
        for entry in index["manifests"]
    ]
    body = json.dumps({**index, "manifests": entries}).encode()
    (layout / "index.json").write_text(json.dumps({**index, "manifests": []}))
    write_documents(layout, body, {}, "v1", mediaType=index["mediaType"])
    with tempfile.TemporaryDirectory(dir="/tmp") as short, containerd(Path(short)) as made_engine:
        made_engine.add(layout, "docker.io/library/small")
        made_engine.add(layout, "h.io/small", "k8s.io")
        yield made_engine


@pytest.fixture
def asking(imgfs: Imgfs, engine: Containerd) -> Imgfs:
    imgfs.environment["CONTAINERD_ADDRESS"] = f"unix://{engine.socket}"
    return imgfs


def counted(engine: Containerd, before: dict[str, int]) -> dict[str, int]:
    now = engine.calls()
    return {name: now[name] - before.get(name, 0) for name in CALLS if now[name] != before.get(name, 0)}


def test_a_listing_reads_each_layer_once_and_a_second_one_none(asking: Imgfs, engine: Containerd) -> None:
    before = engine.calls()
    assert asking.ok("ls", "containerd:small:v1").split() == ["etc", "noise"]
    # index, manifest and config; 9 MiB in three pieces, and a layer that is small
    assert counted(engine, before)["Content.Read"] == 3 + 3 + 1
    before = engine.calls()
    assert asking.ok("find", "containerd:small:v1", "/etc").split() == ["/etc", "/etc/name"]
    assert counted(engine, before).keys() == {"Images.Get"}


@pytest.mark.kernel
def test_a_mount_reads_ranges_of_what_is_read(asking: Imgfs, engine: Containerd) -> None:
    asking.ok("ls", "containerd:small:v1")
    asking.evict("containerd:small:v1")
    mountpoint = asking.mount("containerd:small:v1")
    before = engine.calls()
    assert (mountpoint / "etc/name").read_bytes() == b"amd64"
    assert counted(engine, before) == {"Content.Info": 1, "Content.Read": 1}
    assert sha256((mountpoint / "noise").read_bytes()) == sha256(noise_body())
    asking.umount(mountpoint)


@pytest.mark.parametrize(
    ("image", "options", "name"),
    [
        ("containerd:k8s.io/h.io/small:v1", (), "amd64"),
        ("containerd:small:v1", ("--platform", "linux/arm64"), "arm64"),
    ],
)
def test_namespaces_and_platforms(asking: Imgfs, image: str, options: tuple[str, ...], name: str) -> None:
    assert asking.ok("cat", *options, f"{image}:/etc/name") == name


def test_an_image_is_named_by_its_digest_too(asking: Imgfs, tmp_path: Path) -> None:
    digest = json.loads(asking.ok("inspect", "--json", "containerd:small:v1"))["digest"]
    assert asking.ok("cat", f"containerd:small@{digest}:/etc/name") == "amd64"
    assert asking.ok("cat", f"containerd:k8s.io/small@{digest}:/etc/name") == "amd64"
    assert len(asking.ok("platforms", "containerd:k8s.io/h.io/small:v1").splitlines()) == 2
    asking.ok("copy", "containerd:small:v1", f"oci:{tmp_path / 'copy'}:v1")
    assert asking.ok("cat", f"oci:{tmp_path / 'copy'}:v1:/etc/name") == "amd64"
    assert asking.run("diff", "containerd:small:v1", "containerd:k8s.io/h.io/small:v1").code == 0


def test_names_are_listed(asking: Imgfs) -> None:
    assert asking.ok("tags", "containerd:small") == "docker.io/library/small:v1\n"
    assert asking.ok("tags", "containerd:k8s.io/h.io/small") == "h.io/small:v1\n"
    said = asking.run("ls", "containerd:other").complaint()
    assert said == (
        "containerd:other: containerd has no such image; the namespace default has: "
        "docker.io/library/small:v1; other namespaces: k8s.io/"
    )


def test_what_cannot_be_asked_is_one_line(imgfs: Imgfs, tmp_path: Path) -> None:
    imgfs.environment["CONTAINERD_ADDRESS"] = str(tmp_path / "none")
    said = imgfs.run("ls", "containerd:app").complaint()
    where = tmp_path / "none"
    assert said == f"{where}: no such socket: is containerd running? $CONTAINERD_ADDRESS names another socket"
    imgfs.environment["CONTAINERD_NAMESPACE"] = "a/b"
    assert "is not a namespace of containerd" in imgfs.run("ls", "containerd:app").complaint(2)


def test_who_may_not_ask_is_told(nobody: Imgfs, engine: Containerd) -> None:
    nobody.environment["CONTAINERD_ADDRESS"] = str(engine.socket)
    assert nobody.user == NOBODY
    said = nobody.run("ls", "containerd:small:v1").complaint()
    assert (
        said
        == f"{engine.socket}: permission denied: containerd is asked by root, or by who its socket is for"
    )


def test_a_blob_that_is_gone_is_said(asking: Imgfs, engine: Containerd) -> None:
    upper = gzipped(tarmake.archive(tarmake.file("a", b"a")))
    layout = asking.directory / "gone"
    made = documents([upper])
    write_documents(layout, made.manifest, made.blobs, "v1")
    engine.add(layout, "h.io/gone", "discards")
    engine.ctr("content", "rm", sha256(upper.blob), namespace="discards")
    said = asking.run("ls", "containerd:discards/h.io/gone:v1").complaint()
    assert f"containerd has no {sha256(upper.blob)} in the namespace discards or default" in said
    assert "discard_unpacked_layers" in said


def test_reads_are_bounded_by_what_is_asked_for(
    asking: Imgfs, engine: Containerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgfs.oci.descriptor import Digest
    from imgfs.transport.containerd import ContainerdApi

    asked: list[int] = []
    called = GrpcChannel.call

    def call(self: GrpcChannel, *words: object) -> list[bytes]:
        asked.append(words[-1])  # type: ignore[arg-type]
        return called(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(GrpcChannel, "call", call)
    api = ContainerdApi(engine.socket)
    digest = Digest.parse(sha256(gzipped(lower_layer()).blob))
    whole = gzipped(lower_layer()).blob
    assert b"".join(api.read("default", digest, 5 << 20, (5 << 20) + 70_001)) == whole[5 << 20 :][:70_001]
    assert asked == [70_001 + (64 << 10)]
    api.close()
