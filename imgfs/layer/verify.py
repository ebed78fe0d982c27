"""Verify an imported index, once all bytes of its layer are in the store.

An imported index may be wrong about the bytes that spans decode to, by its digests of them, too, or about
which files are where. If the
flat layer as a whole has the DiffID, its bytes are the image's; the index is then rewritten from them as a
scan would have made it: entries out of the tar's headers, windows out of the bytes before a checkpoint, and a
digest of each span's flat bytes. Only the ranges of spans in the blob are taken over, and the digests refuse
bytes from a wrong range.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Protocol

from imgfs.errors import IntegrityError, InvalidImage
from imgfs.layer.entry import WINDOW, Checkpoint, ChunkDigest, Entry, Span
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.origin import TOC_DIGEST
from imgfs.layer.scan import HeaderFeeder
from imgfs.layer.schema import BLOB, ExternalBlob, Summary
from imgfs.layer.tar.reader import ReadRequest, parse_tar
from imgfs.layer.toc.toc import is_own
from imgfs.oci.descriptor import Descriptor, Digest

Read = Callable[[int, int], Iterable[bytes]]  # the flat layer's bytes `[start, end)`, in pieces


class CutIndex(Protocol):
    """What of an index is taken over: how the blob is cut (`layer.index.LayerIndex`)."""

    @property
    def summary(self) -> Summary:
        """The layer as a whole."""

    @property
    def blob(self) -> ExternalBlob | None:
        """The blob that spans are cut from, None for the layer's own."""

    def spans(self) -> Iterable[Span]:
        """Yield all spans, in order, without their checkpoints."""

    def checkpoint_bits(self) -> Mapping[int, int]:
        """Return the `bits` of every checkpoint, by the number of its span."""

    def flat_span(self, number: int) -> Span | None:
        """Return a span with the digests of its flat bytes, None if these do not cover it."""


def verify_index(
    index: CutIndex, layer: Descriptor, diff_id: Digest, read: Read, writer: IndexWriter
) -> None:
    """Write to `writer` the verified index of `layer`, whose flat bytes, those of a tar, `read` yields.

    An index that reads from a copy of the layer still does afterwards, and keeps its origin. The result is
    complete only if this returns. Raises IntegrityError if the bytes do not have the DiffID,
    InvalidImage if they cannot be the layer's for another reason.
    """
    flat = _Flat(diff_id, parse_tar(_keeper(layer, writer)))
    bits = index.checkpoint_bits()
    for span in index.spans():
        if span.flat_start != flat.size:
            raise InvalidImage(f"span {span.number} of its index does not follow the one before it")
        checkpoint = Checkpoint(bits[span.number], flat.window) if span.number in bits else None
        digest = hashlib.sha256()
        for piece in read(span.flat_start, span.flat_end):
            digest.update(piece)
            flat.feed(piece)
        _check_flat_digest(index.flat_span(span.number), digest.digest())
        writer.add_span(_verified(span, digest.digest(), checkpoint))
    flat.finish(f"uncompressed layer {layer.digest.short} (DiffID)")
    if index.blob:
        writer.put_external_blob(BLOB, index.blob)
    summary = index.summary._asdict()
    del summary["entries"]
    origin = index.summary.origin if index.blob else ""
    writer.finish(**{**summary, "flat_size": flat.size, "is_lean": False, "origin": origin})


class _Flat:
    """A flat layer read in order: hashed, its tar headers parsed, its last 32 KiB kept."""

    def __init__(self, diff_id: Digest, parser: Generator[ReadRequest, bytes, int]) -> None:
        self.size = 0
        self.window = b""  # the last of it
        self._diff_id = diff_id
        self._hasher = diff_id.hasher()
        self._headers = HeaderFeeder(parser)

    def feed(self, piece: bytes) -> None:
        """Read the next bytes."""
        self._hasher.update(piece)
        self._headers.feed(self.size, piece)
        self.size += len(piece)
        self.window = piece[-WINDOW:] if len(piece) >= WINDOW else (self.window + piece)[-WINDOW:]

    def finish(self, what: str) -> None:
        """End the layer; raises IntegrityError naming `what`, InvalidImage."""
        self._diff_id.check(self._hasher, what)
        self._headers.finish(self.size)


def _keeper(layer: Descriptor, writer: IndexWriter) -> Callable[[Entry], None]:
    """Return a function that writes entries as a scan of the layer does."""
    hides = TOC_DIGEST in layer.annotations

    def keep(entry: Entry) -> None:
        if not (hides and is_own(entry.path)):
            writer.add_entry(entry)

    return keep


def _check_flat_digest(span: Span | None, digest: bytes) -> None:
    """Raise IntegrityError if the index has another digest of a span's flat bytes.

    Those who have it open would accept other bytes than the layer's from a peer.
    """
    known = span.parts[0] if span and len(span.parts) == 1 else None
    if span and known and known.length == span.end - span.start and known.digest != digest:
        what = f"flat bytes of span {span.number}"
        raise IntegrityError(what, expected=known.digest.hex(), actual=digest.hex())


def _verified(span: Span, digest: bytes, checkpoint: Checkpoint | None) -> Span:
    """Return the span with the digest of its flat bytes."""
    part = ChunkDigest(0, span.flat_end - span.flat_start, digest)
    return span._replace(checkpoint=checkpoint, parts=(part,))
