"""One request: fetch a range of the blob, split it into spans, decode, verify and store each.

Spans are stored as they arrive; small ones a few together, as marking costs more than decoding them. Readers
wait elsewhere (`content.inflight`), which observes what becomes of a request (`FetchObserver`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from typing import Protocol

from imgfs.content.requests import Request, SpanIndex, SpanTable, batches, descriptor_of
from imgfs.content.staging import StagedBatch
from imgfs.errors import ImgfsError, IntegrityError, InvalidImage
from imgfs.layer.codec.span import decode_span
from imgfs.layer.entry import Span
from imgfs.oci.descriptor import Descriptor
from imgfs.store.flat import FlatLayer
from imgfs.store.span_buffer import SpanBuffer

_BATCH = 64 << 10  # compressed bytes of small spans that are marked together


class BlobSource(Protocol):
    """Where a layer's compressed bytes come from."""

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield exactly the bytes `[start, end)`, in chunks."""

    def doubt(self, descriptor: Descriptor) -> object:
        """Note that a blob's bytes were wrong: the next request goes to another endpoint, if there is one."""


class FetchObserver(Protocol):
    """What becomes of a request; called from its thread."""

    def request_sent(self) -> None:
        """A range is requested; again if bytes came damaged."""

    def bytes_received(self, size: int) -> None:
        """`size` compressed bytes have arrived. May wait; an exception of it ends the request."""

    def windows_received(self, size: int) -> None:
        """`size` bytes of inflate windows have arrived."""

    def spans_done(self, numbers: Sequence[int], error: Exception | None) -> None:
        """These spans are present, or failed with `error`."""


RunInThread = Callable[[Callable[[], bytes]], "Future[bytes]"]  # runs a function in another thread


