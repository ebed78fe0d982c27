"""Sources: a registry and an OCI layout directory keep the same promises."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imgfs.errors import IntegrityError, InvalidImage, NotFound, Unavailable, UsageError
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import DOCKER_LIST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from imgfs.oci.reference import LayoutReference, RegistryReference, parse_reference
from imgfs.registry.retry import Timeouts
from imgfs.transport.connect import open_source
from imgfs.transport.layout import LayoutSource
from imgfs.transport.source import UNKNOWN_SIZE, Source
from tests.support.docker_registry import (
    as_json,
    docker_registry,
    needs_docker_registry,
    push_image,
    push_index,
)
from tests.support.fault_server import Fault, FaultServer
from tests.support.patience import allowed

FAST = Timeouts(connect=5.0, read=5.0, deadline=10.0, backoff=0.001)
BODY = bytes(range(256)) * 4096  # 1 MiB
LAYER = gzip.compress(BODY, mtime=0)  # skopeo compresses what is not
MANIFEST = json.dumps({"schemaVersion": 2, "layers": []}).encode()


class Layout:
    """An OCI image layout directory that a test fills."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        (path / "blobs/sha256").mkdir(parents=True)

    def add_blob(self, body: bytes, media_type: str = "application/x") -> Descriptor:
        digest = Digest.of(body)
        (self.path / "blobs/sha256" / digest.hex).write_bytes(body)
        return Descriptor(media_type, digest, len(body))

    def add_entry(
        self, body: bytes, tag: str | None = None, media_type: str = OCI_MANIFEST, **more: Any
    ) -> Descriptor:
        descriptor = self.add_blob(body, media_type)
        annotations = {"org.opencontainers.image.ref.name": tag} if tag else {}
        self.entries.append(as_json(descriptor) | {"annotations": annotations} | more)
        self.write({"schemaVersion": 2, "manifests": self.entries})
        return descriptor

    def write(self, index: object) -> None:
        (self.path / "index.json").write_text(json.dumps(index))

    def blob_file(self, descriptor: Descriptor) -> Path:
        return self.path / "blobs/sha256" / descriptor.digest.hex

    def source(self, tag: str | None = None, digest: Digest | None = None) -> LayoutSource:
        return LayoutSource(LayoutReference(self.path, tag, digest))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def opened(server: FaultServer) -> Iterator[Callable[[str], Source]]:
    sources: list[Source] = []

    def open_named(text: str) -> Source:
        sources.append(open_source(parse_reference(f"{server.host}/{text}"), timeouts=FAST))
        return sources[-1]

    yield open_named
    for source in sources:
        source.close()


def same_content(descriptor: Descriptor) -> tuple[Digest, int]:
    return descriptor.digest, descriptor.size


# both kinds


@pytest.fixture(params=["registry", "layout"])
def world(
    request: pytest.FixtureRequest, server: FaultServer, layout: Layout, opened: Callable[[str], Source]
) -> tuple[Source, Descriptor, Descriptor, Descriptor]:
    """(source, manifest, config, layer) of the same image in each kind of source."""
    if request.param == "registry":
        manifest = server.add_manifest("app", "v1", MANIFEST)
        return opened("app:v1"), manifest, server.add_blob(b"{}", OCI_CONFIG), server.add_blob(BODY)
    manifest = layout.add_entry(MANIFEST, "v1")
    source = open_source(LayoutReference(layout.path, "v1"))
    return source, manifest, layout.add_blob(b"{}", OCI_CONFIG), layout.add_blob(BODY)


World = tuple[Source, Descriptor, Descriptor, Descriptor]


def test_a_tag_resolves_to_its_manifest(world: World) -> None:
    source, manifest, _, _ = world
    resolved = source.resolve()
    assert same_content(resolved) == same_content(manifest)
    assert source.document(resolved) == MANIFEST


def test_a_tag_resolves_together_with_its_manifest(world: World) -> None:
    source, manifest, _, _ = world
    resolved = source.resolve(whole=True)
    assert same_content(resolved) == same_content(manifest)
    assert source.document(resolved) == MANIFEST


def test_configs_are_documents_too(world: World) -> None:
    source, _, config, _ = world
    assert source.document(config) == b"{}"


def test_a_document_known_by_digest_alone_needs_no_size(world: World) -> None:
    source, manifest, _, _ = world
    assert source.document(Descriptor("", manifest.digest, UNKNOWN_SIZE)) == MANIFEST


