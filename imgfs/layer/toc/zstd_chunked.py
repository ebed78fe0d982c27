"""zstd:chunked: a zstd layer of many frames, with a JSON table of contents and a footer in skippable frames.

containers/storage, `pkg/chunked`, in the three forms it has had: annotations `io.containers.…` and a footer
of 40 bytes (2021), annotations `io.github.containers.…` (2022), a footer of 64 bytes (2023).
stargz-snapshotter writes the first, with the digest of eStargz beside. A skippable frame has a header of
8 bytes (RFC 8878, section 3.1.2).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.layer.codec.frames import ZstdFrames
from imgfs.layer.entry import Codec
from imgfs.layer.limits import TOC_LIMIT as LIMIT
from imgfs.layer.origin import CHUNKED_CHECKSUM, CHUNKED_PREFIXES, TOC_DIGEST
from imgfs.layer.toc.estargz import toc_digest
from imgfs.layer.toc.toc import Fetch, Toc, fetch, fetch_tail, read_toc
from imgfs.oci.descriptor import Descriptor, Digest

_PREFIXES = CHUNKED_PREFIXES
_CHECKSUM, _POSITION = CHUNKED_CHECKSUM, "manifest-position"
_POSITION_TEXT = re.compile(r"(\d{1,19}):(\d{1,19}):(\d{1,19}):(\d{1,19})", re.ASCII)
_TYPE = 1  # "CRFS": the table is of eStargz's kind
_FRAME_HEADER = 8
# The footer's length and its last 8 bytes; the magics differ in one letter's case.
_FOOTERS = ((64, b"GNUlInUx"), (40, b"GnUlInUx"))
_SKIPPABLE = b"\x50\x2a\x4d\x18"


class TocPosition(NamedTuple):
    """Where in the blob the table of contents is, without its frame's header, and its lengths."""

    offset: int
    packed: int
    unpacked: int


def is_chunked(layer: Descriptor) -> bool:
    """Return whether the manifest says that a layer is zstd:chunked, and the digest of its table."""
    return _annotation(layer, _CHECKSUM) is not None or (
        TOC_DIGEST in layer.annotations and layer.media_type.endswith("zstd")
    )


def parse_position(text: str, size: int) -> TocPosition:
    """Read the annotation `OFFSET:LENGTH:UNPACKED:TYPE` of a blob of `size` bytes; raises InvalidImage."""
    match = _POSITION_TEXT.fullmatch(text)
    if not match:
        raise InvalidImage(f"{text[:80]!r} is not a position of a table of contents")
    return _position([int(digits) for digits in match.groups()], size)


def parse_footer(tail: bytes, size: int) -> TocPosition:
    """Read the footer at the end of `tail`, which is the end of a blob of `size` bytes; raises InvalidImage.

    72 bytes of a tail are enough.
    """
    for length, magic in _FOOTERS:
        frame = _SKIPPABLE + length.to_bytes(4, "little")
        if tail.endswith(magic) and tail[-length - _FRAME_HEADER : -length] == frame:
            numbers = [int.from_bytes(tail[at - length :][:8], "little") for at in range(0, 32, 8)]
            return _position(numbers, size - length - _FRAME_HEADER)
    raise InvalidImage("no zstd:chunked footer", where=f"blob offset {size}")


def fetch_toc(layer: Descriptor) -> Fetch[Toc]:
    """Read a zstd:chunked layer's table of contents: one request if annotations say where it is, else two.

    Yields ranges of the layer's blob, wants to be sent exactly these bytes, and returns the table. Raises
    InvalidImage; IntegrityError if the table is not the one the manifest names.
    """
    text = _annotation(layer, _POSITION)
    if text is not None:
        position = parse_position(text, layer.size)
        packed = yield from fetch(position.offset, position.offset + position.packed)
    else:
        tail = yield from fetch_tail(layer.size)
        position = parse_footer(tail.body, layer.size)
        packed = yield from tail.range(position.offset, position.offset + position.packed)
    body = _verified(packed, position, layer)
    return read_toc(body, codec=Codec.ZSTD, end=position.offset - _FRAME_HEADER)


def _annotation(layer: Descriptor, name: str) -> str | None:
    found = (layer.annotations.get(prefix + name) for prefix in _PREFIXES)
    return next((text for text in found if text is not None), None)


def _verified(packed: bytes, position: TocPosition, layer: Descriptor) -> bytes:
    """Return the JSON, by the digest of its packed form.

    By its own, stargz-snapshotter's, where that is missing.
    """
    checksum = _annotation(layer, _CHECKSUM)
    if checksum is not None:
        Digest.parse(checksum, where=f"annotation {_CHECKSUM}").verify(
            packed, "the layer's table of contents"
        )
    body = _unpack(packed, position.unpacked)
    if checksum is None:
        toc_digest(layer).verify(body, "the layer's table of contents")
    return body


def _unpack(packed: bytes, length: int) -> bytes:
    where = "table of contents"
    frames = ZstdFrames()
    pieces = []
    try:
        for piece in frames.pieces(packed):
            if frames.produced > length:
                break
            pieces.append(piece)
    except InvalidImage as error:
        raise InvalidImage(str(error), where=where) from error
    if frames.produced != length or not frames.between:
        raise InvalidImage(f"does not decode to {length} bytes", where=where)
    return b"".join(pieces)


def _position(numbers: list[int], end: int) -> TocPosition:
    offset, packed, unpacked, kind = numbers
    if kind != _TYPE:
        raise InvalidImage(f"a zstd:chunked table of contents of type {kind}; imgfs knows type {_TYPE}")
    if offset < _FRAME_HEADER or not packed or offset + packed > end:
        raise InvalidImage(f"its table of contents is not within the blob: {packed} bytes at {offset}")
    if max(packed, unpacked) > LIMIT:
        raise InvalidImage(f"a table of contents of {max(packed, unpacked)} bytes is more than {LIMIT}")
    return TocPosition(offset, packed, unpacked)
