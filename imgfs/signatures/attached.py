"""What is attached to a manifest in its repository: signatures, attestations, bills of materials.

    tag sha256-HEX.sig, .att, .sbom     cosign's (SIGNATURE_SPEC.md, "Tag-based Discovery")
    referrers                           manifests whose subject it is (distribution-spec, "Listing Referrers")
    entries of the index                buildkit's attestation manifests (its attestation-storage.md)

The registry vouches for what is attached to what: anyone who may push there may attach. Only the bytes of
each are checked, by their digest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from imgfs.errors import InvalidImage, NotFound
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import Index, Manifest, parse_document
from imgfs.transport.source import Source

_MOST = 100  # documents that are attached
_MOST_PARTS = 50  # of each
_LARGEST = 64 << 20  # bytes of a part
_REFERENCE_TYPE, _REFERENCE_DIGEST = "vnd.docker.reference.type", "vnd.docker.reference.digest"
TAGS = ("sig", "att", "sbom")


class Attached(NamedTuple):
    """A part of what is attached; `how` is "tag", "referrer" or "index".

    `artifact_type` is that of the manifest it is a part of, "" if that has none.
    """

    how: str
    artifact_type: str
    part: Descriptor
    subject: Digest

    @property
    def media_type(self) -> str:
        """Return the media type of the part."""
        return self.part.media_type

    @property
    def annotations(self) -> Mapping[str, str]:
        """Return the annotations of the part."""
        return self.part.annotations


def attached_to(source: Source, subject: Digest, named: Descriptor | None = None) -> Iterator[Attached]:
    """Yield the parts of what is attached to the manifest `subject`; `named` is an index that lists it.

    Broken documents are passed over: others can attach them. Raises RegistryError.
    """
    seen: set[Digest] = set()
    for how, descriptor in _documents(source, subject, named):
        if descriptor.digest in seen or len(seen) >= _MOST:
            continue
        seen.add(descriptor.digest)
        with suppress(InvalidImage, NotFound):
            document = parse_document(source.document(descriptor), descriptor.media_type)
            if isinstance(document, Manifest):
                kind = document.artifact_type or descriptor.artifact_type or ""
                for part in document.layers[:_MOST_PARTS]:
                    yield Attached(how, kind, part, subject)


def read_part(source: Source, attached: Attached, largest: int = _LARGEST) -> bytes:
    """Return the bytes of a part, checked. Raises InvalidImage, IntegrityError, RegistryError."""
    part = attached.part
    if part.size > largest:
        raise InvalidImage(f"{part.size} bytes; at most {largest} are read", where=str(part.digest))
    body = b"".join(source.blob(part))
    part.digest.verify(body, f"digest of what is attached ({part.media_type})")
    return body


def _documents(source: Source, subject: Digest, named: Descriptor | None) -> Iterator[tuple[str, Descriptor]]:
    for suffix in TAGS:
        with suppress(NotFound, InvalidImage):
            yield "tag", source.tagged(f"{subject.algorithm}-{subject.hex}.{suffix}")
    with suppress(NotFound, InvalidImage):
        for referrer in source.referrers(subject):
            yield "referrer", referrer
    if named and named.digest != subject:
        index = parse_document(source.document(named), named.media_type)
        for entry in index.manifests if isinstance(index, Index) else ():
            notes = entry.annotations
            if notes.get(_REFERENCE_TYPE) == "attestation-manifest" and notes.get(_REFERENCE_DIGEST) == str(
                subject
            ):
                yield "index", entry
