"""The spans of one batch, held in buffers until each is verified, then written to the flat layer together."""

from __future__ import annotations

from collections.abc import Sequence

from imgfs.layer.entry import Span
from imgfs.store.flat import FlatLayer
from imgfs.store.span_buffer import SpanBuffer

_HELD = 4 << 20  # verified bytes that wait for the rest of their batch, at most: marking costs a lock


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
