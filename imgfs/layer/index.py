"""What is known of a layer once it has been indexed, and the file it is kept in.

A layer has one uncompressed address space, the flat layer. `Entry` says which extents of it make up a file,
`Span` says how to get a piece of it out of the blob without decoding what comes before.

The file is SQLite: it is written once (`layer.indexwriter`), renamed into place, and from then on only read,
by any number of processes, a row at a time; opening it loads nothing, however large the layer. A lean index
knows the spans only: what it takes to read files whose extents are known.
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
from typing import Any, TypeVar

import zstandard

from imgfs.errors import IntegrityError, StoreError
from imgfs.layer.entry import WINDOW, Checkpoint, Codec, Entry, Extent, Kind, Span
from imgfs.layer.origin import UNKNOWN_ORIGIN
from imgfs.layer.rows import (
    LARGEST,
    open_database,
    unpack_chunk_digests,
    unpack_extents,
    unpack_time,
    unpack_xattrs,
)
from imgfs.layer.schema import BLOB, FORMAT, PUBLISHED_FORMAT, WINDOWS, ExternalBlob, Summary

_T = TypeVar("_T")
_SHA256 = 32  # bytes of a digest


# What the flat bytes of an index that is not verified follow from; and where those of one that is are cut.
_MADE_OF = (
    "SELECT flat_start,flat_end,codec,digest,parts FROM span ORDER BY number",
    "SELECT number,bits,window FROM checkpoint ORDER BY number",
)
_PROVED = "SELECT EXISTS (SELECT 1 FROM span WHERE parts IS NOT NULL)"
_CUT = ("SELECT flat_start,flat_end FROM span ORDER BY number",)
_KINDS = {int(kind): kind for kind in Kind}  # Kind(number) takes five times as long
_DAMAGE = (sqlite3.DatabaseError, zstandard.ZstdError, struct.error, LookupError, TypeError, ValueError)
_ELSEWHERE = "SELECT what,digest,size FROM elsewhere"
_UNKNOWN_WINDOW = (
    "SELECT EXISTS (SELECT 1 FROM checkpoint WHERE window IS NULL)"  # without its digest, as once
)
_ENTRY = "SELECT path,kind,mode,uid,gid,size,mtime_ns,target,major,minor,xattrs,flat,extents FROM entry"


class LayerIndex(AbstractContextManager["LayerIndex"]):
    """A layer's index, read from the file at `path`: a context manager.

    Any thread may ask for a span, and `close` waits for it; what goes through many rows is for one thread.

    `blob` is what the spans' compressed ranges are cut from, None for the layer's own blob; `windows` is
    where the windows of checkpoints are that are not in the file, None if all are.

    Raises StoreError if the file is no index of this format, and whenever it turns out to be damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # SQLite must not be closed under a query
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
            raise ValueError("a summary that is none")
        return found

    def _other_format(self) -> StoreError:
        return StoreError(
            f"{self._path}: a layer index of another format; remove it to index the layer again"
        )

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

    def bounds(self) -> Iterator[tuple[int, int, int, int]]:
        """(flat_start, flat_end, start, end) of every span, in order."""
        return self._each(_bounds, "SELECT flat_start,flat_end,start,end FROM span ORDER BY number")

    def spans(self) -> Iterator[Span]:
        """All spans, in order, without their checkpoints."""
        return self._each(_span, "SELECT * FROM span ORDER BY number")

    def checkpoints(self) -> list[int]:
        """The numbers of the spans that have a checkpoint."""
        return list(self._each(itemgetter(0), "SELECT number FROM checkpoint ORDER BY number"))

    def checkpoint_bits(self) -> dict[int, int]:
        """The `bits` of every checkpoint, by the number of its span."""
        return dict(self._each(tuple, "SELECT number,bits FROM checkpoint"))

    def binding(self) -> bytes:
        """24 bytes that stand for what its flat bytes are, and where: what a presence map counts on.

        Two indexes have the same only if what one lets pass the other would let pass. The bytes of a verified
        index follow from the DiffID; those of another from what its spans are decoded from: what has their
        digests, and, as other windows would make other bytes of them, their windows.
        """
        found = self.summary
        hasher = hashlib.sha256(repr((found.space, found.flat_size, not found.origin)).encode())
        if not found.origin:
            hasher.update(found.diff_id.encode())
        queries = _MADE_OF if found.origin else _CUT
        for row in chain.from_iterable(self._each(tuple, query) for query in queries):
            hasher.update(repr(row).encode())
        return hasher.digest()[:24]

    def is_scanned(self) -> bool:
        """Whether it was made of the whole blob: then that has both the digest and the DiffID.

        What was proved later (`layer.verify`) has digests of what spans decode to; and the blob was not seen.
        """
        if self.summary.origin:
            return False
        with self._reading():
            return not self._db.execute(_PROVED).fetchone()[0]

    def is_determined(self) -> bool:
        """Whether every flat byte follows from digests in it: no other one is ever let pass."""
        return all(map(_is_determined, self.spans()))

    def span_count(self) -> int:
        """How many spans there are."""
        with self._reading():
            count: int = self._db.execute("SELECT count(*) FROM span").fetchone()[0]
        return count

    def remote_window(self, number: int) -> tuple[int, int] | None:
        """Where in the blob `windows` the window of a span's checkpoint is, if it is not in the file."""
        with self._lock, self._reading():
            query = "SELECT start,end FROM checkpoint WHERE number=? AND coalesce(start,end) IS NOT NULL"
            row = self._db.execute(query, (number,)).fetchone()
            if row and not 0 <= row[0] < row[1] <= (self.windows.size if self.windows else 0):
                raise ValueError(f"the window of span {number} is nowhere")
            return (row[0], row[1]) if row else None

    def span(self, number: int, window: bytes | None = None) -> Span:
        """One span, with its checkpoint.

        `window` is what `remote_window` speaks of: IntegrityError if that has not the window's digest.
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

    def _each(self, convert: Callable[[Any], _T], query: str) -> Iterator[_T]:
        with self._reading():
            yield from map(convert, self._db.execute(query))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Say StoreError where SQLite, or what a row holds, says that the file is damaged."""
        try:
            yield
        except _DAMAGE as error:
            raise StoreError(
                f"{self._path}: no layer index, or damaged ({error}); remove it to index the layer again"
            ) from error

    def check_rows(self) -> None:
        """Read what rows hold packed, which no rule of SQLite's can look into; raises StoreError."""
        odd = "WHERE xattrs IS NOT NULL OR extents IS NOT NULL OR typeof(mtime_ns) = 'blob'"
        for _ in self._each(_entry, f"{_ENTRY} {odd}"):
            pass
        for _ in self._each(_span, "SELECT * FROM span WHERE parts IS NOT NULL"):
            pass

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_determined(span: Span) -> bool:
    """Whether a digest is of all that it decodes to, or is decoded from."""
    if not span.parts:
        return len(span.digest) == _SHA256
    at = 0
    for part in span.parts:
        if part.skip > at:
            return False
        at = max(at, part.skip + part.length)
    return at >= span.flat_end - span.flat_start


