"""Write a zTOC of a layer that imgfs has indexed, for soci-snapshotter and other readers of zTOCs.

SOCI's spans differ from a scan's at both ends: the first begins after the gzip header, the last holds all
that is left of the blob. `soci_spans` makes them so; it has to see the bytes whose digest that changes. And
a zTOC says of every entry where its payload is or would be, from which the snapshotter tells where tar
headers are: `members` goes over the headers of the flat layer once more for that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from imgfs.errors import ImgfsError, IntegrityError, InvalidImage
from imgfs.layer.codec.frames import FRAMED
from imgfs.layer.codec.gzip import header_length
from imgfs.layer.entry import WINDOW, Checkpoint, Codec, Entry, Extent, Kind, Span
from imgfs.layer.soci.flatbuffer import FlatbufferBuilder
from imgfs.layer.soci.ztoc import FILE, INFO, KINDS, POINT, POINTS_HEAD, TAR_POINTS, TOC, VERSION, XATTR, ZTOC
from imgfs.layer.tar.header import BLOCK
from imgfs.layer.tar.reader import ReadRequest, parse_tar

Read = Callable[[int, int], bytes]

_TYPES = {kind: name for name, kind in KINDS.items()}
_GZIP, _UNCOMPRESSED = 1, 2  # `CompressionAlgorithm`
_TAR_POINTS_VERSION = 2  # ztoc/compression/tar_zinfo.go, `zinfoVersion`
_HEADER = 64 << 10  # bytes looked at for the gzip header, which may have a name and a comment
_EPOCH = datetime(1970, 1, 1)  # UTC, without saying so in isoformat()
_FIRST_SECOND, _LAST_SECOND = -62135596800, 253402300799  # of the years 1 and 9999


class Inexpressible(ImgfsError):
    """A layer that a zTOC cannot describe: several gzip members, zstd, sparse files, times before year 1."""


class Member(NamedTuple):
    """An entry, and where in the flat layer its payload is, or would be if it had one."""

    entry: Entry
    offset: int


def members(read: Read) -> Iterator[Member]:
    """Yield the members of a tar, in its order.

    `read(start, end)` are bytes of the flat layer, fewer at its end.

    Raises InvalidImage as `parse_tar` does, and Inexpressible for members that SOCI does not know.
    """
    emitted: list[Entry] = []
    reader = parse_tar(emitted.append)
    want = next(reader)
    while True:
        try:
            want = reader.send(read(want.offset, want.offset + want.length))
        except StopIteration:
            return
        for entry in emitted:
            yield Member(entry, _payload(entry, want))
        emitted.clear()


def soci_spans(spans: Sequence[Span], *, size: int, read: Read) -> list[Span]:
    """Return a scan's spans of a blob of `size` bytes as SOCI has them.

    `read(start, end)` are bytes of the blob; it is asked for the first span and, if the blob goes on after
    the last, for that one. Both are verified. Raises Inexpressible for a blob that is neither a tar nor one
    gzip member, IntegrityError.
    """
    if not spans:
        raise Inexpressible("a zTOC of nothing: the layer has no spans")
    expected = Codec.IDENTITY if spans[0].codec is Codec.IDENTITY else Codec.DEFLATE
    for span in spans[1:]:
        if span.codec is not expected:
            raise Inexpressible(
                f"span {span.number} is {span.codec.name}: a zTOC takes one gzip member or a tar"
            )
    if spans[0].codec in FRAMED.values():
        raise Inexpressible(f"a {spans[0].codec.name.lower()} layer: a zTOC takes gzip or a tar")
    result = list(spans)
    if spans[-1].end != size:
        result[-1] = _extended(spans[-1], size, read)
    if spans[0].codec is Codec.GZIP:
        body = read(result[0].start, result[0].end)
        result[0] = first_span(result[0], body)
    return result


def first_span(span: Span, body: bytes) -> Span:
    """`span`, which `body` is the blob's bytes of, without the gzip header that it begins with."""
    _verify(span, body)
    length = header_length(body[:_HEADER])
    if length is None:
        raise InvalidImage("the first span ends within the gzip header", where="gzip offset 0")
    digest = hashlib.sha256(body[length:]).digest()
    return span._replace(start=length, codec=Codec.DEFLATE, digest=digest, checkpoint=Checkpoint(0, b""))


def build_ztoc(
    layer: Iterable[Member], spans: Sequence[Span], *, size: int, flat_size: int, tool: str
) -> bytes:
    """Return the zTOC of a blob of `size` bytes that holds these members.

    `spans` are as `soci_spans` has them.

    `tool` names the program that makes it. User and group names, which no reader needs, are left empty. The
    same input makes the same bytes. Raises Inexpressible.
    """
    _check_spans(spans, size)
    builder = FlatbufferBuilder()
    files = builder.vector([_file(builder, member) for member in layer])
    toc = builder.table(TOC, [files])
    gzip = spans[0].codec is Codec.DEFLATE
    points = builder.string(_points(spans) if gzip else _tar_points(spans, size))
    digests = builder.vector([builder.string(b"sha256:" + span.digest.hex().encode()) for span in spans])
    info = builder.table(INFO, [_GZIP if gzip else _UNCOMPRESSED, len(spans) - 1, digests, points])
    names = builder.string(VERSION), builder.string(tool.encode())
    return builder.finish(builder.table(ZTOC, [*names, size, flat_size, toc, info]))


