"""Where images go: a repository of a registry or an OCI layout directory, behind one small protocol.

A destination takes one image, under the name that its reference gives. What it takes has the digest it came
with, or is refused; blobs come before the manifest that names them, so that nothing there is ever half an
image.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from imgfs.errors import InvalidImage, UsageError
from imgfs.oci.artifact import Artifact, artifact_manifest, referrer_in
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_MANIFEST
from imgfs.oci.reference import (
    DEFAULT_TAG,
    DOCKER_ARCHIVE,
    FileReference,
    LayoutReference,
    Reference,
    RegistryReference,
)
from imgfs.registry.client import Client
from imgfs.registry.endpoint import Traffic
from imgfs.registry.messages import CheckedBlob, OpenAt
from imgfs.transport.layout_writer import Layout

__all__ = [
    "Destination",
    "LayoutDestination",
    "OpenAt",
    "RegistryDestination",
    "tag_of",
]

_Target = TypeVar("_Target", RegistryReference, LayoutReference, FileReference)

NO_BLOBS: Mapping[Digest, OpenAt] = MappingProxyType({})


class Destination(Protocol):
    """Takes one image, and artifacts about others. Safe in threads."""

    def check_name(self, digest: Digest) -> None:
        """Raise UsageError if the reference pins another digest."""

    def has(self, descriptor: Descriptor) -> bool:
        """Return whether a blob is there already."""

    def put_blob(self, descriptor: Descriptor, open_at: OpenAt, *, mount_from: str | None = None) -> None:
        """Take a blob, whose bytes from an offset on are `open_at(offset)`; perhaps without asking for any.

        `mount_from` is a repository of the same registry that has it. Raises IntegrityError, and keeps
        nothing, if the bytes do not have the digest; RegistryError or StoreError; what `open_at` raises.
        """

    def put_manifest(self, descriptor: Descriptor, body: bytes, *, named: bool) -> None:
        """Take a manifest or index whose content is there already; `named` is what the reference names."""

    def put_artifact(self, artifact: Artifact, blobs: Mapping[Digest, OpenAt] = NO_BLOBS) -> Descriptor:
        """Take an artifact and have it listed among its subject's referrers: what a list says of it.

        `blobs` are those of its config and layers that may have to be put first, as for `put_blob`; of others
        the descriptor has the `data`, or they are there. Raises InvalidImage for an artifact without subject.
        """

    def remove_artifact(self, descriptor: Descriptor, subject: Digest) -> None:
        """Have a manifest not be among the referrers of `subject`, nor be there, as far as that is possible.

        Its blobs stay. Raises RegistryError saying that the registry does not allow deletion.
        """

    def traffic(self) -> Traffic:
        """Return requests sent and bytes of blobs taken so far."""

    def close(self) -> None:
        """Let go of connections and files."""


def tag_of(reference: Reference) -> str | None:
    """Return the tag to give to an image: without one `latest`, but none to what only a digest names."""
    if isinstance(reference, FileReference) and reference.transport == DOCKER_ARCHIVE:
        return reference.tag  # an image there need not have a name
    return reference.tag or (None if reference.digest else DEFAULT_TAG)


class Addressed(Generic[_Target]):
    """What all destinations share: the name that they give, and the count of bytes that they took."""

    def __init__(self, reference: _Target) -> None:
        self._reference: _Target = reference
        self._lock = threading.Lock()
        self._bytes = 0

    def check_name(self, digest: Digest) -> None:
        """Raise UsageError if the reference pins another digest."""
        pinned = self._reference.digest
        if pinned and pinned != digest:
            raise UsageError(f"{self._reference} names one image for ever, and this is another: {digest}")

    def traffic(self) -> Traffic:
        """Return bytes of blobs taken so far; where there is a network, requests too."""
        with self._lock:
            return Traffic(0, self._bytes)

    def _count(self, size: int) -> None:
        with self._lock:
            self._bytes += size


class RegistryDestination(Addressed[RegistryReference]):
    """A repository of a registry."""

    def __init__(self, reference: RegistryReference, client: Client) -> None:
        super().__init__(reference)
        self._client = client

    def has(self, descriptor: Descriptor) -> bool:
        """Ask by HEAD."""
        return self._client.has_blob(descriptor.digest)

    def put_blob(self, descriptor: Descriptor, open_at: OpenAt, *, mount_from: str | None = None) -> None:
        """Mount the blob from another repository if the registry does that, else upload it."""
        blob = CheckedBlob(descriptor, open_at)
        if self._client.push_blob(blob, mount_from=mount_from):
            self._count(descriptor.size)

    def put_manifest(self, descriptor: Descriptor, body: bytes, *, named: bool) -> None:
        """Push a manifest by its digest, or under the reference's tag."""
        descriptor.digest.verify(body, "digest of a manifest to be pushed")
        tag = tag_of(self._reference) if named else None
        if named:
            self.check_name(descriptor.digest)
        self._client.push_manifest(tag or descriptor.digest, descriptor.media_type, body)

    def put_artifact(self, artifact: Artifact, blobs: Mapping[Digest, OpenAt] = NO_BLOBS) -> Descriptor:
        """Push an artifact's blobs and manifest; keep the list of referrers if the registry does not."""
        body, subject, entry = _manifest_of(artifact)
        _put_blobs(self, artifact, blobs)
        self._client.push_referrer(subject, entry, body)
        return entry

    def remove_artifact(self, descriptor: Descriptor, subject: Digest) -> None:
        """Take the manifest out of a list that is kept under a tag, and delete it."""
        self._client.delete_referrer(subject, descriptor.digest)

    def traffic(self) -> Traffic:
        """Return requests sent and bytes of blobs uploaded so far."""
        return Traffic(self._client.traffic.requests, super().traffic().bytes)

    def close(self) -> None:
        """Close the connections; what is being sent fails with Unavailable."""
        self._client.close()


