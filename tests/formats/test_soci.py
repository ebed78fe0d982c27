from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import InvalidImage
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.image import (
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
    parse_document,
)
from imgfs.oci.select import select_manifest
from imgfs.oci.soci import (
    CONFIG_BODY,
    IMAGE_DIGEST,
    INDEX_DIGEST,
    LAYER_DIGEST,
    SOCI_V1,
    SOCI_V2,
    SociImage,
    parse_soci_index,
    soci_index,
    soci_v2_digest,
    with_soci_v2,
    ztoc_descriptor,
)

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64", "v8")
LAYERS = [Descriptor(GZIP, Digest.of(body), len(body)) for body in (b"one", b"two", b"three")]
ZTOCS = [
    ztoc_descriptor(layer, b"zTOC %d" % number, span_size=4 << 20) for number, layer in enumerate(LAYERS)
]
SUBJECT = Descriptor(OCI_MANIFEST, Digest.of(b"image"), 5, {"a": "b"}, AMD64)


def document(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()


def pointer(body: bytes, media_type: str, **more: object) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(body)), "size": len(body), **more}


def image(media_type: str = OCI_MANIFEST, config: str = OCI_CONFIG, **more: object) -> bytes:
    """The manifest of an image of LAYERS."""
    layers = [{"mediaType": GZIP, "digest": str(layer.digest), "size": layer.size} for layer in LAYERS]
    return document(
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": pointer(b"config", config),
            "layers": layers,
            **more,
        }
    )


def oci_index(*entries: dict[str, Any], media_type: str = OCI_INDEX) -> bytes:
    return document({"schemaVersion": 2, "mediaType": media_type, "manifests": list(entries)})


def read(made: SociImage) -> tuple[Index, Manifest]:
    index, manifest = parse_document(made.oci_index, None), parse_document(made.manifest, None)
    assert isinstance(index, Index)
    assert isinstance(manifest, Manifest)
    return index, manifest


def listed_soci_index(index: Index, manifest: Manifest) -> Descriptor | None:
    """The SOCI index that the manifest names, among the entries of the OCI index it was found in."""
    named = soci_v2_digest(manifest)
    entries = (entry for entry in index.manifests if entry.digest == named and entry.artifact_type == SOCI_V2)
    return next(entries, None)


@pytest.mark.parametrize(("version", "subject"), [(1, SUBJECT), (2, None)])
def test_an_index_that_is_written_is_read(version: int, subject: Descriptor | None) -> None:
    found = parse_soci_index(soci_index(version, ZTOCS, subject=subject, tool="imgfs 1"))
    assert found.version == version
    assert found.layers == dict(zip((layer.digest for layer in LAYERS), ZTOCS, strict=True))
    assert (found.subject and found.subject.digest) == (subject and subject.digest)


def test_an_index_is_written_as_the_snapshotter_writes_it() -> None:
    body = soci_index(1, ZTOCS[:1], subject=SUBJECT, tool="imgfs 1")
    empty = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of {}
    assert body.decode() == (
        '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",'
        f'"config":{{"mediaType":"application/vnd.amazon.soci.index.v1+json","digest":"{empty}","size":2}},'
        f'"layers":[{{"mediaType":"application/octet-stream","digest":"{Digest.of(b"zTOC 0")}","size":6,'
        f'"annotations":{{"com.amazon.soci.image-layer-digest":"{LAYERS[0].digest}",'
        f'"com.amazon.soci.image-layer-mediaType":"{GZIP}","com.amazon.soci.span-size":"4194304"}}}}],'
        f'"subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{SUBJECT.digest}","size":5}},'
        '"annotations":{"com.amazon.soci.build-tool-identifier":"imgfs 1"}}'
    )
    assert str(Digest.of(CONFIG_BODY)) == empty


def test_lists_of_files_to_prefetch_are_no_ztocs() -> None:
    fields = json.loads(soci_index(2, ZTOCS, subject=None, tool="t"))
    note = {LAYER_DIGEST: str(LAYERS[0].digest)}
    prefetch = pointer(b"{}", "application/vnd.amazon.soci.prefetch.v1+json", annotations=note)
    fields["layers"].insert(0, prefetch)
    assert parse_soci_index(document(fields)).layers[LAYERS[0].digest] == ZTOCS[0]


