"""The chunks of a table of contents, laid out in a flat layer and grouped into spans.

A chunk is a run of a file's bytes with a digest (`chunkDigest`). Several may share one compressed stream. In
the flat layer they lie in the order of the blob, so that neighbours there are neighbours here. Every file
begins at a multiple of 512 there, as in a tar, and where the blob has a file's chunks one after the other, so
has the flat layer, without a gap: a byte at N of a file lies at N modulo 512.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.layer.entry import ChunkDigest, Codec, Extent, Span
from imgfs.layer.tar.header import BLOCK, OFFSET_LIMIT


class TocChunk(NamedTuple):
    """`length` bytes at `offset` of a file: those `skip` bytes into what the blob decodes to from `start` on.

    `end` is where its compressed bytes end at the latest, 0 if the table does not say. A chunk with a
    `digest` has a sha256; one without is zeros, and never fetched.
    """

    start: int
    skip: int
    offset: int
    length: int
    digest: bytes
    end: int = 0


class FlatLayout(NamedTuple):
    """The spans, in the blob's order; the flat layer's size; the flat offsets of chunks, by (start, skip)."""

    spans: list[Span]
    flat_size: int
    flat_offsets: dict[tuple[int, int], int]


def lay_out(chunks: Sequence[TocChunk], codec: Codec, end: int) -> FlatLayout:
    """Lay chunks, none of them empty, out in the flat layer; the last of them ends at `end` in the blob.

    Their spans are ascending and do not overlap, in the blob and in the flat layer, where up to 511 bytes may
    be between two. Raises InvalidImage for chunks outside the blob, or overlapping others.
    """
    spans: list[Span] = []
    flat_offsets: dict[tuple[int, int], int] = {}
    flat = 0
    for group, limit in _with_limits(sorted(chunks), end):
        first = group[0]
        known = [chunk for chunk in group if chunk.digest]
        if not known:
            continue
        flat += (known[0].offset - known[0].skip - flat) % BLOCK
        digests = tuple(_chunk_digests(known))
        for digest in digests:
            flat_offsets[first.start, digest.skip] = flat + digest.skip
        flat_end = flat + digests[-1].skip + digests[-1].length
        if flat_end > OFFSET_LIMIT:
            raise InvalidImage("the files are larger than a layer can be", where=_at(first))
        stop = max(_end_of(chunk, limit) for chunk in known)
        spans.append(Span(len(spans), flat, flat_end, first.start, stop, codec, b"", None, digests))
        flat = flat_end
    return FlatLayout(spans, flat, flat_offsets)


def extents_of(chunks: Sequence[TocChunk], flat_offsets: dict[tuple[int, int], int]) -> tuple[Extent, ...]:
    """Return the extents of a file: as few as possible, and none where it has zeros."""
    extents: list[Extent] = []
    for start, skip, offset, length, digest, _ in chunks:
        if not digest:
            continue
        flat = flat_offsets[start, skip]
        if extents and extents[-1].offset + extents[-1].length == offset:
            last = extents[-1]
            if last.flat + last.length == flat:
                extents[-1] = Extent(last.offset, last.length + length, last.flat)
                continue
        extents.append(Extent(offset, length, flat))
    return tuple(extents)


def _with_limits(chunks: list[TocChunk], end: int) -> Iterator[tuple[list[TocChunk], int]]:
    """Yield the chunks that begin at the same offset of the blob, and the offset of the next ones."""
    first = 0
    for number, chunk in enumerate(chunks):
        if chunk.start != chunks[first].start:
            yield chunks[first:number], chunk.start
            first = number
    if chunks:
        if chunks[-1].start >= end:
            raise InvalidImage(f"begins behind {end}, where the payloads end", where=_at(chunks[-1]))
        yield chunks[first:], end


def _chunk_digests(chunks: list[TocChunk]) -> Iterator[ChunkDigest]:
    """Yield the digests of the chunks of one stream, in order; equal chunks of several files are one."""
    last = ChunkDigest(0, 0, b"")
    for _, skip, _, length, digest, _ in chunks:
        part = ChunkDigest(skip, length, digest)
        if part == last:
            continue
        if skip < last.skip + last.length:
            raise InvalidImage("overlaps with another payload", where=_at(chunks[0]))
        yield part
        last = part


def _end_of(chunk: TocChunk, limit: int) -> int:
    if chunk.end and not chunk.start < chunk.end <= limit:
        message = f"ends at {chunk.end}, which is not between its beginning and {limit}"
        raise InvalidImage(message, where=_at(chunk))
    return chunk.end or limit


def _at(chunk: TocChunk) -> str:
    return f"the payload at {chunk.start} of the blob"
