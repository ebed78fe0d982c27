"""Images brought from a source to a destination, byte for byte: blobs first, then the documents.

What is to be put is collected before anything is sent: `image_of` reads a source's documents;
`imgfs commit` makes a Parcel of new blobs and documents.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from imgfs.errors import ImgfsError, InvalidImage, NotFound, Unavailable
from imgfs.oci.artifact import Artifact
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.image import Index, Manifest, parse_document
from imgfs.oci.reference import Reference, RegistryReference
from imgfs.oci.select import select_manifest
from imgfs.parallel import run_parallel
from imgfs.transport.destination import Destination, OpenAt
from imgfs.transport.source import Source

SENDERS = 4  # blobs under way at once: enough to hide the round trips of one behind the bytes of another
_NESTING = 4  # indexes inside indexes
_MANIFESTS = 10_000  # that an index may name in all
_CHUNK = 1 << 20  # bytes read of a file at once
# layers that may have to stay where they are (image-spec layer.md; Docker's "foreign" layers)
_RESTRICTED = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)


class CopyReporter(Protocol):
    """Progress of a copy; its methods are called from several threads."""

    def layer_begins(self, layer: Descriptor) -> None:
        """The first bytes of a blob are about to be sent."""

    def layer_advances(self, layer: Descriptor, count: int) -> None:
        """`count` more bytes of it have been sent."""

    def layer_ends(self, layer: Descriptor) -> None:
        """The destination has it."""


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


def copy(
    source: Source,
    destination: Destination,
    *,
    platform: Platform | None,
    reporter: CopyReporter,
    mount_from: str | None = None,
) -> Digest:
    """Copy what the source's reference names, or only its manifest for `platform`: the digest of it.

    An index comes with all its manifests. `mount_from` is what `mountable` says of the two references. Raises
    ImgfsError, the first that happens; the destination has then no new manifest.
    """
    return put_image(destination, image_of(source, platform, mount_from=mount_from), reporter)


def put_image(destination: Destination, parcel: Parcel, reporter: CopyReporter) -> Digest:
    """Put an image: those of its blobs that are not there, several at once, then its documents in order.

    Returns the digest of the last document. Raises ImgfsError.
    """
    *children, named = parcel.documents
    destination.check_name(named.descriptor.digest)
    for blobs in (parcel.layers, parcel.configs):
        _send(destination, _distinct(blobs), reporter)
    for child in children:
        destination.put_manifest(*child, named=False)
    destination.put_manifest(*named, named=True)
    return named.descriptor.digest


def put_artifact(
    destination: Destination, artifact: Artifact, blobs: Iterable[Blob], reporter: CopyReporter
) -> Descriptor:
    """Put an artifact: its blobs, several at once, then its manifest; what a list of referrers says of it."""
    _send(destination, _distinct(blobs), reporter)
    return destination.put_artifact(artifact)


def mountable(source: Reference, destination: Reference) -> str | None:
    """The repository that blobs may be mounted from: another one of the same registry."""
    if not isinstance(source, RegistryReference) or not isinstance(destination, RegistryReference):
        return None
    same = source.registry == destination.registry and source.repository != destination.repository
    return source.repository if same else None


def image_of(source: Source, platform: Platform | None = None, *, mount_from: str | None = None) -> Parcel:
    """What the source's reference names; fetches documents only. Raises ImgfsError."""
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
    """A blob of a source."""
    return Blob(descriptor, partial(source.blob, descriptor), mount_from)


def blob_in(path: Path, descriptor: Descriptor) -> Blob:
    """A blob that is a file, such as a new layer."""
    return Blob(descriptor, partial(_read_file, path))


def blob_with(body: bytes, media_type: str) -> Blob:
    """A blob in memory, such as a new config."""
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
    """What is named and all below it, each once and after what it names itself."""
    done: set[Digest] = set()

    def below(descriptor: Descriptor, depth: int) -> Iterator[_Read]:
        if descriptor.digest in done:
            return
        done.add(descriptor.digest)
        if depth > _NESTING or len(done) > _MANIFESTS:
            limit = f"{_NESTING} deep" if depth > _NESTING else f"than {_MANIFESTS} manifests"
            raise InvalidImage(f"indexes of more {limit}", where=str(named.digest))
        read = _read(source, descriptor)
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
    """The layers without those that only their `urls` have, and may not be distributed."""
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


def _distinct(blobs: Iterable[Blob]) -> list[Blob]:
    """Each blob once, the largest first: it takes longest, and the others fill the gaps."""
    distinct = {blob.descriptor.digest: blob for blob in blobs}
    return sorted(distinct.values(), key=lambda blob: -blob.descriptor.size)


def _send(destination: Destination, blobs: list[Blob], reporter: CopyReporter) -> None:
    """Have the destination have all of `blobs`. The first error ends the others."""
    cancelled = threading.Event()
    works = [partial(_send_one, destination, blob, reporter, cancelled) for blob in blobs]
    run_parallel(works, SENDERS, "imgfs-send", cancelled)


def _send_one(
    destination: Destination, blob: Blob, reporter: CopyReporter, cancelled: threading.Event
) -> None:
    descriptor = blob.descriptor
    if cancelled.is_set() or destination.has(descriptor):
        return
    sending = _Sending(blob, reporter, cancelled)
    destination.put_blob(descriptor, sending.open_at, mount_from=blob.mount_from)
    if sending.begun:
        reporter.layer_ends(descriptor)


class _Sending:
    """A blob on its way: what is sent again is not reported again, and a cancelled one ends."""

    def __init__(self, blob: Blob, reporter: CopyReporter, cancelled: threading.Event) -> None:
        self._blob = blob
        self._reporter = reporter
        self._cancelled = cancelled
        self._reported = 0
        self.begun = False

    def open_at(self, offset: int) -> Iterator[bytes]:
        """The blob's bytes from `offset` on."""
        descriptor = self._blob.descriptor
        if not self.begun:
            self.begun = True
            self._reporter.layer_begins(descriptor)
        for chunk in self._blob.open_at(offset):
            if self._cancelled.is_set():
                raise ImgfsError(f"blob {descriptor.digest.short}: cancelled")
            offset += len(chunk)
            if offset > self._reported:
                self._reporter.layer_advances(descriptor, offset - self._reported)
                self._reported = offset
            yield chunk


def _read_file(path: Path, offset: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror or error}") from error
