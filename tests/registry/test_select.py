"""Which manifest an index means, and what is no image: from a registry, from a layout, and by commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imgfs.errors import InvalidImage, NotFound, Unavailable
from imgfs.oci.descriptor import Descriptor, Platform
from imgfs.oci.image import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Index, Manifest, parse_document
from imgfs.oci.kind import artifact_kind, is_artifact_tag
from imgfs.oci.select import Selected, select_manifest
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, documents, gzipped, plain, sha256, write_documents
from tests.support.tarmake import archive, file

AMD64 = {"os": "linux", "architecture": "amd64"}
ARM64 = {"os": "linux", "architecture": "arm64", "variant": "v8"}
REF_NAME = "org.opencontainers.image.ref.name"
COSIGN = "application/vnd.dev.cosign.simplesigning.v1+json"
IN_TOTO = "application/vnd.in-toto+json"
EMPTY = "application/vnd.oci.empty.v1+json"


class World:
    """Documents by digest, such as a registry has them; counts what is read."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.read: list[str] = []

    def image(self, name: str, platform: dict[str, str]) -> dict[str, Any]:
        """Add an image with one file `name`; the descriptor of its manifest, without a platform."""
        made = documents([gzipped(archive(file(name, name.encode())))], platform)
        self.blobs |= {**made.blobs, sha256(made.manifest): made.manifest}
        return self.entry(made.manifest)

    def add(self, document: dict[str, Any], media_type: str = OCI_MANIFEST, **more: Any) -> dict[str, Any]:
        return self.entry(json.dumps(document).encode(), media_type, **more)

    def entry(self, body: bytes, media_type: str = OCI_MANIFEST, **more: Any) -> dict[str, Any]:
        self.blobs[sha256(body)] = body
        return {"mediaType": media_type, "digest": sha256(body), "size": len(body), **more}

    def index(self, *entries: dict[str, Any], **more: Any) -> dict[str, Any]:
        return self.add(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}, OCI_INDEX, **more
        )

    def artifact(self, layer: str, *, config: str = OCI_CONFIG, **more: Any) -> dict[str, Any]:
        """Add an artifact with one layer."""
        body = json.dumps({"os": "", "architecture": "", "rootfs": {"type": "layers", "diff_ids": []}})
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.entry(body.encode(), config),
            "layers": [self.entry(b"{}", layer)],
            **more,
        }
        return self.add(document)

    def document(self, entry: Descriptor) -> Manifest | Index:
        self.read.append(str(entry.digest))
        if str(entry.digest) not in self.blobs:
            raise NotFound(f"{entry.digest} is not there")
        return parse_document(self.blobs[str(entry.digest)], entry.media_type)

    def select(self, entry: dict[str, Any], wanted: str = "linux/amd64") -> Selected:
        named = Descriptor.parse(entry, where="named")
        config = self.blobs.__getitem__
        return select_manifest(
            named, Platform.from_text(wanted), self.document, lambda one: config(str(one.digest))
        )


@pytest.fixture
def world() -> World:
    return World()


def is_of(found: Selected, entry: dict[str, Any]) -> bool:
    return str(found.descriptor.digest) == str(entry["digest"])


def test_manifests_without_a_platform_are_known_by_their_configs(world: World) -> None:
    arm, amd = world.image("arm", ARM64), world.image("amd", AMD64)
    index = world.index(arm, amd)
    assert is_of(world.select(index), amd)
    assert is_of(world.select(index, "linux/arm64"), arm)
    with pytest.raises(
        InvalidImage, match="no image for linux/s390x; there are: linux/arm64/v8, linux/amd64"
    ):
        world.select(index, "linux/s390x")


def test_an_entry_that_names_the_platform_is_not_compared_with_those_that_name_none(world: World) -> None:
    index = world.index(world.image("bare", AMD64), world.image("named", AMD64) | {"platform": AMD64})
    assert is_of(world.select(index), world.image("named", AMD64))
    assert len(world.read) == 2  # the index and the manifest


