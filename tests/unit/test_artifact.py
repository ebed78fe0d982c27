"""Artifacts and lists of referrers as documents: bytes in, values out, and back."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import ImgfsError, InvalidImage
from imgfs.oci.artifact import (
    EMPTY,
    Artifact,
    artifact_manifest,
    is_empty,
    is_referrers_tag,
    of_type,
    parse_artifact,
    parse_referrers,
    referrer_in,
    referrers_tag,
    with_referrer,
    without_referrer,
)
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.image import DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST

KIND = "application/vnd.example.index.v1"
SUBJECT = Descriptor(OCI_MANIFEST, Digest.of(b"subject"), 7)


def blob(body: bytes, **more: Any) -> Descriptor:
    return Descriptor("application/vnd.example.blob", Digest.of(body), len(body), **more)


def entry(name: str, artifact_type: str | None = KIND) -> Descriptor:
    body = name.encode()
    return Descriptor(
        OCI_MANIFEST, Digest.of(body), len(body), annotations={"name": name}, artifact_type=artifact_type
    )


def document(**fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **fields}).encode()


def as_json(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }


# artifacts


def test_the_empty_descriptor_is_the_specifications() -> None:
    assert EMPTY.media_type == "application/vnd.oci.empty.v1+json"
    assert EMPTY.digest.hex == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert (EMPTY.size, EMPTY.data) == (2, b"{}")


def test_a_manifest_is_written_as_the_specification_says() -> None:
    layer = blob(b"content", annotations={"b": "2", "a": "1"})
    made = json.loads(artifact_manifest(Artifact(KIND, (layer,), SUBJECT, annotations={"z": "1", "k": "ü"})))
    assert made == {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": KIND,
        "config": {**as_json(EMPTY), "data": base64.b64encode(b"{}").decode()},
        "layers": [{**as_json(layer), "annotations": {"a": "1", "b": "2"}}],
        "subject": as_json(SUBJECT),
        "annotations": {"k": "ü", "z": "1"},
    }


def test_what_is_written_is_read_again() -> None:
    artifact = Artifact(KIND, (blob(b"1"), blob(b"2", data=b"2")), SUBJECT, blob(b"config"), {"k": "v"})
    assert parse_artifact(artifact_manifest(artifact), OCI_MANIFEST) == artifact


def test_the_order_of_annotations_does_not_matter() -> None:
    one, other = ({"a": "1", "b": "2"}, {"b": "2", "a": "1"})
    assert artifact_manifest(Artifact(KIND, (EMPTY,), annotations=one)) == artifact_manifest(
        Artifact(KIND, (EMPTY,), annotations=other)
    )


def test_of_a_subject_only_what_it_is_is_said() -> None:
    found = Descriptor(
        SUBJECT.media_type,
        SUBJECT.digest,
        SUBJECT.size,
        annotations={"org.opencontainers.image.ref.name": "v1"},
        platform=Platform("linux", "amd64"),
        data=b"subject",
    )
    assert artifact_manifest(Artifact(KIND, (EMPTY,), found)) == artifact_manifest(
        Artifact(KIND, (EMPTY,), SUBJECT)
    )


@pytest.mark.parametrize(
    "subject", [Descriptor("", SUBJECT.digest, 7), Descriptor("a/b", SUBJECT.digest, -1)]
)
def test_a_subject_known_by_its_digest_alone_is_refused(subject: Descriptor) -> None:
    with pytest.raises(InvalidImage, match="subject"):
        artifact_manifest(Artifact(KIND, (EMPTY,), subject))


def test_without_an_artifact_type_the_config_has_it() -> None:
    soci = {**as_json(blob(b"{}")), "mediaType": "application/vnd.amazon.soci.index.v1+json"}
    read = parse_artifact(document(config=soci, layers=[]), None)
    assert read.artifact_type == "application/vnd.amazon.soci.index.v1+json"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        document(manifests=[]),
        document(),
        document(mediaType=DOCKER_MANIFEST, config=as_json(EMPTY)),
        document(config=as_json(EMPTY), subject="sha256:0"),
        document(config=as_json(EMPTY), layers=[{}]),
        document(config=as_json(EMPTY), artifactType=1),
    ],
)
def test_what_is_no_artifact_is_an_invalid_image(body: bytes) -> None:
    with pytest.raises(InvalidImage):
        parse_artifact(body, None)


# lists of referrers


@pytest.mark.parametrize(
    ("digest", "tag"),
    [(Digest("sha256", "a" * 64), f"sha256-{'a' * 64}"), (Digest("sha512", "b" * 128), f"sha512-{'b' * 64}")],
)
def test_the_tag_of_a_list_is_the_digest_cut_at_64_digits(digest: Digest, tag: str) -> None:
    assert referrers_tag(digest) == tag
    assert is_referrers_tag(tag)
    assert not is_referrers_tag(f"{tag}.sig")


def test_a_new_list_is_an_index_with_one_entry() -> None:
    assert json.loads(with_referrer(None, entry("a"))) == {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{**as_json(entry("a")), "artifactType": KIND, "annotations": {"name": "a"}}],
    }


def test_an_entry_that_is_there_is_not_entered_again() -> None:
    body = with_referrer(None, entry("a"))
    assert with_referrer(body, entry("a")) == body


def test_what_others_have_written_into_a_list_stays() -> None:
    fields = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "x-ours": {"deep": [1]},
        "manifests": [{**as_json(entry("a")), "x-more": 1}, "nonsense", {"digest": "md5:1"}],
    }
    body = json.dumps(fields, indent=3).encode()
    assert without_referrer(body, entry("b").digest) == body
    longer = with_referrer(body, entry("b"))
    assert json.loads(longer)["manifests"][:3] == fields["manifests"]
    assert json.loads(without_referrer(longer, entry("b").digest)) == fields


def test_a_list_without_its_last_entry_is_empty() -> None:
    body = with_referrer(None, entry("a"))
    assert not is_empty(body)
    assert is_empty(without_referrer(body, entry("a").digest))


def test_entries_that_nobody_can_read_do_not_hide_the_others() -> None:
    garbage: list[Any] = [
        None,
        1,
        "x",
        [],
        {},
        {"digest": "sha3:00", "size": 1},
        {**as_json(entry("b")), "size": -1},
    ]
    body = json.dumps({"manifests": [*garbage, as_json(entry("a")), as_json(entry("a"))]}).encode()
    assert [found.digest for found in parse_referrers(body)] == [entry("a").digest]


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b"{}", b'{"manifests": 1}', document(manifests=[]), document(config=as_json(EMPTY))],
)
def test_what_is_no_index_is_no_list(body: bytes) -> None:
    for read in (parse_referrers, is_empty, lambda body: with_referrer(body, entry("a"))):
        with pytest.raises(InvalidImage):
            read(body)


def test_an_entry_has_the_type_and_annotations_of_its_manifest() -> None:
    body = artifact_manifest(Artifact(KIND, (EMPTY,), SUBJECT, annotations={"k": "v"}))
    named = Descriptor("", Digest.of(body), -1)
    expected = Descriptor(OCI_MANIFEST, Digest.of(body), len(body), {"k": "v"}, artifact_type=KIND)
    assert referrer_in(body, named) == (SUBJECT.digest, expected)


def test_an_image_that_refers_has_its_configs_type_and_an_index_none() -> None:
    image = document(config={**as_json(EMPTY), "mediaType": OCI_CONFIG}, subject=as_json(SUBJECT))
    index = json.dumps({"mediaType": OCI_INDEX, "manifests": [], "subject": as_json(SUBJECT)}).encode()
    types = [referrer_in(body, entry("a"))[1].artifact_type for body in (image, index)]
    assert types == [OCI_CONFIG, None]


def test_referrers_are_chosen_by_their_type() -> None:
    several = [entry("a"), entry("b", "other/type"), entry("c", None)]
    assert of_type(several, KIND) == several[:1]
    assert of_type(several, None) == several


ENTRIES = st.lists(
    st.one_of(st.none(), st.integers(), st.text(max_size=3), st.sampled_from("abc").map(entry).map(as_json))
)


@given(ENTRIES, st.sampled_from("abcd"))
def test_entering_and_removing_leaves_all_others_in_their_order(values: list[Any], name: str) -> None:
    body = json.dumps({"manifests": values}).encode()
    mine = str(entry(name).digest)
    others = [value for value in values if not isinstance(value, dict) or value["digest"] != mine]
    assert entry(name).digest in [found.digest for found in parse_referrers(with_referrer(body, entry(name)))]
    gone = without_referrer(with_referrer(body, entry(name)), entry(name).digest)
    assert json.loads(gone)["manifests"] == others


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_an_error(body: bytes) -> None:
    for read in (parse_referrers, lambda body: parse_artifact(body, None)):
        with contextlib.suppress(ImgfsError):
            read(body)
