"""Proving an index that somebody else has made, once all of its layer is here.

An index from elsewhere may lie: about what spans decode to, or about which files are where. If the flat layer
as a whole has the DiffID, its bytes are the image's; then the index is written anew from them, as a scan
would have: entries out of the tar's headers, windows out of the bytes before a checkpoint, and a digest of
what each span decodes to. Only where spans lie in the blob is still the other's word, and the digests let
nothing pass that comes from the wrong place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable

from imgfs.errors import InvalidImage
from imgfs.layer.entry import WINDOW, Checkpoint, ChunkDigest, Entry, Span
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.origin import TOC_DIGEST
from imgfs.layer.scan import Headers
from imgfs.layer.schema import BLOB
from imgfs.layer.tar.reader import ReadRequest, parse_tar
from imgfs.layer.toc.toc import is_own
from imgfs.oci.descriptor import Descriptor, Digest

Read = Callable[[int, int], Iterable[bytes]]  # the flat layer's bytes `[start, end)`, in pieces


def prove(index: LayerIndex, layer: Descriptor, diff_id: Digest, read: Read, writer: IndexWriter) -> None:
    """Write to `writer` what `index` should say of `layer`, whose flat bytes, those of a tar, `read` gives.

    An index that needs a copy of the layer still does afterwards, and keeps its origin. Nothing that was
    written counts unless this returns. Raises IntegrityError if the bytes do not have the DiffID,
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
        writer.add_span(_proved(span, digest.digest(), checkpoint))
    flat.finish(f"uncompressed layer {layer.digest.short} (DiffID)")
    if index.blob:
        writer.put_external_blob(BLOB, index.blob)
    summary = index.summary._asdict()
    del summary["entries"]
    origin = index.summary.origin if index.blob else ""
    writer.finish(**{**summary, "flat_size": flat.size, "is_lean": False, "origin": origin})


class _Flat:
    """A flat layer that goes by: hashed, its headers read, its last bytes at hand."""

    def __init__(self, diff_id: Digest, parser: Generator[ReadRequest, bytes, int]) -> None:
        self.size = 0
        self.window = b""  # the last of it
        self._diff_id = diff_id
        self._hasher = diff_id.hasher()
        self._headers = Headers(parser)

    def feed(self, piece: bytes) -> None:
        """Take the next bytes."""
        self._hasher.update(piece)
        self._headers.feed(self.size, piece)
        self.size += len(piece)
        self.window = piece[-WINDOW:] if len(piece) >= WINDOW else (self.window + piece)[-WINDOW:]

    def finish(self, what: str) -> None:
        """That was all; IntegrityError says `what` is wrong."""
        self._diff_id.check(self._hasher, what)
        self._headers.finish(self.size)


def _keeper(layer: Descriptor, writer: IndexWriter) -> Callable[[Entry], None]:
    """Writes entries, as a scan of the layer would."""
    hides = TOC_DIGEST in layer.annotations

    def keep(entry: Entry) -> None:
        if not (hides and is_own(entry.path)):
            writer.add_entry(entry)

    return keep


def _proved(span: Span, digest: bytes, checkpoint: Checkpoint | None) -> Span:
    """The span, bound to what it decodes to."""
    part = ChunkDigest(0, span.flat_end - span.flat_start, digest)
    return span._replace(checkpoint=checkpoint, parts=(part,))
