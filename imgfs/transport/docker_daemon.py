"""An image of a running docker, or of a podman that speaks its API: exported once, then read in place.

The API has no ranges: an image can only be had whole, as `docker save` writes it. The export is kept in the
store under the image's id, the digest of its config or manifest, and is checked against that before; from
then on it is read as any archive is, and a new name of the same image needs no other export. A name that
moves to another image leaves what is mounted alone: a blob is looked for in all exports that are kept.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from imgfs.errors import ImgfsError, IntegrityError, NotFound, StoreError, UsageError
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import Manifest, parse_document
from imgfs.oci.reference import DOCKER_ARCHIVE, OCI_ARCHIVE, EngineReference, FileReference
from imgfs.registry.endpoint import Traffic
from imgfs.store.atomic import atomic_write, locked
from imgfs.store.store import EXPORT_LOCK
from imgfs.transport.archive import Archive
from imgfs.transport.docker_archive import DockerArchiveSource
from imgfs.transport.docker_engine import DockerEngine, EngineImage
from imgfs.transport.engine_names import of_repository
from imgfs.transport.layout import LayoutSource
from imgfs.transport.source import Source, WrappedSource

if TYPE_CHECKING:
    from imgfs.status import EndpointStatus
    from imgfs.store.store import Store

_Export = DockerArchiveSource | LayoutSource
_CHECKED = 64 << 20  # bytes written between two looks at the store's limit


class ExportReporter(Protocol):
    """Is told of an export; the descriptor has the image's id, and about its size."""

    def layer_begins(self, layer: Descriptor) -> None:
        """Note that the export is asked for."""

    def layer_advances(self, layer: Descriptor, count: int) -> None:
        """`count` more bytes have come."""

    def layer_ends(self, layer: Descriptor) -> None:
        """Note that all of the export is here."""


class DockerDaemonSource(WrappedSource):
    """An image of `engine`; `open_store` opens the store that keeps its export."""

    def __init__(
        self, reference: EngineReference, engine: DockerEngine, open_store: Callable[[], Store] | None
    ) -> None:
        if open_store is None:
            raise UsageError(f"{reference}: needs a store, for what is exported")
        self._reference = reference
        self._engine = engine
        self._open_store = open_store
        self._lock = threading.Lock()
        self._opened: dict[Path, _Export] = {}
        self._meant: _Export | None = None
        self._reporter: ExportReporter | None = None

    @property
    def _source(self) -> Source:
        """The image that is meant now; asks for it, and exports it, the first time."""
        with self._lock:
            if self._meant is None:
                self._meant = self._open_current()
            return self._meant

    def export(self, reporter: ExportReporter) -> None:
        """Have the image exported now, unless its export is kept, and report how far that is."""
        self._reporter = reporter
        _ = self._source

    def tags(self) -> list[str]:
        """Return the names that the engine has of the same repository."""
        return of_repository(self._engine.names(), self._reference.name)

    def document(self, descriptor: Descriptor) -> bytes:
        """Read a document."""
        return self._with(descriptor.digest).document(descriptor)

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Read a piece of a blob."""
        return self._with(descriptor.digest).blob(descriptor, start, end)

    def ignores_ranges(self, _descriptor: Descriptor) -> bool:
        """Return False: an export is a file, which is read at any offset."""
        return False

    def doubt(self, descriptor: Descriptor) -> bool:
        """Remove an export that is wrong: it is made anew when the image is next asked for."""
        with self._lock:
            for path in [path for path, source in self._opened.items() if _has(source, descriptor.digest)]:
                path.unlink(missing_ok=True)
        return False

    def traffic(self) -> Traffic:
        """Return bytes read of exports; there are no requests for ranges."""
        with self._lock:
            return Traffic(0, sum(source.traffic().bytes for source in self._opened.values()))

    def health(self) -> list[EndpointStatus]:
        """Nothing that could be away: what is mounted is read from exports."""
        return []

    def expect(self, _requests: int) -> None:
        """Exports are read, not asked for."""

    def close(self) -> None:
        """Close what is open of exports."""
        with self._lock:
            opened, self._opened, self._meant = self._opened, {}, None
        for source in opened.values():
            source.close()

    def _with(self, digest: Digest) -> Source:
        """Return what has a blob or document: what is open, what is kept, or else what the engine has now."""
        with self._lock:
            for source in self._opened.values():
                if _has(source, digest):
                    return source
            for path in self._open_store().exports().values() if self._meant is None else ():
                with suppress(ImgfsError):  # of another image, which this one need not suffer for
                    if path not in self._opened and (kept := _opened_with(path, digest, self._open_store)):
                        self._opened[path] = kept
                        return kept
        return self._source

    def _open_current(self) -> _Export:
        image = self._engine.identify(self._reference.name)
        store = self._open_store()
        path = store.export(image.id)
        if not path.exists():
            self._export(image, store, path)
        if path not in self._opened:
            self._opened[path] = _opened_as(path, image.id, self._open_store)
        return self._opened[path]

    def _export(self, image: EngineImage, store: Store, path: Path) -> None:
        """Export an image to the store; raises IntegrityError if it is another one than was asked for."""
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with locked(path.with_suffix(EXPORT_LOCK), fcntl.LOCK_EX):
            if path.exists():  # by another process, meanwhile
                return
            with atomic_write(path) as new:
                self._write(image, store, new)
                _opened_as(new, image.id, self._open_store).close()

    def _write(self, image: EngineImage, store: Store, path: Path) -> None:
        written, reporter = 0, self._reporter
        tar = Descriptor("application/x-tar", image.id, image.size)
        if reporter:
            reporter.layer_begins(tar)
        with path.open("wb") as file:
            for chunk in self._engine.export(image.id):
                if written % _CHECKED < len(chunk) and not store.limit.admits(written + len(chunk)):
                    raise StoreError(f"{self._reference}: its export takes too much of the store's limit")
                file.write(chunk)
                written += len(chunk)
                if reporter:
                    reporter.layer_advances(tar, len(chunk))
        if reporter:
            reporter.layer_ends(tar)


def _opened_as(path: Path, image: Digest, open_store: Callable[[], Store]) -> _Export:
    """Open an export of the image with this id; raises IntegrityError if it is that of another."""
    source = _opened(path, open_store)
    try:
        _check_id(source, image)
    except BaseException:
        source.close()
        raise
    return source


def _check_id(source: _Export, image: Digest) -> None:
    found = source.resolve()
    document = parse_document(source.document(found), found.media_type)
    config = document.config.digest if isinstance(document, Manifest) else None
    if image not in (found.digest, config):
        raise IntegrityError("id of what was exported", expected=image, actual=config or found.digest)


def _opened_with(path: Path, digest: Digest, open_store: Callable[[], Store]) -> _Export | None:
    """Open an export if it has a blob or document; raises ImgfsError."""
    source = _opened(path, open_store)
    try:
        if _has(source, digest):
            return source
    except BaseException:
        source.close()
        raise
    source.close()
    return None


def _opened(path: Path, open_store: Callable[[], Store]) -> _Export:
    """Open an export: since docker 25 it is an OCI layout, too, which has all platforms."""
    archive = Archive(path, open_store)
    if archive.has("index.json"):
        return LayoutSource(FileReference(OCI_ARCHIVE, path), archive)
    return DockerArchiveSource(FileReference(DOCKER_ARCHIVE, path), archive)


def _has(source: _Export, digest: Digest) -> bool:
    try:
        if source.made(digest) is None:
            source.open_blob(digest).close()
    except NotFound:
        return False
    return True