def test_of_two_ztocs_of_a_layer_the_first_counts() -> None:
    again = ztoc_descriptor(LAYERS[0], b"another")
    found = parse_soci_index(soci_index(2, [*ZTOCS, again], subject=None, tool="t"))
    assert found.layers[LAYERS[0].digest] == ZTOCS[0]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "not JSON"),
        (image(), "not a SOCI index"),
        (oci_index(), "not a SOCI index"),
        (
            document({"schemaVersion": 2, "config": pointer(b"{}", SOCI_V1), "layers": [{}]}),
            r"layers\[0\].digest",
        ),
        (
            document(
                {
                    "schemaVersion": 2,
                    "config": pointer(b"{}", SOCI_V2),
                    "layers": [pointer(b"z", "application/octet-stream")],
                }
            ),
            r"manifest\.layers\[0\]\.annotations\['com\.amazon\.soci\.image-layer-digest'\]: a digest must",
        ),
        (
            document({"mediaType": "application/vnd.oci.artifact.manifest.v1+json", "blobs": []}),
            "neither an image",
        ),
    ],
)
def test_what_is_no_soci_index_is_refused(body: bytes, complaint: str) -> None:
    with pytest.raises(InvalidImage, match=complaint):
        parse_soci_index(body)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_index_is_read_or_refused(data: st.DataObject) -> None:
    body = bytearray(soci_index(1, ZTOCS, subject=SUBJECT, tool="t"))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse_soci_index(bytes(body[: data.draw(st.sampled_from([len(body), len(body) // 2]))]))
    except InvalidImage:
        return
    assert found.version in (1, 2)


def test_an_image_alone_comes_with_its_index_in_an_oci_index() -> None:
    made = with_soci_v2(image(), ZTOCS, platform=AMD64, tool="t")
    index, manifest = read(made)
    assert soci_v2_digest(manifest) == Digest.of(made.soci_index)
    found = listed_soci_index(index, manifest)
    assert found
    assert found.artifact_type == SOCI_V2
    assert found.annotations == {IMAGE_DIGEST: str(Digest.of(made.manifest))}
    assert found.size == len(made.soci_index)
    named = Descriptor(OCI_INDEX, Digest.of(b"named"), 1)
    listed = manifest
    chosen = select_manifest(
        named, AMD64, lambda entry: index if entry is named else listed, lambda _: b"{}"
    ).descriptor
    assert (chosen.digest, chosen.size, chosen.platform) == (
        Digest.of(made.manifest),
        len(made.manifest),
        AMD64,
    )
    assert chosen.annotations == {INDEX_DIGEST: str(Digest.of(made.soci_index))}
    assert [layer.digest for layer in manifest.layers] == [layer.digest for layer in LAYERS]
    assert parse_soci_index(made.soci_index).version == 2


def test_the_image_takes_its_own_place_in_an_oci_index() -> None:
    ours, other = (
        image(annotations={"a": "b"}),
        pointer(b"other", OCI_MANIFEST, platform={"os": "linux", "architecture": "arm64"}),
    )
    platform = {"os": "linux", "architecture": "amd64", "os.version": "1"}
    around = oci_index(other, pointer(ours, OCI_MANIFEST, platform=platform))
    made = with_soci_v2(ours, ZTOCS, platform=AMD64, tool="t", index=around)
    entries = json.loads(made.oci_index)["manifests"]
    assert entries[0] == other
    assert entries[1]["digest"] == str(Digest.of(made.manifest))
    assert entries[1]["platform"] == platform
    assert entries[1]["annotations"] == {"a": "b", INDEX_DIGEST: str(Digest.of(made.soci_index))}
    assert [entry.get("artifactType") for entry in entries] == [None, None, SOCI_V2]


def test_an_older_soci_index_of_the_platform_is_replaced() -> None:
    made = with_soci_v2(image(), ZTOCS[:1], platform=AMD64, tool="t")
    arm = pointer(
        b"arm", OCI_MANIFEST, artifactType=SOCI_V2, platform={"os": "linux", "architecture": "arm64"}
    )
    fields = json.loads(made.oci_index)
    fields["manifests"].append(arm)
    again = with_soci_v2(made.manifest, ZTOCS, platform=AMD64, tool="t", index=document(fields))
    entries = json.loads(again.oci_index)["manifests"]
    assert [entry["digest"] for entry in entries] == [
        str(Digest.of(again.manifest)),
        str(Digest.of(b"arm")),
        str(Digest.of(again.soci_index)),
    ]


def test_a_docker_image_becomes_an_oci_image() -> None:
    docker = image(DOCKER_MANIFEST, DOCKER_CONFIG)
    around = oci_index(pointer(docker, DOCKER_MANIFEST), media_type=DOCKER_LIST)
    index, manifest = read(with_soci_v2(docker, ZTOCS, platform=ARM64, tool="t", index=around))
    assert (index.media_type, manifest.media_type, manifest.config.media_type) == (
        OCI_INDEX,
        OCI_MANIFEST,
        OCI_CONFIG,
    )
    assert index.manifests[0].platform == ARM64


def test_an_image_that_is_not_in_the_index_is_refused() -> None:
    with pytest.raises(InvalidImage, match=r"index\.manifests: sha256:.* is not in it"):
        with_soci_v2(image(), ZTOCS, platform=AMD64, tool="t", index=oci_index(pointer(b"x", OCI_MANIFEST)))


def test_only_what_the_image_itself_names_is_its_soci_index() -> None:
    made = with_soci_v2(image(), ZTOCS, platform=AMD64, tool="t")
    index, manifest = read(made)
    bare = parse_document(image(), None)
    assert isinstance(bare, Manifest)
    assert listed_soci_index(index, bare) is None
    without = Index(OCI_INDEX, index.manifests[:1])
    assert listed_soci_index(without, manifest) is None
    assert soci_v2_digest(manifest) == Digest.of(made.soci_index)
    wrong = parse_document(image(annotations={INDEX_DIGEST: "sha256:no"}), None)
    assert isinstance(wrong, Manifest)
    with pytest.raises(InvalidImage, match=r"manifest\.annotations"):
        listed_soci_index(index, wrong)


def test_the_same_input_makes_the_same_documents() -> None:
    one, two = (with_soci_v2(image(), ZTOCS, platform=AMD64, tool="t") for _ in range(2))
    assert one == two
