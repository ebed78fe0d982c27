"""A source that is another one, but for what a subclass does otherwise.

A source that is opened when something is wanted of it: an image that is here whole wants nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.registry.endpoint import Traffic
from imgfs.transport.source import Source


class WrappedSource:
    """Hands everything on to `source`."""

    def __init__(self, source: Source) -> None:
        self._wrapped = source

    @property
    def _source(self) -> Source:
        return self._wrapped

    def resolve(self, *, whole: bool = False) -> Descriptor:
        """What the reference names now."""
        return self._source.resolve(whole=whole)

    def document(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest, index or config."""
        return self._source.document(descriptor)

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes `[start, end)` of a blob."""
        return self._source.blob(descriptor, start, end)

    def tagged(self, tag: str) -> Descriptor:
        """What another tag names now."""
        return self._source.tagged(tag)

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """The manifests whose subject is `digest`."""
        return self._source.referrers(digest, artifact_type)

    def doubt(self, descriptor: Descriptor) -> bool:
        """As the other says."""
        return self._source.doubt(descriptor)

    def traffic(self) -> Traffic:
        """Requests sent and bytes received so far."""
        return self._source.traffic()

    def health(self) -> list[dict[str, Any]]:
        """As the other says."""
        return self._source.health()

    def close(self) -> None:
        """Let go of connections and files."""
        self._source.close()


class DeferredSource(WrappedSource):
    """What `connect` opens, the first time it is needed. Safe in threads."""

    def __init__(self, connect: Callable[[], Source]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._opened: Source | None = None

    @property
    def _source(self) -> Source:
        with self._lock:
            if self._opened is None:
                self._opened = self._connect()
            return self._opened

    def traffic(self) -> Traffic:
        """None, until it is opened."""
        return self._opened.traffic() if self._opened else Traffic(0, 0)

    def health(self) -> list[dict[str, Any]]:
        """Return the endpoints' health; nothing before the source is opened."""
        return self._opened.health() if self._opened else []

    def close(self) -> None:
        """Let go of what has been opened."""
        if self._opened:
            self._opened.close()
