"""Artifacts: things other than images that are kept as image manifests (OCI image-spec 1.1, manifest.md).

"Guidelines for Artifact Usage" there: `artifactType` says the type, `layers` have the content, and what needs
no config has the empty one.

What refers to a manifest is in lists, image indexes (OCI distribution-spec 1.1, "Listing Referrers"). A
registry that makes none has one under a tag that is the subject's digest, kept up by those who push
("Referrers Tag Schema"). Bytes in, bytes out; what others have written into a list stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from imgfs.errors import InvalidImage
from imgfs.oci.descriptor import Descriptor, Digest, descriptor_fields
from imgfs.oci.fields import list_in, object_at, parse_json, text_in
from imgfs.oci.image import OCI_INDEX, OCI_MANIFEST, Manifest, parse_document

EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_NOTHING = b"{}"
# a config, or a layer, that says nothing (manifest.md, "Guidance for an Empty Descriptor")
EMPTY = Descriptor(EMPTY_TYPE, Digest.of(_NOTHING), len(_NOTHING), data=_NOTHING)
_MOST_ENTRIES = 50_000  # of a list that are looked at: 4 MiB hold no more descriptors, but a million of "{}"
_NEW = {"schemaVersion": 2, "mediaType": OCI_INDEX}
_TAG = re.compile(r"sha(?:256|512)-[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact; `subject` is the manifest it is about. One without content has `EMPTY` for a layer."""

    artifact_type: str
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    config: Descriptor = EMPTY
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)


def parse_artifact(body: bytes, media_type: str | None) -> Artifact:
    """Read an image manifest as an artifact; raises InvalidImage with the JSON path.

    Without an `artifactType`, the config's media type is one (distribution-spec, "Listing Referrers").
    """
    manifest = parse_document(body, media_type)
    if not isinstance(manifest, Manifest) or manifest.media_type != OCI_MANIFEST:
        raise InvalidImage(f"not an artifact but a document of type {manifest.media_type!r}")
    return Artifact(
        artifact_type=manifest.artifact_type or manifest.config.media_type,
        layers=manifest.layers,
        subject=manifest.subject,
        config=manifest.config,
        annotations=manifest.annotations,
    )


def artifact_manifest(artifact: Artifact) -> bytes:
    """Return the manifest of an artifact: the same bytes for the same artifact.

    Raises InvalidImage for a subject of which the media type or the size is not known.
    """
    fields: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        **_type_field(artifact),
        "config": descriptor_fields(artifact.config),
        "layers": [descriptor_fields(layer) for layer in artifact.layers],
    }
    if artifact.subject:
        fields["subject"] = _subject_fields(artifact.subject)
    if artifact.annotations:
        fields["annotations"] = dict(sorted(artifact.annotations.items()))
    return encode(fields)


def _type_field(artifact: Artifact) -> dict[str, str]:
    """Return the type unless the config's media type says it, as SOCI does (manifest.md, `artifactType`)."""
    return (
        {}
        if artifact.config.media_type == artifact.artifact_type
        else {"artifactType": artifact.artifact_type}
    )


def encode(fields: Mapping[str, object]) -> bytes:
    """Return a document as JSON: the one way to write it here."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _subject_fields(subject: Descriptor) -> dict[str, object]:
    """Return type, digest and size of a subject: its other fields belong to the place it was found in."""
    if subject.size < 0 or not subject.media_type:
        raise InvalidImage("its media type and size are not known", where="artifact.subject")
    return descriptor_fields(Descriptor(subject.media_type, subject.digest, subject.size))


def referrers_tag(subject: Digest) -> str:
    """Return the tag of the list for `subject`: its hex digits are cut at 64 ("Referrers Tag Schema")."""
    return f"{subject.algorithm[:32]}-{subject.hex[:64]}"


def is_referrers_tag(tag: str) -> bool:
    """Return whether `tag` can be that of a list."""
    return _TAG.fullmatch(tag) is not None


def parse_referrers(body: bytes) -> list[Descriptor]:
    """Return the referrers in a list, each once; entries that are no descriptors are passed over.

    Raises InvalidImage unless `body` is an OCI image index.
    """
    found: dict[Digest, Descriptor] = {}
    for number, value in enumerate(_entries(body)[1][:_MOST_ENTRIES]):
        try:
            entry = Descriptor.parse(value, where=f"referrers[{number}]")
        except InvalidImage:  # a malformed entry must not hide the others
            continue
        found.setdefault(entry.digest, entry)
    return list(found.values())


def of_type(referrers: Iterable[Descriptor], artifact_type: str | None) -> list[Descriptor]:
    """Return those of one artifact type; all of them if that is None."""
    return [entry for entry in referrers if artifact_type in (None, entry.artifact_type)]


def referrer_in(body: bytes, descriptor: Descriptor) -> tuple[Digest | None, Descriptor]:
    """Return the subject of a manifest or index, and the entry for it that a list has ("Listing Referrers").

    `body` is what `descriptor` names. Raises InvalidImage.
    """
    document = parse_document(body, descriptor.media_type)
    config_type = document.config.media_type if isinstance(document, Manifest) else None
    entry = Descriptor(
        document.media_type,
        descriptor.digest,
        len(body),
        annotations=document.annotations,
        artifact_type=document.artifact_type or config_type,
    )
    return document.subject.digest if document.subject else None, entry


def with_referrer(body: bytes | None, entry: Descriptor) -> bytes:
    """Return a list that has `entry`, once; None is the list that is not there yet. Raises InvalidImage."""
    fields, entries = _entries(body) if body is not None else (dict(_NEW), [])
    return _changed(body, fields, entries, entered(entries, entry))


def without_referrer(body: bytes, digest: Digest) -> bytes:
    """Return a list that does not have `digest`. Raises InvalidImage."""
    fields, entries = _entries(body)
    return _changed(body, fields, entries, removed(entries, digest))


def entered(entries: Sequence[object], entry: Descriptor) -> list[object]:
    """Return the entries of an index, and `entry` if its digest is not among them."""
    known = any(_names(value, entry.digest) for value in entries)
    return [*entries] if known else [*entries, descriptor_fields(entry)]


def removed(entries: Sequence[object], digest: Digest) -> list[object]:
    """Return the entries of an index but those for `digest`."""
    return [value for value in entries if not _names(value, digest)]


def is_empty(body: bytes) -> bool:
    """Return whether a list has no entries, not even malformed ones. Raises InvalidImage."""
    return not _entries(body)[1]


def _entries(body: bytes) -> tuple[dict[str, object], list[object]]:
    """Return the fields of an OCI image index, and its entries as they are."""
    fields = object_at(parse_json(body, "referrers"), "referrers")
    if text_in(fields, "mediaType", "referrers", default=OCI_INDEX) != OCI_INDEX or "manifests" not in fields:
        raise InvalidImage("not an OCI image index", where="referrers")
    return fields, list_in(fields, "manifests", "referrers")


def _changed(
    body: bytes | None, fields: Mapping[str, object], before: Sequence[object], after: Sequence[object]
) -> bytes:
    """Return a list with other entries: byte for byte what it was if they are the same."""
    return body if body is not None and len(before) == len(after) else encode({**fields, "manifests": after})


def _names(value: object, digest: Digest) -> bool:
    return isinstance(value, dict) and value.get("digest") == str(digest)
