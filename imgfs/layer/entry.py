"""The values that every layer format is turned into: entries, their extents, and spans with checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

WINDOW = 32 * 1024  # the farthest a deflate match can look back (RFC 1951, section 2)


class Kind(IntEnum):
    """The type of an entry. The numbers are stored."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    HARDLINK = 3
    CHARACTER = 4
    BLOCK = 5
    FIFO = 6


class Extent(NamedTuple):
    """A run of a file: `length` bytes at `offset` in the file are those at `flat` in the flat layer."""

    offset: int
    length: int
    flat: int


class Entry(NamedTuple):
    """One member of a layer, with the layer's own values.

    `path` and `target` are raw, as stored (uncleaned: `tree` does that). `mode` holds the twelve permission
    bits only. `device` is (major, minor). `xattrs` are unprefixed by PAX: `security.capability` and so on.
    `extents` are in order, without overlap; what they leave out of `size` is a hole.
    """

    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = {}
    extents: tuple[Extent, ...] = ()


class Codec(IntEnum):
    """How a span's compressed bytes become flat ones. The numbers are stored."""

    IDENTITY = 0  # they are the same
    GZIP = 1  # the span begins at a gzip member's header
    DEFLATE = 2  # the span begins inside a gzip member, at a deflate block: needs a checkpoint
    ZSTD = 3  # the span is whole zstd frames
    XZ = 4  # the span is whole xz streams
    BZIP2 = 5  # the span is whole bzip2 streams


class Checkpoint(NamedTuple):
    """Where inflate can begin in mid-member: `bits` (0-7) of the byte before the span's own first whole byte
    belong to it, `window` is up to 32 KiB of flat layer that come before (RFC 1951)."""

    bits: int
    window: bytes


class ChunkDigest(NamedTuple):
    """The sha256 of `length` flat bytes of a span, from `skip` bytes after the span's first on."""

    skip: int
    length: int
    digest: bytes


class Span(NamedTuple):
    """A piece of the flat layer, `[flat_start, flat_end)`, and the blob's bytes `[start, end)` that hold it.

    With a checkpoint of nonzero `bits`, the byte at `start` is the one whose upper `bits` bits begin the
    span. `digest` is the sha256 of exactly the blob's bytes `[start, end)`.

    A table of contents (eStargz, zstd:chunked) gives digests of decoded bytes instead: then `digest` is empty
    and `parts` say what is known: they ascend and do not overlap, so that checking them takes one pass. Where
    there are parts, they alone are checked. Files have no bytes outside of the parts; what the blob's bytes
    decode to beyond `flat_end` (the next member's tar header) does not count.
    """

    number: int
    flat_start: int
    flat_end: int
    start: int
    end: int
    codec: Codec
    digest: bytes
    checkpoint: Checkpoint | None = None
    parts: tuple[ChunkDigest, ...] = ()
