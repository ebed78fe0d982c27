"""One layer without an index: import one that was made elsewhere, or stream the layer and scan it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from imgfs.errors import ImgfsError, IntegrityError, InvalidImage, Unavailable
from imgfs.image.discover import IndexDiscovery
from imgfs.image.import_index import import_published, import_toc, import_ztoc
from imgfs.image.readiness import refutation
from imgfs.image.trust import Trust
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.scan import scan
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.store.layer import StoredLayer
from imgfs.transport.source import Source

_SMALL = 256 << 10  # bytes of a blob that is streamed without looking for its table of contents


class PrepareReporter(Protocol):
    """Progress of a long preparation; its methods are called from several threads."""

    def layer_begins(self, layer: Descriptor) -> None:
        """A layer without an index is about to be streamed."""

    def layer_advances(self, layer: Descriptor, count: int) -> None:
        """`count` more compressed bytes of it have arrived."""

    def layer_waits(self, layer: Descriptor) -> None:
        """Another process streams it; this one waits for its index."""

    def layer_ends(self, layer: Descriptor) -> None:
        """It has an index."""

    def merging(self) -> None:
        """The layers are being merged."""

    def warns(self, text: str) -> None:
        """An index or profile is not used; `text` says why."""


class LayerIndexing:
    """A locked layer, and the ways to get an index of it."""

    def __init__(
        self,
        layer: Descriptor,
        diff_id: Digest,
        stored: StoredLayer,
        source: Source,
        trust: Trust,
        reporter: PrepareReporter,
    ) -> None:
        self._layer = layer
        self._diff_id = diff_id
        self._stored = stored
        self._source = source
        self._trust = trust
        self._reporter = reporter

    def import_existing(self, discovery: IndexDiscovery, *, tag: str | None, lean: bool) -> bool:
        """Import the best index of the layer that was made elsewhere; False if there is none.

        imgfs's own first: it costs least. A small layer is streamed in the time of a lookup. `tag` is the
        image's.
        """
        return self._import_published(discovery, lean) or (
            self._layer.size > _SMALL and (self._import_toc(tag) or self._import_ztoc(discovery))
        )

    def stream(self, cancelled: threading.Event) -> None:
        """Download and scan the layer; once more from another endpoint if its bytes were wrong."""
        try:
            self._stream_once(cancelled)
        except IntegrityError as error:
            if not self._source.doubt(self._layer):
                raise
            self._reporter.warns(f"asking elsewhere: {error}")
            self._stream_once(cancelled)

    def _stream_once(self, cancelled: threading.Event) -> None:
        self._reporter.layer_begins(self._layer)
        writer = self._stored.flat_writer(stays=True)  # another image may need the present one
        try:
            with _where(f"layer {self._layer.digest.short}"), self._stored.new_index() as path:
                index = IndexWriter(path)
                try:
                    size = scan(self._chunks(cancelled), self._layer, self._diff_id, writer, index)
                finally:
                    index.close()
                with LayerIndex(path) as written:
                    spans, binding = written.span_count(), written.binding()
                # Before the index can be seen: from then on the flat layer may be evicted.
                writer.keep(size=size, spans=spans, binding=binding)
        finally:
            writer.close()

    def _import_published(self, discovery: IndexDiscovery, lean: bool) -> bool:
        published = discovery.published.layers.get(self._layer.digest)
        if published is None:
            return False
        with self._doing_without("the index published with the image"):
            import_published(
                published,
                self._layer,
                self._diff_id,
                self._stored,
                self._source,
                self._trust.origin,
                lean=lean,
            )
            return True
        return False

    def _import_toc(self, tag: str | None) -> bool:
        if not self._trust.in_digests:
            return False
        with self._doing_without("its table of contents"):
            origin = self._trust.origin
            return import_toc(self._layer, self._diff_id, self._stored, self._source, tag, origin)
        return False

    def _import_ztoc(self, discovery: IndexDiscovery) -> bool:
        offered = discovery.ztoc(self._layer.digest)
        if offered is None:
            return False
        with self._doing_without("its zTOC"):
            ztoc, origin = offered
            if self._stored.is_refuted(refutation(origin, self._diff_id)):
                raise InvalidImage(f"that which {origin} vouches for was wrong")
            import_ztoc(ztoc, self._layer, self._diff_id, self._stored, self._source, origin)
            return True
        return False

    def _doing_without(self, what: str) -> AbstractContextManager[None]:
        return doing_without(f"layer {self._layer.digest.short}: {what}", self._reporter)

    def _chunks(self, cancelled: threading.Event) -> Iterator[bytes]:
        for chunk in self._source.blob(self._layer):
            if cancelled.is_set():
                raise ImgfsError(f"layer {self._layer.digest.short}: cancelled")
            self._reporter.layer_advances(self._layer, len(chunk))
            yield chunk


@contextmanager
def doing_without(what: str, reporter: PrepareReporter) -> Iterator[None]:
    """Warn and go on without an index that is broken or missing; Unavailable is raised on."""
    try:
        yield
    except Unavailable:
        raise
    except ImgfsError as error:
        reporter.warns(f"{what} is not used: {error}")


@contextmanager
def _where(name: str) -> Iterator[None]:
    """Add the layer's name to an InvalidImage."""
    try:
        yield
    except InvalidImage as error:
        raise InvalidImage(str(error), where=name) from error
