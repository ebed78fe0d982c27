"""Images brought from a source to a destination, byte for byte: blobs first, then the documents."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Protocol

from imgfs.errors import ImgfsError
from imgfs.oci.artifact import Artifact
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.reference import Reference, RegistryReference
from imgfs.parallel import run_parallel
from imgfs.transport.destination import Destination
from imgfs.transport.parcel import (
    Blob,
    Parcel,
    image_of,
)
from imgfs.transport.source import Source

SENDERS = 4  # blobs under way at once: enough to hide the round trips of one behind the bytes of another


class CopyReporter(Protocol):
    """Progress of a copy; its methods are called from several threads."""

    def expects(self, layers: Iterable[Descriptor]) -> None:
        """These blobs are to be sent, a few at a time,"""

    def skips(self, layer: Descriptor) -> None:
        """but this one not: the destination has it."""

    def layer_begins(self, layer: Descriptor) -> None:
        """Note that the first bytes of a blob are about to be sent."""

    def layer_advances(self, layer: Descriptor, count: int) -> None:
        """`count` more bytes of it have been sent."""

    def layer_ends(self, layer: Descriptor) -> None:
        """Note that the destination has a blob."""


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
    """Return the repository that blobs may be mounted from: another one of the same registry."""
    if not isinstance(source, RegistryReference) or not isinstance(destination, RegistryReference):
        return None
    same = source.registry == destination.registry and source.repository != destination.repository
    return source.repository if same else None


def _distinct(blobs: Iterable[Blob]) -> list[Blob]:
    """Return each blob once, the largest first: it takes longest, and the others fill the gaps."""
    distinct = {blob.descriptor.digest: blob for blob in blobs}
    return sorted(distinct.values(), key=lambda blob: -blob.descriptor.size)


def _send(destination: Destination, blobs: list[Blob], reporter: CopyReporter) -> None:
    """Have the destination have all of `blobs`. The first error ends the others."""
    cancelled = threading.Event()
    reporter.expects(blob.descriptor for blob in blobs)
    works = [partial(_send_one, destination, blob, reporter, cancelled) for blob in blobs]
    run_parallel(works, SENDERS, "imgfs-send", cancelled)


def _send_one(
    destination: Destination, blob: Blob, reporter: CopyReporter, cancelled: threading.Event
) -> None:
    descriptor = blob.descriptor
    if cancelled.is_set():
        return
    if destination.has(descriptor):
        reporter.skips(descriptor)
        return
    sending = _Sending(blob, reporter, cancelled)
    destination.put_blob(descriptor, sending.open_at, mount_from=blob.mount_from)
    if sending.begun:
        reporter.layer_ends(descriptor)
    else:  # the registry took it from another of its repositories
        reporter.skips(descriptor)


class _Sending:
    """A blob on its way: what is sent again is not reported again, and a cancelled one ends."""

    def __init__(self, blob: Blob, reporter: CopyReporter, cancelled: threading.Event) -> None:
        self._blob = blob
        self._reporter = reporter
        self._cancelled = cancelled
        self._reported = 0
        self.begun = False

    def open_at(self, offset: int) -> Iterator[bytes]:
        """Yield the blob's bytes from `offset` on."""
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
