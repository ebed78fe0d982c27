"""Certificates of those who sign images: verified up to an authority that a policy names (RFC 5280, 6.1).

The library's own verifier, `cryptography.x509.verification`, is for servers and clients of TLS. Checked here
is what Go's crypto/x509 checks for containers/image: names and signatures, the time, the right of each
authority to sign and how far down, extensions that are critical, and that code may be signed. Refused beyond
that are constraints of names, which no known authority for images has; SHA-1 counts nowhere.
"""

from __future__ import annotations

import ipaddress
import warnings
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from imgfs.errors import InvalidImage
from imgfs.signatures.keys import der_of

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, Extensions

_MOST = 20  # certificates in one text
_MOST_CHECKS = 100  # signatures of certificates
_HASHES = {"sha256", "sha384", "sha512", ""}  # "": Ed25519 has its own
_SAN = "2.5.29.17"
# extensions that may be critical: those that are checked, and those that restrict nothing (RFC 5280, 4.2.1)
_KNOWN = {_SAN, *(f"2.5.29.{number}" for number in (14, 15, 19, 31, 32, 35, 37))}
_ISSUERS = "1.3.6.1.4.1.57264.1.1", "1.3.6.1.4.1.57264.1.8"  # Fulcio's docs/oid-info.md: as text, as DER
_STRINGS = (0x0C, 0x13, 0x16)  # tags of UTF8String, PrintableString, IA5String


def read_certificates(pem: bytes) -> list[Certificate]:
    """Return the certificates in PEM; raises InvalidImage if there are none, too many, or malformed ones."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.x509 import InvalidVersion, load_pem_x509_certificates

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library warns of certificates that it will refuse one day
            found = load_pem_x509_certificates(pem)
            if len(found) > _MOST:
                raise InvalidImage(f"more than {_MOST} certificates")
            for one in found:  # the library reads these when they are asked for
                _ = one.subject, one.issuer, one.public_key(), extensions_of(one), _hash_of(one)
    except (ValueError, TypeError, InvalidVersion, UnsupportedAlgorithm) as error:
        raise InvalidImage("not certificates in PEM") from error
    return found


def read_certificate(pem: bytes) -> Certificate:
    """Return the only certificate in PEM; raises InvalidImage."""
    der_of(pem, "certificate")
    return read_certificates(pem)[0]


def der_bytes(certificate: Certificate) -> bytes:
    """Return a certificate as it came, in DER."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


def verify_certificate(
    leaf: Certificate, between: Sequence[Certificate], roots: Sequence[Certificate], at: datetime
) -> None:
    """Raise InvalidImage unless a chain leads from one of the `roots` to the leaf, all valid at a time."""
    _check(leaf, at)
    if leaf in roots or _Chains(between, roots, at).reach([leaf]):
        return
    raise InvalidImage("a certificate by an authority that is another, or not for signing")


class _Chains:
    """The search for a chain: so many signatures are checked, and no more."""

    def __init__(self, between: Sequence[Certificate], roots: Sequence[Certificate], at: datetime) -> None:
        self._between = between
        self._roots = roots
        self._at = at
        self._left = _MOST_CHECKS

    def reach(self, chain: list[Certificate]) -> bool:
        """Return True if some chain of authorities above this one ends in a root."""
        return any(self._has_issued(root, chain) for root in self._roots) or any(
            self._has_issued(one, chain) and self.reach([*chain, one])
            for one in self._between
            if one not in chain
        )

    def _has_issued(self, authority: Certificate, chain: Sequence[Certificate]) -> bool:
        if authority.subject != chain[-1].issuer or self._left == 0:
            return False
        self._left -= 1
        try:
            _check(authority, self._at)
            _check_authority(authority, len(chain) - 1)
        except InvalidImage:
            return False
        return _is_issued_by(chain[-1], authority)