class SpanFetcher:
    """Fetches spans of one layer into its flat layer. Safe in threads; `run_in_thread` fetches windows."""

    def __init__(
        self,
        layer: Descriptor,
        spans: SpanIndex,
        table: SpanTable,
        flat: FlatLayer,
        source: BlobSource,
        run_in_thread: RunInThread,
    ) -> None:
        self._name = layer.digest.short
        self.blob = descriptor_of(spans.blob) if spans.blob else layer  # that spans are cut from
        self._window_blob = descriptor_of(spans.windows) if spans.windows else None
        self.spans = spans
        self.refused: ImgfsError | None = None  # why nothing of the layer may be shown any more
        self._table = table
        self._flat = flat
        self._source = source
        self._run_in_thread = run_in_thread

    def fetch(self, request: Request, observer: FetchObserver) -> None:
        """Fetch a request's spans; `spans_done` is called once for each, early. Raises nothing.

        Bytes that came damaged are requested once more, from the span they were found in.
        """
        left = list(request.numbers)
        doubted = -1
        while left:
            try:
                self._fetch_rest_of(left, observer)
            except IntegrityError as error:
                self._source.doubt(self.blob)
                if left[:1] == [doubted]:  # its error, not that of its neighbours
                    observer.spans_done([left.pop(0)], error)
                else:
                    doubted = next(iter(left), -1)
            except Exception as error:  # noqa: BLE001  (every waiting reader gets it)
                observer.spans_done(left, error)
                return

    def _fetch_rest_of(self, left: list[int], observer: FetchObserver) -> None:
        if self.refused:
            raise self.refused
        starts, ends = self._table.starts, self._table.ends
        ranges = [(starts[number], ends[number]) for number in left]
        windows = self._windows(left, observer)
        observer.request_sent()
        end = max(end for _, end in ranges)
        with closing(self._counted(self._source.blob(self.blob, ranges[0][0], end), observer)) as chunks:
            bodies = zip(list(left), split(chunks, ranges, left), strict=True)
            for batch in list(batches(left, self._table, _BATCH)):
                self._store_batch(batch, bodies, windows, left, observer)
            for _ in chunks:  # to its end: then the connection can be used again
                pass

    def _store_batch(
        self,
        batch: Sequence[int],
        bodies: Iterator[tuple[int, Iterable[bytes]]],
        windows: _Windows,
        left: list[int],
        observer: FetchObserver,
    ) -> None:
        """Store and mark the verified spans of `batch`, and remove those from `left`."""
        before = self._flat.begin(batch[0], batch[-1])
        if self.refused:
            raise self.refused
        with StagedBatch(self._flat, batch, before) as staged:
            try:
                for _ in batch:
                    number, body = next(bodies)
                    span = self.spans.span(number, windows.window(number))
                    self._decode(span, body, staged.buffer_for(span))
                    staged.verified()
            finally:
                if written := staged.commit():
                    del left[: len(written)]
                    observer.spans_done(written, None)

    def _decode(self, span: Span, chunks: Iterable[bytes], buffer: SpanBuffer) -> None:
        """Decode a span into `buffer`. Its bytes are verified when this returns, and not before."""
        try:
            for piece in decode_span(span, chunks):
                buffer.write(piece)
        except IntegrityError as error:
            what = f"layer {self._name}, {error.what}"
            raise IntegrityError(what, expected=error.expected, actual=error.actual) from error
        except InvalidImage as error:
            raise InvalidImage(str(error), where=f"layer {self._name}") from error

    def _windows(self, numbers: Sequence[int], observer: FetchObserver) -> _Windows:
        """Start to fetch the windows that `numbers` need and the store lacks."""
        blob = self._window_blob
        ranges = {}
        if blob is not None:
            found = ((number, self.spans.remote_window(number)) for number in numbers)
            ranges = {number: window for number, window in found if window}
        if blob is None or not ranges:
            return _Windows({}, 0, None)
        start, end = min(start for start, _ in ranges.values()), max(end for _, end in ranges.values())
        return _Windows(
            ranges, start, self._run_in_thread(partial(self._fetch_window, blob, start, end, observer))
        )

    def _fetch_window(self, blob: Descriptor, start: int, end: int, observer: FetchObserver) -> bytes:
        body = b"".join(self._source.blob(blob, start, end))
        observer.windows_received(len(body))
        return body

    def _counted(self, chunks: Iterator[bytes], observer: FetchObserver) -> Generator[bytes, None, None]:
        for chunk in chunks:
            observer.bytes_received(len(chunk))
            yield chunk


class _Windows:
    """The windows of some spans: `body` has the bytes of their blob from `start` on, `ranges` says where."""

    def __init__(self, ranges: dict[int, tuple[int, int]], start: int, body: Future[bytes] | None) -> None:
        self._ranges = ranges
        self._start = start
        self._body = body

    def window(self, number: int) -> bytes | None:
        """Wait for a span's window and return it; None if it is not to be fetched."""
        window = self._ranges.get(number)
        if window is None or self._body is None:
            return None
        start, end = window
        return self._body.result()[start - self._start : end - self._start]


def split(
    chunks: Iterator[bytes], ranges: Sequence[tuple[int, int]], numbers: Sequence[int]
) -> Iterator[Iterable[bytes]]:
    """Yield the bytes of each of `ranges`, which ascend, from a stream that begins at the first one's start.

    Ranges may have bytes between them, or share some: a span that begins in mid-byte shares that byte with
    the one before it. Raises IntegrityError, naming the span out of `numbers`, if the stream ends early.
    """
    if len(ranges) == 1:  # may be as large as the layer
        yield chunks
        return
    held = bytearray()
    base = ranges[0][0]  # offset of what is held
    for number, (start, end) in zip(list(numbers), ranges, strict=True):
        while base + len(held) < end:
            chunk = next(chunks, None)
            if chunk is None:
                raise IntegrityError(f"length of span {number}", expected=end - start, actual=len(held))
            gone = min(len(held), max(0, start - base))
            del held[:gone]
            base += gone
            held += chunk
        yield (bytes(memoryview(held)[start - base : end - base]),)
