"""The bytes of the image's files, as copy-up takes them: what it asks for them, in which ranges, and how it
writes them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from imgfs.layer.entry import Extent

_CHUNK = 4 << 20  # bytes filled in at a time


class ImageData(Protocol):
    """The bytes of the image's files."""

    def cached(self, layer: int, extents: Sequence[Extent], offset: int, length: int) -> memoryview | None:
        """Some bytes, if they can be had without waiting."""

    def read(
        self,
        layer: int,
        extents: Sequence[Extent],
        offset: int,
        length: int,
        given_up: Future[None] | None = None,
    ) -> bytes:
        """Some bytes; waits for them, until `given_up` is settled. Raises ImgfsError, InterruptedError."""


class Copy(Protocol):
    """Copies the data of one file up."""

    def __call__(self, given_up: Future[None] | None = None) -> None: ...


def copy_ranges(extents: Sequence[Extent], end: int) -> list[tuple[int, int]]:
    """(offset, length) of what has to be copied of a file: its holes stay holes."""
    ranges = []
    for extent in extents:
        offset, last = extent.offset, min(end, extent.offset + extent.length)
        while offset < last:
            length = min(_CHUNK, last - offset)
            ranges.append((offset, length))
            offset += length
    return ranges
