"""Envelopes, statements and claims: any bytes are read or refused, and what was signed is what was meant."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import InvalidImage
from imgfs.signatures.dsse import Envelope, parse_envelope, parse_statement
from imgfs.signatures.keys import PublicKey
from imgfs.signatures.simple_signing import Claim, parse_claim
from tests.support.signing import KINDS, Signer

DIGEST = "sha256:" + "ab" * 32


def test_what_is_signed_of_an_envelope_is_that_of_the_protocol() -> None:
    """protocol.md's own example."""
    envelope = Envelope("http://example.com/HelloWorld", b"hello world", ())
    assert envelope.signed == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_verifies_what_its_private_one_signed_and_nothing_else(kind: str, tmp_path: Path) -> None:
    signer = Signer(kind, tmp_path)
    key, signature = PublicKey.load(signer.public), signer.sign(b"body")
    assert key.verifies(signature, b"body")
    assert not key.verifies(signature, b"bodY")
    assert not key.verifies(signature[:-1] + bytes([signature[-1] ^ 1]), b"body")
    assert not key.verifies(b"", b"body")


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_no_signature_of_any_bytes_is_trouble(body: bytes, signature: bytes) -> None:
    assert not KEY.verifies(signature, body)


KEY = PublicKey.parse(
    b"""-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
""",
    "RFC 8410, section 10.1",
)


def test_a_claim_has_its_digest_and_name() -> None:
    critical = {
        "identity": {"docker-reference": "example.com/a:v1"},
        "image": {"docker-manifest-digest": DIGEST},
        "type": "cosign container image signature",
    }
    claim = parse_claim(json.dumps({"critical": critical, "optional": {"a": 1}}).encode())
    assert claim == Claim(claim.digest, "example.com/a:v1")
    assert str(claim.digest) == DIGEST
    wrong: list[dict[str, object]] = [
        {"critical": critical, "more": 1},
        {"critical": {**critical, "more": 1}},
        {"critical": {**critical, "image": {"docker-manifest-digest": DIGEST, "more": 1}}},
        {"critical": {**critical, "image": {"docker-manifest-digest": DIGEST[:-1]}}},
        {"critical": {**critical, "type": "atomic container signature"}},
        {"optional": {}},
    ]
    for changed in wrong:
        with pytest.raises(InvalidImage):
            parse_claim(json.dumps(changed).encode())


NAMES = ["critical", "image", "payload", "payloadType", "signatures", "sig", "subject", "digest", "_type"]
JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=4) | st.just("https://in-toto.io/Statement/v1"),
    lambda more: st.lists(more, max_size=2) | st.dictionaries(st.sampled_from(NAMES), more, max_size=4),
    max_leaves=8,
)


@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for read in (parse_envelope, parse_statement, parse_claim):
        with suppress(InvalidImage):
            read(body)
