"""eStargz: a gzip layer of many members, the last but one with a JSON table of contents, the last a footer.

containerd/stargz-snapshotter, `docs/estargz.md`, and `estargz/types.go`. The table may be in another image
instead ("external TOC", `docs/smaller-estargz.md`).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.layer.entry import Codec
from imgfs.layer.limits import TOC_LIMIT as LIMIT
from imgfs.layer.origin import TOC_DIGEST
from imgfs.layer.tar.header import BLOCK, parse_header
from imgfs.layer.toc.toc import TOC_NAME, Fetch, Toc, fetch_tail, read_toc
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import Manifest

EXTERNAL_TAG_SUFFIX = "-esgztoc"  # of the image that has the tables of all layers
_LAYER_DIGEST = "containerd.io/snapshot/stargz/layer.digest"  # in that image: whose table a layer is

# A footer is an empty gzip member with an extra field (RFC 1952, section 2.3.1.1): 10 bytes of header, 2 of
# XLEN, the field, 5 of an empty stored block, 8 of trailer. The field is "SG", a length, and "%016xSTARGZ" or
# "STARGZEXTERNALTOC"; before there was eStargz, bare "%016xSTARGZ". So 51, 46 and 47 bytes; but a writer with
# another gzip library has 48 (its empty block takes 2 bytes), and further fields may stand beside.
_SEARCHED = 512
_LEAST_FOOTER = 40
_MAGIC = b"\x1f\x8b\x08"
_FEXTRA = 4
_SUBFIELD = b"SG"
_POSITION_END, _EXTERNAL = b"STARGZ", b"STARGZEXTERNALTOC"
_DIGITS = re.compile(rb"[0-9a-fA-F]{16}")
_POSITION_LENGTH = 16 + len(_POSITION_END)

# What a table may decode to: gzip makes about 10 to 1 of one, 50 to 1 of one that is all empty files.
_PLAUSIBLE_RATIO = 256
_PLAUSIBLE_SIZE = 1 << 20


class Footer(NamedTuple):
    """The offset in the blob where the table of contents begins, None if elsewhere, and the footer's own."""

    toc: int | None
    start: int


class External(NamedTuple):
    """A layer whose table of contents is in another image; its payloads end at `end`."""

    end: int


def parse_footer(tail: bytes, size: int) -> Footer:
    """Read the footer at the end of `tail`, which is the end of a blob of `size` bytes; raises InvalidImage.

    64 bytes of a tail are enough for the footers known; others are searched for in the last 512.
    """
    least = max(0, len(tail) - _SEARCHED)
    at = len(tail)
    while (at := tail.rfind(_MAGIC, least, at)) >= 0:
        footer = _footer(tail[at:], size - len(tail) + at)
        if footer:
            return footer
    raise InvalidImage("no eStargz footer", where=f"blob offset {size}")


def fetch_toc(layer: Descriptor) -> Fetch[Toc | External]:
    """Read an eStargz layer's table of contents, in one request or two.

    Yields ranges of the layer's blob, wants to be sent exactly these bytes, and returns the table, or that it
    is elsewhere. Raises InvalidImage; IntegrityError if the table is not the one the manifest names.
    """
    expected = toc_digest(layer)
    tail = yield from fetch_tail(layer.size)
    footer = parse_footer(tail.body, layer.size)
    if footer.toc is None:
        return External(footer.start)
    if footer.start - footer.toc > LIMIT:
        raise InvalidImage(f"a table of contents of over {LIMIT} bytes", where=f"blob offset {footer.toc}")
    packed = yield from tail.range(footer.toc, footer.start)
    return _read(packed, expected, footer.toc)


def toc_digest(layer: Descriptor) -> Digest:
    """Return the digest that the manifest says a layer's table has.

    Raises InvalidImage if it says none that is one.
    """
    return Digest.parse(layer.annotations.get(TOC_DIGEST), where=f"annotation {TOC_DIGEST}")


def external_toc(tocs: Manifest, layer: Descriptor) -> Descriptor | None:
    """Return the blob of the image `tocs`, under the suffixed name, that has the table of `layer`, if any."""
    named = str(layer.digest)
    return next((toc for toc in tocs.layers if toc.annotations.get(_LAYER_DIGEST) == named), None)


def read_external_toc(body: bytes, layer: Descriptor, external: External) -> Toc:
    """Read the whole blob that has the table of `layer`: packed as within a layer, without a footer.

    Only the digest in the layer's own manifest is trusted. Raises InvalidImage, IntegrityError.
    """
    return _read(body, toc_digest(layer), external.end)


def _read(packed: bytes, expected: Digest, end: int) -> Toc:
    body = _unpack(packed)
    expected.verify(body, "the layer's table of contents")
    return read_toc(body, codec=Codec.GZIP, end=end)


def _unpack(packed: bytes) -> bytes:
    """Return the JSON: the first member of the tar in a gzip member, without extension headers."""
    limit = min(LIMIT + 4 * BLOCK, max(_PLAUSIBLE_SIZE, _PLAUSIBLE_RATIO * len(packed)))
    where = "table of contents"
    unpacker = zlib.decompressobj(wbits=31)
    try:
        tar = unpacker.decompress(packed, limit)
    except zlib.error as error:
        raise InvalidImage(str(error), where=where) from error
    if not unpacker.eof:
        raise InvalidImage(f"cut, or of more than {limit} bytes", where=where)
    if len(tar) < BLOCK:
        raise InvalidImage("holds no tar", where=where)
    header = parse_header(tar[:BLOCK])
    if header.path != TOC_NAME.encode():
        raise InvalidImage(f"its tar begins with {header.path[:40]!r}, not {TOC_NAME}", where=where)
    if BLOCK + header.size > len(tar):
        raise InvalidImage(f"the {header.size} bytes of {TOC_NAME} are not all there", where=where)
    return tar[BLOCK : BLOCK + header.size]


def _footer(member: bytes, start: int) -> Footer | None:
    """Return the footer that `member`, the blob's bytes from `start` to its end, is, if it is one."""
    if len(member) < _LEAST_FOOTER or not member[3] & _FEXTRA or not _is_empty(member):
        return None
    extra = member[12 : 12 + int.from_bytes(member[10:12], "little")]
    for value in _values(extra):
        if value == _EXTERNAL:
            return Footer(None, start)
        if len(value) == _POSITION_LENGTH and value.endswith(_POSITION_END):
            return Footer(_position(value[:16], start), start)
    return None


def _values(extra: bytes) -> Iterator[bytes]:
    """Yield the values of the SG fields; all of the extra field is one in legacy footers."""
    if len(extra) == _POSITION_LENGTH:
        yield extra
    while len(extra) >= 4:
        length = int.from_bytes(extra[2:4], "little")
        if extra[:2] == _SUBFIELD and len(extra) >= 4 + length:
            yield extra[4 : 4 + length]
        extra = extra[4 + length :]


def _position(digits: bytes, footer: int) -> int:
    position = int(digits, 16) if _DIGITS.fullmatch(digits) else footer
    if position >= footer:
        raise InvalidImage(f"the eStargz footer points at {digits!r}", where=f"blob offset {footer}")
    return position


def _is_empty(member: bytes) -> bool:
    """Return whether this is one gzip member of nothing, with nothing behind it."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        return not unpacker.decompress(member, 1) and unpacker.eof and not unpacker.unused_data
    except zlib.error:
        return False
