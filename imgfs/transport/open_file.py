"""The table of transports whose images are in files of this machine: the source of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.oci.reference import DIRECTORY, DOCKER_ARCHIVE, OCI_ARCHIVE, STORAGE, TAR, FileReference
from imgfs.transport.source import Source

if TYPE_CHECKING:
    from imgfs.store.store import Store

OpenStore = Callable[[], "Store"]


def open_file(reference: FileReference, open_store: OpenStore | None) -> Source:
    """Return the source of an image in a file; reads nothing yet."""
    return _SOURCES[reference.transport](reference, open_store)


def _oci_archive(reference: FileReference, open_store: OpenStore | None) -> Source:
    from imgfs.transport.archive import Archive
    from imgfs.transport.layout import LayoutSource

    return LayoutSource(reference, Archive(reference.path, open_store))


def _docker_archive(reference: FileReference, open_store: OpenStore | None) -> Source:
    from imgfs.transport.archive import Archive
    from imgfs.transport.docker_archive import DockerArchiveSource

    return DockerArchiveSource(reference, Archive(reference.path, open_store))


def _directory(reference: FileReference, open_store: OpenStore | None) -> Source:
    del open_store
    from imgfs.transport.directory import DirectorySource

    return DirectorySource(reference)


def _tar(reference: FileReference, open_store: OpenStore | None) -> Source:
    from imgfs.transport.root_tar import RootTarSource

    return RootTarSource(reference, open_store)


def _storage(reference: FileReference, open_store: OpenStore | None) -> Source:
    del open_store
    from imgfs.transport.containers_storage import StoragePlace, StorageSource, usual_place

    return StorageSource(
        reference, usual_place() if reference.path == Path() else StoragePlace(reference.path)
    )


_SOURCES: dict[str, Callable[[FileReference, OpenStore | None], Source]] = {
    OCI_ARCHIVE: _oci_archive,
    DOCKER_ARCHIVE: _docker_archive,
    DIRECTORY: _directory,
    TAR: _tar,
    STORAGE: _storage,
}
