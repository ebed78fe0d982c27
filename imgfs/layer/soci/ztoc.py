"""SOCI's zTOC: an index of a layer whose blob stays as it is (awslabs/soci-snapshotter).

A zTOC is a flatbuffer of what the tar's headers say, of the checkpoints at which a gzip member can be
entered, and of the sha256 of every compressed range between them (ztoc/fbs/ztoc.fbs). Its flat layer is the
tar stream itself, as imgfs's own. `ztoc_writer` makes one.

What it cannot describe. Sparse files: its writer takes Go's archive/tar at its word, which gives an old GNU
sparse member another type, so no zTOC is made at all, and a PAX one the size it expands to, at the offset of
what is stored; such an entry is refused here, a zTOC has no field for the map. A global PAX header or a
typeflag that Go does not know also leave a layer without zTOC. The uncompressed size is where the writer's
tar reader stopped: zeros that pad the archive further do not belong to the flat layer, whose sha256 then is
not the DiffID.
"""

from __future__ import annotations

import re
import struct
from datetime import date
from functools import lru_cache
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.layer.entry import WINDOW, Checkpoint, Codec, Entry, Extent, Kind, Span
from imgfs.layer.limits import ZTOC_LIMIT
from imgfs.layer.soci.flatbuffer import INT8, INT32, INT64, STRING, TABLE, UINT32, VECTOR, Flatbuffer, Schema
from imgfs.layer.tar import pax
from imgfs.oci.descriptor import Digest

VERSION = b"0.9"  # the only one that was ever published (ztoc/ztoc.go, `Version09`)

# ztoc/fbs/ztoc.fbs, the fields of each table by slot
ZTOC: Schema = (STRING, STRING, INT64, INT64, TABLE, TABLE)
TOC: Schema = (VECTOR,)
INFO: Schema = (INT8, INT32, VECTOR, VECTOR)
FILE: Schema = (
    *(STRING, STRING, INT64, INT64, STRING),  # name, type, uncompressed_offset, uncompressed_size, linkname
    *(INT64, UINT32, UINT32, STRING, STRING),  # mode, uid, gid, uname, gname
    *(STRING, INT64, INT64, VECTOR),  # mod_time, devmajor, devminor, xattrs
)
XATTR: Schema = (STRING, STRING)

# `type` (ztoc/toc_builder.go, `getType`) and `compression_algorithm`, whose default is gzip
KINDS = {
    b"reg": Kind.FILE,
    b"dir": Kind.DIRECTORY,
    b"symlink": Kind.SYMLINK,
    b"hardlink": Kind.HARDLINK,
    b"char": Kind.CHARACTER,
    b"block": Kind.BLOCK,
    b"fifo": Kind.FIFO,
}
FORMATS = {0: "gzip", 1: "gzip", 2: "tar"}

# The checkpoints (ztoc/compression/gzip_zinfo.c, `zinfo_to_blob`): how many, span size; then per checkpoint
# in, out, bits, window. Those of a tar (tar_zinfo.go): version, span size, size.
POINTS_HEAD = struct.Struct("<iq")
POINT = struct.Struct(f"<qqB{WINDOW}s")
TAR_POINTS = struct.Struct("<iqq")
_FIRST_POINT = 10  # where the older form, which leaves it out, takes the first for: after a plain gzip header
_RATIO = 1032  # flat bytes to a compressed one: deflate's most, 258 bytes in 2 bits (RFC 1951, section 3.2.5)

_TIME = re.compile(
    rb"(\d{4}-\d\d-\d\d)T([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d{1,9}))?(?:Z|([+-])([01]\d|2[0-3]):([0-5]\d))"
)
_EPOCH = date(1970, 1, 1).toordinal()
_LINKS = frozenset((Kind.SYMLINK, Kind.HARDLINK))
_DEVICES = frozenset((Kind.CHARACTER, Kind.BLOCK))


class Ztoc(NamedTuple):
    """A layer as its zTOC describes it; sizes are in bytes.

    `format` is how the blob is packed, "gzip" or "tar"; `tool` who made the zTOC, for people.
    """

    entries: list[Entry]
    spans: list[Span]
    flat_size: int
    format: str
    tool: str


class _Point(NamedTuple):
    """A checkpoint as SOCI has it: `start` is the first whole byte, the `bits` are of the one before it."""

    start: int
    flat: int
    checkpoint: Checkpoint | None