@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 10), (5, 5), (1000, 700_000), (1 << 19, None)])
def test_a_piece_of_a_blob_is_exactly_that(world: World, start: int, end: int | None) -> None:
    source, _, _, layer = world
    chunks = list(source.blob(layer, start, end))
    assert b"".join(chunks) == BODY[start:end]
    assert all(chunks)
    assert source.traffic().bytes == len(BODY[start:end])


def test_a_piece_outside_the_blob_is_invalid(world: World) -> None:
    source, _, _, layer = world
    with pytest.raises(InvalidImage):
        list(source.blob(layer, 0, layer.size + 1))


@pytest.mark.parametrize("claimed", [len(BODY) - 1, len(BODY) + 1])
def test_a_blob_of_another_length_is_an_integrity_error(world: World, claimed: int) -> None:
    source, _, _, layer = world
    with pytest.raises(IntegrityError):
        list(source.blob(Descriptor(layer.media_type, layer.digest, claimed)))


def test_a_document_of_another_length_is_an_integrity_error(world: World) -> None:
    source, manifest, _, _ = world
    with pytest.raises(IntegrityError, match="size of sha256"):
        source.document(Descriptor(manifest.media_type, manifest.digest, manifest.size + 1))


def test_a_document_too_large_is_refused_unread(world: World) -> None:
    source, _, config, _ = world
    with pytest.raises(InvalidImage, match="at most"):
        source.document(Descriptor(OCI_CONFIG, config.digest, 9 << 20))
    assert source.traffic() == (0, 0)


def test_what_is_missing_is_not_found(world: World) -> None:
    source, _, _, _ = world
    missing = Descriptor("x", Digest.of(b"missing"), 7)
    with pytest.raises(NotFound):
        source.document(missing)
    with pytest.raises(NotFound):
        list(source.blob(missing))


def test_inline_data_is_used_and_checked(world: World) -> None:
    source, _, _, _ = world
    inline = Descriptor("x", Digest.of(b"hello"), 5, data=b"hello")
    assert source.document(inline) == b"hello"
    assert b"".join(source.blob(inline, 1, 3)) == b"el"
    assert source.traffic() == (0, 0)
    with pytest.raises(IntegrityError):
        source.document(Descriptor("x", Digest.of(b"hello"), 5, data=b"hullo"))


# registries


def test_a_pinned_reference_is_resolved_without_a_request(
    server: FaultServer, opened: Callable[[str], Source]
) -> None:
    manifest = server.add_manifest("app", None, MANIFEST)
    source = opened(f"app:ignored@{manifest.digest}")
    resolved = source.resolve()
    assert same_content(resolved) == (manifest.digest, UNKNOWN_SIZE)
    assert server.log == []
    assert source.document(resolved) == MANIFEST


def test_a_tag_costs_a_head_and_a_get_or_with_its_document_one_get(
    server: FaultServer, opened: Callable[[str], Source]
) -> None:
    server.add_manifest("app", "v1", MANIFEST)
    for whole, methods in ((False, ["HEAD", "GET"]), (True, ["GET"])):
        source = opened("app:v1")
        assert source.document(source.resolve(whole=whole)) == MANIFEST
        assert [seen.method for seen in server.log] == methods
        server.log.clear()
    with pytest.raises(NotFound, match="has no tag 'v2'; there are: v1"):
        opened("app:v2").resolve(whole=True)


def test_a_manifest_under_a_strange_media_type_is_found(
    server: FaultServer, opened: Callable[[str], Source]
) -> None:
    manifest = server.add_manifest("app", None, MANIFEST)
    strange = Descriptor("application/octet-stream", manifest.digest, manifest.size)
    assert opened("app").document(strange) == MANIFEST


def test_a_config_that_is_missing_is_missed_among_the_blobs(
    server: FaultServer, opened: Callable[[str], Source]
) -> None:
    """A registry may have worse to say of a manifest by that digest: docker-registry 500."""
    config = Descriptor(OCI_CONFIG, Digest.of(b"gone"), 4)
    with pytest.raises(NotFound, match=f"{server.host}/app has no blob {config.digest}"):
        opened("app").document(config)
    assert server.seen("/manifests/") == []


def test_a_config_with_other_bytes_is_an_integrity_error(
    server: FaultServer, opened: Callable[[str], Source]
) -> None:
    config = server.add_blob(b"{}", OCI_CONFIG)
    server.inject(Fault(body=b"[]"), on="/blobs/", times=9)
    with pytest.raises(IntegrityError):
        opened("app").document(config)


