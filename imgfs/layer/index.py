"""Read a layer index (`layer.schema`), a row at a time; opening it loads nothing, however large the layer.

The file is SQLite: it is written once (`layer.indexwriter`), renamed into place, and from then on only read,
by any number of processes. A lean index has the spans only: enough to read files whose extents are known.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

from imgfs.errors import IntegrityError, StoreError
from imgfs.layer import flat_digests
from imgfs.layer.entry import WINDOW, Checkpoint, ChunkDigest, Codec, Entry, Extent, Kind, Span
from imgfs.layer.origin import UNKNOWN_ORIGIN
from imgfs.layer.schema import (
    BLOB,
    FORMAT,
    PUBLISHED_FORMAT,
    WINDOWS,
    ExternalBlob,
    Summary,
    unpack_chunk_digests,
    unpack_extents,
    unpack_time,
    unpack_xattrs,
)
from imgfs.layer.sqlite import LARGEST, Row, open_database

_T = TypeVar("_T")
_SHA256 = 32  # bytes of a digest


# The rows that determine the flat bytes of an index that is not verified; the bounds of spans of one that is.
_MADE_OF = (
    "SELECT flat_start,flat_end,codec,digest,parts FROM span ORDER BY number",
    "SELECT number,bits,window FROM checkpoint ORDER BY number",
)
_PROVED = "SELECT EXISTS (SELECT 1 FROM span WHERE parts IS NOT NULL)"
_CUT = ("SELECT flat_start,flat_end FROM span ORDER BY number",)
_KINDS = {int(kind): kind for kind in Kind}  # Kind(number) takes five times as long
DAMAGE = (sqlite3.DatabaseError, struct.error, LookupError, TypeError, ValueError)
_ELSEWHERE = "SELECT what,digest,size FROM elsewhere"
_UNKNOWN_WINDOW = (
    "SELECT EXISTS (SELECT 1 FROM checkpoint WHERE window IS NULL)"  # without its digest, as once
)
SELECT_ENTRY = "SELECT path,kind,mode,uid,gid,size,mtime_ns,target,major,minor,xattrs,flat,extents FROM entry"


class LayerIndex(AbstractContextManager["LayerIndex"]):
    """A layer's index, read from the file at `path`: a context manager.

    Any thread may read a span, and `close` waits for it; methods that iterate over rows are for one thread.

    `blob` is the blob that the spans' compressed ranges are in, None for the layer's own; `windows` is the
    one with the windows of checkpoints, None if they are all in the file.

    Raises StoreError if the file is no index of this format, and whenever it turns out to be damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # SQLite must not be closed under a query
        self._flat_digests: bool | None = None  # whether it has that table, once that is known
        self._db = open_database(path)
        try:
            with self._reading():
                self.summary = self._summary()
                elsewhere = {what: ExternalBlob(*rest) for what, *rest in self._db.execute(_ELSEWHERE)}
            self.blob = elsewhere.get(BLOB)
            self.windows = elsewhere.get(WINDOWS)
            if self.windows and self._db.execute(_UNKNOWN_WINDOW).fetchone()[0]:
                raise self._other_format()
        except StoreError:
            self._db.close()
            raise

    def _summary(self) -> Summary:
        row = self._db.execute("SELECT * FROM summary").fetchone()
        if row is None or row[0] not in (FORMAT, PUBLISHED_FORMAT):
            raise self._other_format()
        origin = row[-1] or (UNKNOWN_ORIGIN if row[0] == PUBLISHED_FORMAT else "")
        found = Summary._make((*row[1:-2], bool(row[-2]), origin))
        _integers(found.size, found.flat_size, found.entries)
        if not all(isinstance(text, str) for text in (*found[:3], found.space, found.origin)):
            raise ValueError("a summary of wrong types")
        return found

    def _other_format(self) -> StoreError:
        return StoreError(
            f"{self._path}: a layer index of another format; remove it to index the layer again"
        )

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """Yield all entries but the first so many, in the layer's own order."""
        return self._each(entry_of, f"{SELECT_ENTRY} WHERE seq > {after:d} ORDER BY seq")

    def whiteout_candidates(self) -> Iterator[Entry]:
        """Yield the entries with `.wh.` anywhere in their path, in order: every whiteout is among them."""
        where = "WHERE instr(path, CAST('.wh.' AS BLOB)) > 0 ORDER BY seq"
        return self._each(entry_of, f"{SELECT_ENTRY} {where}")

    def hardlinks(self) -> Iterator[Entry]:
        """Yield the hard links, in order."""
        return self._each(entry_of, f"{SELECT_ENTRY} WHERE kind = {Kind.HARDLINK:d} ORDER BY seq")

    def directories(self) -> Iterator[bytes]:
        """Yield the paths of the layer's own directory entries, as stored."""
        where = f"WHERE kind = {Kind.DIRECTORY:d}"
        return self._each(itemgetter(0), f"SELECT path FROM entry {where}")

    def bounds(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (flat_start, flat_end, start, end) of every span, in order."""
        return self._each(_bounds, "SELECT flat_start,flat_end,start,end FROM span ORDER BY number")

    def spans(self) -> Iterator[Span]:
        """Yield all spans, in order, without their checkpoints."""
        return self._each(_span, "SELECT * FROM span ORDER BY number")

    def checkpoints(self) -> list[int]:
        """Return the numbers of the spans that have a checkpoint."""
        return list(self._each(itemgetter(0), "SELECT number FROM checkpoint ORDER BY number"))

    def checkpoint_bits(self) -> dict[int, int]:
        """Return the `bits` of every checkpoint, by the number of its span."""
        return dict(self._each(tuple, "SELECT number,bits FROM checkpoint"))

    def binding(self) -> bytes:
        """Return 24 bytes that identify the flat layer's bytes and their positions, for the presence map.

        Two indexes have the same binding only if each accepts the bytes that the other accepts. The bytes of
        a verified index follow from the DiffID; those of another from its spans' digests, also the flat ones
        that bytes of peers are checked by, and, because other windows would decode to other bytes, their
        windows.
        """
        found = self.summary
        hasher = hashlib.sha256(repr((found.space, found.flat_size, not found.origin)).encode())
        if not found.origin:
            hasher.update(found.diff_id.encode())
        with self._reading():
            more = (flat_digests.SELECT_ALL,) if self._has_flat_digests() else ()
        queries = (*_MADE_OF, *more) if found.origin else _CUT
        for row in chain.from_iterable(self._each(tuple, query) for query in queries):
            hasher.update(repr(row).encode())
        return hasher.digest()[:24]

    def is_scanned(self) -> bool:
        """Return True if the index was made of the whole blob, which so has both the digest and the DiffID.

        An index verified later (`layer.verify`) has digests of flat bytes; its blob as a whole was not read.
        """
        if self.summary.origin:
            return False
        with self._reading():
            return not self._db.execute(_PROVED).fetchone()[0]

    def is_determined(self) -> bool:
        """Return True if digests in the index cover every flat byte."""
        return all(map(_is_determined, self.spans()))

    def span_count(self) -> int:
        """Return the number of spans."""
        with self._reading():
            count: int = self._db.execute("SELECT count(*) FROM span").fetchone()[0]
        return count

    def remote_window(self, number: int) -> tuple[int, int] | None:
        """Return the range in the blob `windows` of a checkpoint's window, None if it is in the file."""
        with self._lock, self._reading():
            query = "SELECT start,end FROM checkpoint WHERE number=? AND coalesce(start,end) IS NOT NULL"
            row = self._db.execute(query, (number,)).fetchone()
            if row and not 0 <= row[0] < row[1] <= (self.windows.size if self.windows else 0):
                raise ValueError(f"the window of span {number} is nowhere")
            return (row[0], row[1]) if row else None

    def span(self, number: int, window: bytes | None = None) -> Span:
        """Return one span, with its checkpoint.

        `window` holds the bytes of the range that `remote_window` returns; raises IntegrityError if they do
        not have the window's digest.
        """
        with self._lock, self._reading():
            row = self._db.execute("SELECT * FROM span WHERE number=?", (number,)).fetchone()
            if row is None:
                raise ValueError(f"there is no span {number}")
            query = "SELECT bits,window,start FROM checkpoint WHERE number=?"
            found = self._db.execute(query, (number,)).fetchone()
            checkpoint = None
            if found:
                bits, frame, start = found
                if start is not None:
                    frame = _fetched_window(number, window, frame)
                checkpoint = Checkpoint(bits, _unpack_window(frame))
            return _span(row)._replace(checkpoint=checkpoint)

    def _each(self, convert: Callable[[Row], _T], query: str) -> Iterator[_T]:
        with self._reading():
            yield from map(convert, self._db.execute(query))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn errors of SQLite, and of values in rows, into StoreError."""
        try:
            yield
        except DAMAGE as error:
            raise StoreError(
                f"{self._path}: no layer index, or damaged ({error}); remove it to index the layer again"
            ) from error

    def check_rows(self) -> None:
        """Unpack all packed values, which no SQL rule can check; raises StoreError."""
        odd = "WHERE xattrs IS NOT NULL OR extents IS NOT NULL OR typeof(mtime_ns) = 'blob'"
        for _ in self._each(entry_of, f"{SELECT_ENTRY} {odd}"):
            pass
        for _ in self._each(_span, "SELECT * FROM span WHERE parts IS NOT NULL"):
            pass

    def flat_span(self, number: int) -> Span | None:
        """Return a span as it is read from the flat layer itself, which another store may have.

        None if no digests cover all its flat bytes.
        """
        with self._lock, self._reading():
            row = self._db.execute("SELECT * FROM span WHERE number=?", (number,)).fetchone()
            if row is None:
                raise ValueError(f"there is no span {number}")
            span = _span(row)
            parts = span.parts if span.parts and _is_determined(span) else ()
            if not parts and self._has_flat_digests():
                found = self._db.execute(flat_digests.SELECT, (number,)).fetchone()
                length = span.flat_end - span.flat_start
                parts = (ChunkDigest(0, length, found[0]),) if found and len(found[0]) == _SHA256 else ()
        flat = span.flat_start, span.flat_end
        return Span(number, *flat, *flat, Codec.IDENTITY, b"", parts=parts) if parts else None

    def _has_flat_digests(self) -> bool:
        if self._flat_digests is None:
            self._flat_digests = bool(self._db.execute(flat_digests.IS_THERE).fetchone()[0])
        return self._flat_digests

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_determined(span: Span) -> bool:
    """Return True if digests cover all flat bytes of the span, or its compressed bytes."""
    if not span.parts:
        return len(span.digest) == _SHA256
    at = 0
    for part in span.parts:
        if part.skip > at:
            return False
        at = max(at, part.skip + part.length)
    return at >= span.flat_end - span.flat_start


def _fetched_window(number: int, window: bytes | None, digest: bytes) -> bytes:
    """Return a fetched window after checking its digest; a wrong one is no fault of the index file."""
    if window is None:
        raise ValueError(f"the window of span {number} is elsewhere")
    actual = hashlib.sha256(window)
    if actual.digest() != digest:
        raise IntegrityError(f"window of span {number}", expected=digest.hex(), actual=actual.hexdigest())
    return window


def _unpack_window(blob: bytes) -> bytes:
    import zstandard  # here: most commands that open an index read no window

    try:
        if zstandard.frame_content_size(blob) > WINDOW:  # damage must not become a huge allocation
            raise ValueError(f"a window of more than {WINDOW} bytes")
        return zstandard.ZstdDecompressor().decompress(blob)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _integers(*numbers: object) -> None:
    """Raise ValueError unless these are sizes or offsets: SQLite does not enforce a column's type."""
    if not all(isinstance(number, int) and 0 <= number <= LARGEST for number in numbers):
        raise ValueError(f"{numbers} where numbers of bytes should be")


def _bounds(row: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    _integers(*row)
    return row


def _span(row: tuple[int, int, int, int, int, int, bytes, bytes | None]) -> Span:
    number, flat_start, flat_end, start, end, codec, digest, parts = row
    _integers(number, flat_start, flat_end, start, end)
    if not isinstance(digest, bytes):
        raise TypeError(f"the digest of span {number}")
    known = unpack_chunk_digests(parts) if parts else ()
    return Span(number, flat_start, flat_end, start, end, Codec(codec), digest, None, known)


def entry_of(row: tuple[bytes, int, int, int, int, int, int, bytes, int, int, bytes, int, bytes]) -> Entry:
    """Return the entry of a row that SELECT_ENTRY finds."""
    path, kind, mode, uid, gid, size, mtime_ns, target, major, minor, xattrs, flat, extents = row
    if flat is not None:
        pieces: tuple[Extent, ...] = (Extent(0, size, flat),)
    else:
        pieces = unpack_extents(extents) if extents else ()
    attributes = unpack_xattrs(xattrs) if xattrs else {}
    rest = (target, (major, minor), attributes, pieces)
    return Entry(path, _KINDS[kind], mode, uid, gid, size, unpack_time(mtime_ns), *rest)
