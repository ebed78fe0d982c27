"""A layer index as it is published: lean or whole, with the windows in a blob of their own.

Windows are most of an index's size, and a reader needs only those of the spans it reads. So they are
concatenated in one blob, from which any run of them can be fetched, and the index has the range and the
digest of each: a wrong window would decode its span to other bytes.
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


class WindowRange(NamedTuple):
    """Where a span's window is: the range `[start, end)` of the blob, a frame with the sha256 `digest`."""

    span: int
    bits: int  # of the checkpoint
    start: int
    end: int
    digest: bytes


class Windows(NamedTuple):
    """The windows of a layer's checkpoints, each a zstd frame, end to end in a blob."""

    blob: ExternalBlob
    ranges: Sequence[WindowRange]


def write_windows(windows: Iterable[tuple[int, Checkpoint]], path: Path) -> Windows | None:
    """Write the windows of checkpoints, given with the numbers of their spans, to a new file.

    None, and no file, if there are none.
    """
    packer = zstandard.ZstdCompressor(level=_LEVEL)
    ranges: list[WindowRange] = []
    hasher, at = hashlib.sha256(), 0
    with path.open("wb") as file:
        for number, checkpoint in windows:
            frame = packer.compress(checkpoint.window)
            file.write(frame)
            hasher.update(frame)
            digest = hashlib.sha256(frame).digest()
            ranges.append(WindowRange(number, checkpoint.bits, at, at + len(frame), digest))
            at += len(frame)
    if not ranges:
        path.unlink()
        return None
    return Windows(ExternalBlob(f"sha256:{hasher.hexdigest()}", at), ranges)


def write_shared(
    index: LayerIndex,
    path: Path,
    *,
    lean: bool,
    windows: Windows | None,
    copy: tuple[ExternalBlob, Iterable[Span]] | None = None,
) -> None:
    """Write `index` as it is published: `lean` without the entries.

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
        for window in windows.ranges:
            writer.add_remote_checkpoint(*window)
    summary = index.summary._asdict()
    del summary["entries"]
    writer.finish(**{**summary, "is_lean": lean, "origin": "", "is_published": True})


def pack(path: Path, packed: Path) -> None:
    """Compress a file into one zstd frame at `packed`; the same file gives the same bytes."""
    with path.open("rb") as source, packed.open("wb") as sink:
        zstandard.ZstdCompressor(level=_LEVEL).copy_stream(source, sink, size=path.stat().st_size)


def unpack(chunks: Iterable[bytes], path: Path, size: int) -> None:
    """Write the decoded zstd frames to a new file; raises InvalidImage unless they are `size` bytes.

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
