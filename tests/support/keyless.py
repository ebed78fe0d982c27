"""Signatures by certificates and with an entry in a log, as cosign keeps them: own authorities, own log.

root = Authority("root"); middle = root.authority("middle")
leaf = middle.leaf(emails=["me@example.com"], issuer="https://login.example")
log = Log()
part = signed_part(payload, leaf, log=log)
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from tests.support.signing import SIMPLE, Part

LOGGED = datetime(2025, 6, 1, tzinfo=UTC)  # when the log takes entries in, unless it is said otherwise
HOUR, YEARS = timedelta(hours=1), timedelta(days=3650)
_COSIGN = "dev.sigstore.cosign"
_FULCIO = "1.3.6.1.4.1.57264.1"
CODE = ExtendedKeyUsageOID.CODE_SIGNING
SERVER = ExtendedKeyUsageOID.SERVER_AUTH


class Certified:
    """A key and its certificate."""

    def __init__(self, name: str, by: Certified | None, extensions: Sequence[Any], **when: datetime) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.by = by
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        begin, end = when.get("begin", LOGGED - YEARS), when.get("end", LOGGED + YEARS)
        builder = x509.CertificateBuilder(
            by._name if by else self._name,
            self._name,
            self.key.public_key(),
            x509.random_serial_number(),
            begin,
            end,
        )
        for value, critical in extensions:
            builder = builder.add_extension(value, critical)
        self.certificate = builder.sign((by or self).key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def chain(self) -> str:
        """Return the certificates of the authorities above it, the root at last."""
        return self.by.pem.decode() + self.by.chain() if self.by else ""


class Authority(Certified):
    """An authority; of its own unless it is made by another one."""

    def __init__(
        self,
        name: str,
        by: Certified | None = None,
        *,
        length: int | None = None,
        ca: bool = True,
        more: Sequence[tuple[Any, bool]] = (),
        **when: datetime,
    ) -> None:
        basic = x509.BasicConstraints(ca, length if ca else None)
        super().__init__(name, by, [(basic, True), *more], **when)

    def authority(self, name: str, **fields: Any) -> Authority:
        """Return an authority below this one."""
        return Authority(name, self, **fields)

    def leaf(
        self,
        *,
        emails: Sequence[str] = (),
        hosts: Sequence[str] = (),
        issuer: str = "",
        issuer_v2: str = "",
        usage: Sequence[ObjectIdentifier] = (CODE,),
        more: Sequence[tuple[Any, bool]] = (),
        begin: datetime = LOGGED - HOUR,
        end: datetime = LOGGED + HOUR,
    ) -> Certified:
        """Return the certificate of a signer."""
        names: list[x509.GeneralName] = [x509.RFC822Name(email) for email in emails]
        for host in hosts:
            is_number = host.replace(".", "").isdigit()
            names.append(x509.IPAddress(ip_address(host)) if is_number else x509.DNSName(host))
        extensions: list[tuple[Any, bool]] = [(x509.SubjectAlternativeName(names), True)] if names else []
        if usage:
            extensions.append((x509.ExtendedKeyUsage(list(usage)), False))
        if issuer:
            extensions.append((extension(f"{_FULCIO}.1", issuer.encode()), False))
        if issuer_v2:
            der = b"\x0c" + bytes([len(issuer_v2)]) + issuer_v2.encode()
            extensions.append((extension(f"{_FULCIO}.8", der), False))
        return Certified("signer", self, [*extensions, *more], begin=begin, end=end)


def extension(oid: str, value: bytes) -> x509.UnrecognizedExtension:
    """Return an extension that the library does not know."""
    return x509.UnrecognizedExtension(ObjectIdentifier(oid), value)


class Log:
    """A log's key, and its entries."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.pem = public_pem(self.key)

    def bundle(
        self,
        payload: bytes,
        signature: bytes,
        signer: bytes,
        at: datetime = LOGGED,
        *,
        entry: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> str:
        """Return what cosign keeps of an entry.

        `entry` changes what is logged, `fields` what the log says.
        """
        spec = {
            "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()}},
            "signature": {"content": _text(signature), "publicKey": {"content": _text(signer)}},
        }
        logged = {"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": spec, **(entry or {})}
        said = {"body": _text(json.dumps(logged).encode()), "integratedTime": int(at.timestamp())}
        said |= {"logIndex": 7, "logID": "ab", **fields}
        canonical = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        timestamp = self.key.sign(canonical, ec.ECDSA(hashes.SHA256()))
        return json.dumps({"SignedEntryTimestamp": _text(timestamp), "Payload": said})


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public key."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _text(body: bytes) -> str:
    return base64.b64encode(body).decode()


class Made:
    """A signature being made: a payload signed by a key, and what is kept with it."""

    def __init__(self, payload: bytes, key: ec.EllipticCurvePrivateKey) -> None:
        self.payload = payload
        self.signature = key.sign(payload, ec.ECDSA(hashes.SHA256()))
        self.annotations = {"dev.cosignproject.cosign/signature": _text(self.signature)}

    def certified(self, leaf: Certified, chain: str | None = None) -> Self:
        """Keep a certificate, and its authorities."""
        self.annotations[f"{_COSIGN}/certificate"] = leaf.pem.decode()
        self.annotations[f"{_COSIGN}/chain"] = leaf.chain() if chain is None else chain
        return self

    def logged(self, log: Log, signer: bytes, at: datetime = LOGGED, **fields: Any) -> Self:
        """Keep an entry of a log."""
        self.annotations[f"{_COSIGN}/bundle"] = log.bundle(self.payload, self.signature, signer, at, **fields)
        return self

    @property
    def part(self) -> Part:
        """The attachment."""
        return Part(self.payload, SIMPLE, self.annotations)

    @property
    def stored(self) -> bytes:
        """As containers/image stores it in a directory."""
        fields = {"mimeType": SIMPLE, "payload": _text(self.payload), "annotations": self.annotations}
        return b"\0sigstore-json\n" + json.dumps(fields).encode()