@pytest.mark.parametrize(
    "more",
    [
        {"platform": {}},
        {"platform": None},
        {"platform": {"os": "linux"}},
        {"platform": {"os": "", "architecture": "", "variant": ""}},
        {"platform": {"os": "Linux", "architecture": "X86_64", "os.features": None, "os.version": "1"}},
        {"artifactType": ""},
        {"artifactType": OCI_CONFIG.upper()},
        {"artifactType": f"{OCI_CONFIG}; charset=utf-8"},
        {"artifactType": OCI_MANIFEST, "platform": AMD64},
    ],
)
def test_what_an_entry_half_says_hides_no_image(world: World, more: dict[str, Any]) -> None:
    amd = world.image("amd", AMD64) | more
    other = world.image("arm", ARM64) | {"platform": ARM64}
    assert is_of(world.select(world.index(other, amd)), amd)
    nested = world.index(world.image("amd", AMD64), artifactType=OCI_INDEX)
    assert is_of(world.select(world.index(other, nested)), amd)


def test_an_entry_without_a_platform_counts_beside_one_of_another(world: World) -> None:
    bare = world.image("bare", AMD64)
    index = world.index(world.image("arm", ARM64) | {"platform": ARM64}, bare)
    assert is_of(world.select(index), bare)
    with pytest.raises(InvalidImage, match="there are: linux/arm64/v8, linux/amd64"):
        world.select(index, "linux/s390x")


def test_the_newest_variant_of_those_without_a_platform_wins(world: World) -> None:
    variants = [
        world.image(variant, {"os": "linux", "architecture": "arm", "variant": variant})
        for variant in ("v5", "v7", "v6")
    ]
    index = world.index(*variants)
    assert is_of(world.select(index, "linux/arm/v7"), variants[1])
    assert is_of(world.select(index, "linux/arm/v6"), variants[2])


def test_nested_indexes_without_a_platform_are_searched(world: World) -> None:
    arm, amd = world.image("arm", ARM64), world.image("amd", AMD64)
    inner = [world.index(arm | {"platform": ARM64}), world.index(amd | {"platform": AMD64})]
    assert is_of(world.select(world.index(*inner)), amd)
    assert is_of(world.select(world.index(world.index(arm), world.index(amd))), amd)
    assert is_of(world.select(world.index(world.index(world.index(amd)))), amd)


def test_a_nested_index_of_the_platform_that_has_nothing_is_not_the_end(world: World) -> None:
    amd = world.image("amd", AMD64)
    empty = world.index(world.image("arm", ARM64) | {"platform": ARM64}, platform=AMD64)
    assert is_of(world.select(world.index(empty, amd | {"platform": AMD64})), amd)


def test_what_cannot_be_read_or_is_no_image_is_passed_over(world: World) -> None:
    amd = world.image("amd", AMD64)
    gone = {"mediaType": OCI_MANIFEST, "digest": sha256(b"gone"), "size": 4}
    strange = world.entry(b'{"schemaVersion": 2, "manifests": 7}', OCI_INDEX)
    index = world.index(gone, world.artifact(IN_TOTO), world.artifact("x/y", config="x/y"), strange, amd)
    assert is_of(world.select(index), amd)


def test_what_could_not_be_asked_for_is_the_error_if_nothing_else_fits(world: World) -> None:
    index = world.index(world.image("arm", ARM64), world.image("amd", AMD64))

    def read(entry: Descriptor) -> Manifest | Index:
        if entry.media_type == OCI_INDEX:
            return world.document(entry)
        raise Unavailable("away")

    with pytest.raises(Unavailable, match="away"):
        select_manifest(
            Descriptor.parse(index, where="x"), Platform.from_text("linux/amd64"), read, lambda _: b""
        )


@pytest.mark.parametrize("more", [{"platform": AMD64}, {}])
def test_a_search_reads_no_more_documents_than_it_may(world: World, more: dict[str, Any]) -> None:
    """Each level may name the next thousands of times: what is read would be their product."""
    inner = world.index(*[world.image("arm", ARM64) | {"platform": ARM64}] * 100, **more)
    for _ in range(3):
        inner = world.index(*[inner] * 100, **more)
    with pytest.raises(InvalidImage, match="no image for linux/amd64 among the first 64 documents"):
        world.select(inner)
    assert len(world.read) == 1 + 64


def test_what_was_found_before_a_search_ended_counts(world: World) -> None:
    amd = world.image("amd", AMD64)
    assert is_of(world.select(world.index(amd, *[world.image("arm", ARM64)] * 100)), amd)


