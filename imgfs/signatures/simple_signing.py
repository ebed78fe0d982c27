"""Simple signing: the JSON that says which manifest was signed, and under which name.

containers-signature(5), "JSON data format"; cosign's SIGNATURE_SPEC.md, "Simple Signing". Its reading is
strict, as that page has it: a field of `critical` that is not known could change what the signature means.
"""

from __future__ import annotations

from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.oci.descriptor import Digest
from imgfs.oci.fields import object_at, parse_json, text_in

COSIGN, ATOMIC = "cosign container image signature", "atomic container signature"
_FIELDS = {
    "critical": {"type", "image", "identity"},
    "image": {"docker-manifest-digest"},
    "identity": {"docker-reference"},
}


class Claim(NamedTuple):
    """What a signature says: the `digest` of a manifest, and the image's `reference`."""

    digest: Digest
    reference: str


def parse_claim(body: bytes, kind: str = COSIGN) -> Claim:
    """Read a payload of a `kind`, its `critical.type`; raises InvalidImage."""
    where = "signature"
    document = object_at(parse_json(body, where), where)
    if not document.keys() <= {"critical", "optional"}:
        raise InvalidImage("fields that are not known", where=where)
    if kind == ATOMIC:  # cosign's may lack it
        _check_optional(document, f"{where}.optional")
    critical = _object(document, "critical", where)
    if critical["type"] != kind:
        raise InvalidImage(f"not a {kind}", where=f"{where}.critical.type")
    where = f"{where}.critical"
    image, identity = _object(critical, "image", where), _object(critical, "identity", where)
    digest = Digest.parse(image["docker-manifest-digest"], where=f"{where}.image.docker-manifest-digest")
    return Claim(digest, text_in(identity, "docker-reference", f"{where}.identity", default=""))


def _check_optional(document: dict[str, object], where: str) -> None:
    """Raise InvalidImage unless `optional` is there, and what is known in it is of its type.

    Numbers are those of Go's encoding/json: 1e3 is an integer, too.
    """
    optional = object_at(document.get("optional"), where)
    text_in(optional, "creator", where, default="")
    timestamp = optional.get("timestamp")
    if timestamp is not None and not _is_whole(timestamp):
        raise InvalidImage("not an integer", where=f"{where}.timestamp")


def _is_whole(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -(2**63) <= value < 2**63 and float(value).is_integer()


def _object(fields: dict[str, object], name: str, where: str) -> dict[str, object]:
    """Return the object `fields[name]`, which has exactly the fields that one of that name has."""
    found = object_at(fields.get(name), f"{where}.{name}")
    if found.keys() != _FIELDS[name]:
        raise InvalidImage(f"expected the fields {', '.join(sorted(_FIELDS[name]))}", where=f"{where}.{name}")
    return found
