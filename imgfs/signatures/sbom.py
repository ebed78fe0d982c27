"""Bills of materials that are attached to an image: alone, in an in-toto statement, or in a signed envelope.

Media types: those of SPDX (IANA), CycloneDX and syft, as `cosign attach sbom`, oras and syft write them.
Statements: buildkit's attestation-storage.md (annotation `in-toto.io/predicate-type`), cosign's
ATTESTATION_SPEC.md (annotation `predicateType`); SPDX and CycloneDX are types of predicates there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from imgfs.errors import InvalidImage, NotFound
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.signatures.attached import Attached, attached_to, read_part
from imgfs.signatures.dsse import IN_TOTO, Statement, parse_envelope, parse_statement
from imgfs.transport.source import Source

SPDX, CYCLONEDX, SYFT = "spdx", "cyclonedx", "syft"
TYPES = (SPDX, CYCLONEDX, SYFT)
_ENVELOPES = ("application/vnd.dsse.envelope.v1+json", "application/vnd.dev.sigstore.bundle")
_PREDICATES = {
    "https://spdx.dev/Document": SPDX,
    "https://cyclonedx.org/bom": CYCLONEDX,
    "https://syft.dev/bom": SYFT,
}
_ANNOTATIONS = ("in-toto.io/predicate-type", "predicateType")
_LARGEST_WRAPPED = 32 << 20  # bytes of JSON that is parsed
_MOST_READ = 64 << 20


class Bill(NamedTuple):
    """A bill of materials of a `type`; `wrapped` is "statement" or "envelope", "" if it stands alone."""

    type: str
    wrapped: str
    attached: Attached

    @property
    def digest(self) -> Digest:
        """Return the digest of the bytes that are attached."""
        return self.attached.part.digest


def bills_of(source: Source, manifest: Digest, named: Descriptor) -> Iterator[Bill]:
    """Yield the bills attached to a manifest, and to the index that it was `named` by.

    Statements that do not say what they are by annotations are read, as many as have _MOST_READ bytes in all.
    Raises RegistryError.
    """
    seen: set[Digest] = set()
    left = _MOST_READ
    for subject in dict.fromkeys((manifest, named.digest)):
        for attached in attached_to(source, subject, named):
            if _wrapping(attached) and not _told(attached):
                left -= attached.part.size
                if left < 0:
                    continue
            bill = _bill(source, attached)
            if bill and bill.digest not in seen:
                seen.add(bill.digest)
                yield bill


def content_of(source: Source, bill: Bill) -> bytes:
    """Return a bill, taken out of its statement; what is attached has its digest, and is about its subject.

    Raises InvalidImage, IntegrityError, RegistryError.
    """
    if not bill.wrapped:
        return read_part(source, bill.attached)
    statement = _statement(source, bill.attached)
    if bill.attached.subject not in statement.digests:
        raise InvalidImage("a statement about another image", where=str(bill.digest))
    if isinstance(statement.predicate, str):  # SPDX in lines
        return statement.predicate.encode(errors="replace")
    return json.dumps(statement.predicate, indent=2).encode() + b"\n"


def _bill(source: Source, attached: Attached) -> Bill | None:
    """Return a part as a bill; None if it is something else, or is broken."""
    wrapped = _wrapping(attached)
    if not wrapped:
        kind = _type_in(attached.media_type) or _type_in(attached.artifact_type)
        return Bill(kind, "", attached) if kind else None
    told = _told(attached)
    if not told:
        try:
            told = _statement(source, attached).predicate_type
        except (InvalidImage, NotFound):
            return None
    found = next((kind for predicate, kind in _PREDICATES.items() if told.startswith(predicate)), None)
    return Bill(found, wrapped, attached) if found else None


def _told(attached: Attached) -> str:
    """Return the type of a statement's predicate as annotations have it, "" if none has."""
    return next((attached.annotations[name] for name in _ANNOTATIONS if name in attached.annotations), "")


def _wrapping(attached: Attached) -> str:
    if attached.media_type == IN_TOTO:
        return "statement"
    return "envelope" if attached.media_type.startswith(_ENVELOPES) else ""


def _type_in(media_type: str) -> str:
    """Return which kind of bill a media type is of; cosign has written `spdx+json` and `text/spdx`, too."""
    return next((kind for kind in TYPES if kind in media_type.lower()), "")


def _statement(source: Source, attached: Attached) -> Statement:
    body = read_part(source, attached, _LARGEST_WRAPPED)
    if _wrapping(attached) == "statement":
        return parse_statement(body)
    return parse_statement(parse_envelope(body).payload)
