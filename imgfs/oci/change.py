"""Documents of an image made from another: a config and a manifest with a layer more, or with fewer.

Bytes in, bytes out. What the base says and this code does not know stays as it is, where it stood; the same
input makes the same bytes. `instruction` has the changes of the runtime config.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import accumulate

from imgfs.errors import InvalidImage, UsageError
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.fields import list_in, object_at, objects_in, parse_json
from imgfs.oci.image import (
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    ImageConfig,
    Manifest,
    check_layers,
    parse_config,
    parse_document,
)
from imgfs.oci.instruction import ConfigChange, apply_changes, parse_change

__all__ = [
    "ConfigChange",
    "apply_changes",
    "as_oci",
    "extend_config",
    "extend_manifest",
    "index_as_oci",
    "layer_type",
    "parse_change",
    "truncate",
]

_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
# image-spec media-types.md, "Compatibility Matrix"; Docker's zstd is containerd's name for what OCI has
_OCI_TYPES = {
    DOCKER_MANIFEST: OCI_MANIFEST,
    DOCKER_CONFIG: OCI_CONFIG,
    _DOCKER_LAYER: _OCI_LAYER,
    f"{_DOCKER_LAYER}.gzip": f"{_OCI_LAYER}+gzip",
    f"{_DOCKER_LAYER}.zstd": f"{_OCI_LAYER}+zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar": (
        "application/vnd.oci.image.layer.nondistributable.v1.tar"
    ),
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    ),
}
_DOCKER_TYPES = {OCI_CONFIG: DOCKER_CONFIG, f"{_OCI_LAYER}+gzip": f"{_DOCKER_LAYER}.gzip"}

# A manifest's annotations that are true of its bytes only: when and from what it was made, what it is called
# (annotations.md), and which SOCI index describes its layers.
_OF_THESE_BYTES = (
    "org.opencontainers.image.created",
    "org.opencontainers.image.base.",
    "org.opencontainers.image.ref.name",
    "io.containerd.image.name",
    "com.amazon.soci.",
    "vnd.docker.reference.",
)

Fields = dict[str, object]


def layer_type(codec: str) -> str:
    """Return the OCI media type of a layer packed with `codec`, "gzip" or "zstd" (media-types.md)."""
    return f"{_OCI_LAYER}+{codec}"


def extend_config(
    body: bytes,
    *,
    diff_id: Digest | None,
    changes: Iterable[ConfigChange] = (),
    created: datetime,
    created_by: str = "",
    author: str = "",
    message: str = "",
) -> bytes:
    """Return the config `body` with one more layer, or one more entry of the history only (config.md).

    `created` has a time zone; `author` replaces the image's too; texts that are empty are left out. Layers of
    the base that its history does not tell of get an empty entry each, or the entries would not belong to
    the layers any more. Raises InvalidImage, and UsageError for a change that does not go with the base.
    """
    config = parse_config(body)
    fields: Fields = copy.deepcopy(dict(config.raw))
    entry: Fields = {"created": _time(created)}
    entry |= _present(created_by=created_by, author=author, comment=message)
    if diff_id is None:
        entry["empty_layer"] = True
    fields |= {"created": entry["created"], **_present(author=author)}
    runtime = apply_changes(config.config, changes)
    if runtime or "config" in fields:
        fields["config"] = runtime
    added = [str(diff_id)] if diff_id else []
    diff_ids = [*map(str, config.diff_ids), *added]
    fields["rootfs"] = _part(fields, "rootfs") | {"type": "layers", "diff_ids": diff_ids}
    fields["history"] = [*config.history, *_missing_history(config), entry]
    return _encode(fields)


def extend_manifest(
    body: bytes, config: Descriptor, layer: Descriptor | None, annotations: Mapping[str, str]
) -> bytes:
    """Return the manifest `body` with this config and, unless it is None, with one more layer.

    Both come with their OCI media types and get the base's: a Docker manifest stays one, but a zstd layer,
    for which schema 2 has no name, makes an OCI manifest of it, with its config and layers. `annotations` go
    into OCI manifests only: schema 2 has none. `subject` and the base's annotations that are true of its own
    bytes only are left out. Raises InvalidImage.
    """
    manifest, fields = _manifest(body)
    added = [] if layer is None else [_fields_of(layer)]
    fields |= {"config": _fields_of(config), "layers": [*list_in(fields, "layers", "manifest"), *added]}
    types: Mapping[str, str] = {}
    if manifest.media_type == DOCKER_MANIFEST:
        types = _DOCKER_TYPES if layer is None or layer.media_type in _DOCKER_TYPES else _OCI_TYPES
    annotations = {} if types is _DOCKER_TYPES else annotations
    return _encode(_own(_retyped(fields, types), annotations))


def as_oci(body: bytes, media_type: str | None = None) -> bytes:
    """Return the manifest `body` with OCI media types, for an OCI layout, where tools look for no others.

    An OCI manifest stays what it is, byte for byte. `media_type` is what its descriptor calls a manifest that
    does not say itself. Raises InvalidImage.
    """
    manifest, fields = _manifest(body, media_type)
    return body if manifest.media_type == OCI_MANIFEST else _encode(_retyped(fields, _OCI_TYPES))


def index_as_oci(body: bytes, media_type: str, converted: Mapping[Digest, Descriptor]) -> bytes:
    """Return the index `body` as an OCI index; `converted` has the new descriptors, by old digest.

    Of an entry only media type, digest and size change; its platform and annotations stay. An OCI index with
    none of these manifests stays what it is, byte for byte. Raises InvalidImage.
    """
    fields = object_at(parse_json(body, "document"), "document")
    known = objects_in(fields, "manifests", "index")
    entries = [_converted_entry(entry, converted) for entry in known]
    is_docker = fields.get("mediaType", media_type) == DOCKER_LIST
    if not is_docker and entries == known:
        return body
    return _encode(fields | {"mediaType": OCI_INDEX, "manifests": entries})


def _converted_entry(entry: Fields, converted: Mapping[Digest, Descriptor]) -> Fields:
    new = converted.get(Digest.parse(entry["digest"]))
    if new is None:
        return entry
    return entry | {"mediaType": new.media_type, "digest": str(new.digest), "size": new.size}


def truncate(manifest_body: bytes, config_body: bytes, layers: int) -> tuple[bytes, bytes]:
    """Return (manifest, config) of the image as it was when it had its lowest `layers` layers.

    The runtime config stays the image's own: nothing tells what it was then. With all layers, both are what
    they were. Raises UsageError for a number the image does not have, InvalidImage.
    """
    manifest, fields = _manifest(manifest_body)
    config = parse_config(config_body, manifest.config.media_type)
    check_layers(manifest, config)
    if not 1 <= layers <= len(manifest.layers):
        raise UsageError(f"layer {layers} is not among the image's {len(manifest.layers)} layers")
    if layers == len(manifest.layers):
        return manifest_body, config_body
    cut = _encode(_truncated(config, layers))
    descriptor = Descriptor(manifest.config.media_type, Digest.of(cut), len(cut))
    fields |= {"config": _fields_of(descriptor), "layers": list_in(fields, "layers", "manifest")[:layers]}
    return _encode(_own(fields, {})), cut


def _truncated(config: ImageConfig, layers: int) -> Fields:
    """Return the config's fields for its first layers.

    Its date is that of the last entry left in the history.
    """
    counts = list(accumulate(int(not entry.get("empty_layer")) for entry in config.history))
    history = config.history[: counts.index(layers) + 1 if layers in counts else None]
    fields: Fields = dict(config.raw)
    fields["rootfs"] = _part(fields, "rootfs") | {"diff_ids": list(map(str, config.diff_ids[:layers]))}
    if history:
        fields["history"] = list(history)
        fields |= _present(created=history[-1].get("created"))
    return fields


def _missing_history(config: ImageConfig) -> list[Fields]:
    """Return an empty entry for every layer that the history leaves out.

    All of an entry's fields are optional.
    """
    described = sum(not entry.get("empty_layer") for entry in config.history)
    return [{} for _ in range(len(config.diff_ids) - described)]


def _manifest(body: bytes, media_type: str | None = None) -> tuple[Manifest, Fields]:
    """Return a manifest and its fields, `mediaType` and `layers` among them, to be changed."""
    manifest = parse_document(body, media_type)
    if not isinstance(manifest, Manifest):
        raise InvalidImage("an index, not the manifest of one image")
    fields = object_at(parse_json(body, "document"), "document")
    return manifest, fields | {"mediaType": manifest.media_type, "layers": fields.get("layers") or []}


def _retyped(fields: Fields, types: Mapping[str, str]) -> Fields:
    """Return a manifest's fields, the media types in them replaced by those of `types`."""

    def retyped(part: Fields) -> Fields:
        media_type = part.get("mediaType")
        if isinstance(media_type, str) and media_type in types:
            return part | {"mediaType": types[media_type]}
        return part

    return retyped(fields) | {
        "config": retyped(_part(fields, "config")),
        "layers": [retyped(layer) for layer in objects_in(fields, "layers", "manifest")],
    }


def _own(fields: Fields, annotations: Mapping[str, str]) -> Fields:
    """Return a manifest's fields, `annotations` added, without what is said of other bytes than these."""
    kept = _part(fields, "annotations")
    added = {name: text for name, text in kept.items() if not name.startswith(_OF_THESE_BYTES)}
    added.update(annotations)
    rest = {name: value for name, value in fields.items() if name not in ("annotations", "subject")}
    return rest | ({"annotations": added} if added else {})


def _fields_of(descriptor: Descriptor) -> Fields:
    fields = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    return fields | ({"annotations": dict(descriptor.annotations)} if descriptor.annotations else {})


def _part(fields: Fields, name: str) -> Fields:
    """Return the object `fields[name]`, empty if absent or null; raises InvalidImage."""
    return object_at(fields.get(name) or {}, name)


def _present(**texts: object) -> Fields:
    return {name: text for name, text in texts.items() if text}


def _time(when: datetime) -> str:
    """RFC 3339, section 5.6, in UTC."""
    return when.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _encode(fields: Fields) -> bytes:
    """Return the one way to write a document; raises UsageError if a text given for it was no text."""
    try:
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.end]
        raise UsageError(f"a text for the image is not UTF-8: {around!r}") from error
