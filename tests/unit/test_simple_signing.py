"""What simple signing signs: read strictly, for a field that is not known could change what it means."""

from __future__ import annotations

from typing import Any

import pytest

from imgfs.errors import InvalidImage
from imgfs.oci.descriptor import Digest
from imgfs.signatures.simple_signing import ATOMIC, Claim, parse_claim
from tests.support.openpgp import claim

DIGEST, NAME = Digest.of(b"x"), "example.com/app:v1"
GOOD = claim(str(DIGEST), NAME)


@pytest.mark.parametrize(
    "optional",
    [{}, {"creator": "x", "timestamp": 1}, {"timestamp": -3.0}, {"timestamp": None, "more": [{"a": 1}]}],
)
def test_what_is_optional_is_not_looked_at_but_for_its_type(optional: object) -> None:
    assert parse_claim(claim(str(DIGEST), NAME, optional), ATOMIC) == Claim(DIGEST, NAME)


@pytest.mark.parametrize(
    "body",
    [
        *(claim(str(DIGEST), NAME, {"timestamp": value}) for value in (1.5, True, "1", 1e30, 2**63, 10**400)),
        claim(str(DIGEST), NAME, {"creator": 1}),
        claim(str(DIGEST), NAME, []),
        claim("sha256:x", NAME),
        claim("md5:d41d8cd98f00b204e9800998ecf8427e", NAME),
        GOOD.replace(b'"optional": {}', b'"optional": null'),
        GOOD.replace(b', "optional": {}', b""),
        GOOD.replace(b'"optional"', b'"x": 1, "optional"'),
        GOOD.replace(b'"docker-reference"', b'"docker-reference": "y", "docker-reference"'),
        GOOD + b" {}",
        b"",
        b"[]",
    ],
)
def test_anything_else_is_no_claim(body: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"^signature"):
        parse_claim(body, ATOMIC)


@pytest.mark.parametrize(
    "critical",
    [
        {"type": "cosign container image signature"},
        {"type": None},
        {"more": 1},
        {"image": {}},
        {"image": {"docker-manifest-digest": str(DIGEST), "more": 1}},
        {"identity": {"docker-reference": NAME, "more": 1}},
        {"identity": {"docker-reference": 1}},
    ],
)
def test_nothing_critical_may_be_missing_unknown_or_of_another_type(critical: dict[str, Any]) -> None:
    with pytest.raises(InvalidImage, match=r"^signature\.critical"):
        parse_claim(claim(str(DIGEST), NAME, **critical), ATOMIC)
