"""Write a layer index, entry by entry and span by span; or import one that was made elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import zstandard

from imgfs.errors import InvalidImage, StoreError
from imgfs.layer.entry import Entry, Span
from imgfs.layer.index import LayerIndex
from imgfs.layer.schema import (
    FORMAT,
    PUBLISHED_FORMAT,
    RULES,
    SCHEMA,
    SHORTCUTS,
    TAR,
    ExternalBlob,
    pack_chunk_digests,
    pack_time,
    pack_xattrs,
    stored_extents,
)
from imgfs.layer.sqlite import LARGEST, DatabaseForm, create_database, note_import, rewrite_database

_INSERT_ENTRY = "INSERT INTO entry VALUES (NULL,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_INSERT_SPAN = "INSERT INTO span VALUES (?,?,?,?,?,?,?,?)"
_BATCH, _WEIGHT = 1000, 4 << 20  # entries, and their bytes, held in memory until they are written


class IndexWriter:
    """Writes a layer index to a new file at `path`, which is complete once `finish` returns.

    If it is `shared`, its entries can be read before that, as `layer.growing` does.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self._path = path
        self._shared = shared
        self._db = create_database(path, SCHEMA, shared=shared)
        self._entries: list[tuple[object, ...]] = []
        self._weight = 0
        self._count = 0
        self._packer = zstandard.ZstdCompressor(level=1)

    def add_entry(self, entry: Entry) -> None:
        """Append one entry, in the layer's own order."""
        path, kind, mode, uid, gid, size, mtime_ns, target, (major, minor), attributes, _ = entry
        flat, extents = stored_extents(entry)
        xattrs = pack_xattrs(attributes)
        head = (path, int(kind), mode, uid, gid, size, pack_time(mtime_ns), target)
        self._entries.append((*head, major, minor, xattrs, flat, extents))
        self._weight += len(path) + len(target) + len(xattrs or b"") + len(extents or b"")
        if len(self._entries) >= _BATCH or self._weight >= _WEIGHT:
            self._flush()

    def add_span(self, span: Span) -> None:
        """Append one span; their flat ranges must ascend."""
        self._db.execute(_INSERT_SPAN, _span_row(span))
        if span.checkpoint:
            row = (span.number, span.checkpoint.bits, self._packer.compress(span.checkpoint.window))
            self._db.execute("INSERT INTO checkpoint VALUES (?,?,?,NULL,NULL)", row)

    def add_spans(self, spans: Iterable[Span]) -> None:
        """Append several spans."""
        for span in spans:
            self.add_span(span)

    def add_remote_checkpoint(self, number: int, bits: int, start: int, end: int, digest: bytes) -> None:
        """Give a span a checkpoint whose window is at `[start, end)` of the blob `WINDOWS`.

        `digest` is the sha256 of what is there.
        """
        row = (number, bits, digest, start, end)
        self._db.execute("INSERT INTO checkpoint VALUES (?,?,?,?,?)", row)

    def put_external_blob(self, what: str, blob: ExternalBlob) -> None:
        """Record the external blob that `what`, BLOB or WINDOWS, is in."""
        self._db.execute("INSERT INTO elsewhere VALUES (?,?,?)", (what, blob.digest, blob.size))

    def finish(
        self,
        *,
        digest: str,
        diff_id: str,
        format: str,  # noqa: A002
        size: int,
        flat_size: int,
        space: str = TAR,
        is_lean: bool = False,
        origin: str = "",
        is_published: bool = False,
    ) -> None:
        """Write the summary and close the file; it is complete from here on.

        One that `is_published` counts as of unknown origin, whatever `origin` is. Raises InvalidImage for
        sizes (bytes) that no reader takes: such an index could only be removed from the store by hand.
        """
        if not 0 <= size <= LARGEST or not 0 <= flat_size <= LARGEST:
            raise InvalidImage(f"{max(size, flat_size)} bytes are more than a layer can have")
        self._flush()
        number = PUBLISHED_FORMAT if is_published else FORMAT
        row = (number, digest, diff_id, format, size, flat_size, self._count, space, is_lean, origin)
        self._db.execute("INSERT INTO summary VALUES (?,?,?,?,?,?,?,?,?,?)", row)
        self._db.executescript(SHORTCUTS)
        self._db.commit()
        self.close()

    def close(self) -> None:
        """Close the file without completing it."""
        self._db.close()

    def _flush(self) -> None:
        self._db.executemany(_INSERT_ENTRY, self._entries)
        self._count += len(self._entries)
        self._entries.clear()
        self._weight = 0
        if self._shared:
            self._db.execute("COMMIT")
            self._db.execute("BEGIN")


_FORM = DatabaseForm("a layer index", SCHEMA, SHORTCUTS, RULES)


def import_index(path: Path, origin: str) -> None:
    """Rewrite an index made elsewhere, row by row, and record its `origin` (`layer.origin`).

    Raises InvalidImage if the file is no such index, or costs more than its size allows; StoreError.
    """
    rewrite_database(path, _FORM)
    note_import(path, origin, FORMAT, before=PUBLISHED_FORMAT)
    try:
        with LayerIndex(path) as index:
            index.check_rows()
    except StoreError as error:
        raise InvalidImage(f"a layer index with rows that make no sense: {error}", where=str(path)) from error


def _span_row(span: Span) -> tuple[object, ...]:
    return (*span[:5], int(span.codec), span.digest, pack_chunk_digests(span.parts))
