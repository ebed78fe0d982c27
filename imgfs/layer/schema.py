"""The tables of a layer index, which `indexwriter` writes and `index` reads, and values packed in rows.

A layer has one uncompressed address space, the flat layer. `entry` says which extents of it make up a file,
`span` how to get a run of it out of the blob without decoding all before it, `checkpoint` where
inflate can begin there. A merged tree packs the values of its rows likewise.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

from imgfs.layer.entry import ChunkDigest, Codec, Entry, Extent, Kind
from imgfs.layer.origin import repositories_in
from imgfs.layer.sqlite import LARGEST, integers, typed

FORMAT = 3  # of the file; another number means: index the layer again
PUBLISHED_FORMAT = 2  # of a published file, and of old ones: without an origin
TAR = "tar"  # the flat space that is the tar stream itself
_PART = struct.Struct("<QQ32s")  # skip, length, sha256


class Summary(NamedTuple):
    """A layer as a whole. Sizes are in bytes."""

    digest: str  # of the blob, as in the manifest
    diff_id: str  # of the uncompressed tar, as in the config
    format: str  # how the blob is packed, for display: "tar", "gzip", "gzip members", "zstd", "estargz", …
    size: int  # of the blob
    flat_size: int
    entries: int
    space: str = TAR  # the flat layer that offsets refer to: the tar stream, or the chunks of a certain TOC
    is_lean: bool = False  # spans only: the entries are in the merged tree
    origin: str = ""  # what it is trusted by (`layer.origin`); "" if it was verified here

    @property
    def trusted_by(self) -> str:
        """The repositories on whose word alone the index is trusted; "" if the image has a digest for it."""
        return repositories_in(self.origin)


class ExternalBlob(NamedTuple):
    """A blob besides the layer's own, in the same repository. Its size is in bytes."""

    digest: str
    size: int


# A checkpoint's `window` is a zstd frame, or, where that is at `[start, end)` of blob WINDOWS, its sha256.
SCHEMA = """
CREATE TABLE summary (format_number INTEGER, digest TEXT, diff_id TEXT, format TEXT,
                      size INTEGER, flat_size INTEGER, entries INTEGER, space TEXT, is_lean INTEGER,
                      origin TEXT);
CREATE TABLE entry (seq INTEGER PRIMARY KEY, path BLOB, kind INTEGER, mode INTEGER, uid INTEGER, gid INTEGER,
                    size INTEGER, mtime_ns INTEGER, target BLOB, major INTEGER, minor INTEGER, xattrs BLOB,
                    flat INTEGER, extents BLOB);
CREATE TABLE span (number INTEGER PRIMARY KEY, flat_start INTEGER, flat_end INTEGER, start INTEGER,
                   end INTEGER, codec INTEGER, digest BLOB, parts BLOB);
CREATE TABLE checkpoint (number INTEGER PRIMARY KEY, bits INTEGER, window BLOB, start INTEGER, end INTEGER);
CREATE TABLE elsewhere (what TEXT PRIMARY KEY, digest TEXT, size INTEGER);
"""
# The rows that a merge reads before the others: few, so a partial index costs next to nothing.
SHORTCUTS = f"""
CREATE INDEX whiteout ON entry (seq) WHERE instr(path, CAST('.wh.' AS BLOB)) > 0;
CREATE INDEX hardlink ON entry (seq) WHERE kind = {Kind.HARDLINK:d};
"""
# `what` of `elsewhere`: the blob that spans are cut from, the blob of checkpoints' windows.
BLOB, WINDOWS = "blob", "windows"
_LARGEST_ID = (1 << 32) - 1
TIME_RULE = "(typeof(mtime_ns) = 'integer' OR typeof(mtime_ns) = 'blob' AND length(mtime_ns) = 16)"
# What holds for every row of an index, an imported one too.
RULES = {
    "summary": f"{typed('text', 'digest', 'diff_id', 'format', 'space')} AND "
    f"{integers(0, LARGEST, 'size', 'flat_size', 'entries')} AND {integers(0, 1, 'is_lean')} AND "
    "(SELECT count(*) FROM summary) = 1 AND entries = (SELECT count(*) FROM entry)",
    "entry": f"{typed('blob', 'path', 'target')} AND {integers(0, max(Kind), 'kind')} AND "
    f"{integers(0, 0o7777, 'mode')} AND {integers(0, _LARGEST_ID, 'uid', 'gid', 'major', 'minor')} AND "
    f"{integers(0, LARGEST, 'size')} AND {TIME_RULE} AND "
    f"{typed('blob null', 'xattrs', 'extents')} AND (flat IS NULL OR {integers(0, LARGEST, 'flat')})",
    "span": f"{integers(0, LARGEST, 'number', 'flat_start', 'flat_end', 'start', 'end')} AND "
    f"{integers(0, max(Codec), 'codec')} AND {typed('blob', 'digest')} AND {typed('blob null', 'parts')}",
    "checkpoint": f"{integers(0, 7, 'bits')} AND {typed('blob', 'window')} AND "
    f"(coalesce(start, end) IS NULL OR {integers(0, LARGEST, 'start', 'end')} AND length(window) = 32)",
    "elsewhere": f"what IN ('{BLOB}', '{WINDOWS}') AND {typed('text', 'digest')} AND "
    f"{integers(0, LARGEST, 'size')}",
}


