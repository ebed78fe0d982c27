"""Signatures and attestations as cosign makes them (SIGNATURE_SPEC.md, ATTESTATION_SPEC.md).

signer = Signer("ecdsa", tmp_path)
attach(server, "app", manifest, signatures=[signer.signature(digest, "registry.test/app:v1")])
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from imgfs.oci.descriptor import Digest
from imgfs.oci.image import OCI_CONFIG, OCI_MANIFEST

SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
DSSE = "application/vnd.dsse.envelope.v1+json"
KINDS = ("ecdsa", "p384", "rsa", "ed25519")


class Part(NamedTuple):
    """A blob to attach, its media type and annotations."""

    body: bytes
    media_type: str
    annotations: Mapping[str, str] = {}


class Signer:
    """A private key; the public one is in the file `public`."""

    def __init__(self, kind: str, directory: Path, name: str = "key") -> None:
        makers: dict[str, Any] = {
            "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
            "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
            "rsa": lambda: rsa.generate_private_key(65537, 2048),
            "small": lambda: rsa.generate_private_key(65537, 1024),
            "ed25519": ed25519.Ed25519PrivateKey.generate,
        }
        self._key = makers[kind]()
        self.pem = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.public = directory / f"{name}.pub"
        self.public.write_bytes(self.pem)

    def sign(self, body: bytes) -> bytes:
        """Sign as cosign does: SHA-256, but for Ed25519."""
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return bytes(self._key.sign(body, ec.ECDSA(hashes.SHA256())))
        if isinstance(self._key, rsa.RSAPrivateKey):
            return bytes(self._key.sign(body, padding.PKCS1v15(), hashes.SHA256()))
        return bytes(self._key.sign(body))

    def signature(self, digest: str, reference: str = "", **changes: Any) -> Part:
        """Return a signature of a manifest; `changes` are other fields of `critical`."""
        body = claim_of(digest, reference, **changes)
        signature = base64.b64encode(self.sign(body)).decode()
        return Part(body, SIMPLE, {"dev.cosignproject.cosign/signature": signature})

    def attestation(self, digest: str, predicate: object, kind: str, *, bundled: bool = False) -> Part:
        """Return an attestation of a manifest; `bundled` as newer versions write it."""
        statement = {
            "_type": "https://in-toto.io/Statement/v0.1",
            "subject": [{"name": "x", "digest": {"sha256": digest.partition(":")[2]}}],
            "predicateType": kind,
            "predicate": predicate,
        }
        payload = json.dumps(statement).encode()
        kind_of_payload = "application/vnd.in-toto+json"
        signed = f"DSSEv1 {len(kind_of_payload)} {kind_of_payload} {len(payload)} ".encode() + payload
        envelope = {
            "payloadType": kind_of_payload,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [{"keyid": "", "sig": base64.b64encode(self.sign(signed)).decode()}],
        }
        if not bundled:
            return Part(json.dumps(envelope).encode(), DSSE)
        bundle = {"verificationMaterial": {"publicKey": {"hint": "x"}}, "dsseEnvelope": envelope}
        return Part(json.dumps(bundle).encode(), "application/vnd.dev.sigstore.bundle.v0.3+json")


def claim_of(digest: str, reference: str = "", **changes: Any) -> bytes:
    """Return what a signature of a manifest signs; `changes` are other fields of `critical`."""
    critical = {
        "identity": {"docker-reference": reference},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
    }
    return json.dumps({"critical": {**critical, **changes}, "optional": None}).encode()


class Attachment(NamedTuple):
    """A manifest that has parts, and the blobs it needs, by their digests."""

    manifest: bytes
    blobs: Mapping[str, bytes]


def attachment(
    parts: Sequence[Part], subject: Mapping[str, Any] | None = None, artifact_type: str | None = None
) -> Attachment:
    """Return the manifest of what is attached, of an `artifact_type` if it has a `subject`."""
    bodies = [b"{}", *(part.body for part in parts)]
    blobs = {str(Digest.of(body)): body for body in bodies}
    config = {"mediaType": OCI_CONFIG, "digest": str(Digest.of(b"{}")), "size": 2}
    layers = [
        {
            "mediaType": part.media_type,
            "digest": str(Digest.of(part.body)),
            "size": len(part.body),
            "annotations": dict(part.annotations),
        }
        for part in parts
    ]
    fields: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config,
        "layers": layers,
    }
    if subject:
        fields |= {"subject": subject, "artifactType": artifact_type}
    return Attachment(json.dumps(fields).encode(), blobs)


def tag_of(digest: str, suffix: str) -> str:
    """cosign's tag."""
    return f"{digest.replace(':', '-')}.{suffix}"
