"""The destination that a reference names: a registry, an OCI layout, or an archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imgfs.config import AuthSource
from imgfs.errors import UsageError
from imgfs.oci.reference import (
    DOCKER_ARCHIVE,
    OCI_ARCHIVE,
    EngineReference,
    FileReference,
    LayoutReference,
    Reference,
)
from imgfs.registry.config.resolver import Resolver
from imgfs.registry.retry import Timeouts
from imgfs.transport.connect import open_client
from imgfs.transport.destination import Destination, LayoutDestination, RegistryDestination


def open_destination(
    reference: Reference,
    *,
    resolver: Resolver | None = None,
    auth_files: Sequence[AuthSource] = (),
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
    ca_bundle: Path | None = None,
) -> Destination:
    """Return the destination that `reference` names; asks for nothing and makes nothing yet.

    The options are those of `source.open_source`; mirrors are not asked. Raises UsageError for a file that
    says nothing sensible of the registry.
    """
    if isinstance(reference, LayoutReference):
        return LayoutDestination(reference)
    if isinstance(reference, FileReference):
        return _archive(reference)
    if isinstance(reference, EngineReference):
        raise _only_read(reference, reference.engine)
    client = open_client(
        reference, resolver or Resolver(), auth_files=auth_files, timeouts=timeouts, ca_bundle=ca_bundle
    )
    return RegistryDestination(reference, client)


def _archive(reference: FileReference) -> Destination:
    from imgfs.transport.archive_writer import DockerArchiveDestination, OciArchiveDestination

    if reference.transport == DOCKER_ARCHIVE:
        return DockerArchiveDestination(reference)
    if reference.transport == OCI_ARCHIVE:
        return OciArchiveDestination(reference)
    raise _only_read(reference, reference.transport)


def _only_read(reference: Reference, transport: str) -> UsageError:
    return UsageError(
        f"{reference}: imgfs reads {transport}: only; it writes registries, oci:DIR, "
        "oci-archive:FILE and docker-archive:FILE"
    )
