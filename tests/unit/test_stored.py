"""Signatures as they are stored: told apart by their first bytes, and read strictly."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.config import SignaturePlaces
from imgfs.errors import InvalidImage, NotFound
from imgfs.oci.descriptor import Digest
from imgfs.oci.reference import parse_reference
from imgfs.registry.config.resolver import Resolver
from imgfs.registry.retry import Timeouts
from imgfs.registry.signatures import (
    LARGEST_SIGNATURE,
    MOST_SIGNATURES,
    SignatureClient,
    StoredSignature,
    numbered,
    parse_signature_list,
)
from imgfs.signatures.cosign import Signature
from imgfs.signatures.stored import SignatureFinder, read_signature
from tests.support.signing import SIMPLE

ANNOTATION = "dev.cosignproject.cosign/signature"


def cosign(**changes: object) -> bytes:
    fields = {
        "mimeType": SIMPLE,
        "payload": base64.b64encode(b"payload").decode(),
        "annotations": {ANNOTATION: base64.b64encode(b"signed").decode()},
    }
    return b"\0sigstore-json\n" + json.dumps({**fields, **changes}).encode()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"\xa3\x01x", b"\xa3\x01x"),
        (b"\x90\x0dx", b"\x90\x0dx"),
        (b"\xc2x", b"\xc2x"),
        (b"\0simple-signing\n\xa3\n", b"\xa3\n"),
        (b"\0simple-signing\n", b""),
        (cosign(), Signature(b"payload", b"signed")),
        (cosign(mimeType="application/vnd.dsse.envelope.v1+json"), None),
        (cosign(annotations={ANNOTATION: "?"}), None),
    ],
)
def test_a_signature_is_known_by_its_first_bytes(body: bytes, found: bytes | Signature | None) -> None:
    assert read_signature(StoredSignature(body, "there")) == found


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"-----BEGIN PGP", b"\0", b"\0simple-signing", b"\0other\nx", cosign(payload="?")],
)
def test_what_is_no_signature_is_an_error_with_its_place(body: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"^there: "):
        read_signature(StoredSignature(body, "there"))


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for prefix in (b"", b"\0sigstore-json\n", b"\0"):
        with suppress(InvalidImage):
            read_signature(StoredSignature(prefix + body, "there"))


def listed(*entries: object) -> bytes:
    return json.dumps({"signatures": entries}).encode()


def test_only_signatures_of_the_right_kind_are_taken_of_a_list() -> None:
    right = {"schemaVersion": 2, "type": "atomic", "content": "eA==", "name": "sha256:x@y"}
    others = [{**right, "schemaVersion": 1}, {**right, "type": "other"}, {"content": "?"}]
    assert parse_signature_list(listed(*others, right), "l") == [b"x"]
    for body in (b"", b"[]", listed({**right, "content": "?"}), listed(*[right] * (MOST_SIGNATURES + 1))):
        with pytest.raises(InvalidImage, match=r"^l"):
            parse_signature_list(body, "l")


def test_signatures_are_counted_and_weighed_before_they_are_read() -> None:
    def read(name: str) -> StoredSignature:
        if name == f"signature-{MOST_SIGNATURES}":
            raise NotFound(name)
        return StoredSignature(name.encode(), name)

    assert [one.where for one in numbered(read, "w")][-1] == f"signature-{MOST_SIGNATURES - 1}"
    for size in (1, LARGEST_SIGNATURE):
        with pytest.raises(InvalidImage, match="too many"):
            list(numbered(lambda name, size=size: StoredSignature(bytes(size), name), "w"))  # type: ignore[misc]


def test_a_directory_has_those_of_the_image_and_of_an_index_those_of_its_manifests(tmp_path: Path) -> None:
    manifest, other = b'{"schemaVersion": 2}', Digest.of(b"other")
    (tmp_path / "manifest.json").write_bytes(manifest)
    for name, body in (("1", b"\xa3a"), ("2", b"\xa3b"), ("4", b"\xa3d")):
        (tmp_path / f"signature-{name}").write_bytes(body)
    (tmp_path / f"{other.hex}.signature-1").write_bytes(cosign())
    finder = SignatureFinder(
        SignaturePlaces(), Resolver(), SignatureClient(lambda *_: None, timeouts=Timeouts())
    )
    reference = parse_reference(f"dir:{tmp_path}")
    assert finder.find(reference, Digest.of(manifest)).openpgp == [b"\xa3a", b"\xa3b"]
    found = finder.find(reference, other)
    assert (found.openpgp, len(found.cosign)) == ([], 1)
    assert not any(finder.find(parse_reference(f"oci:{tmp_path}"), other))
    with (tmp_path / "signature-3").open("wb") as file:
        file.truncate(LARGEST_SIGNATURE + 1)
    with pytest.raises(InvalidImage, match="signature-3: more than"):
        finder.find(reference, Digest.of(manifest))
