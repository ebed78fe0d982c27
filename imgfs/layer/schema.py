"""The tables of a layer index: what `indexwriter` writes and `index` reads.

A layer has one uncompressed address space, the flat layer. `entry` says which extents of it make up a file,
`span` how to get a run of it out of the blob without decoding all before it, `checkpoint` where
inflate can begin there.
"""

from __future__ import annotations

from typing import NamedTuple

from imgfs.layer.entry import Codec, Kind
from imgfs.layer.origin import repositories_in
from imgfs.layer.rows import LARGEST, TIME_RULE, integers, typed

FORMAT = 3  # of the file; another number means: index the layer again
PUBLISHED_FORMAT = 2  # of a published file, and of old ones: without an origin
TAR = "tar"  # the flat space that is the tar stream itself


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
