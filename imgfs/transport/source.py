"""Where images come from: a registry or an OCI layout directory, behind one small protocol.

A source serves one reference. It resolves it, hands out documents that match their digest, and streams pieces
of blobs that match in length; the reader of a piece checks its digest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from imgfs.config import AuthText
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.reference import LayoutReference, Reference, RegistryReference
from imgfs.registry.endpoint import Traffic
from imgfs.transport.inline import UNKNOWN_SIZE

if TYPE_CHECKING:
    from imgfs.registry.config.resolver import Resolver
    from imgfs.registry.retry import Timeouts

__all__ = ["UNKNOWN_SIZE", "Source", "Traffic", "open_source"]


class Source(Protocol):
    """One image, wherever it is. Safe in threads."""

    def resolve(self, *, whole: bool = False) -> Descriptor:
        """What the reference names now. A digest needs no asking: media type "" and UNKNOWN_SIZE then.

        With `whole` the document that a tag names comes along: to ask for it then costs nothing. Without, its
        size may be a hint.
        """

    def document(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest, index or config, at most 8 MiB; size and digest are checked."""

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Exactly the bytes `[start, end)` of a blob, in chunks of 256 KiB to 1 MiB; resumed if cut.

        Raises NotFound, Unauthorized, Unavailable; IntegrityError if the blob has another length.
        """

    def tagged(self, tag: str) -> Descriptor:
        """What another tag of the same repository or layout names now; raises NotFound, quickly."""

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """The manifests whose subject is `digest`, perhaps of one artifact type only; perhaps none.

        The descriptors have artifact types and annotations (distribution-spec, "Listing Referrers"); nothing
        but the source says that they are true. Raises RegistryError, InvalidImage.
        """

    def doubt(self, descriptor: Descriptor) -> bool:
        """Say that what came of a blob was wrong: another place, if there is one (True), is asked next."""

    def traffic(self) -> Traffic:
        """Requests sent and bytes received so far."""

    def health(self) -> list[dict[str, Any]]:
        """Return the state of each endpoint, in the order in which they are asked (`EndpointState.report`).

        Empty for a source on this machine. Secrets are left out.
        """

    def close(self) -> None:
        """Let go of connections and files."""


def open_source(
    reference: Reference,
    *,
    resolver: Resolver | None = None,
    auth_files: Sequence[Path | AuthText] = (),
    timeouts: Timeouts | None = None,
    ca_bundle: Path | None = None,
) -> Source:
    """The source of `reference`; asks for nothing yet.

    `resolver` finds mirrors and TLS settings; without it the registry alone is asked, without TLS on this
    machine only. `auth_files` are looked through in order whenever a registry wants credentials. `ca_bundle`
    is a PEM file to trust instead of the usual certificates.
    """
    if isinstance(reference, LayoutReference):
        from imgfs.transport.layout import LayoutSource

        return LayoutSource(reference)
    return _open_registry(reference, resolver, auth_files, timeouts, ca_bundle)


def load_http() -> None:
    """Load what speaks HTTP, while there is time: it takes long, and an image that is here does without."""
    import imgfs.registry.adapter
    import imgfs.registry.proxies
    import imgfs.transport.registry  # noqa: F401


def _open_registry(
    reference: RegistryReference,
    resolver: Resolver | None,
    auth_files: Sequence[Path | AuthText],
    timeouts: Timeouts | None,
    ca_bundle: Path | None,
) -> Source:
    from imgfs.registry.config.credentials import find_credentials
    from imgfs.registry.config.resolver import Resolver
    from imgfs.registry.mirrors import Mirrored
    from imgfs.registry.retry import Timeouts
    from imgfs.transport.registry import RegistrySource

    timeouts = timeouts or Timeouts()
    named = reference.registry, reference.repository, reference.tag, reference.digest
    client = Mirrored(
        partial((resolver or Resolver()).of, *named),
        find_credentials=partial(find_credentials, auth_files, seconds=timeouts.helper),
        timeouts=timeouts,
        ca_bundle=ca_bundle,
    )
    return RegistrySource(reference, client)
