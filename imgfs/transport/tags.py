"""The tags that there are beside what a reference names: in its repository, layout or archive."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from imgfs.config import AuthSource
from imgfs.errors import UsageError
from imgfs.oci.reference import EngineReference, Reference, RegistryReference
from imgfs.transport.connect import open_client, open_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgfs.registry.config.resolver import Resolver
    from imgfs.registry.retry import Timeouts
    from imgfs.store.store import Store


@runtime_checkable
class EngineSource(Protocol):
    """The source of an image of an engine."""

    def tags(self) -> list[str]:
        """Return the names that the engine has of the same repository."""


def tags_of(
    reference: Reference,
    limit: int,
    *,
    resolver: Resolver,
    auth_files: Sequence[AuthSource],
    timeouts: Timeouts,
    ca_bundle: Path | None,
    open_store: Callable[[], Store],
) -> list[str]:
    """Return up to `limit` tags, in the registry's order or sorted; asks the registry itself, no mirror.

    Raises RegistryError, and UsageError for what has no tags.
    """
    if isinstance(reference, EngineReference):
        with closing(open_source(reference, open_store=open_store)) as source:
            assert isinstance(source, EngineSource)
            return source.tags()[:limit]
    if not isinstance(reference, RegistryReference):
        from imgfs.transport.docker_archive import DockerArchiveSource
        from imgfs.transport.layout import LayoutSource

        with closing(open_source(reference, open_store=open_store)) as source:
            if isinstance(source, LayoutSource | DockerArchiveSource):
                return source.tags()[:limit]
        raise UsageError(f"{reference}: one image, without tags")
    client = open_client(reference, resolver, auth_files=auth_files, timeouts=timeouts, ca_bundle=ca_bundle)
    with closing(client):
        return client.tags(limit)