def pack_xattrs(xattrs: Mapping[bytes, bytes]) -> bytes | None:
    """Pack extended attributes into one blob, sorted by name; None if there are none."""
    if not xattrs:
        return None
    parts = []
    for name, value in sorted(xattrs.items()):
        parts += [len(name).to_bytes(4, "little"), len(value).to_bytes(4, "little"), name, value]
    return b"".join(parts)


def unpack_xattrs(blob: bytes | None) -> dict[bytes, bytes]:
    """Return the inverse of `pack_xattrs`."""
    xattrs, at = {}, 0
    while blob and at < len(blob):
        name_length = int.from_bytes(blob[at : at + 4], "little")
        value_length = int.from_bytes(blob[at + 4 : at + 8], "little")
        at += 8 + name_length + value_length
        xattrs[blob[at - name_length - value_length : at - value_length]] = blob[at - value_length : at]
    return xattrs


def pack_extents(extents: Iterable[Extent]) -> bytes:
    """Pack extents into one blob of little-endian 64-bit triples."""
    return b"".join(number.to_bytes(8, "little") for extent in extents for number in extent)


def unpack_extents(blob: bytes) -> tuple[Extent, ...]:
    """Return the inverse of `pack_extents`; raises ValueError."""
    if len(blob) % 24:
        raise ValueError(f"{len(blob)} bytes of extents")
    numbers = memoryview(blob).cast("Q")  # little-endian hosts only, like everything FUSE and zlib here
    if any(number >> 63 for number in numbers):
        raise ValueError("an extent beyond all layers")
    return tuple(Extent(*numbers[at : at + 3]) for at in range(0, len(numbers), 3))


def pack_chunk_digests(parts: Iterable[ChunkDigest]) -> bytes | None:
    """Pack a span's chunk digests into one blob, 48 bytes each; None if there are none."""
    return b"".join(_PART.pack(*part) for part in parts) or None


def unpack_chunk_digests(blob: bytes) -> tuple[ChunkDigest, ...]:
    """Return the inverse of `pack_chunk_digests`.

    Raises ValueError, also for chunks that overlap or do not ascend.

    Chunks that overlapped would have the same bytes hashed as often as an index's author likes.
    """
    if len(blob) % _PART.size:
        raise ValueError(f"{len(blob)} bytes of parts")
    parts = tuple(map(ChunkDigest._make, _PART.iter_unpack(blob)))
    if any(second.skip < first.skip + first.length for first, second in pairwise(parts)):
        raise ValueError("parts that overlap or do not ascend")
    return parts


def pack_time(mtime_ns: int) -> int | bytes:
    """Pack a time: a number, or, for a year before 1678 or after 2262, 16 bytes."""
    if -(1 << 63) <= mtime_ns < 1 << 63:
        return mtime_ns
    return mtime_ns.to_bytes(16, "little", signed=True)


def unpack_time(stored: int | bytes) -> int:
    """Return the inverse of `pack_time`."""
    return stored if isinstance(stored, int) else int.from_bytes(stored, "little", signed=True)


def stored_extents(entry: Entry) -> tuple[int | None, bytes | None]:
    """Return (flat, None) for a file of one extent, which is usual, else (None, packed extents)."""
    extents = entry.extents
    if len(extents) == 1 and extents[0][:2] == (0, entry.size):
        return extents[0].flat, None
    return None, pack_extents(extents) if extents else None