def format_mod_time(nanoseconds: int) -> bytes:
    """Return a time since the epoch as Go writes it: RFC 3339 in UTC, the fraction as short as can be."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    if not _FIRST_SECOND <= seconds <= _LAST_SECOND:
        raise Inexpressible(f"a time {seconds} s from 1970 is in no year from 1 to 9999")
    text = (_EPOCH + timedelta(seconds=seconds)).isoformat()
    return (text + (f".{fraction:09d}".rstrip("0") if fraction else "") + "Z").encode()


_mod_time = lru_cache(maxsize=1024)(format_mod_time)


def _payload(entry: Entry, want: ReadRequest) -> int:
    """Return where the payload of the member just read begins, if `want` is its reader's next request: the
    next header, from the payload's last byte on if it has one."""
    if entry.kind is Kind.FILE and entry.size:
        if len(entry.extents) != 1 or entry.extents[0][:2] != (0, entry.size):
            raise Inexpressible(f"{entry.path!r:.200} is sparse: a zTOC has no place for the map")
        return entry.extents[0].flat
    if want.length != BLOCK:
        raise Inexpressible(f"{entry.path!r:.200} has a payload, and is not a file")
    return want.offset


def _extended(span: Span, size: int, read: Read) -> Span:
    """Return the last span, with what follows it in the blob: an empty block and the gzip trailer."""
    body = read(span.start, size)
    _verify(span, body[: span.end - span.start])
    return span._replace(end=size, digest=hashlib.sha256(body).digest())


def _verify(span: Span, body: bytes) -> None:
    actual = hashlib.sha256(body)
    if actual.digest() != span.digest:
        raise IntegrityError(f"span {span.number}", expected=span.digest.hex(), actual=actual.hexdigest())


def _check_spans(spans: Sequence[Span], size: int) -> None:
    codec = spans[0].codec if spans else None
    if codec not in (Codec.DEFLATE, Codec.IDENTITY) or any(span.codec is not codec for span in spans):
        raise Inexpressible("spans that are not of one gzip member or one tar")
    if spans[-1].end != size or any(len(span.digest) != 32 for span in spans):
        raise Inexpressible("spans that do not reach the end of the blob or have no digest")


def _points(spans: Sequence[Span]) -> bytes:
    """Return the checkpoints of a gzip blob.

    The span size is for people: more than that lies between any two.
    """
    parts = [POINTS_HEAD.pack(len(spans), _least(spans))]
    for span in spans:
        bits, window = span.checkpoint or Checkpoint(0, b"")
        parts.append(POINT.pack(span.start + bool(bits), span.flat_start, bits, window.rjust(WINDOW, b"\0")))
    return b"".join(parts)


def _least(spans: Sequence[Span]) -> int:
    """One byte less than the shortest span but the last, as a snapshotter makes them (gzip_zinfo.c)."""
    lengths = [span.flat_end - span.flat_start for span in spans]
    return max(1, min(lengths[:-1] or lengths) - 1)


def _tar_points(spans: Sequence[Span], size: int) -> bytes:
    """Return how a tar is cut: in spans of one length, the last of what is left."""
    step = spans[0].end
    if any(span.start != number * step for number, span in enumerate(spans)) or size > step * len(spans):
        raise Inexpressible("a tar cut into spans of different lengths")
    return TAR_POINTS.pack(_TAR_POINTS_VERSION, step, size)


def _file(builder: FlatbufferBuilder, member: Member) -> int:
    """Add an entry's table."""
    entry, offset = member
    if entry.kind is Kind.FILE and entry.size and entry.extents != (Extent(0, entry.size, offset),):
        raise Inexpressible(f"{entry.path!r:.200} is sparse: a zTOC has no place for the map")
    records = [(b"SCHILY.xattr." + name, value) for name, value in sorted(entry.xattrs.items())]
    return builder.table(
        FILE,
        [
            builder.string(entry.path),
            builder.string(_TYPES[entry.kind], shared=True),
            offset,
            entry.size,
            builder.string(entry.target) if entry.target else None,
            entry.mode,
            entry.uid,
            entry.gid,
            None,
            None,
            builder.string(_mod_time(entry.mtime_ns), shared=True),
            *entry.device,
            builder.vector([_record(builder, *record) for record in records]) if records else None,
        ],
    )


def _record(builder: FlatbufferBuilder, key: bytes, value: bytes) -> int:
    return builder.table(XATTR, [builder.string(key, shared=True), builder.string(value)])
