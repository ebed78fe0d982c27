"""Manifests, indexes, configs and the choice of a platform."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import InvalidImage, UsageError
from imgfs.oci import image
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.fields import object_at, parse_json, text_in
from imgfs.oci.image import Index, Manifest, parse_config, parse_document
from imgfs.oci.select import select_manifest

DIGEST = "sha256:" + "ab" * 32


def descriptor(
    media_type: str = "application/vnd.oci.image.layer.v1.tar+gzip", **more: Any
) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": DIGEST, "size": 7, **more}


def manifest(**more: Any) -> dict[str, Any]:
    config = descriptor(image.OCI_CONFIG)
    return {"schemaVersion": 2, "config": config, "layers": [descriptor()], **more}


def config(**more: Any) -> dict[str, Any]:
    rootfs = {"type": "layers", "diff_ids": [DIGEST]}
    return {"os": "linux", "architecture": "amd64", "rootfs": rootfs, **more}


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


def parse_manifest(**more: Any) -> Manifest:
    document = parse_document(encode(manifest(**more)), None)
    assert isinstance(document, Manifest)
    return document


def index_of(*entries: tuple[str | None, dict[str, Any]]) -> Index:
    """An index with an entry per (platform as text, further fields); the digests count up from 0."""
    manifests = []
    for number, (text, more) in enumerate(entries):
        value = {**descriptor(image.OCI_MANIFEST), "digest": f"sha256:{number:064x}", **more}
        if text:
            parts = text.split("/")
            value["platform"] = dict(zip(("os", "architecture", "variant"), parts, strict=False)) | more.get(
                "platform", {}
            )
        manifests.append(value)
    document = parse_document(encode({"schemaVersion": 2, "manifests": manifests}), None)
    assert isinstance(document, Index)
    return document


def chosen(index: Index, wanted: str) -> int:
    named = Descriptor.parse(descriptor(image.OCI_INDEX), where="named")

    def read(entry: Descriptor) -> Manifest | Index:
        return index if entry is named else parse_manifest()

    found = select_manifest(named, Platform.from_text(wanted), read, lambda _: b"{}")
    return int(found.descriptor.digest.hex, 16)


def test_an_oci_manifest_is_read_with_all_its_fields() -> None:
    subject = descriptor(image.OCI_MANIFEST)
    layer = descriptor(annotations={"a": "b"}, urls=["https://x/y"], data="aGVsbG8=")
    found = parse_manifest(layers=[layer], subject=subject, artifactType="x/y", annotations={"k": "v"})
    assert found.media_type == image.OCI_MANIFEST
    assert found.config.digest == Digest.parse(DIGEST)
    assert found.layers[0].annotations == {"a": "b"}
    assert found.layers[0].urls == ("https://x/y",)
    assert found.layers[0].data == b"hello"
    assert found.subject is not None
    assert (found.artifact_type, found.annotations) == ("x/y", {"k": "v"})


def test_a_docker_manifest_keeps_its_media_type() -> None:
    document = parse_document(encode(manifest(mediaType=image.DOCKER_MANIFEST)), None)
    assert document.media_type == image.DOCKER_MANIFEST


@pytest.mark.parametrize("label", [image.OCI_MANIFEST, "application/json", None])
def test_an_index_labelled_otherwise_is_an_index(label: str | None) -> None:
    document = parse_document(encode({"schemaVersion": 2, "manifests": []}), label)
    assert isinstance(document, Index)
    assert document.media_type == image.OCI_INDEX


def test_a_manifest_labelled_index_is_a_manifest() -> None:
    assert isinstance(parse_document(encode(manifest()), image.DOCKER_LIST), Manifest)


def test_a_document_that_is_both_is_refused() -> None:
    with pytest.raises(InvalidImage, match="both a manifest and an index"):
        parse_document(encode(manifest(manifests=[])), image.OCI_INDEX)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, "Docker schema 1"),
        ({"schemaVersion": 3, "config": {}}, "document.schemaVersion"),
        ({"hello": "world"}, "neither an image manifest nor an index"),
        ([], "document: expected an object"),
        (manifest(layers={}), "manifest.layers: expected an array"),
        (manifest(layers=[descriptor(), 7]), "manifest.layers[1]: expected an object"),
        (manifest(layers=[descriptor(size=-1)]), "manifest.layers[0].size"),
        (manifest(layers=[descriptor(size=1 << 63)]), "manifest.layers[0].size"),
        (manifest(layers=[descriptor(size=True)]), "manifest.layers[0].size"),
        (manifest(layers=[descriptor(digest="sha256:00")]), "manifest.layers[0].digest"),
        (manifest(layers=[descriptor(data="?")]), "manifest.layers[0].data"),
        (manifest(layers=[descriptor(data="ÿ")]), "manifest.layers[0].data"),
        (manifest(config=None), "manifest.config: expected an object"),
        (manifest(subject=1), "manifest.subject"),
        (manifest(annotations={"a": 1}), "manifest.annotations"),
        ({"manifests": [descriptor(platform={"os": 1})]}, "index.manifests[0].platform.os"),
    ],
)
def test_malformed_documents_are_invalid_with_their_json_path(document: object, says: str) -> None:
    with pytest.raises(InvalidImage) as raised:
        parse_document(encode(document), None)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"{",
        b"[" * 100_000,
        b'{"schemaVersion": 2, "layers": [], "config": {"size": ' + b"9" * 5000 + b"}}",
    ],
)
def test_bytes_that_are_no_json_are_invalid(body: bytes) -> None:
    with pytest.raises(InvalidImage, match="not JSON"):
        parse_document(body, None)


@pytest.mark.parametrize("bad", [b"caf\xe9", b"caf\\ud800", b"caf\xed\xa0\x80", b"caf\\udc00", b"\xff\xfe"])
def test_text_that_is_not_utf_8_has_replacement_characters(bad: bytes) -> None:
    marked = encode(manifest(annotations={"k": "BAD", "BAD": "v"})).replace(b"BAD", bad)
    document = parse_document(marked, None)
    name, text = [*document.annotations][1], document.annotations["k"]
    assert "\ufffd" in text
    assert name == text
    labels = {"Labels": {"k": "BAD \U0001f600"}}
    found = parse_config(encode(config(config=labels)).replace(b"BAD", bad))
    text = text_in(object_at(found.config["Labels"], "Labels"), "k", "Labels")
    assert text.encode().endswith(" \U0001f600".encode())


def test_null_is_the_empty_value() -> None:
    found = parse_manifest(
        annotations=None, artifactType=None, subject=None, schemaVersion=None, fsLayers=None
    )
    assert (found.annotations, found.artifact_type, found.subject) == ({}, None, None)
    nothing = dict.fromkeys(["annotations", "urls", "platform", "data", "artifactType", "mediaType"])
    assert Descriptor.parse(descriptor() | nothing, where="x").annotations == {}
    assert Descriptor.parse(descriptor(urls=[None], annotations={"a": None}), where="x").urls == ("",)
    assert parse_manifest(annotations={"a": None}).annotations == {"a": ""}
    bare = dict.fromkeys(["os.version", "os.features", "variant"])
    platform = {"os": "linux", "architecture": "amd64", **bare}
    assert Descriptor.parse(descriptor(platform=platform), where="x").platform == Platform("linux", "amd64")
    empty = parse_config(encode(config(history=None, config=None, created=None, author=None, variant=None)))
    assert (empty.history, empty.config, empty.created) == ((), {}, None)
    assert parse_config(encode(config(history=[None, {"created_by": None}]))).history[0] == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["schemaVersion", "mediaType", "config", "layers", "manifests", "annotations", "subject", "rootfs"]
FIELDS += ["os", "architecture", "history", "diff_ids", "type", "created", "digest", "size", "platform"]
HOSTILE = st.dictionaries(
    st.sampled_from(FIELDS), JSON | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), max_size=6
)


@settings(max_examples=150)
@given(HOSTILE.map(encode) | JSON.map(encode) | st.binary(max_size=64))
def test_whatever_the_bytes_only_invalid_image_is_raised(body: bytes) -> None:
    for parse in (lambda: parse_document(body, None), lambda: parse_config(body)):
        with contextlib.suppress(InvalidImage):
            assert parse()


def test_a_config_is_read_with_its_runtime_part() -> None:
    body = encode(config(created="2024-01-01T00:00:00Z", variant="v8", config={"Cmd": ["sh"]}, history=[{}]))
    found = parse_config(body)
    assert found.platform == Platform("linux", "amd64", "v8")
    assert found.diff_ids == (Digest.parse(DIGEST),)
    assert found.config == {"Cmd": ["sh"]}
    assert found.history == ({},)
    assert found.created == "2024-01-01T00:00:00Z"
    assert found.raw["os"] == "linux"


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "config.rootfs: there is none, which every container image has"),
        (config(rootfs=None), "config.rootfs: there is none"),
        (config(rootfs=[]), "config.rootfs: expected an object"),
        (config(rootfs={"diff_ids": ["x"]}), "config.rootfs.diff_ids[0]"),
        (config(rootfs={"type": "base"}), "config.rootfs.type: expected 'layers', got 'base'"),
        (config(history=[1]), "config.history[0]"),
        (config(config=[1]), "config.config"),
        (config(os=1), "config.os"),
    ],
)
def test_malformed_configs_are_invalid_with_their_json_path(document: object, says: str) -> None:
    with pytest.raises(InvalidImage) as raised:
        parse_config(encode(document), image.OCI_CONFIG)
    assert says in str(raised.value)


@pytest.mark.parametrize("body", [b"{}", b"not json", b"[]", b'{"rootfs": {"type": "rootfs"}}'])
def test_an_artifact_is_named_by_its_type(body: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"artifact of type 'application/vnd\.cncf\.helm"):
        parse_config(body, "application/vnd.cncf.helm.config.v1+json")


@pytest.mark.parametrize("rootfs", [{}, {"type": ""}, {"type": None}])
def test_a_rootfs_that_says_no_type_is_one_of_layers(rootfs: dict[str, object]) -> None:
    """As programs in Go write one that they have not filled in."""
    assert parse_config(encode(config(rootfs={"diff_ids": [DIGEST], **rootfs}))).diff_ids


@pytest.mark.parametrize("fields", [{}, {"os": "", "architecture": ""}, {"os": None, "architecture": None}])
def test_a_platform_of_empty_names_is_unknown(fields: dict[str, object]) -> None:
    """As `crane append` writes it on an empty base."""
    body = encode({"rootfs": {"diff_ids": [DIGEST]}, **fields})
    assert str(parse_config(body).platform) == "unknown/unknown"


def test_a_config_of_unknown_type_with_a_rootfs_is_an_image() -> None:
    assert parse_config(encode(config()), "application/octet-stream").diff_ids


def test_layers_and_diff_ids_must_be_as_many() -> None:
    image.check_layers(parse_manifest(), parse_config(encode(config())))
    with pytest.raises(InvalidImage, match="1 DiffIDs for 2 layers"):
        image.check_layers(
            parse_manifest(layers=[descriptor(), descriptor()]), parse_config(encode(config()))
        )


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (descriptor("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), "encrypted"),
        (descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip+enc"), "encrypted"),
    ],
)
def test_formats_of_others_are_named(layer: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidImage, match=says) as raised:
        image.check_formats(parse_manifest(layers=[descriptor(), layer]))
    assert raised.value.where == "manifest.layers[1]"


@pytest.mark.parametrize(
    ("offered", "wanted", "number"),
    [
        (["linux/amd64", "linux/arm64"], "linux/amd64", 0),
        (["linux/amd64", "linux/arm64"], "linux/arm64/v8", 1),
        (["linux/amd64", "linux/arm64/v8"], "linux/aarch64", 1),
        (["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "linux/arm", 1),
        (["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", 1),
        (["linux/arm/v5", "linux/arm/v7"], "linux/arm/v6", 0),
        (["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v3", 1),
        (["linux/amd64/v2", "linux/amd64"], "linux/amd64", 1),
        (["linux/arm64/v8", "linux/arm64/v9"], "linux/arm64/v8.5", 0),
        (["windows/amd64", "linux/x86_64"], "linux/amd64", 1),
        (["linux/amd64", "linux/amd64"], "linux/amd64", 0),
        (["linux/mips/softfloat"], "linux/mips/softfloat", 0),
    ],
)
def test_the_newest_variant_that_runs_is_chosen(offered: list[str], wanted: str, number: int) -> None:
    assert chosen(index_of(*((text, {}) for text in offered)), wanted) == number


@pytest.mark.parametrize(
    "wanted", ["linux/amd64", "linux/arm/v5", "linux/s390x", "linux/mips", "linux/arm64"]
)
def test_no_match_lists_what_there_is(wanted: str) -> None:
    index = index_of(("linux/386", {}), ("linux/arm/v7", {}), ("linux/mips/softfloat", {}))
    with pytest.raises(InvalidImage) as raised:
        chosen(index, wanted)
    assert "there are: linux/386, linux/arm/v7, linux/mips/softfloat" in str(raised.value)


@pytest.mark.parametrize(
    "other",
    [
        {"artifactType": "application/vnd.amazon.soci.index.v2+json"},
        {"platform": {"os.features": ["nydus.remoteimage.v1"]}},
        {"platform": {"os.features": ["erofs"]}},
        {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
        {"platform": {"os": "unknown", "architecture": "unknown"}},
    ],
)
def test_entries_that_are_no_images_are_passed_over(other: dict[str, Any]) -> None:
    assert chosen(index_of(("linux/amd64", other), ("linux/amd64", {})), "linux/amd64") == 1
    with pytest.raises(InvalidImage, match="offers no image"):
        chosen(index_of(("linux/amd64", other)), "linux/amd64")


def test_an_only_entry_needs_no_platform() -> None:
    assert chosen(index_of((None, {})), "linux/s390x") == 0
    with pytest.raises(InvalidImage, match="offers no image with a platform"):
        chosen(index_of((None, {}), (None, {})), "linux/amd64")


@pytest.mark.parametrize("text", ["linux", "linux/", "/amd64", "a/b/c/d", ""])
def test_a_platform_is_os_and_architecture(text: str) -> None:
    with pytest.raises(UsageError, match="os/arch"):
        Platform.from_text(text)


def test_a_platform_is_normalised() -> None:
    assert str(Platform.from_text("Linux/x86_64")) == "linux/amd64"
    assert str(Platform.from_text("aarch64")) == "linux/arm64/v8"  # docker's and podman's short form
    assert str(Platform.from_text("linux/arm64")) == "linux/arm64/v8"
    assert str(Platform.from_text("linux/arm/6")) == "linux/arm/v6"
    assert Platform.host().os == "linux"


def test_a_descriptor_without_platform_has_none() -> None:
    assert Descriptor.parse(descriptor(), where="x").platform is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON: wrong at line 1, column 1"),
        (b'{"a":\n1,}', "not JSON: wrong at line 2, column"),
        (b"[" * 100_000, "not JSON: nested too deep"),
        (b"9" * 5000, "not JSON: a number has too many digits"),
        (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "document: a web page, not JSON"),
    ],
)
def test_what_is_no_json_is_told_without_pythons_words(body: bytes, said: str) -> None:
    with pytest.raises(InvalidImage, match=re.escape(said)):
        parse_json(body, "document")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"layers":[1],"layers":[2]}', "'layers' is there twice"),
        (b'{"layers":[1],"Layers":[2]}', "'layers' is there as 'Layers', too"),
        (b'{"LAYERS":[1],"Layers":[2]}', "'layers' is there as 'Layers', too"),
        ('{"layers":[1],"layer\u017f":[2]}'.encode(), "'layers' is there as 'layer\u017f', too"),
        (b'{"layers":[1],"l\\u0061yers":[2]}', "'layers' is there twice"),
        (b'{"layers":[{"digest":"a","Digest":"b"}]}', "'digest' is there as 'Digest', too"),
        (b'{"config":{"Env":[],"env":[]}}', "'Env' is there as 'env', too"),
        (b'{"config":{"Labels":{"a":"1","a":"2"}}}', "'a' is there twice"),
        (b'{"config":{"Labels":{"\\ud800":"1","\\ud801":"2"}}}', "is there twice"),
        (b'{"manifests":[{"platform":{"os":"a","OS":"b"}}]}', "'os' is there as 'OS', too"),
        (b'{"config":{"layers":[{"subject":{"size":1,"Size":2}}]}}', "'size' is there as 'Size', too"),
        (b'{"size":NaN}', "NaN is not a number"),
        (b'{"size":-Infinity}', "-Infinity is not a number"),
    ],
)
def test_what_programs_read_differently_is_refused(body: bytes, said: str) -> None:
    """Go's encoding/json takes a field in any letters, and of several the last."""
    with pytest.raises(InvalidImage, match=f"ambiguous JSON: .*{re.escape(said)}"):
        parse_json(body, "document")


def test_a_field_in_other_letters_is_that_field_as_for_go() -> None:
    written = encode(manifest()).replace(b'"layers"', b'"Layers"').replace(b'"digest"', b'"DIGEST"')
    found = parse_document(written, None)
    assert isinstance(found, Manifest)
    assert [str(layer.digest) for layer in found.layers] == [DIGEST]
    assert parse_config(encode(config(config={"cmd": ["a"]}))).config == {"Cmd": ["a"]}


def test_keys_that_are_data_may_differ_by_case_alone() -> None:
    labels = {"user": "a", "User": "b", "USER": "c", "os": "d", "OS": "e"}
    more = {"Labels": labels, "Volumes": {"/a": {}, "/A": {}}}
    assert parse_config(encode(config(config=more))).config == more
    assert parse_manifest(annotations=labels).annotations == labels


@pytest.mark.timeout(20)
def test_many_keys_take_no_time() -> None:
    body = b"{" + b",".join(b'"%d":0' % number for number in range(400_000)) + b',"0":1}'
    with pytest.raises(InvalidImage, match="'0' is there twice"):
        parse_json(body, "document")
