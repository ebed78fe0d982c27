"""Which bytes of a checkpoint's window its span refers to; the others may as well be zeros.

In real layers that is a tenth of the 32 KiB, so a window with zeros for the rest packs to a fifth. The
inflater is not asked: the span's beginning is decoded from two windows of markers instead. What deflate
copies does not depend on what it copies, so both decodings take the same steps; where they differ, the byte
came out of the window, and the two values together say from where.
"""

from __future__ import annotations

import functools

from imgfs.errors import InvalidImage
from imgfs.layer.codec.gzip import Inflater
from imgfs.layer.entry import WINDOW, Checkpoint, Span

# Byte i of the window is marked (_LOW[i], _HIGH[i]): no pair twice, and never a pair of equals.
_LOW = bytes(i & 255 for i in range(WINDOW))
_HIGH = bytes(i & 255 ^ 1 + (i >> 8) for i in range(WINDOW))  # 1 + (i >> 8) is 1 to 128


def sparse_window(span: Span, packed: bytes) -> bytes:
    """The window of the checkpoint of `span`, zeros in place of the bytes that no flat byte is copied from.

    `packed` are the blob's bytes that the span speaks of, verified. Raises InvalidImage if the beginning of
    them, as far as it is looked at, cannot be decoded.
    """
    assert span.checkpoint is not None  # only spans that have one have a window
    bits, window = span.checkpoint
    low, high = (_beginning(span, packed, Checkpoint(bits, marks[: len(window)])) for marks in (_LOW, _HIGH))
    sparse, offsets = bytearray(len(window)), _offsets()
    for pair in offsets.keys() & set(_pairs(low, high)):
        at = offsets[pair]
        sparse[at] = window[at]
    return bytes(sparse)


def _beginning(span: Span, packed: bytes, checkpoint: Checkpoint) -> bytes:
    """The first flat bytes that `span` would have with this checkpoint: all that can be copied from a window.

    A match looks back 32 KiB at most (RFC 1951, section 2): past as many flat bytes it finds only those, so
    what comes out of the window later has been among them before.
    """
    length = min(span.flat_end - span.flat_start, WINDOW)
    inflater = Inflater(checkpoint)
    flat = b"".join(map(bytes, inflater.pieces(packed, length + 1, length)))
    if len(flat) < length:
        raise InvalidImage(f"span {span.number} ends after {len(flat)} flat bytes, not {length} or more")
    return flat


def _pairs(low: bytes, high: bytes) -> memoryview:
    """The bytes of `low` and `high`, which is as long, side by side: 16-bit numbers in native byte order."""
    joined = bytearray(2 * len(low))
    joined[::2], joined[1::2] = low, high
    return memoryview(joined).cast("H")


@functools.cache
def _offsets() -> dict[int, int]:
    """Where in the window the byte is that a pair marks."""
    return {pair: at for at, pair in enumerate(_pairs(_LOW, _HIGH))}
