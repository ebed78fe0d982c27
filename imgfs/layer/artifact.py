"""A layer index in the forms in which it travels: lean or whole, with the windows in a blob of their own.

Windows are nearly all of an index's weight, and a reader needs only those of the spans it reads. So they are
laid end to end in one blob, from which any run of them can be fetched, and the index says where each is and
what its digest is: a window other than the right one would make other bytes of its span.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import zstandard

from imgfs.errors import InvalidImage
from imgfs.layer.codec.frames import ZstdFrames
from imgfs.layer.entry import Checkpoint, Span
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.limits import PACKED_WINDOW_LIMIT
from imgfs.layer.schema import BLOB, WINDOWS, ExternalBlob

_LEVEL = 19  # of zstd: written once, fetched often


class Windows(NamedTuple):
    """The windows of a layer's checkpoints, each a zstd frame, end to end in a blob."""

    blob: ExternalBlob
    places: Sequence[tuple[int, int, int, int, bytes]]  # (span, bits, start, end, sha256 of the frame)


def write_windows(windows: Iterable[tuple[int, Checkpoint]], path: Path) -> Windows | None:
    """Write the windows of checkpoints, given with the numbers of their spans, to a new file.

    None, and no file, if there are none.
    """
    packer = zstandard.ZstdCompressor(level=_LEVEL)
    places = []
    hasher, at = hashlib.sha256(), 0
    with path.open("wb") as file:
        for number, checkpoint in windows:
            frame = packer.compress(checkpoint.window)
            file.write(frame)
            hasher.update(frame)
            digest = hashlib.sha256(frame).digest()
            places.append((number, checkpoint.bits, at, at + len(frame), digest))
            at += len(frame)
    if not places:
        path.unlink()
        return None
    return Windows(ExternalBlob(f"sha256:{hasher.hexdigest()}", at), places)


def write_shared(
    index: LayerIndex,
    path: Path,
    *,
    lean: bool,
    windows: Windows | None,
    copy: tuple[ExternalBlob, Iterable[Span]] | None = None,
) -> None:
    """Write `index` anew, for others: `lean` without the entries.

    `copy` is a seekable copy of the layer and its spans, to be used instead of the layer's own. The same
    index gives the same bytes.
    """
    writer = IndexWriter(path)
    for entry in () if lean else index.entries():
        writer.add_entry(entry)
    if copy:
        writer.put_external_blob(BLOB, copy[0])
        writer.add_spans(copy[1])
    else:
        writer.add_spans(index.spans())
    if windows and not copy:
        writer.put_external_blob(WINDOWS, windows.blob)
        for place in windows.places:
            writer.add_remote_checkpoint(*place)
    summary = index.summary._asdict()
    del summary["entries"]
    writer.finish(**{**summary, "is_lean": lean, "origin": "", "is_published": True})


def pack(path: Path, packed: Path) -> None:
    """Compress a file into one zstd frame at `packed`; the same file gives the same bytes."""
    with path.open("rb") as source, packed.open("wb") as sink:
        zstandard.ZstdCompressor(level=_LEVEL).copy_stream(source, sink, size=path.stat().st_size)


def unpack(chunks: Iterable[bytes], path: Path, size: int) -> None:
    """Write what zstd frames decode to to a new file; raises InvalidImage unless that is `size` bytes.

    `pack` makes windows of 8 MiB at most, so a frame that wants a larger one is none of its own.
    """
    frames, written = ZstdFrames(PACKED_WINDOW_LIMIT), 0
    with path.open("wb") as file:
        for chunk in chunks:
            for piece in frames.pieces(chunk):
                written += len(piece)
                if written > size:
                    raise InvalidImage(f"unpacks to more than {size} bytes")
                file.write(piece)
    if written != size or not frames.between:
        raise InvalidImage(f"unpacks to {written} bytes, not {size}")
