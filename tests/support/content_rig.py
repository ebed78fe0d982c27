"""A layer whose flat bytes are known, all of them evicted, and its content."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path

from imgfs.content.content import Content
from imgfs.content.layer import LayerContent
from imgfs.content.requests import Sizes
from imgfs.content.scheduler import FetchPool
from imgfs.layer.codec.zlib_engine import ZlibEngine
from imgfs.layer.flat_digests import add_flat_digests, flat_digests
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.scan import scan
from imgfs.oci.descriptor import Digest
from imgfs.store.store import Store
from tests.support import tarmake
from tests.support.fake_source import FakeSource

STEP = 10_000  # flat bytes between spans, at least
EXACT = Sizes(whole=0, near=0, gap=0, much=2.0)  # a request brings what is asked for, and nothing else


class Rig:
    """A layer of spans of `step` flat bytes, and its content; `sizes` decide on requests."""

    def __init__(
        self,
        directory: Path,
        stack: ExitStack,
        blob: bytes,
        flat: bytes,
        *,
        sizes: Sizes = EXACT,
        step: int = STEP,
        fetch_pool: FetchPool | None = None,
        source: FakeSource | None = None,
    ) -> None:
        self.bytes = flat
        self.source = source or FakeSource()
        self.layer = self.source.add(blob)
        place = Store(directory).layer(self.layer.digest)
        writer = place.flat_writer()
        with place.new_index() as path:
            index_writer = IndexWriter(path)
            chunks = self.source.blob(self.layer)
            size = scan(
                chunks, self.layer, Digest.of(flat), writer, index_writer, step=step, engine=ZlibEngine
            )
            with LayerIndex(path) as written:
                bounds = [(start, end) for start, end, _, _ in written.bounds()]
            add_flat_digests(path, flat_digests(bounds, lambda start, end: [flat[start:end]]))
        writer.close()
        assert place.index
        index = stack.enter_context(LayerIndex(place.index))
        self.spans = [index.span(number) for number in range(index.span_count())]
        self.flat = place.flat(size=size, spans=len(self.spans), binding=index.binding())
        stack.callback(self.flat.close)
        self.fetch_pool = fetch_pool or FetchPool()
        stack.callback(self.fetch_pool.close, wait=True)
        self.content = LayerContent(self.layer, index, self.flat, self.source, self.fetch_pool, sizes)
        self.file = Content([self.content])
        self.source.forget_requests()
        self.source.waiting.clear()

    def read_span(self, number: int) -> bytes:
        """Read all of a span, and check it."""
        span = self.spans[number]
        body = self.content.read(span.flat_start, span.flat_end - span.flat_start)
        assert body == self.bytes[span.flat_start : span.flat_end]
        return body

    def present(self) -> list[int]:
        """Return the spans that are there."""
        return [number for number, mark in enumerate(self.flat.marks(0, len(self.spans) - 1)) if mark & 1]

    def settle(self) -> None:
        """Wait until no fetch is under way."""
        while in_flight := set(self.content.in_flight._by_span.values()):
            for flight in in_flight:
                flight.done.exception()


def tar_of(size: int) -> bytes:
    """Return a tar with one file of `size` bytes that do not compress to nothing."""
    return tarmake.archive(tarmake.file("file", random.Random(size).randbytes(size)))
