"""Certificates of signers: a chain to an authority of the policy, every one of it valid, and for signing.

1,300 verdicts on signatures by certificates and with log entries, two thirds of them damaged or wrong, were
those of containers/image 5.36, but for constraints of names, which are refused here, and odd writing.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import InvalidImage
from imgfs.signatures.certificates import (
    emails_of,
    is_for_host,
    issuer_of,
    read_certificate,
    read_certificates,
    verify_certificate,
)
from tests.support.keyless import CODE, HOUR, LOGGED, SERVER, Authority, Certified, extension

ROOT, OTHER = Authority("root"), Authority("other")
MIDDLE = ROOT.authority("middle")
DEEP = MIDDLE.authority("deep")
CRITICAL = (extension("1.2.3", b"x"), True)
NAMES = (x509.NameConstraints([x509.RFC822Name("example.com")], None), True)


def usage(*, signs: bool) -> tuple[x509.KeyUsage, bool]:
    return x509.KeyUsage(True, False, False, False, False, signs, False, False, False), True


def accepted(
    leaf: Certified,
    *between: Certified,
    roots: Sequence[Certified] = (ROOT,),
    at: datetime = LOGGED,
) -> bool:
    try:
        verify_certificate(
            leaf.certificate,
            [one.certificate for one in between],
            [one.certificate for one in roots],
            at,
        )
    except InvalidImage:
        return False
    return True


def test_a_chain_of_any_length_and_order_leads_to_a_root() -> None:
    leaf = DEEP.leaf()
    assert accepted(ROOT.leaf())
    assert accepted(leaf, MIDDLE, DEEP)
    assert accepted(leaf, OTHER, DEEP, OTHER, MIDDLE)
    assert accepted(leaf, DEEP, roots=(OTHER, MIDDLE))
    assert accepted(leaf, roots=(leaf,))
    assert not accepted(leaf, MIDDLE)
    assert not accepted(leaf, DEEP, ROOT, roots=(OTHER,))
    assert not accepted(leaf, DEEP, MIDDLE, roots=())
    assert not accepted(Authority("middle", OTHER).leaf(), MIDDLE)  # the name is no proof


@pytest.mark.parametrize(
    ("at", "valid"),
    [
        (-HOUR, True),
        (HOUR, True),
        (-HOUR - timedelta(seconds=1), False),
        (HOUR + timedelta(seconds=1), False),
    ],
)
def test_a_certificate_counts_while_it_is_valid(at: timedelta, valid: bool) -> None:
    assert accepted(MIDDLE.leaf(), MIDDLE, at=LOGGED + at) is valid


@pytest.mark.parametrize(
    ("fields", "valid"),
    [
        ({"usage": ()}, True),
        ({"usage": (SERVER, CODE)}, True),
        ({"usage": (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)}, True),
        ({"usage": (SERVER,)}, False),
        ({"more": [(extension("1.2.3", b"x"), False)]}, True),
        ({"more": [CRITICAL]}, False),
        ({"more": [NAMES]}, False),
    ],
)
def test_a_signer_may_sign_code_and_has_no_critical_extension_that_is_unknown(
    fields: Mapping[str, Any], valid: bool
) -> None:
    assert accepted(MIDDLE.leaf(**fields), MIDDLE) is valid


@pytest.mark.parametrize("is_root", [False, True])
@pytest.mark.parametrize(
    ("fields", "directly", "below"),
    [
        ({}, True, True),
        ({"length": 0}, True, False),
        ({"length": 1}, True, True),
        ({"ca": False}, False, False),
        ({"end": LOGGED - HOUR}, False, False),
        ({"begin": LOGGED + HOUR}, False, False),
        ({"more": [usage(signs=True)]}, True, True),
        ({"more": [usage(signs=False)]}, False, False),
        ({"more": [(x509.ExtendedKeyUsage([CODE]), False)]}, True, True),
        ({"more": [(x509.ExtendedKeyUsage([SERVER]), False)]}, False, False),
        ({"more": [CRITICAL]}, False, False),
        ({"more": [NAMES]}, False, False),
    ],
)
def test_an_authority_may_sign_and_only_so_far_down(
    fields: Mapping[str, Any], directly: bool, below: bool, is_root: bool
) -> None:
    authority = Authority("one", None if is_root else ROOT, **fields)
    lower = authority.authority("lower")
    roots = (authority,) if is_root else (ROOT,)
    assert accepted(authority.leaf(), authority, roots=roots) is directly
    assert accepted(lower.leaf(), lower, authority, roots=roots) is below


def test_a_forest_of_authorities_costs_a_bounded_number_of_checks() -> None:
    alike = [Authority("same", OTHER) for _ in range(12)]
    assert not accepted(Authority("same", OTHER).leaf(), *alike)


@pytest.mark.parametrize(
    ("fields", "issuer"),
    [
        ({"issuer": "https://a"}, "https://a"),
        ({"issuer_v2": "https://a"}, "https://a"),
        ({"issuer": "https://a", "issuer_v2": "https://a"}, "https://a"),
        ({"issuer": "https://a", "issuer_v2": "https://b"}, None),
        ({"more": [(extension("1.3.6.1.4.1.57264.1.8", b"\x0c\x05a"), False)]}, None),
        ({"more": [(extension("1.3.6.1.4.1.57264.1.8", b"\x0c\x01ab"), False)]}, None),
        ({}, None),
    ],
)
def test_the_issuer_is_that_of_fulcio(fields: Mapping[str, Any], issuer: str | None) -> None:
    leaf = MIDDLE.leaf(emails=["me@example.com", "x@example.com"], **fields).certificate
    assert emails_of(leaf) == ["me@example.com", "x@example.com"]
    if issuer:
        assert issuer_of(leaf) == issuer
    else:
        with pytest.raises(InvalidImage, match="issuer"):
            issuer_of(leaf)


@pytest.mark.parametrize(
    ("names", "host", "found"),
    [
        (["h.example.com"], "H.example.com", True),
        (["h.example.com"], "h.example.com.", True),
        (["*.example.com"], "h.example.com", True),
        (["*.example.com"], "a.h.example.com", False),
        (["*.example.com"], "example.com", False),
        (["h*.example.com"], "h.example.com", False),
        (["*"], "h", False),
        (["10.0.0.1"], "10.0.0.1", True),
        (["h.example.com"], "10.0.0.1", False),
        ([], "h.example.com", False),
    ],
)
def test_a_host_is_matched_by_name_wildcard_or_number(names: list[str], host: str, found: bool) -> None:
    assert is_for_host(MIDDLE.leaf(hosts=names).certificate, host) is found


def test_what_is_no_certificate_is_refused() -> None:
    pem = MIDDLE.pem
    assert read_certificate(b"a text\n" + pem) == MIDDLE.certificate
    for body in (b"", b"junk", pem + pem, pem + b"\n", pem.replace(b"M", b"N", 1), pem[:-40]):
        with pytest.raises(InvalidImage):
            read_certificate(body)
    assert len(read_certificates(pem * 20)) == 20
    with pytest.raises(InvalidImage, match="more than 20"):
        read_certificates(pem * 21)


DER, SIGNED = MIDDLE.certificate.public_bytes(Encoding.DER), MIDDLE.certificate.tbs_certificate_bytes


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_a_damaged_certificate_is_refused_or_no_longer_verified(at: int, change: int) -> None:
    damaged = bytearray(DER)
    damaged[DER.index(SIGNED) + at] ^= change
    body = base64.encodebytes(damaged)
    pem = b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"
    with suppress(InvalidImage):
        (found,) = read_certificates(pem)
        verify_certificate(found, [], [ROOT.certificate], LOGGED)
        raise AssertionError(f"byte {at}")
