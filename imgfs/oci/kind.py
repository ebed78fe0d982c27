"""What a manifest is, by its media types: an image, an artifact, or an image in another tool's format.

An artifact is a signature, an attestation, a Helm chart. The field `artifactType` alone says nothing:
go-containerregistry (crane, apko, ko) puts the media type of the config there for images too (image-spec
descriptor.md). Its value decides.

Images made for other lazy snapshotters, and layers that are no tar, pass as OCI images: a manifest, a config,
layers. What is in the layers only their own software reads, so they are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.oci.artifact import EMPTY_TYPE, is_referrers_tag
from imgfs.oci.descriptor import Descriptor, Platform
from imgfs.oci.image import CONFIG_TYPES, INDEX_TYPES, MANIFEST_TYPES, Index, Manifest

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
    ("a Flux artifact", ("application/vnd.cncf.flux.",)),
    ("a Tekton bundle", ("application/vnd.cdf.tekton.",)),
    ("a policy", ("application/vnd.cncf.openpolicyagent.",)),
    ("a Compose project", ("application/vnd.docker.compose.",)),
    (
        "a model",
        (
            "application/vnd.cncf.model.",
            "application/vnd.docker.ai.",
            "application/vnd.kitops.modelkit.",
            "application/vnd.ollama.image.",
        ),
    ),
    ("a build cache", ("application/vnd.buildkit.cacheconfig.",)),
    (
        "a WebAssembly module",
        ("application/vnd.wasm.", "application/wasm", "application/vnd.bytecodealliance.wasm."),
    ),
    ("a SOCI index", ("application/vnd.amazon.soci.index.",)),
    ("an index made by imgfs", ("application/vnd.imgfs.index.",)),
    ("an artifact", (EMPTY_TYPE, "application/vnd.unknown.")),  # ORAS and its older configs
)


def refuse_artifact(manifest: Manifest) -> None:
    """Raise InvalidImage, saying what it is, for the manifest of an artifact."""
    kind = artifact_kind(manifest)
    if kind:
        raise InvalidImage(f"this is {kind}, not an image")


def artifact_kind(manifest: Manifest) -> str | None:
    """Return what a manifest is, such as "a signature (artifactType …)", if its types say so; else None."""
    for field, media_type in _types(manifest):
        kind = _kind(media_type)
        if kind:
            return f"{kind} ({field} {_type(manifest) or media_type})"
    return None


def index_kind(index: Index) -> str | None:
    """Return what an index is, if its `artifactType` says that it is no image's; else None."""
    named = index.artifact_type
    if named is None or _is_images(named):
        return None
    return f"{_kind(named) or 'an artifact'} (artifactType {named})"


def is_artifact_entry(entry: Descriptor) -> bool:
    """Return True if an index's entry says that it is an artifact, an attestation or a signature."""
    kind = entry.annotations.get(_COSIGN_KIND, "")
    return (
        (entry.artifact_type is not None and not _is_images(entry.artifact_type))
        or entry.annotations.get(_REFERENCE_TYPE) == "attestation-manifest"
        or (kind.startswith("dev.cosignproject.cosign/") and kind not in _COSIGN_IMAGES)
    )


def is_artifact_tag(tag: str) -> bool:
    """Return True for tags made of a digest: cosign's, and those of the Referrers Tag Schema."""
    return is_referrers_tag(tag) or _COSIGN_TAG.fullmatch(tag) is not None


def _type(manifest: Manifest) -> str | None:
    named = manifest.artifact_type
    return named if named is not None and not _is_images(named) else None


def _is_images(artifact_type: str) -> bool:
    """Return whether an `artifactType` is that of an image's document, in any case (RFC 6838, 4.2)."""
    media_type = artifact_type.partition(";")[0].strip().lower()
    return media_type in (*CONFIG_TYPES, *MANIFEST_TYPES, *INDEX_TYPES)


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


class _Format(NamedTuple):
    """A format: what an image in it is called, and how what it writes into manifests begins."""

    name: str
    types: tuple[str, ...] = ()  # media types of layers and configs, and artifact types
    annotations: tuple[str, ...] = ()  # of layers and manifests
    features: tuple[str, ...] = ()  # os.features of a platform
    hint: str = ""


_CONVERTED = "; mount the image it was converted from"
_FORMATS = (
    _Format(  # nydus-snapshotter, pkg/converter/constant.go
        "a nydus image",
        ("application/vnd.oci.image.layer.nydus.", "application/vnd.nydus."),
        ("containerd.io/snapshot/nydus-",),
        ("nydus.remoteimage.v1",),
        _CONVERTED,
    ),
    _Format(  # accelerated-container-image, pkg/label and cmd/convertor/builder
        "an overlaybd image",
        ("application/vnd.containerd.overlaybd.",),
        ("containerd.io/snapshot/overlaybd",),
        (),
        _CONVERTED,
    ),
    _Format(  # erofs-image-spec; erofs-utils, lib/remotes/oci.c; containerd, plugins/diff/erofs
        "an EROFS image", ("application/vnd.erofs",), ("org.erofs.",), ("erofs",), _CONVERTED
    ),
    _Format(  # stacker and atomfs, pkg/squashfs
        "a squashfs image",
        ("application/vnd.stacker.image.layer.squashfs", "application/vnd.oci.image.layer.squashfs"),
    ),
    _Format("a PuzzleFS image", ("application/vnd.puzzlefs.",)),
    _Format("a Singularity image", ("application/vnd.sylabs.sif.",)),
)


def foreign_format(platform: Platform) -> str | None:
    """Return what an index's entry for `platform` is, if it is no image that imgfs reads: "a nydus image"."""
    for form in _FORMATS:
        if not set(form.features).isdisjoint(platform.os_features):
            return form.name
    return None


def refuse_foreign(manifest: Manifest) -> None:
    """Raise InvalidImage, naming the format, for an image in one that imgfs does not read."""
    for form in _FORMATS:
        for where in _signs(manifest, form):
            raise InvalidImage(f"{form.name}: imgfs does not read that format{form.hint}", where=where)


def _signs(manifest: Manifest, form: _Format) -> Iterator[str]:
    """Yield where in the manifest it shows that it is of a format."""
    if (manifest.artifact_type or "").startswith(form.types):
        yield "manifest.artifactType"
    if any(name.startswith(form.annotations) for name in manifest.annotations):
        yield "manifest.annotations"
    if manifest.config.media_type.startswith(form.types):
        yield "manifest.config.mediaType"
    for number, layer in enumerate(manifest.layers):
        if _is_of(layer, form):
            yield f"manifest.layers[{number}]"


def _is_of(layer: Descriptor, form: _Format) -> bool:
    return layer.media_type.startswith(form.types) or any(
        name.startswith(form.annotations) for name in layer.annotations
    )
