"""Public keys of signatures: ECDSA, RSA and Ed25519, in PEM (RFC 7468, section 13).

The hash is SHA-256, as cosign's SIGNATURE_SPEC.md has it ("Hashing Algorithms"); of an ECDSA key on a larger
curve that of the curve's own size counts, too, as newer versions of cosign use it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgfs.errors import InvalidImage, UsageError
from imgfs.oci.fields import decode_base64
from imgfs.signatures.policy_keys import read_small

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

_BEGIN = b"-----BEGIN"
_PEM = re.compile(rb"(?:\A|\n)-----BEGIN ([A-Z0-9 ]+)-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END \1-----\r?\n?\Z")
_LEAST_RSA = 2048  # bits; smaller keys are broken or about to be


class PublicKey:
    """A public key; `name` says to a person which."""

    def __init__(self, key: Any, name: str) -> None:
        self._key = key
        self.name = name

    @classmethod
    def parse(cls, pem: bytes, name: str) -> PublicKey:
        """Read a key; raises UsageError."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UsageError(f"{name}: not a public key in PEM") from error
        return cls.of(key, name)

    @classmethod
    def of(cls, key: object, name: str) -> PublicKey:
        """Take a key of the library's; raises UsageError for one that is not verified by."""
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
            raise UsageError(f"{name}: a key of a kind that imgfs does not verify by (ECDSA, RSA, Ed25519)")
        if isinstance(key, rsa.RSAPublicKey) and key.key_size < _LEAST_RSA:
            raise UsageError(f"{name}: an RSA key of {key.key_size} bits; at least {_LEAST_RSA} are needed")
        return cls(key, name)

    @classmethod
    def load(cls, path: Path) -> PublicKey:
        """Read a file with a key; raises UsageError."""
        return cls.parse(read_small(path), str(path))

    @property
    def is_ecdsa(self) -> bool:
        """Return True for a key on an elliptic curve, but Ed25519."""
        from cryptography.hazmat.primitives.asymmetric import ec

        return isinstance(self._key, ec.EllipticCurvePublicKey)

    @property
    def der(self) -> bytes:
        """Return the key as in a certificate (SubjectPublicKeyInfo)."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return bytes(self._key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    def verifies(self, signature: bytes, body: bytes) -> bool:
        """Return True if the signature of `body` was made by the private key of this one."""
        from cryptography.exceptions import InvalidSignature

        for check in self._checks(signature, body):
            try:
                check()
            except (InvalidSignature, ValueError):
                continue
            return True
        return False

    def _checks(self, signature: bytes, body: bytes) -> list[Any]:
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
        from cryptography.hazmat.primitives.hashes import SHA256

        key = self._key
        if isinstance(key, rsa.RSAPublicKey):
            return [lambda: key.verify(signature, body, padding.PKCS1v15(), SHA256())]
        if isinstance(key, ec.EllipticCurvePublicKey):
            return [
                lambda hashed=hashed: key.verify(signature, body, ec.ECDSA(hashed))
                for hashed in _hashes(key.curve.key_size)
            ]
        return [lambda: key.verify(signature, body)]


def _hashes(bits: int) -> list[HashAlgorithm]:
    from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

    return [SHA256()] if bits <= 256 else [SHA256(), SHA384() if bits <= 384 else SHA512()]


def der_of(pem: bytes, where: str) -> bytes:
    """Return the bytes in the only block of PEM, which a text may precede (RFC 7468); raises InvalidImage."""
    found = _PEM.search(pem)
    if not found or pem.count(_BEGIN) > 1:
        raise InvalidImage("not a single key or certificate in PEM", where=where)
    return decode_base64("".join(found[2].decode().split()), where)
