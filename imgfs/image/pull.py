"""Pull: fetch a whole image into the store: indexes, tree, and every span of every layer."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed

from imgfs.content.background import RateLimit
from imgfs.content.content import Content
from imgfs.content.layer import LayerContent
from imgfs.content.requests import requests_for
from imgfs.content.scheduler import Priority
from imgfs.content.stats import Cause
from imgfs.errors import InvalidImage, StoreError, Unavailable
from imgfs.image.image import Image
from imgfs.image.indexing import PrepareReporter
from imgfs.image.prepare import prepare
from imgfs.image.resolve import Resolved
from imgfs.image.trust import Trust
from imgfs.image.verify import Verifier
from imgfs.oci.descriptor import Descriptor
from imgfs.store.store import Store
from imgfs.transport.source import Source, WrappedSource

_TRIES = 3  # if spans are evicted meanwhile
_CONNECTIONS = 4  # for a layer: one seldom fills a link


class MeteredSource(WrappedSource):
    """A source that calls `arrived` with the bytes of blobs received, at most `limit_rate` a second."""

    def __init__(
        self, source: Source, arrived: Callable[[Descriptor, int], None], limit_rate: int | None = None
    ) -> None:
        super().__init__(source)
        self._arrived = arrived
        self._rate_limit = RateLimit(limit_rate)
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes `[start, end)` of a blob, no faster than the rate allows."""
        for chunk in self._source.blob(descriptor, start, end):
            self._arrived(descriptor, len(chunk))
            with self._lock:
                delay = self._rate_limit.delay(len(chunk), time.monotonic())
            if self._closed.wait(delay):
                raise Unavailable(f"blob {descriptor.digest.short}: given up")
            yield chunk

    def close(self) -> None:
        """Close connections; reads that wait for the rate fail with Unavailable."""
        self._closed.set()
        super().close()


def pull_image(
    resolved: Resolved, source: Source, store: Store, reporter: PrepareReporter, trust: Trust
) -> None:
    """Fetch what the store lacks of an image.

    Every byte is verified: layers that are streamed by their digest and DiffID, spans by their own digests,
    and a layer whose index only the registry vouches for by its DiffID.
    Raises ImgfsError, the first that happens; what was fetched by then is kept, unless it is damaged.
    """
    prepare(resolved, source, store, reporter, trust, connections=_CONNECTIONS)
    with Image(resolved, source, store, trust) as image:
        try:
            _fetch_all(image.content, reporter)
        finally:
            image.content.sync()
        Verifier(image, store).verify_all()


def _fetch_all(content: Content, reporter: PrepareReporter) -> None:
    for _ in range(_TRIES):
        pending = {
            future: layer for layer in _distinct(content) for future in _fetch_missing(layer, reporter)
        }
        if not pending:
            return
        left = Counter(layer.layer.digest for layer in pending.values())
        for future in as_completed(pending):
            layer = pending[future].layer
            _raise_from(future, layer)
            left[layer.digest] -= 1
            if not left[layer.digest]:
                reporter.layer_ends(layer)
    raise StoreError("the image is evicted again and again while it is pulled")


def _fetch_missing(layer: LayerContent, reporter: PrepareReporter) -> list[Future[None]]:
    """Request all missing spans of a layer."""
    missing = layer.missing()
    if missing:
        reporter.layer_begins(layer.layer)
        reporter.layer_has(layer.layer, layer.table.size - sum(map(layer.table.size_of, missing)))
    # a priority that may have many requests under way: there are no readers here
    return layer.fetch_in_background(requests_for(missing, layer.table), Priority.READAHEAD, Cause.FILL)


def _raise_from(future: Future[None], layer: Descriptor) -> None:
    """Raise what a request failed with, with the layer's name."""
    try:
        future.result()
    except InvalidImage as error:
        raise InvalidImage(str(error), where=f"layer {layer.digest.short}") from error


def _distinct(content: Content) -> list[LayerContent]:
    """Return the distinct layers: an image may name the same one several times."""
    return list({layer.layer.digest: layer for layer in content.layers}.values())
