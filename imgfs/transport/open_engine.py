"""The table of transports whose images a running engine of this machine has: the source of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from imgfs.config import containerd_place, docker_sockets
from imgfs.oci.reference import CONTAINERD, DOCKER_DAEMON, EngineReference
from imgfs.transport.source import Source
from imgfs.variables import variables

if TYPE_CHECKING:
    from imgfs.store.store import Store
    from imgfs.transport.docker_daemon import ExportReporter

OpenStore = Callable[[], "Store"]


def open_engine(reference: EngineReference, open_store: OpenStore | None) -> Source:
    """Return the source of an image of an engine; asks for nothing yet."""
    return _SOURCES[reference.engine](reference, open_store)


def export_first(source: Source, reporter: ExportReporter) -> None:
    """Have an engine that knows no ranges export its image now, and report how far that is."""
    from imgfs.transport.docker_daemon import DockerDaemonSource

    if isinstance(source, DockerDaemonSource):
        source.export(reporter)


def _docker(reference: EngineReference, open_store: OpenStore | None) -> Source:
    from imgfs.transport.docker_daemon import DockerDaemonSource
    from imgfs.transport.docker_engine import DockerEngine

    return DockerDaemonSource(reference, DockerEngine(docker_sockets(variables())), open_store)


def _containerd(reference: EngineReference, open_store: OpenStore | None) -> Source:
    del open_store
    from imgfs.transport.containerd import ContainerdSource

    return ContainerdSource(reference, *containerd_place(variables()))


_SOURCES: dict[str, Callable[[EngineReference, OpenStore | None], Source]] = {
    DOCKER_DAEMON: _docker,
    CONTAINERD: _containerd,
}
