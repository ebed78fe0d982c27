"""What an artifact is, by its media types: a signature, an attestation, a Helm chart; and what is an image.

The field `artifactType` alone says nothing: go-containerregistry (crane, apko, ko) puts the media type of the
config there for images too (image-spec descriptor.md). Its value decides.
"""

from __future__ import annotations

import re

from imgfs.errors import InvalidImage
from imgfs.oci.artifact import EMPTY_TYPE
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.image import CONFIG_TYPES, Manifest
from imgfs.oci.referrers import is_referrers_tag

_REFERENCE_TYPE = "vnd.docker.reference.type"  # BuildKit, attestation-storage.md
_COSIGN_KIND = (
    "kind"  # `cosign save` in a layout's index.json: dev.cosignproject.cosign/image, …/sigs, …/atts
)
_COSIGN_IMAGES = ("dev.cosignproject.cosign/image", "dev.cosignproject.cosign/imageIndex")
_COSIGN_TAG = re.compile(r"sha(?:256|512)-[0-9a-f]{64,128}\.\w+")  # .sig, .att, .sbom

_KINDS = (  # how media types and artifact types begin
    (
        "a signature",
        (
            "application/vnd.dev.cosign.simplesigning.",
            "application/vnd.dev.cosign.artifact.sig.",
            "application/vnd.dev.sigstore.bundle",
            "application/vnd.cncf.notary.signature",
        ),
    ),
    (
        "an attestation",
        (
            "application/vnd.in-toto",
            "application/vnd.dsse.envelope",
            "application/vnd.dev.cosign.artifact.att.",
            "application/vnd.docker.attestation.",
        ),
    ),
    (
        "an SBOM",
        (
            "application/spdx",
            "text/spdx",
            "application/vnd.cyclonedx",
            "application/vnd.syft",
            "application/vnd.dev.cosign.artifact.sbom.",
        ),
    ),
    ("a Helm chart", ("application/vnd.cncf.helm.",)),
    ("a WebAssembly module", ("application/vnd.wasm.", "application/wasm")),
    ("a SOCI index", ("application/vnd.amazon.soci.index.",)),
    ("an index made by imgfs", ("application/vnd.imgfs.index.",)),
    ("an artifact", (EMPTY_TYPE, "application/vnd.unknown.")),  # ORAS and its older configs
)


def refuse_artifact(manifest: Manifest) -> None:
    """Raise InvalidImage, saying what it is, for the manifest of an artifact."""
    kind = artifact_kind(manifest)
    if kind:
        raise InvalidImage(f"this is {kind}, no image")


def artifact_kind(manifest: Manifest) -> str | None:
    """Return what a manifest is, such as "a signature (artifactType …)", if its types say so; else None."""
    for field, media_type in _types(manifest):
        kind = _kind(media_type)
        if kind:
            return f"{kind} ({field} {_type(manifest) or media_type})"
    return None


def is_artifact_entry(entry: Descriptor) -> bool:
    """Return True if an index's entry says that it is an artifact, an attestation or a signature."""
    kind = entry.annotations.get(_COSIGN_KIND, "")
    return (
        (entry.artifact_type is not None and entry.artifact_type not in CONFIG_TYPES)
        or entry.annotations.get(_REFERENCE_TYPE) == "attestation-manifest"
        or (kind.startswith("dev.cosignproject.cosign/") and kind not in _COSIGN_IMAGES)
    )


def is_artifact_tag(tag: str) -> bool:
    """Return True for tags made of a digest: cosign's, and those of the Referrers Tag Schema."""
    return is_referrers_tag(tag) or _COSIGN_TAG.fullmatch(tag) is not None


def _type(manifest: Manifest) -> str | None:
    return manifest.artifact_type if manifest.artifact_type not in CONFIG_TYPES else None


def _types(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the media types that decide, each with its field: a layer's only if all layers have its kind."""
    types = [("artifactType", manifest.artifact_type or "")]
    layers = [layer.media_type for layer in manifest.layers]
    if layers and len({_kind(layer) for layer in layers}) == 1:
        types.append(("artifactType" if _type(manifest) else "layers of type", layers[0]))
    types.append(("artifactType" if _type(manifest) else "config of type", manifest.config.media_type))
    return types


def _kind(media_type: str) -> str | None:
    return next((kind for kind, starts in _KINDS if media_type.startswith(starts)), None)