def test_a_foreign_layer_is_read_where_its_urls_say(
    server: FaultServer, opened: Callable[[str], Source]
) -> None:
    with FaultServer() as elsewhere:
        layer = elsewhere.add_blob(BODY)
        place = f"{elsewhere.url}/v2/x/blobs/{layer.digest}"
        urls = (f"{elsewhere.url}/v2/x/blobs/gone", place)
        foreign = Descriptor(layer.media_type, layer.digest, layer.size, urls=urls)
        assert b"".join(opened("app").blob(foreign, 10, 20)) == BODY[10:20]
        assert len(server.log) == 1
        assert len(elsewhere.log) == 2


def test_a_registry_reference_without_tag_or_digest_means_latest(server: FaultServer) -> None:
    manifest = server.add_manifest("app", "latest", MANIFEST)
    source = open_source(RegistryReference(server.host, "app"), timeouts=FAST)
    assert source.resolve() == manifest
    source.close()


def test_credentials_come_from_the_auth_files(server: FaultServer, tmp_path: Path) -> None:
    server.basic = ("alice", "pw")
    manifest = server.add_manifest("app", "v1", MANIFEST)
    auths = {server.host: {"username": "alice", "password": "pw"}}
    (tmp_path / "auth.json").write_text(json.dumps({"auths": auths}))
    source = open_source(
        RegistryReference(server.host, "app", "v1"), auth_files=[tmp_path / "auth.json"], timeouts=FAST
    )
    assert source.resolve() == manifest
    source.close()


def test_a_closed_source_says_unavailable_instead_of_hanging(
    server: FaultServer, opened: Callable[[str], Source]
) -> None:
    layer = server.add_blob(BODY)
    source = opened("app")
    server.inject(Fault(cut_after=1000), on="/blobs/", times=9)
    chunks = source.blob(layer)
    assert next(chunks) == BODY[:1000]
    source.close()
    with pytest.raises(Unavailable):
        list(chunks)


# layouts


def test_without_a_tag_the_only_image_is_meant(layout: Layout) -> None:
    manifest = layout.add_entry(MANIFEST, "whatever")
    assert same_content(layout.source().resolve()) == same_content(manifest)


def test_without_a_tag_latest_is_meant_among_several(layout: Layout) -> None:
    layout.add_entry(MANIFEST, "v1")
    latest = layout.add_entry(MANIFEST + b" ", "latest")
    assert same_content(layout.source().resolve()) == same_content(latest)


def test_nameless_platforms_are_one_image(layout: Layout) -> None:
    for number, architecture in enumerate(["amd64", "arm64"]):
        platform = {"os": "linux", "architecture": architecture}
        layout.add_entry(MANIFEST + b" " * number, platform=platform)
    resolved = layout.source().resolve()
    assert resolved.media_type == OCI_INDEX
    assert layout.source().document(resolved) == (layout.path / "index.json").read_bytes()


def test_a_tag_is_found_in_a_nested_index(layout: Layout) -> None:
    inner = layout.add_blob(MANIFEST + b"  ", OCI_MANIFEST)
    named = as_json(inner) | {"annotations": {"org.opencontainers.image.ref.name": "deep"}}
    layout.add_entry(json.dumps({"schemaVersion": 2, "manifests": [named]}).encode(), None, DOCKER_LIST)
    layout.add_entry(MANIFEST, "v1")
    assert same_content(layout.source("deep").resolve()) == same_content(inner)


def test_each_nested_index_is_read_once(layout: Layout) -> None:
    """However often the others name it: four levels of a hundred each would be a hundred million."""
    inner = layout.add_blob(MANIFEST + b"  ", OCI_MANIFEST)
    for _ in range(4):
        document = {"schemaVersion": 2, "manifests": [as_json(inner)] * 100}
        inner = layout.add_blob(json.dumps(document).encode(), OCI_INDEX)
    for _ in range(100):
        layout.add_entry(layout.source().document(inner), None, OCI_INDEX)
    source = layout.source("v9")
    with pytest.raises(NotFound, match="there are none"):
        source.resolve()
    size = (layout.path / "index.json").stat().st_size
    assert source.traffic().bytes < 3 * (size + 4 * inner.size)


