"""Packing a layer's tar stream into its blob: gzip or zstd, digest and DiffID in the one pass.

The same stream gives the same blob. A zstd layer is cut into frames, so a lazy reader (imgfs is one) can
begin at any of them; gzip is one member, for readers of all ages.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import zstandard

from imgfs.errors import UsageError
from imgfs.layer.codec.blob import STEP
from imgfs.layer.entry import Codec, Span
from imgfs.oci.descriptor import Digest

FRAME = 2 << 20  # flat bytes of a zstd frame of a layer; one frame for all would save 4 % of a system's bytes
_GZIP_LEVEL = 6
_ZSTD_LEVEL = 3
_COPY_LEVEL = 9  # made once, fetched often
_GZIP_WRAPPER = 16 + 15  # zlib.h, deflateInit2: a gzip header and trailer around a window of 32 KiB


class Sink(Protocol):
    """A file, or another destination, that the blob is written to."""

    def write(self, piece: bytes, /) -> object:
        """Take all of `piece`."""


class Compressed(NamedTuple):
    """A finished blob. Sizes are in bytes."""

    digest: Digest  # of the blob
    size: int
    diff_id: Digest  # of the flat layer (config.md, "Layer DiffID")
    flat_size: int


def compress(chunks: Iterable[bytes], codec: str, into: Sink) -> Compressed:
    """Pack a flat layer that comes in chunks, with `codec` "gzip" or "zstd", into the blob written to `into`.

    Raises UsageError for another codec, before a chunk is taken.
    """
    if codec not in _PACKERS:
        raise UsageError(f"compression {codec!r} is none of {', '.join(_PACKERS)}")
    flat, blob = _Measured(chunks), _Measured(())
    for piece in _PACKERS[codec](flat):
        blob.count(piece)
        into.write(piece)
    return Compressed(blob.digest, blob.size, flat.digest, flat.size)


def seekable(chunks: Iterable[bytes], into: Sink) -> tuple[list[Span], Digest, int]:
    """Pack a flat layer in small zstd frames, as a copy that can be read from anywhere.

    Returns its spans, one for each frame, its digest and its size in bytes.
    """
    blob, flat = _Measured(()), 0
    spans: list[Span] = []
    packer = zstandard.ZstdCompressor(level=_COPY_LEVEL, write_checksum=False, write_content_size=True)
    for piece in filter(None, _cut(chunks, STEP)):
        frame = packer.compress(piece)
        digest, start = hashlib.sha256(frame).digest(), blob.size
        blob.count(frame)
        into.write(frame)
        spans.append(Span(len(spans), flat, flat + len(piece), start, blob.size, Codec.ZSTD, digest))
        flat += len(piece)
    return spans, blob.digest, blob.size


class _Measured:
    """Chunks that are counted and hashed on their way."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._hasher = hashlib.sha256()
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.count(chunk)
            yield chunk

    def count(self, chunk: bytes) -> None:
        self._hasher.update(chunk)
        self.size += len(chunk)

    @property
    def digest(self) -> Digest:
        return Digest("sha256", self._hasher.hexdigest())


def _gzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """One gzip member; zlib leaves name and time out of its header (RFC 1952, section 2.3.1: MTIME 0)."""
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WRAPPER)
    yield from filter(None, map(packer.compress, chunks))
    yield packer.flush()


def _zstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """A frame for every FRAME bytes, each telling its content size (RFC 8878, section 3.1.1.1), without a
    checksum: digests say more."""
    packer = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=False, write_content_size=True)
    return map(packer.compress, _cut(chunks, FRAME))


def _cut(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the chunks' bytes in pieces of `size`, the last one shorter.

    One empty piece if there are none.
    """
    held, is_first = bytearray(), True
    for chunk in chunks:
        held += chunk
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
            is_first = False
    if held or is_first:
        yield bytes(held)


_PACKERS: dict[str, Callable[[Iterable[bytes]], Iterator[bytes]]] = {"gzip": _gzip, "zstd": _zstd}
CODECS = tuple(_PACKERS)
