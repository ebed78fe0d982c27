"""A packed tar file, read anywhere: indexed once, as a layer is, and from then on entered at its checkpoints.

The index is kept in the store under the identity of the file: device, inode, size, and the times of its last
change in nanoseconds. A file that is changed without these has other bytes than the index says, and those do
not have the digest of what is read of it: that is found out then, as everywhere.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from imgfs.errors import StoreError, Unavailable, UsageError
from imgfs.layer.codec.span import decode_span
from imgfs.layer.index import LayerIndex
from imgfs.transport.files import RegularFile, StoredFile

if TYPE_CHECKING:
    from imgfs.store.store import Store


class PackedFile(StoredFile):
    """The unpacked bytes of `file`, by its index, which it closes with itself."""

    def __init__(self, file: RegularFile, index: LayerIndex) -> None:
        self._file = file
        self._index = index
        self._bounds = list(index.bounds())
        self._starts = [bound[0] for bound in self._bounds]
        self.size = index.summary.flat_size

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes `[start, end)`. A span is handed on as it is decoded, and checked at its end."""
        number = bisect_right(self._starts, start) - 1
        while start < end:
            at, _, first, last = self._bounds[number]
            span = self._index.span(number)
            with closing(decode_span(span, self._file.read(first, last))) as pieces:  # type: ignore[type-var]
                for piece in pieces:
                    wanted = bytes(piece[max(0, start - at) : max(0, end - at)])
                    at += len(piece)
                    start += len(wanted)
                    if wanted:
                        yield wanted
                    if start >= end:
                        return
            number += 1

    def close(self) -> None:
        """Close the index."""
        self._index.close()


def open_index(
    content: StoredFile, file: RegularFile, place: tuple[int, int], open_store: Callable[[], Store] | None
) -> LayerIndex:
    """Open the index of a tar, perhaps packed, at a `place` of a file; make it if there is none.

    Raises InvalidImage for what is no tar, StoreError if the index cannot be kept.
    """
    if open_store is None:
        raise UsageError("a packed archive needs a store, for its index")
    identity = file.identity
    name = hashlib.sha256(repr((identity, place)).encode()).hexdigest()
    path = open_store().archive_index(name)
    if path.exists():
        with suppress(StoreError):  # of another format, or damaged: made anew
            return LayerIndex(path)
    from imgfs.layer.indexwriter import IndexWriter  # here: a second time neither is needed
    from imgfs.layer.scan import scan_unknown
    from imgfs.store.atomic import atomic_write

    with atomic_write(path) as new:
        writer = IndexWriter(new)
        try:
            scan_unknown(content.read(0, content.size), content.size, writer)
        finally:
            writer.close()
        if file.identity != identity:
            raise Unavailable("the file was changed while it was read")
    return LayerIndex(path)
