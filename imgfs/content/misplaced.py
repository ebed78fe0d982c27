"""Spans that are not where the layer's index says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from imgfs.content.requests import SpanIndex
from imgfs.content.storing import SpanOutcome, SpanStore
from imgfs.errors import ImgfsError, IntegrityError, InvalidImage
from imgfs.layer.schema import TAR
from imgfs.oci.descriptor import Descriptor
from imgfs.store.flat_files import PRESENT

if TYPE_CHECKING:
    from imgfs.content.fetch import BlobSource

log = logging.getLogger(__name__)


class MisplacedSpans:
    """Spans that are not in the blob where the layer's index says, which a peer or a publisher had said.

    If the index is verified, each has a digest of its flat bytes, so that it can be found all the same:
    the blob is decoded from its start, once for all spans that are absent. `on_found` is called after that:
    the index is not worth keeping.
    """

    def __init__(self, store: SpanStore, blob: Descriptor) -> None:
        self.is_known = False  # that there are any
        self.on_found: Callable[[], None] = lambda: None
        self._store = store
        self._blob = blob
        self._lock = threading.Lock()  # for one thread to read the blob, whose bytes the others find
        self._is_hopeless = False  # it is the blob that is wrong

    def fetch(self, left: list[int], spans: SpanIndex, source: BlobSource) -> Iterator[SpanOutcome]:
        """Yield those of `left` that are found, and remove them from it."""
        with self._lock:
            here = [number for number in left if self._marks(number, number)[0] & PRESENT]
            if here:
                yield self._taken(here, left)
            if not left or self._is_hopeless or not _can_find(left[0], spans):
                return
            try:
                for outcome in self._read_whole(spans, source):
                    found = [number for number in outcome.numbers if number in left]
                    if found:
                        yield self._taken(found, left)
            except ImgfsError as error:
                self._is_hopeless = isinstance(error, IntegrityError | InvalidImage)
                log.info("layer %s: its blob, read whole: %s", self._store.name, error)
                return
            if not self.is_known:
                self.is_known = True
                log.warning(
                    "layer %s: its spans are not where its index says; its blob is read whole",
                    self._store.name,
                )
                self.on_found()

    def _taken(self, numbers: list[int], left: list[int]) -> SpanOutcome:
        left[:] = [number for number in left if number not in numbers]
        return SpanOutcome(numbers)

    def _read_whole(self, spans: SpanIndex, source: BlobSource) -> Iterator[SpanOutcome]:
        """Store every span that is absent."""
        from imgfs.layer.codec.blob import unpacked  # here: few layers are read so

        last = len(self._store.table) - 1
        absent = [number for number, mark in enumerate(self._marks(0, last)) if not mark & PRESENT]
        found = {number: span for number in absent if (span := spans.flat_span(number))}
        ranges = [(span.start, span.end) for span in found.values()]
        chunks = _from(unpacked(source.blob(self._blob)), ranges[0][0])
        with closing(chunks):
            yield from self._store.store(list(found), chunks, ranges, found.__getitem__)

    def _marks(self, first: int, last: int) -> bytes:
        return self._store.flat.marks(first, last)


def _can_find(number: int, spans: SpanIndex) -> bool:
    """Return True if the index is verified, by other means than by reading the blob, and so has digests."""
    summary = spans.summary
    return summary.space == TAR and not summary.origin and not spans.blob and bool(spans.span(number).parts)


def _from(pieces: Iterator[bytes], start: int) -> Generator[bytes, None, None]:
    """Yield the bytes from the offset `start` on."""
    for piece in pieces:
        yield piece[start:]
        start = max(0, start - len(piece))
