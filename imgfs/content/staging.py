"""The spans of one batch on their way into the flat layer: aside until each is verified, then put there."""

from __future__ import annotations

from collections.abc import Sequence

from imgfs.layer.entry import Span
from imgfs.store.flat import FlatLayer
from imgfs.store.span_buffer import SpanBuffer

_HELD = 4 << 20  # verified bytes that wait for the rest of their batch, at most: marking costs a lock


class StagedBatch:
    """Takes the spans of `batch` in order; `before` is what the flat layer's `begin` said of them.

    A context manager: what has not landed by its end is given up.
    """

    def __init__(self, flat: FlatLayer, batch: Sequence[int], before: bytes) -> None:
        self._flat = flat
        self._batch = batch
        self._before = before
        self._landed = 0  # spans of the batch that are in the flat layer, and
        self._verified: list[tuple[int, SpanBuffer]] = []  # those after them: their offsets and bytes
        self._coming: SpanBuffer | None = None

    def aside(self, span: Span) -> SpanBuffer:
        """Where the bytes of the next span go; they count once `verified` is called."""
        self._coming = self._flat.aside()
        self._offset = span.flat_start
        return self._coming

    def verified(self) -> None:
        """Say that the span's bytes are right. Raises StoreError."""
        if self._coming:
            self._verified.append((self._offset, self._coming))
            self._coming = None
        if sum(body.size for _, body in self._verified) > _HELD:
            self._put()

    def land(self) -> Sequence[int]:
        """Put what is verified into the flat layer; returns all spans that have landed. Raises StoreError."""
        self._put()
        return self._batch[: self._landed]

    def _put(self) -> None:
        if not self._verified:
            return
        first, self._landed = self._landed, self._landed + len(self._verified)
        try:
            self._flat.put(self._batch[first], self._before[first : self._landed], self._verified)
        except BaseException:
            self._landed = first
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
        if self._coming:
            self._coming.close()
