"""Make spans of a blob that is read in order: where each begins and ends, and its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from imgfs.layer.codec.blob import Cut
from imgfs.layer.codec.frames import FRAMED
from imgfs.layer.entry import Codec, Span
from imgfs.layer.indexwriter import IndexWriter


class SpanWriter:
    """Turns cuts into spans with digests, given the compressed chunks they lie in."""

    def __init__(self, index: IndexWriter, format_name: str) -> None:
        self._index = index
        self._number = 0
        codec = {"tar": Codec.IDENTITY, "gzip": Codec.GZIP, **FRAMED}[format_name]
        self._open = Cut(0, 0, codec)
        self._hasher = hashlib.sha256()
        self._chunk = b""
        self._chunk_start = 0
        self._hashed = 0  # offset in the blob up to which the open span is hashed

    def chunk(self, chunk: bytes) -> None:
        """Take the next chunk, before its cuts are reported."""
        self._hash_to(self._chunk_start + len(self._chunk))
        self._chunk_start += len(self._chunk)
        self._chunk = chunk

    def cut(self, cut: Cut) -> None:
        """End the open span at `cut` and begin the next."""
        shared = 1 if cut.checkpoint and cut.checkpoint.bits else 0
        end = cut.start + shared
        self._hash_to(end)
        self._close(end, cut.flat)
        self._open = cut
        self._hasher = hashlib.sha256()
        if shared:
            at = cut.start - self._chunk_start
            self._hasher.update(self._chunk[at : at + 1])

    def finish(self, size: int) -> None:
        """End the last span at the end of the blob."""
        end = self._chunk_start + len(self._chunk)
        self._hash_to(end)
        if size > self._open.flat:
            self._close(end, size)

    def _close(self, end: int, flat_end: int) -> None:
        start, flat, codec, checkpoint = self._open
        digest = self._hasher.digest()
        self._index.add_span(Span(self._number, flat, flat_end, start, end, codec, digest, checkpoint))
        self._number += 1

    def _hash_to(self, end: int) -> None:
        if end > self._hashed:
            base = self._chunk_start
            self._hasher.update(memoryview(self._chunk)[self._hashed - base : end - base])
            self._hashed = end


def merge_spans(spans: Iterable[tuple[Span, bytes]], least: int) -> Iterator[Span]:
    """Spans of `least` flat bytes or more out of smaller ones that follow each other, given with their bytes.

    They must be of a blob's own digests and cover it without gaps; a merged one has the checkpoint of its
    first.
    """
    first: Span | None = None
    number, hasher, last = 0, hashlib.sha256(), None
    for span, body in spans:
        if first is None or last is None:
            first, hasher = span, hashlib.sha256(body)
        else:
            hasher.update(body[last.end - span.start :])  # a byte may belong to both
        last = span
        if span.flat_end - first.flat_start >= least:
            yield _from_to(first, last, number, hasher.digest())
            number, first = number + 1, None
    if first and last:
        yield _from_to(first, last, number, hasher.digest())


def _from_to(first: Span, last: Span, number: int, digest: bytes) -> Span:
    return first._replace(number=number, flat_end=last.flat_end, end=last.end, digest=digest)
