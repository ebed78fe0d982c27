"""Spans on their way into the flat layer: cut out of a stream, decoded, verified, written, marked present.

Small ones are marked a few together, as marking costs more than decoding them (`StagedBatch`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

from imgfs.content.requests import SpanTable, batches
from imgfs.errors import ImgfsError, IntegrityError, InvalidImage
from imgfs.layer.entry import Span
from imgfs.store.flat import FlatLayer
from imgfs.store.staging import SpanBuffer

_HELD = 4 << 20  # verified bytes that wait for the rest of their batch, at most: marking costs a lock
_BATCH = 64 << 10  # compressed bytes of small spans that are marked together


class SpanOutcome(NamedTuple):
    """These spans are present, brought by a peer or the blob's source, or failed with `error`."""

    numbers: Sequence[int]
    error: Exception | None = None
    by_peer: bool = False


class StagedBatch:
    """The spans of `batch`, taken in order; `before` are their marks from the flat layer's `begin`.

    A context manager: buffers that are not written by its end are discarded.
    """

    def __init__(self, flat: FlatLayer, batch: Sequence[int], before: bytes) -> None:
        self._flat = flat
        self._batch = batch
        self._before = before
        self._written = 0  # spans of the batch that are in the flat layer, and
        self._verified: list[tuple[int, SpanBuffer]] = []  # those after them: their offsets and bytes
        self._current: SpanBuffer | None = None

    def buffer_for(self, span: Span) -> SpanBuffer:
        """Return the buffer of the next span; its bytes count once `verified` is called."""
        self._current = self._flat.span_buffer()
        self._offset = span.flat_start
        return self._current

    def verified(self) -> None:
        """Note that the span's bytes are verified. Raises StoreError."""
        if self._current:
            self._verified.append((self._offset, self._current))
            self._current = None
        if sum(body.size for _, body in self._verified) > _HELD:
            self._put()

    def commit(self) -> Sequence[int]:
        """Write what is verified to the flat layer; return all spans written so far. Raises StoreError."""
        self._put()
        return self._batch[: self._written]

    def _put(self) -> None:
        if not self._verified:
            return
        first, self._written = self._written, self._written + len(self._verified)
        try:
            self._flat.put(self._batch[first], self._before[first : self._written], self._verified)
        except BaseException:
            self._written = first
            raise
        finally:
            self._close_verified()

    def _close_verified(self) -> None:
        for _, body in self._verified:
            body.close()
        self._verified = []

    def __enter__(self) -> StagedBatch:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_verified()
        if self._current:
            self._current.close()


class SpanStore:
    """Stores the spans of one layer, called `name`, in its flat layer. Safe in threads."""

    def __init__(self, name: str, flat: FlatLayer, table: SpanTable) -> None:
        self.refused: ImgfsError | None = None  # why nothing of the layer may be shown any more
        self.flat = flat
        self.table = table
        self.name = name

    def store(
        self,
        left: list[int],
        chunks: Iterator[bytes],
        ranges: Sequence[tuple[int, int]],
        span_of: Callable[[int], Span],
    ) -> Iterator[SpanOutcome]:
        """Store and mark the verified spans of `left`, and remove them from it.

        They are cut out of a stream, as `split` does; what comes behind the last is left in it.
        """
        bodies = zip(list(left), split(chunks, ranges, left), strict=True)
        for batch in list(batches(left, self.table, _BATCH)):
            yield from self._store_batch(batch, bodies, span_of, left)

    def _store_batch(
        self,
        batch: Sequence[int],
        bodies: Iterator[tuple[int, Iterable[bytes]]],
        span_of: Callable[[int], Span],
        left: list[int],
    ) -> Iterator[SpanOutcome]:
        """Store and mark the verified spans of `batch`, remove those from `left`, and yield them."""
        before = self.flat.begin(batch[0], batch[-1])
        if self.refused:
            raise self.refused
        with StagedBatch(self.flat, batch, before) as staged:
            try:
                for _ in batch:
                    number, body = next(bodies)
                    span = span_of(number)
                    self._decode(span, body, staged.buffer_for(span))
                    staged.verified()
            finally:
                if written := staged.commit():
                    del left[: len(written)]
                    yield SpanOutcome(written)

    def _decode(self, span: Span, chunks: Iterable[bytes], buffer: SpanBuffer) -> None:
        """Decode a span into `buffer`. Its bytes are verified when this returns, and not before."""
        from imgfs.layer.codec.span import decode_span  # here: of an image that is here nothing is decoded

        try:
            for piece in decode_span(span, chunks):
                buffer.write(piece)
        except IntegrityError as error:
            what = f"layer {self.name}, {error.what}"
            raise IntegrityError(what, expected=error.expected, actual=error.actual) from error
        except InvalidImage as error:
            raise InvalidImage(str(error), where=f"layer {self.name}") from error


def split(
    chunks: Iterator[bytes], ranges: Sequence[tuple[int, int]], numbers: Sequence[int]
) -> Iterator[Iterable[bytes]]:
    """Yield the bytes of each of `ranges`, which ascend, from a stream that begins at the first one's start.

    Ranges may have bytes between them, or share some: a span that begins in mid-byte shares that byte with
    the one before it. Raises IntegrityError, naming the span out of `numbers`, if the stream ends early.
    """
    if len(ranges) == 1:  # may be as large as the layer; asked for now, before its window is waited for
        first = list(islice(chunks, 1))
        yield chain(first, chunks)
        return
    held: deque[bytes] = deque()
    base = until = ranges[0][0]  # offsets of what is held
    for number, (start, end) in zip(list(numbers), ranges, strict=True):
        while until < end:
            chunk = next(chunks, None)
            if chunk is None:
                come = max(0, until - start)
                raise IntegrityError(f"length of span {number}", expected=end - start, actual=come)
            held.append(chunk)
            until += len(chunk)
        while held and base + len(held[0]) <= start:
            base += len(held.popleft())
        yield _between(held, start - base, end - base)


def _between(chunks: Iterable[bytes], start: int, end: int) -> list[bytes]:
    """Return the bytes `[start, end)` of what chunks make up: whole chunks as they are, not copied."""
    found, at = [], 0
    for chunk in chunks:
        if at < end and at + len(chunk) > start:
            found.append(chunk[max(0, start - at) : end - at])
        at += len(chunk)
    return found
