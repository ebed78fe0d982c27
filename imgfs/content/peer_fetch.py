"""Spans from peers: other machines' imgfs, which have them decoded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from imgfs.content.race import Overtaken, Side, checked
from imgfs.content.requests import SpanIndex
from imgfs.content.storing import SpanOutcome, SpanStore
from imgfs.errors import IntegrityError
from imgfs.layer.entry import Span
from imgfs.peers.flat_name import FlatName

if TYPE_CHECKING:
    from imgfs.peers.pool import PeerPool, PeerRead

log = logging.getLogger(__name__)


class PeerFetcher:
    """Fetches spans of one layer from peers into `store`. Safe in threads."""

    def __init__(self, store: SpanStore) -> None:
        self._store = store

    def fetch(self, left: list[int], index: SpanIndex, peers: PeerPool, side: Side) -> Iterator[SpanOutcome]:
        """Fetch those of `left` that peers have; remove them from it. What fails is left in it.

        A peer that is being read when the `side` loses is left alone for a while.
        """
        try:
            reads = self._planned(left, index, peers)
        except Exception:  # of an index; told to the readers by what comes next
            log.debug("layer %s: peers are not asked", self._store.name, exc_info=True)
            return
        for read, spans in reads:
            side.on_lost = read.late
            try:
                side.check()
                for outcome in self._fetch_from_peer(read, spans, side):
                    for number in outcome.numbers:
                        left.remove(number)
                    yield outcome
            except Overtaken:
                return
            except IntegrityError as error:
                read.doubt(error)
            except Exception as error:  # noqa: BLE001  (the registry brings it)
                log.debug("layer %s: a peer did not bring it: %s", self._store.name, error)

    def _planned(
        self, left: Sequence[int], index: SpanIndex, peers: PeerPool
    ) -> list[tuple[PeerRead, Sequence[Span]]]:
        """Return what is read from peers, and the spans of it."""
        if self._store.refused:
            return []
        found = [span for number in sorted(left) if (span := index.flat_span(number))]
        name, ranges = FlatName.of(index.summary), [(span.start, span.end) for span in found]
        reads = peers.plan(name, ranges) if found else []
        return [(read, found[read.first : read.last + 1]) for read in reads]

    def _fetch_from_peer(self, read: PeerRead, spans: Sequence[Span], side: Side) -> Iterator[SpanOutcome]:
        numbers = [span.number for span in spans]
        by_number = dict(zip(numbers, spans, strict=True))
        with closing(checked(read.chunks(), side)) as chunks:
            ranges = [(span.start, span.end) for span in spans]
            for outcome in self._store.store(numbers, chunks, ranges, by_number.__getitem__):
                yield outcome._replace(by_peer=True)
            for _ in chunks:
                pass
