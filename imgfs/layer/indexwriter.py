"""Writing a layer index: entries and spans as a layer's reader finds them; or taking in another's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import zstandard

from imgfs.errors import InvalidImage, StoreError
from imgfs.layer.entry import Entry, Span
from imgfs.layer.index import FORMAT, RULES, SCHEMA, SHORTCUTS, TAR, TRAVELS, Elsewhere, LayerIndex
from imgfs.layer.rewrite import Form, write_anew
from imgfs.layer.rows import (
    create_database,
    note_origin,
    pack_chunk_digests,
    pack_time,
    pack_xattrs,
    set_format,
    stored_extents,
)

_INSERT_ENTRY = "INSERT INTO entry VALUES (NULL,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_INSERT_SPAN = "INSERT INTO span VALUES (?,?,?,?,?,?,?,?)"
_BATCH, _WEIGHT = 1000, 4 << 20  # entries, and bytes of them, that are held until they are written


class IndexWriter:
    """Writes a layer index to a new file at `path`; nobody may look at it before `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = create_database(path, SCHEMA)
        self._entries: list[tuple[object, ...]] = []
        self._weight = 0
        self._count = 0
        self._packer = zstandard.ZstdCompressor(level=3)

    def add_entry(self, entry: Entry) -> None:
        """Append one entry, in the layer's own order."""
        flat, extents = stored_extents(entry)
        head = (entry.path, int(entry.kind), entry.mode, entry.uid, entry.gid, entry.size)
        xattrs = pack_xattrs(entry.xattrs)
        tail = (pack_time(entry.mtime_ns), entry.target, *entry.device, xattrs)
        self._entries.append((*head, *tail, flat, extents))
        self._weight += len(entry.path) + len(entry.target) + len(xattrs or b"") + len(extents or b"")
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

    def put_elsewhere(self, what: str, blob: Elsewhere) -> None:
        """Say where something is that is in neither the layer nor this file: `BLOB` or `WINDOWS`."""
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
        travels: bool = False,
    ) -> None:
        """Write the summary and close the file; it is complete from here on.

        One that `travels` does not say who vouches for it, whatever `origin` is.
        """
        self._flush()
        number = TRAVELS if travels else FORMAT
        row = (number, digest, diff_id, format, size, flat_size, self._count, space, is_lean, origin)
        self._db.execute("INSERT INTO summary VALUES (?,?,?,?,?,?,?,?,?,?)", row)
        self._db.executescript(SHORTCUTS)
        self._db.commit()
        self.close()

    def close(self) -> None:
        """Close the file without saying that it is complete."""
        self._db.close()

    def _flush(self) -> None:
        self._db.executemany(_INSERT_ENTRY, self._entries)
        self._count += len(self._entries)
        self._entries.clear()
        self._weight = 0


_FORM = Form("a layer index", SCHEMA, SHORTCUTS, RULES)


def vouch(path: Path, origin: str) -> None:
    """Write an index from elsewhere anew, noting that `origin` (`layer.voucher`) is all that vouches for it.

    Raises InvalidImage if the file is no such index, or costs more than its size allows; StoreError.
    """
    write_anew(path, _FORM)
    note_origin(path, origin)
    set_format(path, FORMAT, before=TRAVELS)
    try:
        with LayerIndex(path) as index:
            index.look_through()
    except StoreError as error:
        raise InvalidImage(f"a layer index with rows that make no sense: {error}", where=str(path)) from error


def _span_row(span: Span) -> tuple[object, ...]:
    return (*span[:5], int(span.codec), span.digest, pack_chunk_digests(span.parts))