def parse_ztoc(body: bytes, *, size: int) -> Ztoc:
    """Read the zTOC of a blob of `size` bytes; raises InvalidImage for one that is damaged or another's.

    The spans cover the flat layer from 0 without gaps. The first begins after the gzip header, and the blob's
    last bytes belong to the last one. Nothing is read but `body`, so whether spans hold what they should
    shows when they are decoded. What follows the flatbuffer is not looked at.
    """
    if len(body) > ZTOC_LIMIT:
        raise InvalidImage(f"{len(body)} bytes are more than {ZTOC_LIMIT}", where="zTOC")
    buffer = Flatbuffer(body)
    version, tool, blob_size, flat_size, toc, info = buffer.table(buffer.root(), ZTOC)
    if version != VERSION:
        raise InvalidImage(f"version {version[:40]!r}, not {VERSION!r}", where="zTOC")
    if blob_size != size:
        raise InvalidImage(f"made for a blob of {blob_size} bytes, not {size}", where="zTOC")
    if toc is None or info is None or flat_size < 0:
        raise InvalidImage("without its entries, its spans or its size", where="zTOC")
    format_name, points, hashes = _compression(buffer, info, size)
    if format_name == "tar":
        flat_size = size  # its writer may have stopped reading before the end, but all of it is flat layer
    spans = _spans(points, hashes, size, flat_size)
    (files,) = buffer.table(toc, TOC)
    entries = [] if files is None else _entries(buffer, buffer.pointers(files), flat_size)
    return Ztoc(entries, spans, flat_size, format_name, tool.decode("utf-8", "replace"))


def parse_mod_time(text: bytes) -> int:
    """Return nanoseconds since the epoch of a time as Go writes it (RFC 3339, 5.6, with a fraction).

    The zone is that of the machine that made the zTOC. A time in a year that RFC 3339 has no digits for is
    left empty by its writer: nothing is right for it, so that is InvalidImage too.
    """
    match = _TIME.fullmatch(text)
    if not match:
        raise InvalidImage(f"{text[:40]!r} is not a time")
    day, hour, minute, second, fraction, sign, zone_hours, zone_minutes = match.groups()
    seconds = _day(day) * 86400 + int(hour) * 3600 + int(minute) * 60 + int(second)
    if sign:
        east = int(zone_hours) * 3600 + int(zone_minutes) * 60
        seconds += east if sign == b"-" else -east
    return seconds * 1_000_000_000 + int((fraction or b"0").ljust(9, b"0"))


_mod_time = lru_cache(maxsize=1024)(parse_mod_time)


@lru_cache(maxsize=1024)
def _day(text: bytes) -> int:
    """Days since the epoch."""
    try:
        return date.fromisoformat(text.decode()).toordinal() - _EPOCH
    except ValueError as error:
        raise InvalidImage(f"{text!r} is not a date") from error


def _entries(buffer: Flatbuffer, tables: list[int], flat_size: int) -> list[Entry]:
    """Return the entries, sorted by their offsets into the order of the tar, as in ztoc/ztoc_marshaler.go."""
    found = []
    for number, at in enumerate(tables):
        try:
            found.append(_entry(buffer, at, flat_size))
        except InvalidImage as error:
            raise InvalidImage(str(error), where=f"zTOC entry {number}") from error
    found.sort(key=lambda pair: pair[0])
    end = 0
    for start, entry in found:
        if start < end:
            raise InvalidImage(
                f"overlaps the file before it, at {start}", where=f"zTOC entry {entry.path!r:.200}"
            )
        end = start + entry.size
    return [entry for _, entry in found]


def _entry(buffer: Flatbuffer, at: int, flat_size: int) -> tuple[int, Entry]:
    """Return (where in the flat layer its payload is or would be, an entry)."""
    fields = buffer.table(at, FILE)
    path, type_name, start, size, target, mode, uid, gid, _, _, mod_time, major, minor, xattrs = fields
    kind = KINDS.get(type_name)
    if kind is None:
        raise InvalidImage(f"type {type_name[:40]!r} is not known")
    if not path or b"\0" in path or b"\0" in target:
        raise InvalidImage(f"{path[:100]!r} -> {target[:100]!r} is not a path")
    if kind is not Kind.FILE:
        size = 0  # the tar header's may be another: it means nothing there
    if not (0 <= start <= flat_size and 0 <= size <= flat_size - start):
        raise InvalidImage(f"{size} bytes at {start} are not inside of the {flat_size} there are")
    device = (major, minor) if kind in _DEVICES else (0, 0)
    if not all(0 <= part < 1 << 32 for part in device):
        raise InvalidImage(f"device number {major}:{minor} is out of range")
    return start, Entry(
        path,
        kind,
        mode & 0o7777,
        uid,
        gid,
        size,
        _mod_time(mod_time),
        target if kind in _LINKS else b"",
        device,
        {} if xattrs is None else _xattrs(buffer, xattrs),
        (Extent(0, size, start),) if size else (),
    )


