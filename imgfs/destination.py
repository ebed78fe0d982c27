"""Where images go: a repository of a registry or an OCI layout directory, behind one small protocol.

A destination takes one image, under the name that its reference gives. What it takes has the digest it came
with, or is refused; blobs come before the manifest that names them, so that nothing there is ever half an
image.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from imgfs.errors import UsageError
from imgfs.layout import Layout
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.reference import DEFAULT_TAG, LayoutReference, Reference, RegistryReference
from imgfs.registry.body import CheckedBlob, OpenAt
from imgfs.registry.client import Client
from imgfs.registry.credentials import find_credentials
from imgfs.registry.retry import Timeouts
from imgfs.registry.transport import Traffic

__all__ = [
    "Destination",
    "LayoutDestination",
    "OpenAt",
    "RegistryDestination",
    "Timeouts",
    "open_destination",
]


class Destination(Protocol):
    """Takes one image. Safe in threads."""

    def check_name(self, digest: Digest) -> None:
        """Raise UsageError if the reference pins another digest."""

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there already."""

    def put_blob(self, descriptor: Descriptor, open_at: OpenAt, *, mount_from: str | None = None) -> None:
        """Take a blob, whose bytes from an offset on are `open_at(offset)`; perhaps without asking for any.

        `mount_from` is a repository of the same registry that has it. Raises IntegrityError, and keeps
        nothing, if the bytes do not have the digest; RegistryError or StoreError; what `open_at` raises.
        """

    def put_manifest(self, descriptor: Descriptor, body: bytes, *, named: bool) -> None:
        """Take a manifest or index whose content is there already; `named` is what the reference names."""

    def traffic(self) -> Traffic:
        """Requests sent and bytes of blobs taken so far."""

    def close(self) -> None:
        """Let go of connections and files."""


def open_destination(
    reference: Reference,
    *,
    plain_http: bool | None = None,
    auth_files: Sequence[Path] = (),
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
    ca_bundle: Path | None = None,
) -> Destination:
    """The destination that `reference` names; asks for nothing and makes nothing yet.

    The options are those of `source.open_source`.
    """
    if isinstance(reference, LayoutReference):
        return LayoutDestination(reference)
    client = Client(
        reference.registry,
        reference.repository,
        plain_http=plain_http,
        credentials=partial(find_credentials, auth_files, reference.registry, reference.repository),
        timeouts=timeouts,
        ca_bundle=ca_bundle,
    )
    return RegistryDestination(reference, client)


def tag_of(reference: Reference) -> str | None:
    """The tag to give to an image: without one `latest`, but none to what only a digest names."""
    return reference.tag or (None if reference.digest else DEFAULT_TAG)


class RegistryDestination:
    """A repository of a registry."""

    def __init__(self, reference: RegistryReference, client: Client) -> None:
        self._reference = reference
        self._client = client
        self._lock = threading.Lock()
        self._bytes = 0

    def check_name(self, digest: Digest) -> None:
        """Raise UsageError if the reference pins another digest."""
        _check_name(self._reference, digest)

    def has(self, descriptor: Descriptor) -> bool:
        """Ask by HEAD."""
        return self._client.has_blob(descriptor.digest)

    def put_blob(self, descriptor: Descriptor, open_at: OpenAt, *, mount_from: str | None = None) -> None:
        """Mount the blob from another repository if the registry does that, else upload it."""
        blob = CheckedBlob(descriptor, open_at)
        if self._client.push_blob(blob, mount_from=mount_from):
            with self._lock:
                self._bytes += descriptor.size

    def put_manifest(self, descriptor: Descriptor, body: bytes, *, named: bool) -> None:
        """Push a manifest by its digest, or under the reference's tag."""
        descriptor.digest.verify(body, "digest of a manifest to be pushed")
        tag = tag_of(self._reference) if named else None
        if named:
            self.check_name(descriptor.digest)
        self._client.push_manifest(tag or descriptor.digest, descriptor.media_type, body)

    def traffic(self) -> Traffic:
        """Requests sent and bytes of blobs uploaded so far."""
        with self._lock:
            return Traffic(self._client.traffic.requests, self._bytes)

    def close(self) -> None:
        """Close the connections; what is being sent fails with Unavailable."""
        self._client.close()


class LayoutDestination:
    """An OCI image layout directory, made when the first thing is put into it."""

    def __init__(self, reference: LayoutReference) -> None:
        self._reference = reference
        self._layout = Layout(reference.path)
        self._lock = threading.Lock()
        self._bytes = 0

    def check_name(self, digest: Digest) -> None:
        """Raise UsageError if the reference pins another digest."""
        _check_name(self._reference, digest)

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a file of that name and size is there."""
        return self._layout.has(descriptor)

    def put_blob(
        self,
        descriptor: Descriptor,
        open_at: OpenAt,
        *,
        mount_from: str | None = None,  # noqa: ARG002 - a registry's
    ) -> None:
        """Write the blob, its digest checked before it gets its name."""
        blob = CheckedBlob(descriptor, open_at)
        blob.check_empty()
        self._layout.put_blob(descriptor.digest, blob.read(0, descriptor.size))
        with self._lock:
            self._bytes += descriptor.size

    def put_manifest(self, descriptor: Descriptor, body: bytes, *, named: bool) -> None:
        """Write a manifest, and, if it is `named`, an entry for it to `index.json`."""
        descriptor.digest.verify(body, "digest of a manifest to be written")
        if named:
            self.check_name(descriptor.digest)
        self._layout.put_blob(descriptor.digest, [body])
        if named:
            self._layout.tag(descriptor, tag_of(self._reference))

    def traffic(self) -> Traffic:
        """Bytes written to the directory; there are no requests."""
        with self._lock:
            return Traffic(0, self._bytes)

    def close(self) -> None:
        """Nothing is kept open."""


def _check_name(reference: Reference, digest: Digest) -> None:
    if reference.digest and reference.digest != digest:
        raise UsageError(f"{reference} names one image for ever, and this is another: {digest}")
