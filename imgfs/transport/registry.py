"""An image in a registry, or in what stands in for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from imgfs.errors import NotFound, RegistryError
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import CONFIG_TYPES, INDEX_TYPES, MANIFEST_TYPES
from imgfs.oci.reference import DEFAULT_TAG, RegistryReference
from imgfs.registry.auth import KnownAuth
from imgfs.registry.endpoint import RegistryEndpoint, Traffic
from imgfs.registry.mirrors import Mirrored
from imgfs.transport.source import UNKNOWN_SIZE, check_document_size, check_size, inline

if TYPE_CHECKING:
    from imgfs.peers.pool import PeerPool
    from imgfs.status import EndpointStatus


class RegistrySource:
    """An image in a registry."""

    def __init__(self, reference: RegistryReference, client: Mirrored, peers: PeerPool | None = None) -> None:
        self._reference = reference
        self._client = client
        self._peers = peers

    def resolve(self, *, whole: bool = False) -> Descriptor:
        """Ask by HEAD what the tag names now, or, for the `whole` document, by GET; not about a digest.

        A HEAD costs a round trip, but registries do not count it as a pull. Its length is not believed.
        """
        digest = self._reference.digest
        if digest:
            return Descriptor("", digest, UNKNOWN_SIZE)
        tag = self._reference.tag or DEFAULT_TAG
        return self._client.manifest(tag)[0] if whole else self._client.head_manifest(tag)

    def document(self, descriptor: Descriptor) -> bytes:
        """Fetch a document: a manifest or index by its media type, anything else as a blob."""
        body = inline(descriptor)
        if body is None:
            check_document_size(descriptor)
            body = self._fetch_document(descriptor)
            check_size(descriptor, len(body))
        return body

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Fetch a piece of a blob; of a foreign layer from its `urls` if the registry does not have it."""
        end = descriptor.size if end is None else end
        body = inline(descriptor)
        if body is not None:
            yield body[start:end]
            return
        for url in (None, *descriptor.urls):
            try:
                for chunk in self._client.blob(descriptor, start, end, url=url):
                    start += len(chunk)
                    yield chunk
            except RegistryError as error:
                if url is None and not isinstance(error, NotFound):
                    raise
                missing = error  # of one of its `urls`: the next may be better
            else:
                return
        raise missing

    def tagged(self, tag: str) -> Descriptor:
        """Ask by HEAD what a tag names now, and by GET whether it is really missing."""
        return self._client.tagged(tag)

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Ask the referrers API, or, where there is none, for the list kept under the digest's tag."""
        return self._client.referrers(digest, artifact_type)

    def ignores_ranges(self, descriptor: Descriptor) -> bool:
        """Return True if a range of this blob was answered with all of it."""
        return self._client.ignores_ranges(descriptor.digest)

    def doubt(self, descriptor: Descriptor) -> bool:
        """Have the blob come from elsewhere next, if there is an elsewhere."""
        return self._client.doubt(descriptor.digest)

    def peers(self) -> PeerPool | None:
        """Return the peers that may have layers' flat bytes."""
        return self._peers

    def traffic(self) -> Traffic:
        """Return requests sent and bytes received so far."""
        return self._client.traffic

    def health(self) -> list[EndpointStatus]:
        """Return how it goes with the registry, its mirrors and the peers."""
        return [*self._client.health(), *(self._peers.report() if self._peers else ())]

    def known_auth(self) -> list[tuple[RegistryEndpoint, KnownAuth]]:
        """Return what the registry and its mirrors are known to want; secret."""
        return self._client.known_auth()

    def learn_auth(self, known: Sequence[tuple[RegistryEndpoint, KnownAuth]]) -> None:
        """Begin with what another process knows of them."""
        self._client.learn_auth(known)

    def expect(self, requests: int) -> None:
        """Have connections made for so many requests."""
        self._client.connect_ahead(requests)

    def close(self) -> None:
        """Close the connections; what is being read fails with Unavailable."""
        self._client.close()
        if self._peers:
            self._peers.close()

    def _fetch_document(self, descriptor: Descriptor) -> bytes:
        if descriptor.media_type in ("", *MANIFEST_TYPES, *INDEX_TYPES):
            return self._client.manifest(descriptor.digest)[1]
        try:
            return self._client.blob_document(descriptor.digest)
        except NotFound:
            if descriptor.media_type in CONFIG_TYPES:
                raise
            return self._client.manifest(descriptor.digest)[
                1
            ]  # an index may call its manifests what it likes
