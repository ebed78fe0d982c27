"""Artifacts: things other than images that are kept as image manifests (OCI image-spec 1.1, manifest.md).

"Guidelines for Artifact Usage" there: `artifactType` says the type, `layers` have the content, and what needs
no config has the empty one. `referrers` has the lists of those that refer to an image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from imgfs.errors import InvalidImage
from imgfs.oci.descriptor import Descriptor, Digest, descriptor_fields
from imgfs.oci.image import OCI_MANIFEST, Manifest, parse_document

EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_NOTHING = b"{}"
# a config, or a layer, that says nothing (manifest.md, "Guidance for an Empty Descriptor")
EMPTY = Descriptor(EMPTY_TYPE, Digest.of(_NOTHING), len(_NOTHING), data=_NOTHING)


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
    """The manifest of an artifact: the same bytes for the same artifact.

    Raises InvalidImage for a subject of which the media type or the size is not known.
    """
    fields: dict[str, Any] = {
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
    """The type, but where the config's already says it (manifest.md, `artifactType`), as SOCI has it."""
    return (
        {}
        if artifact.config.media_type == artifact.artifact_type
        else {"artifactType": artifact.artifact_type}
    )


def encode(fields: Mapping[str, Any]) -> bytes:
    """The one way to write a document here."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _subject_fields(subject: Descriptor) -> dict[str, Any]:
    """The subject as plain as can be: what else a descriptor says is of the place it was found in."""
    if subject.size < 0 or not subject.media_type:
        raise InvalidImage("its media type and size are not known", where="artifact.subject")
    return descriptor_fields(Descriptor(subject.media_type, subject.digest, subject.size))