def _xattrs(buffer: Flatbuffer, at: int) -> dict[bytes, bytes]:
    """Return the extended attributes among what is called `xattrs`: the member's PAX records, all of them."""
    records: dict[bytes, bytes] = dict(buffer.table(target, XATTR) for target in buffer.pointers(at))
    if any(key.startswith(b"GNU.sparse.") for key in records):
        raise InvalidImage("a sparse file, which a zTOC has no map for")
    return pax.parse_xattrs(records) if records else {}


def _compression(buffer: Flatbuffer, at: int, size: int) -> tuple[str, list[_Point], list[bytes]]:
    """Return how the blob is packed, where its spans begin, and their digests: as many."""
    algorithm, last, digests, points = buffer.table(at, INFO)
    if algorithm not in FORMATS:
        raise InvalidImage(f"compression algorithm {algorithm} is not known", where="zTOC")
    packed = memoryview(b"") if points is None else buffer.octets(points)
    hashes = [] if digests is None else [_digest(buffer, target) for target in buffer.pointers(digests)]
    found = _points(packed) if FORMATS[algorithm] == "gzip" else _tar_points(packed, size, len(hashes))
    if not len(found) == len(hashes) == last + 1:
        counts = f"{len(found)} checkpoints and {len(hashes)} digests for {last + 1} spans"
        raise InvalidImage(counts, where="zTOC")
    return FORMATS[algorithm], found, hashes


def _digest(buffer: Flatbuffer, at: int) -> bytes:
    digest = Digest.parse(buffer.string(at).decode("ascii", "replace"), where="zTOC span digest")
    if digest.algorithm != "sha256":
        raise InvalidImage(f"{digest.algorithm}, not sha256", where="zTOC span digest")
    return bytes.fromhex(digest.hex)


def _points(packed: memoryview) -> list[_Point]:
    """Return a gzip blob's checkpoints.

    One fewer than they say there are: the older form, the first left out.
    """
    if len(packed) < POINTS_HEAD.size:
        raise InvalidImage("without checkpoints", where="zTOC")
    count, _ = POINTS_HEAD.unpack_from(packed)
    there, rest = divmod(len(packed) - POINTS_HEAD.size, POINT.size)
    if rest or count < 1 or there not in (count, count - 1):
        raise InvalidImage(f"{len(packed)} bytes are not {count} checkpoints", where="zTOC")
    older = [] if there == count else [_Point(_FIRST_POINT, 0, Checkpoint(0, b""))]
    return older + [_point(*fields) for fields in POINT.iter_unpack(packed[POINTS_HEAD.size :])]


def _point(start: int, flat: int, bits: int, window: bytes) -> _Point:
    """Return a checkpoint, its window without the zeros that stand for what is before the flat layer."""
    if not (start >= bool(bits) and flat >= 0 and bits < 8):
        raise InvalidImage(f"a checkpoint at {start}, {bits} bits, flat {flat}", where="zTOC")
    return _Point(start, flat, Checkpoint(bits, window[WINDOW - min(flat, WINDOW) :]))


def _tar_points(packed: memoryview, size: int, count: int) -> list[_Point]:
    """Return where the `count` spans of an uncompressed blob begin: every span size (tar_zinfo.go)."""
    if len(packed) != TAR_POINTS.size:
        raise InvalidImage(f"{len(packed)} bytes do not say how a tar is cut", where="zTOC")
    _, step, length = TAR_POINTS.unpack(packed)
    if length != size or step < 1 or -(-size // step) != count:
        raise InvalidImage(f"{count} spans of {step} bytes in a tar of {length}, not {size}", where="zTOC")
    return [_Point(start, start, None) for start in range(0, size, step)]


def _spans(points: list[_Point], digests: list[bytes], size: int, flat_size: int) -> list[Span]:
    """The spans between the checkpoints: each ends with the byte that the next one begins in, whose bits both
    need (gzip_zinfo.go, `EndCompressedOffset`). Those in the padding after the flat layer are left out."""
    if not points or points[0].flat:
        raise InvalidImage("nothing decodes the first byte", where="zTOC")
    spans = []
    ends = [(point.start, point.flat) for point in points[1:]] + [(size, max(flat_size, points[-1].flat + 1))]
    for number, (point, (end, flat_end)) in enumerate(zip(points, ends, strict=True)):
        checkpoint = point.checkpoint
        start = point.start - bool(checkpoint and checkpoint.bits)
        if point.start >= end or point.flat >= flat_end or flat_end - point.flat > _RATIO * (end - start):
            raise InvalidImage(
                f"[{start}, {end}) cannot be [{point.flat}, {flat_end})", where=f"zTOC span {number}"
            )
        codec = Codec.DEFLATE if checkpoint else Codec.IDENTITY
        if point.flat < flat_size:
            flat_end = min(flat_end, flat_size)
            spans.append(Span(number, point.flat, flat_end, start, end, codec, digests[number], checkpoint))
    return spans
