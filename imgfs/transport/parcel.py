"""What is to be put somewhere, collected before anything is sent: its blobs, then its documents.

`image_of` reads a source's documents; `imgfs commit` makes a Parcel of new blobs and documents.

An OCI layout may hold documents of any media type (image-spec, image-layout.md), but skopeo, podman and umoci
read OCI's alone there, so `convert_to_oci` gives it those. Blobs, the config among them, keep their bytes and
digests: Docker's configs have the fields of OCI's (media-types.md, "Compatibility Matrix"). Manifests, and
indexes of them, get new digests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import InvalidImage, NotFound, Unavailable
from imgfs.oci.change import as_oci, index_as_oci
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.image import Index, Manifest, parse_document
from imgfs.oci.select import select_manifest
from imgfs.transport.destination import OpenAt
from imgfs.transport.source import Source

_NESTING = 4  # indexes inside indexes
_MANIFESTS = 10_000  # that an index may name in all
_CHUNK = 1 << 20  # bytes read of a file at once
# layers that may have to stay where they are (image-spec layer.md; Docker's "foreign" layers)
_RESTRICTED = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)


class Blob(NamedTuple):
    """A blob and where to read it; `mount_from` is a repository of the destination's registry that has it."""

    descriptor: Descriptor
    open_at: OpenAt
    mount_from: str | None = None


class Document(NamedTuple):
    """A manifest or index."""

    descriptor: Descriptor
    body: bytes


@dataclass(frozen=True, slots=True)
class Parcel:
    """An image to be put somewhere: what has to be there first comes first.

    The last of `documents` is the one that the destination's reference will name; an index comes after its
    manifests. A blob may be named several times.
    """

    layers: tuple[Blob, ...]
    configs: tuple[Blob, ...]
    documents: tuple[Document, ...]


def image_of(source: Source, platform: Platform | None = None, *, mount_from: str | None = None) -> Parcel:
    """Return what the source's reference names; fetches documents only. Raises ImgfsError."""
    named = source.resolve()
    documents = _one(source, named, platform) if platform else list(_all(source, named))
    manifests = [content for _, content in documents if isinstance(content, Manifest)]
    layers = [layer for manifest in manifests for layer in manifest.layers]
    blob = partial(blob_of, source, mount_from=mount_from)
    return Parcel(
        tuple(map(blob, _sendable(source, layers))),
        tuple(blob(manifest.config) for manifest in manifests),
        tuple(document for document, _ in documents),
    )


def blob_of(source: Source, descriptor: Descriptor, *, mount_from: str | None = None) -> Blob:
    """Return a blob of a source."""
    return Blob(descriptor, partial(source.blob, descriptor), mount_from)


def blob_in(path: Path, descriptor: Descriptor) -> Blob:
    """Return a blob that is a file, such as a new layer."""
    return Blob(descriptor, partial(_read_file, path))


def blob_with(body: bytes, media_type: str) -> Blob:
    """Return a blob in memory, such as a new config."""
    return Blob(Descriptor(media_type, Digest.of(body), len(body)), lambda offset: iter([body[offset:]]))


_Read = tuple[Document, Manifest | Index]


def _one(source: Source, named: Descriptor, platform: Platform) -> list[_Read]:
    """Return the manifest for a platform, out of the index that may be named."""
    reads: dict[Digest, _Read] = {}

    def read(descriptor: Descriptor) -> Manifest | Index:
        reads[descriptor.digest] = _read(source, descriptor)
        return reads[descriptor.digest][1]

    return [reads[select_manifest(named, platform, read, source.document).descriptor.digest]]


def _all(source: Source, named: Descriptor) -> Iterator[_Read]:
    """Yield what is named and all below it, each once and after what it names itself."""
    done: set[Digest] = set()

    def below(descriptor: Descriptor, depth: int) -> Iterator[_Read]:
        if descriptor.digest in done:
            return
        done.add(descriptor.digest)
        if depth > _NESTING or len(done) > _MANIFESTS:
            limit = f"{_NESTING} deep" if depth > _NESTING else f"than {_MANIFESTS} manifests"
            raise InvalidImage(f"indexes of more {limit}", where=str(named.digest))
        try:
            read = _read(source, descriptor)
        except NotFound as error:
            if descriptor is named:
                raise
            what = f"the image for {descriptor.platform}" if descriptor.platform else "an image"
            raise NotFound(f"{error}; so {what} is missing: say which to copy (--platform)") from error
        if isinstance(read[1], Index):
            for entry in read[1].manifests:
                yield from below(entry, depth + 1)
        yield read

    yield from below(named, 0)


def _read(source: Source, descriptor: Descriptor) -> _Read:
    """Fetch a document; its media type is what it says itself, else what it was called."""
    body = source.document(descriptor)
    content = parse_document(body, descriptor.media_type)
    return Document(Descriptor(content.media_type, descriptor.digest, len(body)), body), content


def _sendable(source: Source, layers: Iterable[Descriptor]) -> Iterator[Descriptor]:
    """Yield the layers without those that only their `urls` have, and may not be distributed."""
    for layer in layers:
        if not (layer.urls and layer.media_type.startswith(_RESTRICTED)):
            yield layer
        elif _has(source, replace(layer, urls=())):
            yield replace(layer, urls=())


def _has(source: Source, layer: Descriptor) -> bool:
    try:
        for _ in source.blob(layer, 0, min(1, layer.size)):
            break
    except NotFound:
        return False
    return True


def _read_file(path: Path, offset: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror or error}") from error


def convert_to_oci(parcel: Parcel) -> Parcel:
    """Return the image with OCI media types; one that has them already is returned byte for byte.

    Raises InvalidImage.
    """
    converted: dict[Digest, Descriptor] = {}
    documents = []
    for document in parcel.documents:
        new = _convert(document, converted)
        if new.body != document.body:
            converted[document.descriptor.digest] = new.descriptor
        documents.append(new)
    return replace(parcel, documents=tuple(documents))


def _convert(document: Document, converted: dict[Digest, Descriptor]) -> Document:
    """Convert one manifest or index, whose manifests have been converted before it."""
    old, body = document
    is_index = isinstance(parse_document(body, old.media_type), Index)
    new = index_as_oci(body, old.media_type, converted) if is_index else as_oci(body, old.media_type)
    if new == body:
        return document
    media_type = parse_document(new, None).media_type
    return Document(Descriptor(media_type, Digest.of(new, old.digest.algorithm), len(new)), new)
