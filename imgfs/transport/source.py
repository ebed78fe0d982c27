"""Where images come from: a registry or an OCI layout directory, behind one small protocol.

A source serves one reference. It resolves it, hands out documents that match their digest, and streams pieces
of blobs that match in length; the reader of a piece checks its digest. What a descriptor says of its content
before that is fetched, all of it or at least its size, is checked here for every kind of source.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from imgfs.errors import IntegrityError, InvalidImage
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.registry.endpoint import MAX_DOCUMENT, Traffic

if TYPE_CHECKING:
    from imgfs.peers.pool import PeerPool
    from imgfs.status import EndpointStatus

UNKNOWN_SIZE = -1  # of a manifest known by its digest only


def inline(descriptor: Descriptor) -> bytes | None:
    """Return what the descriptor itself carries (descriptor.md, `data`), checked."""
    if descriptor.data is not None:
        check_size(descriptor, len(descriptor.data))
        descriptor.digest.verify(descriptor.data, "digest of a descriptor's own data")
    return descriptor.data


def check_document_size(descriptor: Descriptor) -> None:
    """Raise InvalidImage for a document that is too large to be fetched."""
    if descriptor.size > MAX_DOCUMENT and not descriptor.size_is_hint:
        raise InvalidImage(
            f"a {descriptor.media_type} of {descriptor.size} bytes; at most {MAX_DOCUMENT} are allowed",
            where=str(descriptor.digest),
        )


def check_size(descriptor: Descriptor, actual: int) -> None:
    """Raise IntegrityError unless the descriptor promises `actual` bytes, or does not say."""
    if descriptor.size not in (actual, UNKNOWN_SIZE) and not descriptor.size_is_hint:
        raise IntegrityError(f"size of {descriptor.digest}", expected=descriptor.size, actual=actual)


class Source(Protocol):
    """One image, wherever it is. Safe in threads."""

    def resolve(self, *, whole: bool = False) -> Descriptor:
        """Return what the reference names now. A digest needs no asking: media type "" and UNKNOWN_SIZE then.

        With `whole` the document that a tag names comes along: to ask for it then costs nothing. Without, its
        size may be a hint.
        """

    def document(self, descriptor: Descriptor) -> bytes:
        """Return the bytes of a manifest, index or config, at most 8 MiB; size and digest are checked."""

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield exactly the bytes `[start, end)` of a blob, in chunks of 256 KiB to 1 MiB; resumed if cut.

        Raises NotFound, Unauthorized, Unavailable; IntegrityError if the blob has another length.
        """

    def tagged(self, tag: str) -> Descriptor:
        """Return what another tag of the same repository or layout names now; raises NotFound, quickly."""

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Return the manifests whose subject is `digest`, perhaps of one artifact type only; perhaps none.

        The descriptors have artifact types and annotations (distribution-spec, "Listing Referrers"); nothing
        but the source says that they are true. Raises RegistryError, InvalidImage.
        """

    def ignores_ranges(self, descriptor: Descriptor) -> bool:
        """Return True if a range of this blob was answered with all of it, so that each range costs that."""

    def doubt(self, descriptor: Descriptor) -> bool:
        """Say that what came of a blob was wrong: another place, if there is one (True), is asked next."""

    def peers(self) -> PeerPool | None:
        """Return the other machines' imgfs that may have flat bytes, None if none are to be asked."""

    def traffic(self) -> Traffic:
        """Return requests sent and bytes received so far."""

    def health(self) -> list[EndpointStatus]:
        """Return the state of each endpoint, in the order in which they are asked (`EndpointState.report`).

        Empty for a source on this machine. Secrets are left out.
        """

    def expect(self, requests: int) -> None:
        """So many requests will be sent at once, soon: a registry has connections made for them."""

    def close(self) -> None:
        """Let go of connections and files."""


class WrappedSource:
    """Hands everything on to `source`."""

    def __init__(self, source: Source) -> None:
        self._wrapped = source

    @property
    def _source(self) -> Source:
        return self._wrapped

    def resolve(self, *, whole: bool = False) -> Descriptor:
        """Return what the reference names now."""
        return self._source.resolve(whole=whole)

    def document(self, descriptor: Descriptor) -> bytes:
        """Return the bytes of a manifest, index or config."""
        return self._source.document(descriptor)

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes `[start, end)` of a blob."""
        return self._source.blob(descriptor, start, end)

    def tagged(self, tag: str) -> Descriptor:
        """Return what another tag names now."""
        return self._source.tagged(tag)

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Return the manifests whose subject is `digest`."""
        return self._source.referrers(digest, artifact_type)

    def ignores_ranges(self, descriptor: Descriptor) -> bool:
        """As the other says."""
        return self._source.ignores_ranges(descriptor)

    def doubt(self, descriptor: Descriptor) -> bool:
        """As the other says."""
        return self._source.doubt(descriptor)

    def peers(self) -> PeerPool | None:
        """As the other says."""
        return self._source.peers()

    def traffic(self) -> Traffic:
        """Return requests sent and bytes received so far."""
        return self._source.traffic()

    def health(self) -> list[EndpointStatus]:
        """As the other says."""
        return self._source.health()

    def expect(self, requests: int) -> None:
        """Have the other get ready."""
        self._source.expect(requests)

    def close(self) -> None:
        """Let go of connections and files."""
        self._source.close()
