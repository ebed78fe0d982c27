"""Entries of Rekor's log: signed by its key, about this key, signature and payload; nothing else counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import InvalidImage
from imgfs.signatures.keys import PublicKey, der_of
from imgfs.signatures.rekor import check_entry, parse_entry, verify_entry
from tests.support.keyless import LOGGED, Log, Made, public_pem

KEY = ec.generate_private_key(ec.SECP256R1())
PEM = public_pem(KEY)
LOG, OTHER = Log(), Log()
LOGS = [PublicKey.parse(log.pem, "log") for log in (OTHER, LOG)]
MADE = Made(b"payload", KEY)


def bundle(**fields: Any) -> str:
    return LOG.bundle(MADE.payload, MADE.signature, PEM, **fields)


@pytest.mark.parametrize("fields", [{}, {"logID": 'ä"\\/\n\x7f'}, {"logIndex": 2**53 - 1}])
def test_an_entry_is_verified_by_one_of_the_logs_keys(fields: Mapping[str, Any]) -> None:
    entry = verify_entry(bundle(**fields), LOGS)
    assert entry.time == LOGGED.timestamp()
    check_entry(entry, der_of(PEM, "key"), MADE.signature, MADE.payload)
    for signer, signature, payload, what in (
        (b"x", MADE.signature, MADE.payload, "key"),
        (der_of(PEM, "key"), b"x", MADE.payload, "signature"),
        (der_of(PEM, "key"), MADE.signature, b"x", "payload"),
    ):
        with pytest.raises(InvalidImage, match=f"of another {what}"):
            check_entry(entry, signer, signature, payload)


def changed(**fields: Any) -> str:
    """A bundle that was changed after it was signed."""
    found = json.loads(bundle())
    return json.dumps({**found, "Payload": {**found["Payload"], **fields}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        changed(integratedTime=1),
        changed(body="AA=="),
        changed(more=1),
        json.dumps({**json.loads(bundle()), "more": 1}),
        bundle(more=1),
        bundle(integratedTime="1"),
        bundle(integratedTime=1.5),
        bundle(integratedTime=True),
        bundle(logIndex=2**60),
        bundle(body="?"),
        bundle(entry={"kind": "intoto"}),
        bundle(entry={"apiVersion": "0.0.2"}),
        bundle(entry={"spec": {}}),
        bundle(entry={"spec": None}),
        OTHER.bundle(MADE.payload, MADE.signature, PEM + PEM),
    ],
)
def test_anything_else_is_no_entry(text: str) -> None:
    with pytest.raises(InvalidImage):
        verify_entry(text, LOGS)


def test_the_key_of_another_log_does_not_count() -> None:
    with pytest.raises(InvalidImage, match="not signed by the log's key"):
        verify_entry(bundle(), LOGS[:1])


@given(st.recursive(st.none() | st.integers() | st.text(max_size=4), lambda more: st.dictionaries(
    st.sampled_from(["spec", "data", "hash", "signature", "publicKey", "content", "value"]), more, max_size=3
), max_leaves=8))  # fmt: skip
def test_any_body_is_an_entry_or_refused(spec: object) -> None:
    body = json.dumps({"kind": "hashedrekord", "apiVersion": "0.0.1", "spec": spec}).encode()
    with suppress(InvalidImage):
        parse_entry(body, 0)
