"""DSSE envelopes and the in-toto statements in them: attestations.

secure-systems-lab/dsse, envelope.md and protocol.md; in-toto/attestation, spec/v1/statement.md; as cosign
attaches them: ATTESTATION_SPEC.md, and, in newer versions, sigstore's bundles (protobuf-specs,
sigstore_bundle.proto, its JSON).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.oci.descriptor import Digest
from imgfs.oci.fields import object_at, objects_in, parse_json, text_in

IN_TOTO = "application/vnd.in-toto+json"
_MOST_SIGNATURES = 20
_AS_STANDARD = str.maketrans("-_", "+/", "\r\n")
_STATEMENTS = ("https://in-toto.io/Statement/v0.1", "https://in-toto.io/Statement/v1")


class Envelope(NamedTuple):
    """An envelope: what was signed is `signed`, of which `payload` is the part that means something."""

    payload_type: str
    payload: bytes
    signatures: tuple[bytes, ...]

    @property
    def signed(self) -> bytes:
        """Return the bytes that were signed (protocol.md, "PAE")."""
        kind = self.payload_type.encode()
        return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(self.payload), self.payload)


class Statement(NamedTuple):
    """A statement about the manifests with these digests; its predicate is of a type, and any JSON."""

    digests: tuple[Digest, ...]
    predicate_type: str
    predicate: object


def parse_envelope(body: bytes) -> Envelope:
    """Read an envelope, or the one in a bundle; raises InvalidImage."""
    where = "envelope"
    fields = object_at(parse_json(body, where), where)
    if "dsseEnvelope" in fields:
        fields = object_at(fields["dsseEnvelope"], f"{where}.dsseEnvelope")
    signatures = objects_in(fields, "signatures", where)[:_MOST_SIGNATURES]
    return Envelope(
        text_in(fields, "payloadType", where),
        from_base64(text_in(fields, "payload", where), f"{where}.payload"),
        tuple(from_base64(text_in(one, "sig", where), f"{where}.signatures") for one in signatures),
    )


def parse_statement(body: bytes) -> Statement:
    """Read an in-toto statement; raises InvalidImage."""
    where = "statement"
    fields = object_at(parse_json(body, where), where)
    if fields.get("_type") not in _STATEMENTS:
        raise InvalidImage("not an in-toto statement", where=f"{where}._type")
    digests = [_digest(one, f"{where}.subject") for one in objects_in(fields, "subject", where)]
    return Statement(
        tuple(digest for digest in digests if digest),
        text_in(fields, "predicateType", where, default=""),
        fields.get("predicate"),
    )


def _digest(subject: Mapping[str, object], where: str) -> Digest | None:
    digests = object_at(subject.get("digest"), where)
    value = digests.get("sha256")
    return Digest.parse(f"sha256:{value}", where=where) if isinstance(value, str) else None


def from_base64(text: str, where: str) -> bytes:
    """Return the bytes of standard or URL-safe base64, perhaps in lines; raises InvalidImage."""
    try:
        return base64.b64decode(text.translate(_AS_STANDARD), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidImage("not base64", where=where) from error