def test_containerds_full_name_is_a_name(layout: Layout) -> None:
    full = {"io.containerd.image.name": "docker.io/library/app:v1"}
    manifest = layout.add_entry(MANIFEST, annotations=full)
    layout.add_entry(MANIFEST + b" ", "other")
    assert same_content(layout.source("docker.io/library/app:v1").resolve()) == same_content(manifest)


@pytest.mark.parametrize("tag", ["v3", None])
def test_a_missing_tag_names_the_tags_there_are(layout: Layout, tag: str | None) -> None:
    layout.add_entry(MANIFEST, "v1")
    layout.add_entry(MANIFEST + b" ", "v2")
    with pytest.raises(NotFound, match=f"has no tag '{tag or 'latest'}'; there are: v1, v2"):
        layout.source(tag).resolve()


def test_two_images_of_one_name_are_an_error(layout: Layout) -> None:
    layout.add_entry(MANIFEST, "v1")
    layout.add_entry(MANIFEST + b" ", "v1")
    with pytest.raises(InvalidImage, match="2 images are called 'v1'"):
        layout.source("v1").resolve()


def test_a_layout_may_be_pinned_by_digest(layout: Layout) -> None:
    manifest = layout.add_entry(MANIFEST, "v1")
    source = layout.source(None, manifest.digest)
    assert source.document(source.resolve()) == MANIFEST


def test_a_directory_that_is_no_layout_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match=r"no index\.json"):
            LayoutSource(LayoutReference(path)).resolve()


@pytest.mark.parametrize("index", [[], {"layers": []}, {"manifests": [{}]}, {"manifests": []}])
def test_a_broken_index_is_invalid_or_empty(layout: Layout, index: object) -> None:
    layout.write(index)
    with pytest.raises((InvalidImage, NotFound)):
        layout.source().resolve()


def test_a_blob_file_of_other_bytes_is_an_integrity_error(layout: Layout) -> None:
    manifest = layout.add_entry(MANIFEST, "v1")
    layout.blob_file(manifest).write_bytes(b"x" * manifest.size)
    with pytest.raises(IntegrityError):
        layout.source().document(manifest)


@pytest.mark.timeout(10)
def test_a_fifo_for_a_blob_does_not_hang(layout: Layout) -> None:
    layer = layout.add_blob(BODY)
    layout.blob_file(layer).unlink()
    os.mkfifo(layout.blob_file(layer))
    with pytest.raises(InvalidImage, match="not a regular file"):
        list(layout.source().blob(layer))


# real parts

HTPASSWD = "alice:$2b$05$abcdefghijklmnopqrstuuj5DaoYnUxZnCxcpQ8vG/UCDkJIC0IC2\n"
AUTHS = {"username": "alice", "password": "secret:with:colons"}


@needs_docker_registry
@pytest.mark.parts
def test_a_real_registry_with_a_password_is_a_source(tmp_path: Path) -> None:
    login = (AUTHS["username"], AUTHS["password"])
    with docker_registry(tmp_path / "registry", htpasswd=HTPASSWD) as host:
        pushed = push_image(host, "ns/app", "v1", [BODY], auth=login)
        (tmp_path / "auth.json").write_text(json.dumps({"auths": {f"{host}/ns": AUTHS}}))
        source = open_source(parse_reference(f"{host}/ns/app:v1"), auth_files=[tmp_path / "auth.json"])
        assert source.resolve() == pushed.manifest
        assert source.document(pushed.config)
        assert b"".join(source.blob(pushed.layers[0], 3, 300_000)) == BODY[3:300_000]
        source.close()


@needs_docker_registry
@pytest.mark.parts
@pytest.mark.skipif(shutil.which("skopeo") is None, reason="no skopeo")
def test_a_layout_that_skopeo_wrote_is_the_same_image(tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as host:
        pushed = push_image(host, "app", "v1", [LAYER])
        index = push_index(
            host, "app", "multi", [(pushed.manifest, {"platform": {"os": "linux", "architecture": "amd64"}})]
        )
        for tag in ("v1", "multi"):
            target = f"oci:{tmp_path}/layout:{tag}"
            command = ["skopeo", "copy", "--quiet", "--all", "--src-tls-verify=false"]
            subprocess.run([*command, f"docker://{host}/app:{tag}", target], check=True, timeout=allowed(60))
    for tag, expected in (("v1", pushed.manifest), ("multi", index)):
        source = open_source(parse_reference(f"oci:{tmp_path}/layout:{tag}"))
        assert source.resolve().digest == expected.digest
        assert b"".join(source.blob(pushed.layers[0])) == LAYER