class FileDestination(Addressed[_Target], ABC):
    """What destinations on this machine's disk share: the check of a blob while it is written."""

    def put_blob(
        self,
        descriptor: Descriptor,
        open_at: OpenAt,
        *,
        mount_from: str | None = None,  # noqa: ARG002 - a registry's
    ) -> None:
        """Write the blob; its digest is checked before its last byte is written."""
        blob = CheckedBlob(descriptor, open_at)
        blob.check_empty()
        self._write_blob(descriptor, blob.read(0, descriptor.size))
        self._count(descriptor.size)

    @abstractmethod
    def _write_blob(self, descriptor: Descriptor, chunks: Iterator[bytes]) -> None:
        """Write a blob; nothing is kept of it if `chunks` raises."""


class LayoutDestination(FileDestination[LayoutReference]):
    """An OCI image layout directory, made when the first thing is put into it."""

    def __init__(self, reference: LayoutReference) -> None:
        super().__init__(reference)
        self._layout = Layout(reference.path)

    def has(self, descriptor: Descriptor) -> bool:
        """Return whether a file of that name and size is there."""
        return self._layout.has(descriptor)

    def _write_blob(self, descriptor: Descriptor, chunks: Iterator[bytes]) -> None:
        self._layout.put_blob(descriptor.digest, chunks)

    def put_manifest(self, descriptor: Descriptor, body: bytes, *, named: bool) -> None:
        """Write a manifest, and, if it is `named`, an entry for it to `index.json`."""
        descriptor.digest.verify(body, "digest of a manifest to be written")
        if named:
            self.check_name(descriptor.digest)
        self._layout.put_blob(descriptor.digest, [body])
        if named:
            self._layout.tag(descriptor, tag_of(self._reference))

    def put_artifact(self, artifact: Artifact, blobs: Mapping[Digest, OpenAt] = NO_BLOBS) -> Descriptor:
        """Write an artifact's blobs and manifest, and an entry without a name for it to `index.json`."""
        body, _, entry = _manifest_of(artifact)
        _put_blobs(self, artifact, blobs)
        self._layout.put_blob(entry.digest, [body])
        self._layout.add_referrer(entry)
        return entry

    def remove_artifact(self, descriptor: Descriptor, subject: Digest) -> None:
        """Take the manifest out of `index.json`; its file stays: nothing says whose else it is."""
        self._layout.remove_referrer(subject, descriptor.digest)

    def close(self) -> None:
        """Nothing is kept open."""


def _manifest_of(artifact: Artifact) -> tuple[bytes, Digest, Descriptor]:
    """Return an artifact's manifest, its subject's digest, and its entry for a list of referrers."""
    body = artifact_manifest(artifact)
    subject, entry = referrer_in(body, Descriptor(OCI_MANIFEST, Digest.of(body), len(body)))
    if subject is None:
        raise InvalidImage("an artifact that refers to nothing", where="artifact.subject")
    return body, subject, entry


def _put_blobs(destination: Destination, artifact: Artifact, blobs: Mapping[Digest, OpenAt]) -> None:
    """Have the destination have an artifact's blobs, as far as they are given."""
    given = {**_inline(artifact), **blobs}
    for blob in {blob.digest: blob for blob in (artifact.config, *artifact.layers)}.values():
        if blob.digest in given and not destination.has(blob):
            destination.put_blob(blob, given[blob.digest])


def _inline(artifact: Artifact) -> dict[Digest, OpenAt]:
    """Return the blobs that descriptors carry themselves (descriptor.md, `data`)."""
    carried = ((blob.digest, blob.data) for blob in (artifact.config, *artifact.layers))
    return {digest: partial(_read_from, body) for digest, body in carried if body is not None}


def _read_from(body: bytes, offset: int) -> Iterator[bytes]:
    yield body[offset:]
