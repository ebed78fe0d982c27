"""A source for --offline: no registry is asked, and what the store lacks is Unavailable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from imgfs.errors import Unavailable
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.reference import RegistryReference
from imgfs.registry.endpoint import Traffic
from imgfs.transport.inline import UNKNOWN_SIZE, inline


class OfflineSource:
    """An image of a registry that is not to be asked. What is wanted of it raises Unavailable."""

    def __init__(self, reference: RegistryReference) -> None:
        self._reference = reference

    def resolve(self, *, whole: bool = False) -> Descriptor:  # noqa: ARG002  (no document is to be had)
        """A digest needs no asking; what a tag names is not known here."""
        digest = self._reference.digest
        if digest is None:
            raise self._absent("what it names is")
        return Descriptor("", digest, UNKNOWN_SIZE)

    def document(self, descriptor: Descriptor) -> bytes:
        """What the descriptor itself carries, else nothing."""
        body = inline(descriptor)
        if body is None:
            raise self._absent(f"its document {descriptor.digest.short} is")
        return body

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """What the descriptor itself carries, else nothing."""
        body = inline(descriptor)
        if body is None:
            last = (descriptor.size if end is None else end) - 1
            raise self._absent(f"bytes {start}-{last} of its blob {descriptor.digest.short} are")
        yield body[start:end]

    def tagged(self, tag: str) -> Descriptor:
        """Nothing."""
        raise self._absent(f"what its tag {tag!r} names is")

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Return nothing: no registry is asked."""
        del digest, artifact_type
        return []

    def doubt(self, _descriptor: Descriptor) -> bool:
        """Nothing came of it."""
        return False

    def traffic(self) -> Traffic:
        """None."""
        return Traffic(0, 0)

    def health(self) -> list[dict[str, Any]]:
        """Return no endpoints: no registry is asked."""
        return []

    def close(self) -> None:
        """Nothing is kept open."""

    def _absent(self, what: str) -> Unavailable:
        return Unavailable(
            f"offline: {self._reference}: {what} not in the store (imgfs pull would bring all of it)"
        )
