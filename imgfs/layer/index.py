"""What is known of a layer once it has been indexed, and the file it is kept in.

A layer has one uncompressed address space, the flat layer. `Entry` says which extents of it make up a file,
`Span` says how to get a piece of it out of the blob without decoding what comes before.

The file is SQLite: it is written once, renamed into place, and from then on only read, by any number of
processes, a row at a time; opening it loads nothing, however large the layer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import zstandard

from imgfs.errors import StoreError
from imgfs.layer.entry import WINDOW, Checkpoint, Codec, Entry, Extent, Kind, Span
from imgfs.layer.rows import (
    clamp_time,
    create_database,
    open_database,
    pack_xattrs,
    stored_extents,
    unpack_extents,
    unpack_xattrs,
)

FORMAT = 1  # of the file; another number means: index the layer again

_T = TypeVar("_T")


class Summary(NamedTuple):
    """What a layer index says of the layer as a whole. Sizes are in bytes."""

    digest: str  # of the blob, as in the manifest
    diff_id: str  # of the uncompressed tar, as in the config
    format: str  # how the blob is packed, for people: "tar", "gzip", "zstd"
    size: int  # of the blob
    flat_size: int
    entries: int


_SCHEMA = """
CREATE TABLE summary (format_number INTEGER, digest TEXT, diff_id TEXT, format TEXT,
                      size INTEGER, flat_size INTEGER, entries INTEGER);
CREATE TABLE entry (seq INTEGER PRIMARY KEY, path BLOB, kind INTEGER, mode INTEGER, uid INTEGER, gid INTEGER,
                    size INTEGER, mtime_ns INTEGER, target BLOB, major INTEGER, minor INTEGER, xattrs BLOB,
                    flat INTEGER, extents BLOB);
CREATE TABLE span (number INTEGER PRIMARY KEY, flat_start INTEGER, flat_end INTEGER, start INTEGER,
                   end INTEGER, codec INTEGER, digest BLOB);
