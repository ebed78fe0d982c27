"""Whether the bytes of a flat layer are right, by what its index knows of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from imgfs.layer.entry import Codec, Span
from imgfs.layer.index import TAR, LayerIndex
from imgfs.oci.descriptor import Digest
from imgfs.store.flat import Flat

_PIECE = 1 << 20  # bytes that are read at once


class Verdict(NamedTuple):
    """The spans of a flat layer, by number: which are wrong, and of which nothing here can tell."""

    wrong: tuple[int, ...]
    unknown: tuple[int, ...]


class _Gone(Exception):
    """A span has been evicted while it was looked at."""


def judge(index: LayerIndex, flat: Flat) -> Verdict:
    """Look at all that is here of a flat layer. Raises StoreError."""
    judging = _Judging(index, flat)
    for span in index.spans():
        judging.look_at(span)
    return judging.verdict()


class _Judging:
    """One pass over a flat layer, for the digests of spans and, if it is all here, the layer's."""

    def __init__(self, index: LayerIndex, flat: Flat) -> None:
        self._flat = flat
        self._diff_id = Digest.parse(index.summary.diff_id)
        self._hasher = self._diff_id.hasher()
        self._is_whole = index.summary.space == TAR
        self._at = 0
        self._wrong: list[int] = []
        self._unknown: list[int] = []

    def look_at(self, span: Span) -> None:
        """Take the next span."""
        self._is_whole &= span.flat_start == self._at
        self._at = span.flat_end
        marks = self._flat.marks(span.number, span.number)
        try:
            is_right = self._is_right(span, marks)
        except _Gone:
            self._is_whole = False
            return
        if is_right is None:
            self._unknown.append(span.number)
        elif not is_right:
            self._wrong.append(span.number)

    def _is_right(self, span: Span, marks: bytes) -> bool | None:
        if span.parts:
            self._is_whole = False  # between the parts may be anything
            return all(
                _sha256(self._pieces(span, marks, part.skip, part.length)) == part.digest
                for part in span.parts
            )
        own = hashlib.sha256()
        for piece in self._pieces(span, marks, 0, span.flat_end - span.flat_start):
            own.update(piece)
            if self._is_whole:
                self._hasher.update(piece)
        return own.digest() == span.digest if span.codec == Codec.IDENTITY else None

    def _pieces(self, span: Span, marks: bytes, skip: int, length: int) -> Iterator[bytes]:
        """A run of a span's bytes; raises _Gone if they are not here any more."""
        start = span.flat_start + skip
        for offset in range(start, start + length, _PIECE):
            piece = self._flat.read(offset, min(_PIECE, start + length - offset), marks, span.number)
            if piece is None:
                raise _Gone
            yield piece

    def verdict(self) -> Verdict:
        """What has come of it."""
        if self._is_whole and self._at == self._flat.size:
            if self._hasher.hexdigest() == self._diff_id.hex:
                return Verdict((), ())
            if not self._wrong:
                return Verdict(tuple(self._unknown), ())
        return Verdict(tuple(self._wrong), tuple(self._unknown))


def _sha256(pieces: Iterator[bytes]) -> bytes:
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()
