"""What a policy trusts for cosign's signatures: keys, or certificates by authorities; and a log's word.

containers-policy.json(5), `sigstoreSigned`. With `fulcio` a certificate is short-lived: it counts if it was
valid when the log took the signature in, its issuer and address of mail are the policy's, and its key signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imgfs.errors import InvalidImage, UsageError
from imgfs.signatures.certificates import (
    der_bytes,
    emails_of,
    is_for_host,
    issuer_of,
    read_certificate,
    read_certificates,
    verify_certificate,
)
from imgfs.signatures.cosign import Signature
from imgfs.signatures.keys import PublicKey
from imgfs.signatures.policy_keys import FulcioTrust, KeySources, Material, PkiTrust
from imgfs.signatures.rekor import LogEntry, check_entry, verify_entry

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


@dataclass(frozen=True, slots=True)
class SigstoreTrust:
    """The keys of a requirement, and those of logs; certificates of authorities by their place in it."""

    sources: KeySources
    keys: Sequence[PublicKey]
    logs: Sequence[PublicKey]
    roots: Sequence[Certificate]
    between: Sequence[Certificate]

    @classmethod
    def load(cls, sources: KeySources) -> SigstoreTrust:
        """Read the files that a requirement names; raises UsageError."""
        keys = [PublicKey.parse(body, name) for name, body in sources.keys.load("keyData")]
        logs = [PublicKey.parse(body, name) for name, body in sources.rekor.load("rekorPublicKeyData")]
        for log in logs:
            if not log.is_ecdsa:
                raise UsageError(f"{log.name}: the key of a log is one of ECDSA")
        fulcio, pki = sources.fulcio, sources.pki
        roots = fulcio.authorities if fulcio else pki.roots if pki else Material()
        between = pki.intermediates if pki else Material()
        return cls(sources, keys, logs, _certificates(roots, "caData"), _certificates(between, "caData"))

    def keys_for(self, signature: Signature) -> Sequence[PublicKey]:
        """Return the keys of which one has to have made a signature; raises InvalidImage if none may."""
        if self.sources.fulcio:
            return [self._key_by_fulcio(self.sources.fulcio, signature)]
        if self.sources.pki:
            return [self._key_by_pki(self.sources.pki, signature)]
        if not self.logs:
            return self.keys
        entry = self._entry(signature)
        signers = [key for key in self.keys if key.der == entry.signer]
        check_entry(entry, signers[0].der if signers else b"", signature.signature, signature.payload)
        return signers

    def _entry(self, signature: Signature) -> LogEntry:
        if not signature.bundle:
            raise InvalidImage("a signature without an entry in Rekor's log")
        return verify_entry(signature.bundle, self.logs)

    def _key_by_fulcio(self, trust: FulcioTrust, signature: Signature) -> PublicKey:
        entry = self._entry(signature)
        leaf = self._verified(signature, _time(entry.time))
        check_entry(entry, der_bytes(leaf), signature.signature, signature.payload)
        if issuer_of(leaf) != trust.issuer:
            raise InvalidImage(f"a certificate of the issuer {issuer_of(leaf)!r:.200}, not of the policy's")
        _check_email(leaf, trust.email)
        return _key_of(leaf)

    def _key_by_pki(self, trust: PkiTrust, signature: Signature) -> PublicKey:
        leaf = self._verified(signature, datetime.now(UTC))
        if trust.email:
            _check_email(leaf, trust.email)
        if trust.hostname and not is_for_host(leaf, trust.hostname):
            raise InvalidImage(f"a certificate that is not for {trust.hostname}")
        return _key_of(leaf)

    def _verified(self, signature: Signature, at: datetime) -> Certificate:
        """Return the certificate of a signature; its chain leads to a root, which is left out of it."""
        if not signature.certificate:
            raise InvalidImage("a signature without a certificate")
        leaf = read_certificate(signature.certificate.encode())
        chain = read_certificates(signature.chain.encode())[:-1] if signature.chain else []
        verify_certificate(leaf, [*self.between, *chain], self.roots, at)
        return leaf


def _certificates(material: Material, field: str) -> list[Certificate]:
    found = []
    for name, body in material.load(field):
        try:
            found += read_certificates(body)
        except InvalidImage as error:
            raise UsageError(f"{name}: {error}") from error
    return found


def _check_email(leaf: Certificate, email: str) -> None:
    if email not in emails_of(leaf):
        names = ", ".join(emails_of(leaf)) or "no address of mail"
        raise InvalidImage(f"a certificate for {names:.200}, not for {email}")


def _key_of(leaf: Certificate) -> PublicKey:
    try:
        return PublicKey.of(leaf.public_key(), f"the certificate of {', '.join(emails_of(leaf)):.200}")
    except (UsageError, ValueError) as error:
        raise InvalidImage(str(error)) from error


def _time(seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidImage("an entry in a log at no time") from error
