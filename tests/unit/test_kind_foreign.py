"""Images in formats that imgfs does not read are named."""

from __future__ import annotations

import pytest

from imgfs.errors import InvalidImage
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.image import OCI_CONFIG, OCI_MANIFEST, Manifest
from imgfs.oci.kind import foreign_format, refuse_foreign
from tests.support.tocmake import GZIP, TOC_DIGEST, ZSTD


def part(media_type: str, **annotations: str) -> Descriptor:
    notes = {name.replace("__", "/"): text for name, text in annotations.items()}
    return Descriptor(media_type, Digest.of(b""), 1, notes)


def manifest(
    *layers: Descriptor, config: str = OCI_CONFIG, artifact_type: str | None = None, **annotations: str
) -> Manifest:
    notes = {name.replace("__", "/"): text for name, text in annotations.items()}
    return Manifest(OCI_MANIFEST, part(config), layers, notes, artifact_type)


def noted(name: str) -> Descriptor:
    return Descriptor(GZIP, Digest.of(b""), 1, {name: "x"})


@pytest.mark.parametrize(
    ("made", "name", "where"),
    [
        (
            manifest(part(GZIP), noted("containerd.io/snapshot/nydus-bootstrap")),
            "nydus",
            "manifest.layers[1]",
        ),
        (manifest(part("application/vnd.oci.image.layer.nydus.blob.v1")), "nydus", "manifest.layers[0]"),
        (manifest(config="application/vnd.nydus.image.config.v1+json"), "nydus", "manifest.config.mediaType"),
        (manifest(noted("containerd.io/snapshot/overlaybd/blob-digest")), "overlaybd", "manifest.layers[0]"),
        (
            manifest(part(GZIP), artifact_type="application/vnd.containerd.overlaybd.turbo.v1+json"),
            "overlaybd",
            "manifest.artifactType",
        ),
        (manifest(part("application/vnd.erofs.layer.v1")), "EROFS", "manifest.layers[0]"),
        (manifest(part("application/vnd.erofs+zstd")), "EROFS", "manifest.layers[0]"),
        (manifest(part("application/vnd.stacker.image.layer.squashfs+zstd+verity")), "squashfs", "layers[0]"),
        (manifest(part("application/vnd.puzzlefs.image.rootfs.v1")), "PuzzleFS", "manifest.layers[0]"),
        (manifest(part("application/vnd.sylabs.sif.layer.v1.sif")), "Singularity", "manifest.layers[0]"),
    ],
)
def test_an_image_in_another_format_is_named_and_says_where_that_shows(
    made: Manifest, name: str, where: str
) -> None:
    with pytest.raises(InvalidImage, match=f"{name}.*imgfs does not read that format") as caught:
        refuse_foreign(made)
    assert where in str(caught.value)


def test_an_image_that_was_converted_says_what_to_mount_instead() -> None:
    with pytest.raises(InvalidImage, match="converted from"):
        refuse_foreign(manifest(noted("containerd.io/snapshot/nydus-blob")))


def test_images_of_tar_layers_pass_with_and_without_tables_of_contents() -> None:
    refuse_foreign(manifest())
    refuse_foreign(
        manifest(
            part(GZIP),
            noted(TOC_DIGEST),
            part(ZSTD, **{"io.github.containers.zstd-chunked.manifest-checksum": "x"}),
            part("application/vnd.docker.image.rootfs.diff.tar.gzip"),
            part("application/octet-stream"),
            **{"org.opencontainers.image.created": "now", "com.amazon.soci.index-digest": "x"},
        )
    )


def test_an_index_tells_by_its_features() -> None:
    assert (
        foreign_format(Platform("linux", "amd64", os_features=("nydus.remoteimage.v1",))) == "a nydus image"
    )
    assert foreign_format(Platform("linux", "amd64", os_features=("erofs",))) == "an EROFS image"
    assert foreign_format(Platform("linux", "amd64", os_features=("win32k",))) is None