def test_indexes_nested_too_deep_are_refused(world: World) -> None:
    inner = world.image("amd", AMD64)
    for _ in range(5):
        inner = world.index(inner)
    with pytest.raises(InvalidImage, match="nested more than 4 deep"):
        world.select(inner)


@pytest.mark.parametrize("artifact_type", [OCI_CONFIG, "application/vnd.docker.container.image.v1+json"])
def test_an_artifact_type_that_is_that_of_a_config_is_an_image(world: World, artifact_type: str) -> None:
    """go-containerregistry writes it into indexes (crane, apko, ko, bazel)."""
    amd = world.image("amd", AMD64) | {"artifactType": artifact_type}
    for entry in (amd, amd | {"platform": AMD64}):
        assert is_of(world.select(world.index(world.image("arm", ARM64) | {"platform": ARM64}, entry)), amd)


def test_other_artifacts_in_an_index_are_never_chosen(world: World) -> None:
    amd = world.image("amd", AMD64)
    others = [
        amd | {"artifactType": "application/vnd.cncf.notary.signature", "platform": AMD64},
        amd | {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
        amd | {"annotations": {"kind": "dev.cosignproject.cosign/sigs"}},
    ]
    for other in others:
        with pytest.raises(InvalidImage, match="offers no image"):
            world.select(world.index(other))


@pytest.mark.parametrize(
    ("layer", "more", "says"),
    [
        (COSIGN, {}, f"a signature (layers of type {COSIGN})"),
        (
            "application/jose+json",
            {"config": EMPTY, "artifactType": "application/vnd.cncf.notary.signature"},
            "a signature (artifactType application/vnd.cncf.notary.signature)",
        ),
        (
            "application/vnd.dev.sigstore.bundle.v0.3+json",
            {"config": EMPTY, "artifactType": "application/vnd.dev.sigstore.bundle.v0.3+json"},
            "a signature (artifactType application/vnd.dev.sigstore.bundle.v0.3+json)",
        ),
        (IN_TOTO, {}, f"an attestation (layers of type {IN_TOTO})"),
        ("application/vnd.dsse.envelope.v1+json", {}, "an attestation (layers of type"),
        ("application/vnd.cyclonedx+json", {"config": EMPTY}, "an SBOM (layers of type"),
        ("text/plain", {"config": EMPTY, "artifactType": "x/rocket"}, "an artifact (artifactType x/rocket)"),
        (
            "text/plain",
            {"config": "application/vnd.unknown.config.v1+json"},
            "an artifact (config of type application/vnd.unknown.config.v1+json)",
        ),
        (
            "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
            {"config": "application/vnd.cncf.helm.config.v1+json"},
            "a Helm chart (layers of type",
        ),
        ("application/wasm", {"config": "application/vnd.wasm.config.v0+json"}, "a WebAssembly module"),
        ("application/octet-stream", {"config": "application/vnd.amazon.soci.index.v1+json"}, "a SOCI index"),
        ("application/x-tar", {"config": "application/vnd.cncf.flux.config.v1+json"}, "a Flux artifact"),
        ("application/vnd.cdf.tekton.catalog.v1beta1", {}, "a Tekton bundle (layers of type"),
        ("application/x-tar", {"config": "application/vnd.cncf.openpolicyagent.config.v1+json"}, "a policy"),
        ("x/yaml", {"config": "application/vnd.docker.compose.project"}, "a Compose project (config of"),
        ("application/vnd.ollama.image.model", {}, "a model (layers of type"),
        ("application/vnd.cncf.model.weight.v1.tar", {}, "a model (layers of type"),
        ("application/vnd.docker.ai.gguf.v3", {}, "a model (layers of type"),
        ("application/vnd.kitops.modelkit.model.v1.tar+gzip", {}, "a model (layers of type"),
        (
            "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
            {},
            "a WebAssembly module (layers of type",
        ),
        ("application/x-tar", {"config": "application/vnd.buildkit.cacheconfig.v0"}, "a build cache"),
    ],
)
def test_what_an_artifact_is_is_said(world: World, layer: str, more: dict[str, Any], says: str) -> None:
    found = world.select(world.artifact(layer, **more))
    assert (artifact_kind(found.manifest) or "").startswith(says)


def test_an_image_with_the_type_of_its_config_for_an_artifact_type_is_one(world: World) -> None:
    layer = "application/vnd.oci.image.layer.v1.tar+gzip"
    assert artifact_kind(world.select(world.artifact(layer, artifactType=OCI_CONFIG)).manifest) is None
    assert artifact_kind(world.select(world.artifact(layer)).manifest) is None


def test_an_index_that_calls_itself_an_artifact_is_named(world: World) -> None:
    document = {"schemaVersion": 2, "manifests": [], "artifactType": "application/vnd.docker.ai.model"}
    with pytest.raises(InvalidImage, match=r"this is a model \(artifactType .*\), not an image"):
        world.select(world.add(document, OCI_INDEX))
    with pytest.raises(InvalidImage, match="offers no image"):
        world.select(world.add(document | {"artifactType": OCI_CONFIG}, OCI_INDEX))


@pytest.mark.parametrize("end", ["", ".sig", ".att", ".sbom"])
def test_tags_made_of_a_digest_are_those_of_artifacts(end: str) -> None:
    assert is_artifact_tag(f"sha256-{'a' * 64}{end}")
    assert not is_artifact_tag(f"v1{end}")
    assert not is_artifact_tag(f"sha256-abc{end}")


# commands


def push(server: FaultServer, world: World, tag: str, entry: dict[str, Any]) -> str:
    server.blobs.update(world.blobs)
    for body in world.blobs.values():
        server.add_manifest("ns/app", None, body)
    server.add_manifest("ns/app", tag, world.blobs[entry["digest"]], entry["mediaType"])
    return f"{server.host}/ns/app:{tag}"


def test_commands_find_the_image_of_an_index_that_names_no_platforms(
    imgfs: Imgfs, server: FaultServer, world: World, tmp_path: Path
) -> None:
    index = world.index(world.image("arm", ARM64), world.index(world.image("amd", AMD64)))
    image = push(server, world, "v1", index)
    assert imgfs.ok("ls", "--platform", "linux/amd64", image).split() == ["amd"]
    assert imgfs.ok("ls", "--platform", "linux/arm64", image).split() == ["arm"]
    copied = f"oci:{tmp_path / 'copy'}:v1"
    imgfs.ok("copy", "--platform", "linux/arm64", image, copied)
    assert imgfs.ok("ls", "--platform", "linux/arm64", copied).split() == ["arm"]


def test_commands_say_what_an_artifact_is(imgfs: Imgfs, server: FaultServer, world: World) -> None:
    tag = f"sha256-{'a' * 64}.sig"
    image = push(server, world, tag, world.artifact(COSIGN))
    assert (
        f"this is a signature (layers of type {COSIGN}), not an image" in imgfs.run("ls", image).complaint()
    )
    push(server, world, "v1", world.image("amd", AMD64))
    missing = imgfs.run("ls", f"{server.host}/ns/app:v2").complaint()
    assert missing.endswith("there are: v1")


def write_layout(path: Path, world: World, *entries: dict[str, Any]) -> str:
    for entry in entries:
        notes = entry.get("annotations", {})
        body = world.blobs[entry["digest"]]
        write_documents(path, body, world.blobs, **{**entry, "annotations": notes})
    return f"oci:{path}"


def test_artifacts_in_a_layout_are_no_images(imgfs: Imgfs, world: World, tmp_path: Path) -> None:
    image = world.image("amd", AMD64)
    others = [
        world.artifact(IN_TOTO) | {"platform": {"os": "unknown", "architecture": "unknown"}},
        world.artifact(IN_TOTO, annotations={"n": "2"}),
        world.artifact("text/plain", config=EMPTY, artifactType="x/rocket"),
        world.artifact(COSIGN) | {"annotations": {REF_NAME: f"sha256-{'a' * 64}.sig"}},
    ]
    for number, other in enumerate(others):
        layout = write_layout(tmp_path / f"{number}", world, other, image)
        assert imgfs.ok("ls", layout).split() == ["amd"]
    assert imgfs.ok("ls", write_layout(tmp_path / "all", world, *others, image)).split() == ["amd"]


def test_the_only_entry_of_a_layout_says_what_it_is(imgfs: Imgfs, world: World, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", world, world.artifact(COSIGN))
    assert "this is a signature" in imgfs.run("ls", layout).complaint()


def test_an_image_of_go_containerregistry_in_a_layout_is_one(
    imgfs: Imgfs, world: World, tmp_path: Path
) -> None:
    entry = world.image("amd", AMD64) | {"artifactType": OCI_CONFIG, "platform": AMD64}
    assert imgfs.ok("ls", write_layout(tmp_path / "layout", world, entry)).split() == ["amd"]


def test_entries_of_one_tag_for_different_platforms_are_one_image(
    imgfs: Imgfs, world: World, tmp_path: Path
) -> None:
    named = {"annotations": {REF_NAME: "v1"}}
    arm = world.image("arm", ARM64) | {"platform": ARM64} | named
    amd = world.image("amd", AMD64) | {"platform": AMD64} | named
    image = f"{write_layout(tmp_path / 'layout', world, arm, amd)}:v1"
    assert imgfs.ok("ls", "--platform", "linux/amd64", image).split() == ["amd"]
    assert imgfs.ok("ls", "--platform", "linux/arm64", image).split() == ["arm"]
    copied = f"oci:{tmp_path / 'copy'}:v2"
    imgfs.ok("copy", image, copied)
    assert imgfs.ok("ls", "--platform", "linux/arm64", copied).split() == ["arm"]


def test_commands_read_null_and_bad_utf_8_as_go_does(imgfs: Imgfs, tmp_path: Path) -> None:
    runtime = {"Labels": None, "Env": ["A=1", None], "Cmd": None, "Entrypoint": None, "Volumes": None}
    nulls = {"config": runtime | {"User": None}, "history": [None], "created": None}
    made = documents([gzipped(archive(file("a", b"1")))], nulls)
    image = write_documents(tmp_path / "nulls", made.manifest, made.blobs)
    assert imgfs.ok("ls", image).split() == ["a"]
    assert "linux/amd64" in imgfs.ok("inspect", image)
    assert json.loads(imgfs.ok("inspect", "--json", image))["config"]["Labels"] is None
    for bad in (b"caf\xe9", b"caf\\ud800"):
        made = documents([gzipped(archive(file("a", b"1")))], {"config": {"Labels": {"k": "BAD"}}})
        config = made.config.replace(b"BAD", bad)
        manifest = made.manifest.replace(sha256(made.config).encode(), sha256(config).encode())
        size = b'"size": %d' % len(made.config), b'"size": %d' % len(config)
        blobs = {**made.blobs, sha256(config): config}
        image = write_documents(tmp_path / "bad", manifest.replace(*size), blobs, tag=sha256(config)[7:])
        assert imgfs.ok("ls", image).split() == ["a"]
        assert json.loads(imgfs.ok("inspect", "--json", image))["config"]["Labels"] == {"k": "caf\ufffd"}


def test_labels_and_steps_of_megabytes_are_cut_for_people(imgfs: Imgfs, tmp_path: Path) -> None:
    """As buildpacks write the one, and heredocs of a Dockerfile make the other."""
    long = "x" * (1 << 20)
    config = {
        "config": {"Labels": {"io.buildpacks.lifecycle.metadata": long}},
        "history": [{"created_by": long}],
    }
    made = documents([gzipped(archive(file("a", b"1")))], config)
    image = write_documents(tmp_path / "layout", made.manifest, made.blobs)
    said = imgfs.ok("inspect", image)
    assert max(map(len, said.splitlines())) < 2100
    assert said.count("(1048576 characters: see --json)") == 1
    assert long in imgfs.ok("inspect", "--json", image)
    assert long in imgfs.ok("inspect", "--format", "{{json .Labels}}", image)


def test_a_plain_layer_is_no_artifact(imgfs: Imgfs, tmp_path: Path) -> None:
    made = documents([plain(archive(file("a", b"1")))])
    assert imgfs.ok("ls", write_documents(tmp_path / "layout", made.manifest, made.blobs)).split() == ["a"]


def test_what_an_index_offers_is_said_in_some_words_however_much_that_is(world: World) -> None:
    image = world.image("a", ARM64)
    offers = [{"os": f"{number}{'o' * 10_000}", "architecture": "z80"} for number in range(200)]
    index = world.index(*({**image, "platform": offer} for offer in [ARM64, *offers]))
    with pytest.raises(InvalidImage, match="there are: linux/arm64/v8, 0ooo") as said:
        world.select(index)
    assert len(str(said.value)) < 3000
