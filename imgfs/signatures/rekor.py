"""Rekor's word that a signature is in its log: the "signed entry timestamp" that cosign keeps with it.

cosign's annotation `dev.sigstore.cosign/bundle`: {"SignedEntryTimestamp", "Payload"}, where the timestamp
signs the payload's canonical JSON (RFC 8785), whose `body` is Rekor's entry of the kind hashedrekord 0.0.1.
The log itself is not asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.oci.fields import decode_base64, object_at, parse_json, text_in
from imgfs.signatures.keys import PublicKey, der_of

_WHERE = "Rekor's entry"
_LARGEST_NUMBER = 2**53  # beyond it canonical JSON is not exact (RFC 8785, 3.2.2.3)


class LogEntry(NamedTuple):
    """What a log says that was signed: by which key or certificate (DER), and when it came in (epoch)."""

    time: int
    signer: bytes
    signature: bytes
    payload_sha256: str


def verify_entry(bundle: str, keys: Sequence[PublicKey]) -> LogEntry:
    """Return the entry in cosign's annotation, verified by one of the log's keys; raises InvalidImage."""
    fields = _exact(parse_json(bundle.encode(), _WHERE), {"SignedEntryTimestamp", "Payload"}, _WHERE)
    payload = _exact(fields["Payload"], {"body", "integratedTime", "logIndex", "logID"}, f"{_WHERE}.Payload")
    body = decode_base64(text_in(payload, "body", _WHERE), _WHERE)
    time = _whole(payload["integratedTime"])
    canonical = {
        "body": payload["body"],
        "integratedTime": time,
        "logID": text_in(payload, "logID", _WHERE),
        "logIndex": _whole(payload["logIndex"]),
    }
    signed = json.dumps(canonical, separators=(",", ":"), ensure_ascii=False).encode()
    timestamp = decode_base64(text_in(fields, "SignedEntryTimestamp", _WHERE), _WHERE)
    if not any(key.verifies(timestamp, signed) for key in keys):
        raise InvalidImage("an entry in a log that is not signed by the log's key")
    return parse_entry(body, time)


def parse_entry(body: bytes, time: int) -> LogEntry:
    """Read an entry of Rekor's, which has its verified `time`; raises InvalidImage."""
    entry = object_at(parse_json(body, _WHERE), _WHERE)
    if (entry.get("kind"), entry.get("apiVersion")) != ("hashedrekord", "0.0.1"):
        raise InvalidImage("not a hashedrekord 0.0.1", where=_WHERE)
    spec = _at(entry, "spec")
    hashed, signature = _at(_at(spec, "data"), "hash"), _at(spec, "signature")
    if hashed.get("algorithm") != "sha256":
        raise InvalidImage("a hash that is not SHA-256", where=_WHERE)
    key = decode_base64(text_in(_at(signature, "publicKey"), "content", _WHERE), _WHERE)
    return LogEntry(
        time,
        der_of(key, _WHERE),
        decode_base64(text_in(signature, "content", _WHERE), _WHERE),
        text_in(hashed, "value", _WHERE).lower(),
    )


def check_entry(entry: LogEntry, signer: bytes, signature: bytes, payload: bytes) -> None:
    """Raise InvalidImage unless an entry is that of a signature: of its signer (DER), bytes and payload."""
    for what, logged, actual in (
        ("key", entry.signer, signer),
        ("signature", entry.signature, signature),
        ("payload", entry.payload_sha256, hashlib.sha256(payload).hexdigest()),
    ):
        if logged != actual:
            raise InvalidImage(f"an entry in a log of another {what}")


def _at(fields: Mapping[str, object], name: str) -> dict[str, object]:
    return object_at(fields.get(name), f"{_WHERE}: {name}")


def _exact(value: object, names: set[str], where: str) -> dict[str, object]:
    fields = object_at(value, where)
    if fields.keys() != names:
        raise InvalidImage(f"expected the fields {', '.join(sorted(names))}", where=where)
    return fields


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _LARGEST_NUMBER:
        raise InvalidImage("expected a whole number", where=f"{_WHERE}.Payload")
    return value