def _fetched_window(number: int, window: bytes | None, digest: bytes) -> bytes:
    """A window that came over the network, checked: what is wrong with it is not the file's fault."""
    if window is None:
        raise ValueError(f"the window of span {number} is elsewhere")
    actual = hashlib.sha256(window)
    if actual.digest() != digest:
        raise IntegrityError(f"window of span {number}", expected=digest.hex(), actual=actual.hexdigest())
    return window


def _unpack_window(blob: bytes) -> bytes:
    if zstandard.frame_content_size(blob) > WINDOW:  # damage must not become a huge allocation
        raise ValueError(f"a window of more than {WINDOW} bytes")
    return zstandard.ZstdDecompressor().decompress(blob)


def _integers(*numbers: object) -> None:
    """Raise ValueError unless these are sizes or offsets: to SQLite a column's type is a wish."""
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


def _entry(row: tuple[bytes, int, int, int, int, int, int, bytes, int, int, bytes, int, bytes]) -> Entry:
    path, kind, mode, uid, gid, size, mtime_ns, target, major, minor, xattrs, flat, extents = row
    if flat is not None:
        pieces: tuple[Extent, ...] = (Extent(0, size, flat),)
    else:
        pieces = unpack_extents(extents) if extents else ()
    attributes = unpack_xattrs(xattrs) if xattrs else {}
    rest = (target, (major, minor), attributes, pieces)
    return Entry(path, _KINDS[kind], mode, uid, gid, size, unpack_time(mtime_ns), *rest)
