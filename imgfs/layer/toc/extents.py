"""The chunks of a table of contents, laid out in a flat layer and grouped into spans.

A payload is one chunk of a file's bytes. Several may share one compressed stream. In the flat layer they lie
in the order of the blob, so that what is near here is near there. Every file begins at a multiple of 512
there, as in a tar, and where the blob has a file's chunks one after the other, so has the flat layer, without
a gap: a byte at N of a file lies at N modulo 512.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.layer.entry import ChunkDigest, Codec, Extent, Span
from imgfs.layer.tar.header import BLOCK, OFFSET_LIMIT


class TocChunk(NamedTuple):
    """`length` bytes at `offset` of a file: those `skip` bytes into what the blob decodes to from `start` on.

    `end` is where its compressed bytes end at the latest, 0 if the table does not say. A payload with a
    `digest` has a sha256; one without is zeros, and never fetched.
    """

    start: int
    skip: int
    offset: int
    length: int
    digest: bytes
    end: int = 0


class FlatLayout(NamedTuple):
    """The spans, in the blob's order; the flat layer's size; where in it payloads are, by (start, skip)."""

    spans: list[Span]
    flat_size: int
    places: dict[tuple[int, int], int]


def lay_out(payloads: Sequence[TocChunk], codec: Codec, end: int) -> FlatLayout:
    """Lay payloads, none of them empty, out in the flat layer; the last of them ends at `end` in the blob.

    Their spans are ascending and do not overlap, in the blob and in the flat layer, where up to 511 bytes may
    be between two. Raises InvalidImage for payloads outside the blob, or overlapping others.
    """
    spans: list[Span] = []
    places: dict[tuple[int, int], int] = {}
    flat = 0
    for group, limit in _with_limits(sorted(payloads), end):
        first = group[0]
        known = [payload for payload in group if payload.digest]
        if not known:
            continue
        flat += (known[0].offset - known[0].skip - flat) % BLOCK
        parts = tuple(_parts(known))
        for part in parts:
            places[first.start, part.skip] = flat + part.skip
        flat_end = flat + parts[-1].skip + parts[-1].length
        if flat_end > OFFSET_LIMIT:
            raise InvalidImage("the files are larger than a layer can be", where=_at(first))
        stop = max(_end_of(payload, limit) for payload in known)
        spans.append(Span(len(spans), flat, flat_end, first.start, stop, codec, b"", None, parts))
        flat = flat_end
    return FlatLayout(spans, flat, places)


def extents_of(payloads: Sequence[TocChunk], places: dict[tuple[int, int], int]) -> tuple[Extent, ...]:
    """The extents of a file: as few as there can be, and none where it has zeros."""
    extents: list[Extent] = []
    for start, skip, offset, length, digest, _ in payloads:
        if not digest:
            continue
        flat = places[start, skip]
        if extents and extents[-1].offset + extents[-1].length == offset:
            last = extents[-1]
            if last.flat + last.length == flat:
                extents[-1] = Extent(last.offset, last.length + length, last.flat)
                continue
        extents.append(Extent(offset, length, flat))
    return tuple(extents)


def _with_limits(payloads: list[TocChunk], end: int) -> Iterator[tuple[list[TocChunk], int]]:
    """The payloads that begin at one place in the blob, for each place, and where the next one begins."""
    first = 0
    for number, payload in enumerate(payloads):
        if payload.start != payloads[first].start:
            yield payloads[first:number], payload.start
            first = number
    if payloads:
        if payloads[-1].start >= end:
            raise InvalidImage(f"begins behind {end}, where the payloads end", where=_at(payloads[-1]))
        yield payloads[first:], end


def _parts(payloads: list[TocChunk]) -> Iterator[ChunkDigest]:
    """The payloads of one stream, in order; one that several files have is one part."""
    last = ChunkDigest(0, 0, b"")
    for _, skip, _, length, digest, _ in payloads:
        part = ChunkDigest(skip, length, digest)
        if part == last:
            continue
        if skip < last.skip + last.length:
            raise InvalidImage("overlaps with another payload", where=_at(payloads[0]))
        yield part
        last = part


def _end_of(payload: TocChunk, limit: int) -> int:
    if payload.end and not payload.start < payload.end <= limit:
        message = f"ends at {payload.end}, which is not between its beginning and {limit}"
        raise InvalidImage(message, where=_at(payload))
    return payload.end or limit


def _at(payload: TocChunk) -> str:
    return f"the payload at {payload.start} of the blob"
