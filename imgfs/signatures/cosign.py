"""cosign's signatures and attestations of a manifest, verified by a public key (SIGNATURE_SPEC.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from imgfs.errors import IntegrityError, InvalidImage, NotFound
from imgfs.oci.descriptor import Digest
from imgfs.signatures.attached import Attached, attached_to, read_part
from imgfs.signatures.dsse import IN_TOTO, Statement, from_base64, parse_envelope, parse_statement
from imgfs.signatures.keys import PublicKey
from imgfs.signatures.simple_signing import Claim, parse_claim
from imgfs.transport.source import Source

_SIGNATURE = "application/vnd.dev.cosign.simplesigning.v1+json"
_ENVELOPES = ("application/vnd.dsse.envelope.v1+json", "application/vnd.dev.sigstore.bundle")
_ANNOTATION = "dev.cosignproject.cosign/signature"
_MORE = ("bundle", "certificate", "chain")  # annotations of cosign's that a log or certificates need
_SIGN = "https://sigstore.dev/cosign/sign/v1"  # the predicate of a statement that is a signature
_LARGEST_PAYLOAD = 1 << 20  # bytes
_LARGEST_ENVELOPE = 16 << 20  # bytes; a bill of materials may be in it

PREDICATES = {  # cosign's names of predicate types (`cosign attest --type`)
    "slsaprovenance": "https://slsa.dev/provenance/v0.2",
    "slsaprovenance02": "https://slsa.dev/provenance/v0.2",
    "slsaprovenance1": "https://slsa.dev/provenance/v1",
    "link": "https://in-toto.io/Link/v1",
    "spdx": "https://spdx.dev/Document",
    "spdxjson": "https://spdx.dev/Document",
    "cyclonedx": "https://cyclonedx.org/bom",
    "vuln": "https://cosign.sigstore.dev/attestation/vuln/v1",
    "openvex": "https://openvex.dev/ns",
    "custom": "https://cosign.sigstore.dev/attestation/v1",
}


class Signature(NamedTuple):
    """A signature as it was found; nothing of it is verified.

    `bundle` is a log's entry of it, `certificate` that of its key, `chain` its authorities; "" if not there.
    """

    payload: bytes
    signature: bytes
    bundle: str = ""
    certificate: str = ""
    chain: str = ""

    @classmethod
    def read(cls, payload: bytes, annotations: Mapping[str, str]) -> Signature:
        """Return the signature in an attachment that is one (`is_signature`); raises InvalidImage."""
        more = (annotations.get(f"dev.sigstore.cosign/{name}", "") for name in _MORE)
        return cls(payload, from_base64(annotations[_ANNOTATION], _ANNOTATION), *more)

    def claim_by(self, keys: Sequence[PublicKey]) -> tuple[PublicKey, Claim] | None:
        """Return what is claimed, and the key by which it is verified; None if none does.

        Raises InvalidImage if a key verifies it, and what it says is malformed.
        """
        for key in keys:
            if key.verifies(self.signature, self.payload):
                return key, parse_claim(self.payload)
        return None


class Verified(NamedTuple):
    """A signature ("signature") or attestation ("attestation") of `digest` that a key has verified."""

    kind: str
    digest: Digest
    key: str
    says: str  # the name under which it was signed, or the type of the predicate


def is_signature(media_type: str, annotations: Mapping[str, str]) -> bool:
    """Return True for an attachment that is a signature of an image."""
    return media_type == _SIGNATURE and _ANNOTATION in annotations


def signatures_of(source: Source, digest: Digest) -> Iterator[Signature]:
    """Yield the simple-signing signatures attached to a manifest; broken ones are passed over."""
    for attached in attached_to(source, digest):
        if is_signature(attached.media_type, attached.annotations):
            try:
                yield _signature(source, attached)
            except (InvalidImage, IntegrityError, NotFound):
                continue


def verified_of(source: Source, digest: Digest, keys: Sequence[PublicKey]) -> Iterator[Verified]:
    """Yield what is attached to a manifest, signed by one of `keys`, and about that manifest."""
    for attached in attached_to(source, digest):
        try:
            found = _verified(source, attached, digest, keys)
        except (InvalidImage, IntegrityError, NotFound):
            continue
        if found:
            yield found


def predicate_type(name: str) -> str:
    """Return the type of a predicate that has a name in cosign, or is a URI."""
    return PREDICATES.get(name, name)


def _signature(source: Source, attached: Attached) -> Signature:
    return Signature.read(read_part(source, attached, _LARGEST_PAYLOAD), attached.annotations)


def _verified(
    source: Source, attached: Attached, digest: Digest, keys: Sequence[PublicKey]
) -> Verified | None:
    if is_signature(attached.media_type, attached.annotations):
        found = _signature(source, attached).claim_by(keys)
        if found and found[1].digest == digest:
            return Verified("signature", digest, found[0].name, found[1].reference)
    if attached.media_type.startswith(_ENVELOPES):
        signed = statement_by(read_part(source, attached, _LARGEST_ENVELOPE), keys)
        if signed and digest in signed[1].digests:
            kind = "signature" if signed[1].predicate_type == _SIGN else "attestation"
            return Verified(kind, digest, signed[0].name, signed[1].predicate_type)
    return None


def statement_by(body: bytes, keys: Sequence[PublicKey]) -> tuple[PublicKey, Statement] | None:
    """Return the statement of an envelope, and the key that verifies it; None if none does."""
    envelope = parse_envelope(body)
    for key in keys:
        if any(key.verifies(signature, envelope.signed) for signature in envelope.signatures):
            if envelope.payload_type != IN_TOTO:
                raise InvalidImage(f"a payload of type {envelope.payload_type:.60}")
            return key, parse_statement(envelope.payload)
    return None
