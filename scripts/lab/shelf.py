"""Many images, made as one: a shelf, whose lowest layer all share, and each has one of those above it.

A tool converts the shelf, or indexes it, as it would any image; then it is taken apart. So sixty images take
about as long as one.
"""

from __future__ import annotations

from collections.abc import Sequence

from scripts.lab.registry import Document, Repository

SOCI_INDEX = "com.amazon.soci.index-digest"  # of an image's manifest (soci-snapshotter, soci/soci_index.go)
SOCI_MANIFEST = "com.amazon.soci.image-manifest-digest"  # of the index's descriptor beside it
SOCI_LAYER = "com.amazon.soci.image-layer-digest"  # of a zTOC's descriptor in the index


def take_apart(repository: Repository, tag: str, tags: Sequence[str]) -> None:
    """Make the images of a shelf, beside it in its repository, by these tags."""
    top = repository.manifest(tag)
    if "manifests" not in top:
        config = repository.blob(top["config"]["digest"])
        images = (_image(repository, top, config, number) for number in range(len(tags)))
    else:
        described = next(one for one in top["manifests"] if SOCI_MANIFEST not in one.get("annotations", {}))
        manifest = repository.manifest(described["digest"])
        config = repository.blob(manifest["config"]["digest"])
        index = next(one for one in top["manifests"] if one is not described)
        zones = repository.manifest(index["digest"])
        images = (
            _indexed(repository, top, (described, index), _image(repository, manifest, config, number), zones)
            for number in range(len(tags))
        )
    for name, image in zip(tags, images, strict=True):
        repository.put_manifest(image, name)


def _image(repository: Repository, manifest: Document, config: Document, number: int) -> Document:
    """Return the manifest of one image, whose config is there: the lowest layer, and its own."""
    chosen = (0, 1 + number)
    ids = config["rootfs"]["diff_ids"]
    own = {name: value for name, value in config.items() if name != "history"}
    own["rootfs"] = {"type": "layers", "diff_ids": [ids[place] for place in chosen]}
    described = {**manifest["config"], **repository.put_blob(own)}
    return {**manifest, "config": described, "layers": [manifest["layers"][place] for place in chosen]}


def _indexed(
    repository: Repository,
    top: Document,
    described: tuple[Document, Document],
    manifest: Document,
    zones: Document,
) -> Document:
    """Return the image index of an image and its SOCI index, which are there."""
    digests = {layer["digest"] for layer in manifest["layers"]}
    own = [zone for zone in zones["layers"] if zone["annotations"][SOCI_LAYER] in digests]
    index = {**described[1], **repository.put_manifest({**zones, "layers": own})}
    annotations = {**manifest.get("annotations", {}), SOCI_INDEX: index["digest"]}
    image = {**described[0], **repository.put_manifest({**manifest, "annotations": annotations})}
    image["annotations"] = annotations
    index["annotations"] = {**described[1].get("annotations", {}), SOCI_MANIFEST: image["digest"]}
    return {**top, "manifests": [image, index]}
