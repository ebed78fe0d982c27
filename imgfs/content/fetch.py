"""One request: fetch a range of the blob, split it into spans, decode, verify and store each.

What peers have of it comes from them, decoded already, if the index has digests of what spans decode to
(`content.peer_fetch`), or, where they are slow, from the first of both (`content.race`). A request goes in,
with a source to pull bytes from, and what became of its spans comes out, as they are stored
(`content.storing`); readers wait elsewhere, and bytes are counted there (`content.inflight`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Protocol

from imgfs.content.misplaced import MisplacedSpans
from imgfs.content.requests import Request, SpanIndex, SpanTable, descriptor_of
from imgfs.content.storing import SpanOutcome, SpanStore
from imgfs.content.windows import FetchedWindows, RunInThread, WindowBlocks
from imgfs.errors import IntegrityError
from imgfs.oci.descriptor import Descriptor
from imgfs.store.flat import FlatLayer

if TYPE_CHECKING:
    from imgfs.content.race import Side
    from imgfs.peers.pool import PeerPool


class BlobSource(Protocol):
    """Where a layer's compressed bytes come from."""

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield exactly the bytes `[start, end)`, in chunks."""

    def ignores_ranges(self, descriptor: Descriptor) -> bool:
        """Return True if a range of this blob was answered with all of it, so that each range costs that."""

    def doubt(self, descriptor: Descriptor) -> object:
        """Note that a blob's bytes were wrong: the next request goes to another endpoint, if there is one."""

    def peers(self) -> PeerPool | None:
        """Return the peers that may have flat bytes, None if there are none."""


class SpanFetcher:
    """Fetches spans of one layer into its flat layer. Safe in threads; `run_in_thread` fetches windows."""

    def __init__(
        self,
        layer: Descriptor,
        spans: SpanIndex,
        table: SpanTable,
        flat: FlatLayer,
        run_in_thread: RunInThread,
    ) -> None:
        self.blob = descriptor_of(spans.blob) if spans.blob else layer  # that spans are cut from
        self._window_blob = descriptor_of(spans.windows) if spans.windows else None
        self.spans = spans
        self.store = SpanStore(layer.digest.short, flat, table)
        self._table = table
        size = self._window_blob.size if self._window_blob else 0
        self._window_blocks = WindowBlocks(size, run_in_thread)
        self.misplaced = MisplacedSpans(self.store, self.blob)

    def fetch(self, request: Request, source: BlobSource) -> Iterator[SpanOutcome]:
        """Fetch a request's spans from `source`; yield each once, in some outcome, early. Raises nothing.

        Bytes that came damaged are requested once more, from the span they were found in.
        """
        left = list(request.numbers)
        try:
            yield from self._fetch(left, source)
        except Exception as error:  # noqa: BLE001  (every waiting reader gets it)
            self._window_blocks.forget()
            yield SpanOutcome(left, error)

    def _fetch(self, left: list[int], source: BlobSource) -> Iterator[SpanOutcome]:
        peers = source.peers()
        if peers:
            yield from self._race(left, source, peers)
        if self.misplaced.is_known:
            yield from self.misplaced.fetch(left, self.spans, source)
        doubted = -1
        while left:
            try:
                yield from self._fetch_rest_of(left, source)
            except IntegrityError as error:
                source.doubt(self.blob)
                self._window_blocks.forget()
                if left[:1] != [doubted]:
                    doubted = next(iter(left), -1)
                    continue
                yield from self.misplaced.fetch(left, self.spans, source)
                if left[:1] == [doubted]:  # its error, not that of its neighbours
                    yield SpanOutcome([left.pop(0)], error)

    def _race(self, left: list[int], source: BlobSource, peers: PeerPool) -> Iterator[SpanOutcome]:
        """Fetch `left` from peers, joined by the registry when they take longer than that would have."""
        from imgfs.content.peer_fetch import PeerFetcher  # few have peers
        from imgfs.content.race import race

        def from_peers(numbers: list[int], side: Side) -> Iterator[SpanOutcome]:
            return PeerFetcher(self.store).fetch(numbers, self.spans, peers, side)

        def from_registry(numbers: list[int], side: Side) -> Iterator[SpanOutcome]:
            return self._fetch_rest_of(numbers, source, side)

        pace = peers.registry
        wanted = self._size_of(left)
        for outcome in race(
            left,
            from_peers,
            from_registry,
            pace.patience(wanted),
            lambda late: pace.allow(self._size_of(late)),
        ):
            size = self._size_of(outcome.numbers)
            (pace.brought if outcome.by_peer else pace.spared)(size)
            yield outcome

    def _size_of(self, numbers: Sequence[int]) -> int:
        return sum(map(self._table.size_of, numbers))

    def _fetch_rest_of(
        self, left: list[int], source: BlobSource, side: Side | None = None
    ) -> Iterator[SpanOutcome]:
        if self.store.refused:
            raise self.store.refused
        starts, ends = self._table.starts, self._table.ends
        ranges = [(starts[number], ends[number]) for number in left]
        windows = self._windows(left, source)
        end = max(end for _, end in ranges)
        with closing(self._blob(ranges[0][0], end, source, side)) as chunks:
            yield from self.store.store(
                left, chunks, ranges, lambda number: self.spans.span(number, windows.window(number))
            )
            for _ in chunks:  # to its end: then the connection can be used again
                pass

    def _blob(
        self, start: int, end: int, source: BlobSource, side: Side | None
    ) -> Generator[bytes, None, None]:
        """Yield the blob's bytes `[start, end)`; where there are peers, as long as `side` has not lost."""
        chunks = source.blob(self.blob, start, end)
        if peers := source.peers():
            from imgfs.content.race import watched

            chunks = watched(chunks, end - start, peers.registry, side)
        yield from chunks

    def _windows(self, numbers: Sequence[int], source: BlobSource) -> FetchedWindows:
        """Start to fetch the windows that `numbers` need and the store lacks."""
        blob = self._window_blob
        if blob is None:
            return FetchedWindows({}, {})
        found = ((number, self.spans.remote_window(number)) for number in numbers)
        ranges = {number: window for number, window in found if window}
        return FetchedWindows(
            ranges, self._window_blocks.covering(ranges.values(), partial(source.blob, blob))
        )