def _is_issued_by(below: Certificate, authority: Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        if _hash_of(below) not in _HASHES:
            return False
        below.verify_directly_issued_by(authority)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _hash_of(certificate: Certificate) -> str:
    hashed = certificate.signature_hash_algorithm
    return hashed.name if hashed else ""


def _check(certificate: Certificate, at: datetime) -> None:
    """Raise InvalidImage for what makes a certificate invalid wherever in a chain it is."""
    from cryptography.x509 import ExtendedKeyUsage
    from cryptography.x509.oid import ExtendedKeyUsageOID

    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise InvalidImage(f"a certificate that was not valid at {at:%Y-%m-%d %H:%M:%S}")
    for extension in extensions_of(certificate):
        if extension.critical and extension.oid.dotted_string not in _KNOWN:
            raise InvalidImage(f"a certificate with the extension {extension.oid.dotted_string}, not known")
        if extension.oid.dotted_string == "2.5.29.30":
            raise InvalidImage("a certificate with constraints of names, which are not checked")
        if isinstance(extension.value, ExtendedKeyUsage) and not {
            ExtendedKeyUsageOID.CODE_SIGNING,
            ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
        } & set(extension.value):
            raise InvalidImage("a certificate that is not for signing code")


def _check_authority(certificate: Certificate, between: int) -> None:
    """Raise InvalidImage unless it may sign certificates, with so many others between it and the leaf."""
    from cryptography.x509 import BasicConstraints, KeyUsage

    values = [extension.value for extension in extensions_of(certificate)]
    constraints = [value for value in values if isinstance(value, BasicConstraints)]
    if not constraints or not constraints[0].ca:
        raise InvalidImage("a certificate of no authority")
    if constraints[0].path_length is not None and between > constraints[0].path_length:
        raise InvalidImage("too many authorities")
    if any(isinstance(value, KeyUsage) and not value.key_cert_sign for value in values):
        raise InvalidImage("a certificate that is not for signing certificates")


def extensions_of(certificate: Certificate) -> Extensions:
    """Return a certificate's extensions; raises InvalidImage for malformed and duplicate ones."""
    from cryptography.x509 import DuplicateExtension, UnsupportedGeneralNameType

    try:
        return certificate.extensions
    except (ValueError, TypeError, DuplicateExtension, UnsupportedGeneralNameType) as error:
        raise InvalidImage("a certificate with malformed extensions") from error


def issuer_of(certificate: Certificate) -> str:
    """Return the OpenID issuer that Fulcio has asked; raises InvalidImage."""
    from cryptography.x509 import UnrecognizedExtension

    values = {
        extension.oid.dotted_string: extension.value.value
        for extension in extensions_of(certificate)
        if isinstance(extension.value, UnrecognizedExtension)
    }
    found = {values[_ISSUERS[0]].decode(errors="replace")} if _ISSUERS[0] in values else set()
    if _ISSUERS[1] in values:
        found.add(_text_of(values[_ISSUERS[1]]))
    if len(found) != 1:
        raise InvalidImage("a certificate with no issuer of Fulcio's, or two")
    return found.pop()


def _text_of(der: bytes) -> str:
    """Return a string in DER, shorter than 64 KiB."""
    if len(der) >= 2 and der[0] in _STRINGS:
        length, start = der[1], 2
        if length in (0x81, 0x82):
            start = 2 + (length & 0x7F)
            length = int.from_bytes(der[2:start], "big")
        if len(der) == start + length and (start == 2) == (length < 0x80):
            return der[start:].decode(errors="replace")
    raise InvalidImage("a certificate with a malformed issuer of Fulcio's")


def emails_of(certificate: Certificate) -> list[str]:
    """Return the addresses of mail that a certificate is for."""
    from cryptography.x509 import RFC822Name, SubjectAlternativeName

    return [
        name
        for extension in extensions_of(certificate)
        if isinstance(extension.value, SubjectAlternativeName)
        for name in extension.value.get_values_for_type(RFC822Name)
    ]


def is_for_host(certificate: Certificate, hostname: str) -> bool:
    """Return True if a certificate is for a host, by name or number (RFC 6125, 6.4)."""
    from cryptography.x509 import DNSName, IPAddress, SubjectAlternativeName

    values = [
        extension.value
        for extension in extensions_of(certificate)
        if isinstance(extension.value, SubjectAlternativeName)
    ]
    try:
        address = ipaddress.ip_address(hostname.removeprefix("[").removesuffix("]"))
    except ValueError:
        return any(_matches(value.get_values_for_type(DNSName), hostname) for value in values)
    return any(address in value.get_values_for_type(IPAddress) for value in values)


def _matches(patterns: Iterable[str], hostname: str) -> bool:
    host = hostname.lower().removesuffix(".").split(".")
    for pattern in patterns:
        labels = pattern.lower().split(".")
        if labels[0] == "*" and len(host) > 1:
            labels[0] = host[0]
        if labels == host and all(labels):
            return True
    return False
