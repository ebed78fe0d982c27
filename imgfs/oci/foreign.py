"""Images made for other lazy snapshotters, and layers that are no tar: refused by name.

They pass as OCI images: a manifest, a config, layers. What is in the layers only their own software reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.oci.descriptor import Descriptor, Platform
from imgfs.oci.image import Manifest


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
    """What an index's entry for `platform` is, if it is no image that imgfs reads: "a nydus image"."""
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
    """Where in the manifest it shows that it is of a format."""
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