CREATE TABLE checkpoint (number INTEGER PRIMARY KEY, bits INTEGER, window BLOB);
"""
# The rows that a merge asks for ahead of the others: few, so a partial index costs next to nothing.
_SHORTCUTS = f"""
CREATE INDEX whiteout ON entry (seq) WHERE instr(path, CAST('.wh.' AS BLOB)) > 0;
CREATE INDEX hardlink ON entry (seq) WHERE kind = {Kind.HARDLINK:d};
"""
_INSERT_ENTRY = "INSERT INTO entry VALUES (NULL,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_ENTRY = "SELECT path,kind,mode,uid,gid,size,mtime_ns,target,major,minor,xattrs,flat,extents FROM entry"
_BATCH = 1000


class IndexWriter:
    """Writes a layer index to a new file at `path`; nobody may look at it before `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = create_database(path, _SCHEMA)
        self._entries: list[tuple[object, ...]] = []
        self._count = 0

    def add_entry(self, entry: Entry) -> None:
        """Append one entry, in the layer's own order."""
        flat, extents = stored_extents(entry)
        head = (entry.path, int(entry.kind), entry.mode, entry.uid, entry.gid, entry.size)
        tail = (clamp_time(entry.mtime_ns), entry.target, *entry.device, pack_xattrs(entry.xattrs))
        self._entries.append((*head, *tail, flat, extents))
        if len(self._entries) >= _BATCH:
            self._flush()

    def add_span(self, span: Span) -> None:
        """Append one span; their flat ranges must follow each other without a gap."""
        row = (
            span.number,
            span.flat_start,
            span.flat_end,
            span.start,
            span.end,
            int(span.codec),
            span.digest,
        )
        self._db.execute("INSERT INTO span VALUES (?,?,?,?,?,?,?)", row)
        if span.checkpoint:
            window = zstandard.ZstdCompressor(level=3).compress(span.checkpoint.window)
            checkpoint = (span.number, span.checkpoint.bits, window)
            self._db.execute("INSERT INTO checkpoint VALUES (?,?,?)", checkpoint)

    def finish(self, *, digest: str, diff_id: str, format: str, size: int, flat_size: int) -> None:  # noqa: A002
        """Write the summary and close the file; it is complete from here on."""
        self._flush()
        row = (FORMAT, digest, diff_id, format, size, flat_size, self._count)
        self._db.execute("INSERT INTO summary VALUES (?,?,?,?,?,?,?)", row)
        self._db.executescript(_SHORTCUTS)
        self._db.commit()
        self.close()

    def close(self) -> None:
        """Close the file without saying that it is complete."""
        self._db.close()

    def _flush(self) -> None:
        self._db.executemany(_INSERT_ENTRY, self._entries)
        self._count += len(self._entries)
        self._entries.clear()


class LayerIndex(AbstractContextManager["LayerIndex"]):
    """A layer's index, read from the file at `path`: a context manager, for one thread at a time.

    Raises StoreError if the file is no index of this format, and whenever it turns out to be damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = open_database(path)
        try:
            with self._reading():
                self.summary = self._summary()
        except StoreError:
            self._db.close()
            raise

    def _summary(self) -> Summary:
        row = self._db.execute("SELECT * FROM summary").fetchone()
        if row is None or row[0] != FORMAT:
            raise StoreError(
                f"{self._path}: a layer index of another format; remove it to index the layer again"
            )
        return Summary(*row[1:])

    def entries(self) -> Iterator[Entry]:
        """All entries, in the layer's own order."""
        return self._each(_entry, f"{_ENTRY} ORDER BY seq")

    def whiteout_candidates(self) -> Iterator[Entry]:
        """The entries with `.wh.` anywhere in their path, in order: every whiteout is among them."""
        where = "WHERE instr(path, CAST('.wh.' AS BLOB)) > 0 ORDER BY seq"
        return self._each(_entry, f"{_ENTRY} {where}")

    def hardlinks(self) -> Iterator[Entry]:
        """The hard links, in order."""
        return self._each(_entry, f"{_ENTRY} WHERE kind = {Kind.HARDLINK:d} ORDER BY seq")

    def directories(self) -> Iterator[bytes]:
        """The paths of the layer's own directory entries, as stored."""
        where = f"WHERE kind = {Kind.DIRECTORY:d}"
        return self._each(itemgetter(0), f"SELECT path FROM entry {where}")

    def span_bounds(self) -> Iterator[tuple[int, int, int, int]]:
        """(flat_start, flat_end, start, end) of every span, in order."""
        return self._each(tuple, "SELECT flat_start,flat_end,start,end FROM span ORDER BY number")

    def span_count(self) -> int:
        """How many spans there are."""
        with self._reading():
            count: int = self._db.execute("SELECT count(*) FROM span").fetchone()[0]
        return count

    def span(self, number: int) -> Span:
        """One span, with its checkpoint; raises KeyError."""
        with self._reading():
            row = self._db.execute("SELECT * FROM span WHERE number=?", (number,)).fetchone()
            if row is None:
                raise KeyError(number)
            found = self._db.execute(
                "SELECT bits,window FROM checkpoint WHERE number=?", (number,)
            ).fetchone()
            checkpoint = Checkpoint(found[0], _unpack_window(found[1])) if found else None
            number, flat_start, flat_end, start, end, codec, digest = row
            return Span(number, flat_start, flat_end, start, end, Codec(codec), digest, checkpoint)

    def _each(self, convert: Callable[[Any], _T], query: str) -> Iterator[_T]:
        with self._reading():
            yield from map(convert, self._db.execute(query))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Say StoreError where SQLite, or what a row holds, says that the file is damaged."""
        try:
            yield
        except (sqlite3.DatabaseError, zstandard.ZstdError, TypeError, ValueError) as error:
            raise StoreError(
                f"{self._path}: no layer index, or damaged ({error}); remove it to index the layer again"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _unpack_window(blob: bytes) -> bytes:
    if zstandard.frame_content_size(blob) > WINDOW:  # damage must not become a huge allocation
        raise ValueError(f"a window of more than {WINDOW} bytes")
    return zstandard.ZstdDecompressor().decompress(blob)


def _entry(row: tuple[bytes, int, int, int, int, int, int, bytes, int, int, bytes, int, bytes]) -> Entry:
    path, kind, mode, uid, gid, size, mtime_ns, target, major, minor, xattrs, flat, extents = row
    if flat is not None:
        pieces: tuple[Extent, ...] = (Extent(0, size, flat),)
    else:
        pieces = unpack_extents(extents) if extents else ()
    attributes = unpack_xattrs(xattrs) if xattrs else {}
    return Entry(path, Kind(kind), mode, uid, gid, size, mtime_ns, target, (major, minor), attributes, pieces)
