"""An image in a source out of memory, with what others have published of it; and ways to read it.

offer = offering(tmp_path, {"tar": tar}["tar"])
resolved = prepared(offer.source, store)
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imgfs.image.image import Image
from imgfs.image.prepare import prepare
from imgfs.image.resolve import Resolved, resolve
from imgfs.image.trust import Trust
from imgfs.layer.artifact import pack
from imgfs.oci.artifact import Artifact, artifact_manifest
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.image import OCI_CONFIG, OCI_MANIFEST
from imgfs.oci.policy import Policy
from imgfs.oci.published import ARTIFACT_TYPE, SIZE_OF, Published, contents_of
from imgfs.oci.reference import parse_reference
from imgfs.oci.soci import CONFIG_BODY, soci_index, ztoc_descriptor
from imgfs.publish import publication_of
from imgfs.store.store import Store
from tests.support.fake_source import FakeSource
from tests.support.mounted import Stored
from tests.support.ztocs import scanned

AMD64 = Platform("linux", "amd64")
TAG = "registry.example/app:1"


class Warnings:
    """A Reporter that keeps what it is warned of, and which layers are streamed."""

    def __init__(self) -> None:
        self.warned: list[str] = []
        self.streamed: set[Digest] = set()

    def expects(self, layers: Iterable[Descriptor]) -> None:
        pass

    def layer_begins(self, layer: Descriptor) -> None:
        self.streamed.add(layer.digest)

    def layer_has(self, layer: Descriptor, count: int) -> None:
        pass

    def layer_advances(self, layer: Descriptor, count: int) -> None:
        pass

    def layer_waits(self, layer: Descriptor) -> None:
        pass

    def layer_ends(self, layer: Descriptor) -> None:
        pass

    def merging(self) -> None:
        pass

    def warns(self, text: str) -> None:
        self.warned.append(text)


@dataclass
class Offering:
    """An image that has been published: what of it is where, by what kind it is."""

    source: FakeSource
    manifest: Descriptor
    layers: list[Descriptor]
    published: Published
    referrer: Descriptor | None = None

    def refer(self, published: Published | None = None) -> None:
        """Have an artifact of ours refer to the image."""
        body = artifact_manifest(
            Artifact(ARTIFACT_TYPE, contents_of(published or self.published), self.manifest)
        )
        self._refer(body, ARTIFACT_TYPE)

    def refer_soci(self, ztocs: list[bytes]) -> list[Descriptor]:
        """Have a SOCI index of version 1 refer to the image; the zTOCs, in the order of its layers."""
        found = [
            ztoc_descriptor(layer, body, span_size=4096)
            for layer, body in zip(self.layers, ztocs, strict=True)
        ]
        for descriptor, body in zip(found, ztocs, strict=True):
            self.source.bodies[descriptor.digest] = body
        self.source.add(CONFIG_BODY)
        self._refer(
            soci_index(1, found, subject=self.manifest, tool="test"),
            "application/vnd.amazon.soci.index.v1+json",
        )
        return found

    def ztocs(self) -> list[bytes]:
        """Return a zTOC of each layer."""
        return [scanned(self.source.bodies[layer.digest], step=65_536).ztoc() for layer in self.layers]

    def _refer(self, body: bytes, artifact_type: str) -> None:
        at = self.source.add(body, OCI_MANIFEST)
        self.referrer = Descriptor(OCI_MANIFEST, at.digest, at.size, artifact_type=artifact_type)
        self.source.referring[self.manifest.digest] = [self.referrer]


def offering(directory: Path, layers: list[Stored], *, repack: bool = False) -> Offering:
    """Return an image, indexed and published: its artifact is in the source, but refers to nothing yet."""
    directory.mkdir()
    source = FakeSource()
    manifest = image_of(source, layers)
    store = Store(directory / "store")
    resolved = resolve(TAG, source, store, AMD64)
    prepare(resolved, source, store, Warnings())
    with Image(resolved, source, store) as image:
        made = publication_of(image, store, directory, repack=repack, soci=False, on_layer=lambda _: None)
    source.bodies |= {digest: path.read_bytes() for digest, path in made.files.items()}
    source.forget_requests()
    return Offering(source, manifest, list(resolved.manifest.layers), made.published)


def image_of(source: FakeSource, layers: list[Stored]) -> Descriptor:
    """Have an image of these layers, as they are; it becomes the root. Returns its manifest."""
    for layer in layers:
        source.add(layer.blob)
    rootfs = {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}
    config = source.add(
        json.dumps({"os": "linux", "architecture": "amd64", "rootfs": rootfs}).encode(), OCI_CONFIG
    )
    fields = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": str(config.digest), "size": config.size},
        "layers": [layer.descriptor() for layer in layers],
    }
    source.root = source.add(json.dumps(fields).encode(), OCI_MANIFEST)
    return source.root


def prepared(
    source: FakeSource, store: Store, reference: str = TAG, policy: Policy = Policy.AUTO
) -> tuple[Resolved, Warnings]:
    """Resolve and prepare, as a mount does."""
    resolved = resolve(reference, source, store, AMD64)
    told = Warnings()
    prepare(resolved, source, store, told, Trust.of(parse_reference(reference), policy))
    return resolved, told


def pinned(manifest: Descriptor) -> str:
    """Return the same image by its digest."""
    return f"registry.example/app@{manifest.digest}"


def repacked(descriptor: Descriptor, path: Path, source: FakeSource, **noted: str) -> Descriptor:
    """Return a file of ours put into the source instead of `descriptor`'s; its digest is right."""
    packed = path.with_suffix(".packed")
    pack(path, packed)
    body = packed.read_bytes()
    notes = {**descriptor.annotations, SIZE_OF: str(path.stat().st_size), **noted}
    source.add(body)
    return Descriptor(descriptor.media_type, Digest.of(body), len(body), notes)


def contents(image: Image, directory: int = 1, path: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
    """Yield (path, bytes) of all files of an image."""
    for _, name, node in image.tree.children(directory):
        if node.mode & 0o170000 == 0o040000:
            yield from contents(image, node.ino, path + name + b"/")
        elif node.mode & 0o170000 == 0o100000:
            yield path + name, b"".join(image.read(node.ino))


def stored_gzip(tar: bytes) -> Stored:
    """Return a layer in one gzip member whose length depends on nothing but the tar's."""
    return Stored(
        gzip.compress(tar, 0, mtime=0),
        str(Digest.of(tar)),
        "application/vnd.oci.image.layer.v1.tar+gzip",
    )
