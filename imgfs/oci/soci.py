"""SOCI index manifests: which layer of an image has which zTOC (soci-snapshotter, soci/soci_index.go).

An index is an OCI manifest whose config says by its media type what it is; its layers are zTOCs, each naming
the image's layer it is of. Version 1 names the image as its `subject` and is found through the registry's
referrers, so anyone who can push there can add or replace it. Version 2 is named by an annotation of the
image's manifest, which makes it part of the image's digest, and lies beside the image in an OCI index.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.oci.artifact import encode
from imgfs.oci.descriptor import Descriptor, Digest, Platform, descriptor_fields
from imgfs.oci.fields import annotations_in, object_at, objects_in, parse_json
from imgfs.oci.image import OCI_INDEX, OCI_MANIFEST, Index, Manifest, parse_document
from imgfs.oci.published import INDEX_DIGEST as INDEX_DIGEST
from imgfs.oci.published import soci_v2_digest as soci_v2_digest

SOCI_V1 = "application/vnd.amazon.soci.index.v1+json"
SOCI_V2 = "application/vnd.amazon.soci.index.v2+json"
ZTOC = "application/octet-stream"  # an index may hold other things of a layer: lists of files to prefetch
CONFIG_BODY = b"{}"  # the blob that every index has for its config

LAYER_DIGEST = "com.amazon.soci.image-layer-digest"  # on a zTOC
LAYER_TYPE = "com.amazon.soci.image-layer-mediaType"
SPAN_SIZE = "com.amazon.soci.span-size"
BUILD_TOOL = "com.amazon.soci.build-tool-identifier"  # on an index
IMAGE_DIGEST = "com.amazon.soci.image-manifest-digest"  # on the index's descriptor: the image's manifest

_CONFIG_TYPES = {1: SOCI_V1, 2: SOCI_V2}
_VERSIONS = {SOCI_V1: 1, SOCI_V2: 2}


@dataclass(frozen=True, slots=True)
class SociIndex:
    """The zTOCs of an image's layers, those that have one: by the layer's digest.

    `subject` is the image's manifest; version 2 has none.
    """

    version: int
    subject: Descriptor | None
    layers: Mapping[Digest, Descriptor] = field(hash=False)


class SociImage(NamedTuple):
    """An image with its SOCI index, version 2: the documents to be pushed, the OCI index last."""

    manifest: bytes
    soci_index: bytes
    oci_index: bytes


def parse_soci_index(body: bytes, media_type: str | None = None) -> SociIndex:
    """Read a SOCI index manifest; raises InvalidImage with the JSON path, also for manifests of other things.

    A layer that is in an image twice has two equal zTOCs; the first counts.
    """
    manifest = parse_document(body, media_type)
    version = _VERSIONS.get(manifest.config.media_type) if isinstance(manifest, Manifest) else None
    if version is None or not isinstance(manifest, Manifest):
        raise InvalidImage("not a SOCI index, by its config's media type")
    layers: dict[Digest, Descriptor] = {}
    for number, ztoc in enumerate(manifest.layers):
        if ztoc.media_type == ZTOC:
            where = f"manifest.layers[{number}].annotations[{LAYER_DIGEST!r}]"
            layers.setdefault(Digest.parse(ztoc.annotations.get(LAYER_DIGEST), where=where), ztoc)
    return SociIndex(version, manifest.subject, layers)


def ztoc_descriptor(layer: Descriptor, ztoc: bytes, *, span_size: int | None = None) -> Descriptor:
    """Return the descriptor, for a SOCI index, of a layer's zTOC."""
    annotations = {LAYER_DIGEST: str(layer.digest), LAYER_TYPE: layer.media_type}
    if span_size is not None:
        annotations[SPAN_SIZE] = str(span_size)
    return Descriptor(ZTOC, Digest.of(ztoc), len(ztoc), annotations)


def soci_index(version: int, ztocs: Iterable[Descriptor], *, subject: Descriptor | None, tool: str) -> bytes:
    """Return a SOCI index manifest: `ztocs` in the order of the image's layers, `subject` for version 1 only.

    Its config is the blob CONFIG_BODY. The same input makes the same bytes.
    """
    assert (subject is not None) == (version == 1), "version 1 has a subject, version 2 has none"
    config = Descriptor(_CONFIG_TYPES[version], Digest.of(CONFIG_BODY), len(CONFIG_BODY))
    bare = Descriptor(subject.media_type, subject.digest, subject.size) if subject else None
    fields: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor_fields(config),
        "layers": [descriptor_fields(ztoc) for ztoc in ztocs],
    }
    if bare:
        fields["subject"] = descriptor_fields(bare)
    return encode(fields | {"annotations": {BUILD_TOOL: tool}})


def with_soci_v2(
    manifest: bytes, ztocs: Iterable[Descriptor], *, platform: Platform, tool: str, index: bytes | None = None
) -> SociImage:
    """Return an image bound to a SOCI index, version 2 (soci/soci_convert.go), by a new manifest.

    `index` is the OCI index that `manifest` is in, if it is in one: the new manifest takes its place there,
    and the new SOCI index that of an older one for `platform`. A Docker manifest becomes an OCI one, a
    manifest list an OCI index; the manifests of other platforms stay what they are. Raises InvalidImage.
    """
    from imgfs.oci.change import as_oci  # here: reading SOCI indexes changes no document

    soci = soci_index(2, ztocs, subject=None, tool=tool)
    fields = object_at(parse_json(as_oci(manifest), "document"), "document")
    annotations = annotations_in(fields, "manifest") | {INDEX_DIGEST: str(Digest.of(soci))}
    image = encode(fields | {"annotations": annotations})
    old = Digest.of(manifest)
    listed = Descriptor(OCI_MANIFEST, Digest.of(image), len(image), annotations, platform)
    about = {IMAGE_DIGEST: str(listed.digest)}
    beside = Descriptor(OCI_MANIFEST, Digest.of(soci), len(soci), about, platform, artifact_type=SOCI_V2)
    around = _index_fields(index, old)
    entries = [
        descriptor_fields(listed) | _kept(entry) if entry.get("digest") == str(old) else entry
        for entry in objects_in(around, "manifests", "index")
        if not _is_soci_for(entry, platform)
    ]
    return SociImage(image, soci, encode(around | {"manifests": [*entries, descriptor_fields(beside)]}))


def _index_fields(index: bytes | None, manifest: Digest) -> dict[str, object]:
    """Return the fields of an OCI index, the given or a new one, with `manifest` among its entries."""
    if index is None:
        return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{"digest": str(manifest)}]}
    document = parse_document(index, None)
    if not isinstance(document, Index) or all(entry.digest != manifest for entry in document.manifests):
        raise InvalidImage(f"{manifest} is not in it", where="index.manifests")
    return object_at(parse_json(index, "document"), "document") | {"mediaType": OCI_INDEX}


def _kept(entry: Mapping[str, object]) -> dict[str, object]:
    """Return what an entry of an index says that stays true when its manifest becomes another one."""
    return {"platform": entry["platform"]} if entry.get("platform") else {}


def _is_soci_for(entry: Mapping[str, object], platform: Platform) -> bool:
    if entry.get("artifactType") != SOCI_V2 or not entry.get("platform"):
        return False
    return (
        Platform.parse(object_at(entry["platform"], "index"), "index").normalized() == platform.normalized()
    )
