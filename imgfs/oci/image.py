"""Manifests, indexes and configs (OCI image-spec manifest.md, image-index.md, config.md; Docker schema 2).

A document is read once, at the door, into frozen types; what is malformed is InvalidImage with its JSON path,
whatever the bytes were. What a label says is believed only where the content agrees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from imgfs.errors import InvalidImage
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.fields import annotations_in, list_in, object_at, parse_json, text_in

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)
CONFIG_TYPES = (OCI_CONFIG, DOCKER_CONFIG)
_ENCRYPTED = ("+encrypted", "+enc")  # ocicrypt, spec/spec.go; and imgcrypt's name for it with Docker's types
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"  # json, or prettyjws


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image for one platform, or an artifact in the same shape (manifest.md)."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str | None = None
    subject: Descriptor | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """Manifests by platform (image-index.md; Docker calls it a manifest list)."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str | None = None
    subject: Descriptor | None = None


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image's config says (config.md).

    `config` is its runtime part (Env, Cmd, User, …), `history` the entries as they are, `raw` the whole
    document, for those who write a new one from it.
    """

    platform: Platform
    diff_ids: tuple[Digest, ...]
    history: tuple[Mapping[str, object], ...] = field(hash=False)
    created: str | None
    config: Mapping[str, object] = field(hash=False)
    raw: Mapping[str, object] = field(hash=False, repr=False)


def parse_document(body: bytes, media_type: str | None) -> Manifest | Index:
    """Read a manifest or an index; raises InvalidImage with the JSON path.

    `media_type` is what the registry or a descriptor called it, None if unknown. Content decides: a
    document with `manifests` is an index, one with `config` or `layers` a manifest, one with both is refused
    (CVE-2021-41190).
    """
    fields = object_at(parse_json(body, "document"), "document")
    _refuse_schema_1(fields)
    is_index, is_manifest = "manifests" in fields, "layers" in fields or "config" in fields
    if is_index and is_manifest:
        raise InvalidImage("both a manifest and an index: its meaning would depend on its label")
    declared = text_in(fields, "mediaType", "document", default="") or media_type or ""
    if is_index or (declared in INDEX_TYPES and not is_manifest):
        return _index(fields, declared if declared in INDEX_TYPES else OCI_INDEX)
    if is_manifest or declared in MANIFEST_TYPES:
        return _manifest(fields, declared if declared in MANIFEST_TYPES else OCI_MANIFEST)
    raise InvalidImage(f"neither an image manifest nor an index (media type {declared[:100]!r})")


def parse_config(body: bytes, media_type: str | None = None) -> ImageConfig:
    """Read an image's config; raises InvalidImage with the JSON path.

    A config of another `media_type` is accepted if it has a `rootfs`; else the error says what it is.
    """
    foreign = media_type is not None and media_type not in CONFIG_TYPES
    try:
        fields = object_at(parse_json(body, "config"), "config")
        rootfs = _rootfs(fields)
    except InvalidImage as error:
        if foreign:
            raise InvalidImage(f"not a container image but an artifact of type {media_type!r}") from error
        raise
    where = "config.rootfs.diff_ids"
    diff_ids = list_in(rootfs, "diff_ids", "config.rootfs")
    history = list_in(fields, "history", "config")
    return ImageConfig(
        platform=Platform.parse(fields, "config"),
        diff_ids=tuple(Digest.parse(text, where=f"{where}[{n}]") for n, text in enumerate(diff_ids)),
        history=tuple(
            object_at({} if value is None else value, f"config.history[{n}]")
            for n, value in enumerate(history)
        ),
        created=text_in(fields, "created", "config", default="") or None,
        config=object_at(fields.get("config") or {}, "config.config"),
        raw=fields,
    )


def _rootfs(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return the list of DiffIDs with its type; none, or "", is "layers", as containerd takes it."""
    if config.get("rootfs") is None:
        raise InvalidImage("there is none, which every container image has", where="config.rootfs")
    rootfs = object_at(config["rootfs"], "config.rootfs")
    kind = text_in(rootfs, "type", "config.rootfs", default="")
    if kind not in ("", "layers"):
        raise InvalidImage(f"expected 'layers', got {kind!r:.40}", where="config.rootfs.type")
    return rootfs


def check_formats(manifest: Manifest) -> None:
    """Raise InvalidImage if a layer is in a format imgfs cannot read, naming the format."""
    for number, layer in enumerate(manifest.layers):
        where = f"manifest.layers[{number}]"
        if layer.media_type.endswith(_ENCRYPTED):
            raise InvalidImage(f"encrypted layers are not supported ({layer.media_type})", where=where)


def check_layers(manifest: Manifest, config: ImageConfig) -> None:
    """Raise InvalidImage unless every layer is readable and has its one DiffID (config.md, `rootfs`)."""
    check_formats(manifest)
    layers, diff_ids = len(manifest.layers), len(config.diff_ids)
    if layers != diff_ids:
        raise InvalidImage(f"{diff_ids} DiffIDs for {layers} layers", where="config.rootfs.diff_ids")


def chain_id(diff_ids: Sequence[Digest]) -> Digest:
    """Return the name of a stack of layers, the lowest first, at least one (config.md, "Layer ChainID")."""
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = Digest.of(f"{chain} {diff_id}".encode())
    return chain


def refuse_schema_1_type(media_type: str) -> None:
    """Raise InvalidImage for a manifest of Docker's schema 1: its digest is not that of all its bytes."""
    if media_type.startswith(_SCHEMA_1):
        raise InvalidImage("a Docker schema 1 image, a format given up in 2017; pull and push it again")


def _refuse_schema_1(fields: Mapping[str, object]) -> None:
    version = 2 if fields.get("schemaVersion") is None else fields["schemaVersion"]
    if version == 1 or fields.get("fsLayers"):
        refuse_schema_1_type(_SCHEMA_1)
    if version != 2:
        raise InvalidImage(f"expected 2, got {version!r:.40}", where="document.schemaVersion")


def _manifest(fields: Mapping[str, object], media_type: str) -> Manifest:
    where = "manifest"
    return Manifest(
        media_type=media_type,
        config=Descriptor.parse(fields.get("config"), where=f"{where}.config"),
        layers=_descriptors(fields, "layers", where),
        annotations=annotations_in(fields, where),
        artifact_type=text_in(fields, "artifactType", where, default="") or None,
        subject=_subject(fields, where),
    )


def _index(fields: Mapping[str, object], media_type: str) -> Index:
    where = "index"
    return Index(
        media_type=media_type,
        manifests=_descriptors(fields, "manifests", where),
        annotations=annotations_in(fields, where),
        artifact_type=text_in(fields, "artifactType", where, default="") or None,
        subject=_subject(fields, where),
    )


def _descriptors(fields: Mapping[str, object], name: str, where: str) -> tuple[Descriptor, ...]:
    values = list_in(fields, name, where)
    return tuple(Descriptor.parse(value, where=f"{where}.{name}[{n}]") for n, value in enumerate(values))


def _subject(fields: Mapping[str, object], where: str) -> Descriptor | None:
    value = fields.get("subject")
    return None if value is None else Descriptor.parse(value, where=f"{where}.subject")
