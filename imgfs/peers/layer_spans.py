"""How a layer's blob is cut into spans, as the machine that has scanned it tells another.

A reader that takes the flat layer from peers can check all of it by the DiffID, make the entries out of its
tar headers and the windows out of its bytes. Where in the blob each span is, is all that it cannot see:

    {"diff_id": "sha256:…", "format": "gzip", "spans": [[LENGTH, START, END, CODEC, BITS, "SHA256"], …]}

LENGTH is in flat bytes, spans follow each other; `[START, END)` is the range in the blob, and SHA256 its
digest; CODEC is the number that `layer.entry` has for it; BITS are the checkpoint's, null without one. None
of it is believed: `layer.verify` gives each span the digest of its flat bytes, which what a wrong range
brings cannot have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.layer.entry import Checkpoint, Codec, Span
from imgfs.layer.index import LayerIndex
from imgfs.layer.limits import PLAUSIBLE_RATIO, PLAUSIBLE_SIZE
from imgfs.layer.schema import TAR, ExternalBlob, Summary
from imgfs.oci.descriptor import Descriptor, Digest

LARGEST_SPANS = 16 << 20  # bytes of the JSON: a layer of a hundred gigabytes
_FORMAT = re.compile(r"[a-z0-9 ]{1,20}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST = 1 << 62
_ROW = 80  # bytes of a span's row at the least: its digest alone has 64
_COMMAS = 7  # of a row, and the one behind it


class LayerSpans(NamedTuple):
    """What a peer says of a layer: enough of an index to be verified (`layer.verify.CutIndex`)."""

    summary: Summary
    cut: tuple[Span, ...]  # with checkpoints, whose windows are empty
    blob: ExternalBlob | None = None

    def spans(self) -> Iterator[Span]:
        """Yield all spans, in order, without their checkpoints."""
        return (span._replace(checkpoint=None) for span in self.cut)

    def checkpoint_bits(self) -> dict[int, int]:
        """Return the `bits` of every checkpoint, by the number of its span."""
        return {span.number: span.checkpoint.bits for span in self.cut if span.checkpoint}

    def flat_span(self, number: int) -> None:
        """Return None: there are no digests of flat bytes."""


def format_spans(index: LayerIndex) -> bytes | None:
    """Return what is told of a layer; None unless the index was made here of the whole blob, as a tar."""
    summary = index.summary
    if not index.is_scanned() or summary.is_lean or summary.space != TAR or index.blob:
        return None
    bits = index.checkpoint_bits()
    rows = [
        [
            span.flat_end - span.flat_start,
            span.start,
            span.end,
            int(span.codec),
            bits.get(span.number),
            span.digest.hex(),
        ]
        for span in index.spans()
    ]
    told = {"diff_id": summary.diff_id, "format": summary.format, "spans": rows}
    return json.dumps(told, separators=(",", ":")).encode()


def parse_spans(body: bytes, layer: Descriptor, diff_id: Digest) -> LayerSpans:
    """Parse what a peer tells of `layer`. Raises InvalidImage if it cannot be so."""
    rows = len(body) // _ROW + 1
    if body.count(b"[") > rows + 1 or body.count(b",") > _COMMAS * rows or body.count(b"{") > 1:
        raise InvalidImage(
            "spans of more than they can say: a small text of lists is a large object", where="peer"
        )
    try:
        told = json.loads(body)
        if told["diff_id"] != str(diff_id):
            raise InvalidImage("spans of a layer with another DiffID", where="peer")
        name = _FORMAT.fullmatch(told["format"])
        cut = tuple(_spans(told["spans"], layer.size))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidImage(f"spans that make no sense: {error}", where="peer") from error
    flat_size = cut[-1].flat_end if cut else 0
    if flat_size > max(PLAUSIBLE_SIZE, PLAUSIBLE_RATIO * layer.size):
        raise InvalidImage(f"spans of {flat_size} bytes in all, of {layer.size} packed", where="peer")
    shown = name[0] if name else "tar"
    return LayerSpans(Summary(str(layer.digest), str(diff_id), shown, layer.size, flat_size, 0), cut)


def _spans(rows: list[list[object]], size: int) -> Iterator[Span]:
    """Yield spans that follow each other, and whose ranges ascend in a blob of `size` bytes."""
    at = before = 0
    for number, (length, start, end, codec, bits, digest) in enumerate(rows):
        numbers = [
            value for value in (length, start, end, codec) if type(value) is int and 0 <= value < _LARGEST
        ]
        if len(numbers) != 4 or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ValueError(f"span {number}")
        length, start, end, codec = numbers
        if not length or not before <= start < end <= size:
            raise ValueError(f"the range of span {number}")
        checkpoint = _checkpoint(bits) if codec == Codec.DEFLATE else None
        yield Span(number, at, at + length, start, end, Codec(codec), bytes.fromhex(digest), checkpoint)
        at, before = at + length, start


def _checkpoint(bits: object) -> Checkpoint:
    if type(bits) is not int or not 0 <= bits < 8:
        raise ValueError("a checkpoint's bits")
    return Checkpoint(bits, b"")
