"""Packed bytes for tests: gzip members and zstd frames as layers have them, and as none should.

Everything returns bytes. What goes into a blob is up to the caller; `prose` makes something that compresses
about as well as source code does.
"""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence

import zstandard

from imgfs.layer.entry import Codec, Span

FHCRC, FEXTRA, FNAME, FCOMMENT = 2, 4, 8, 16  # RFC 1952, section 2.3.1


def noise(seed: int, size: int) -> bytes:
    """`size` bytes that no codec makes smaller."""
    return random.Random(seed).randbytes(size)


def prose(size: int, seed: int = 0) -> bytes:
    """`size` bytes of words in no order: matches, literals, and a new word now and then."""
    source = random.Random(seed)
    words = [source.randbytes(source.randint(1, 9)).hex().encode() for _ in range(400)]
    text = b""
    while len(text) < size:
        count = (size - len(text)) // 11 + 1  # of 10 letters and a space
        text += b" ".join([*source.choices(words, k=count), b""])
    return text[:size]


def deflate(
    parts: Iterable[bytes],
    *,
    level: int = 6,
    memory: int = 8,
    strategy: int = zlib.Z_DEFAULT_STRATEGY,
    flush: int = zlib.Z_SYNC_FLUSH,
) -> bytes:
    """Bare deflate data (RFC 1951): `parts` with a flush after each. A small `memory` makes small blocks."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15, memory, strategy)
    return b"".join(packer.compress(part) + packer.flush(flush) for part in parts) + packer.flush()


def gzip_member(
    flat: bytes,
    packed: bytes | None = None,
    *,
    name: bytes = b"",
    comment: bytes = b"",
    extra: bytes = b"",
    header_crc: bool = False,
) -> bytes:
    """One gzip member of `flat`, whose deflate data is `packed` if given, with any of the optional fields."""
    flags = bool(extra) * FEXTRA | bool(name) * FNAME | bool(comment) * FCOMMENT | header_crc * FHCRC
    head = b"\x1f\x8b\x08" + bytes([flags]) + bytes(4) + b"\x00\xff"
    head += struct.pack("<H", len(extra)) + extra if extra else b""
    head += name + b"\0" if name else b""
    head += comment + b"\0" if comment else b""
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF) if header_crc else b""
    packed = deflate([flat], flush=zlib.Z_NO_FLUSH) if packed is None else packed
    return head + packed + struct.pack("<II", zlib.crc32(flat), len(flat) & 0xFFFFFFFF)


def gzip_members(flat: bytes, size: int) -> bytes:
    """Members of `size` flat bytes each, as of a parallel gzip with independent blocks."""
    return b"".join(gzip_member(part) for part in split(flat, [size] * (len(flat) // size)))


def bgzf(flat: bytes, size: int = 0xFF00) -> bytes:
    """What bgzip writes: small members that say their length in FEXTRA, and an empty one at the end (SAM
    specification, section 4.1)."""
    parts = [flat[at : at + size] for at in range(0, len(flat), size)]
    return b"".join(_bgzf_block(part) for part in [*parts, b""])


def zstd_frames(parts: Iterable[bytes], *, checksum: bool = True, sized: bool = True) -> bytes:
    """One zstd frame for each of `parts`; `sized` ones tell their content size."""
    packer = zstandard.ZstdCompressor(level=3, write_checksum=checksum, write_content_size=sized)
    return b"".join(packer.compress(part) for part in parts)


def skippable(body: bytes, variant: int = 8) -> bytes:
    """Return a zstd frame to be skipped (RFC 8878, section 3.1.2)."""
    return struct.pack("<II", 0x184D2A50 | variant, len(body)) + body


def zstd_bomb(blocks: int) -> bytes:
    """A zstd frame of 4-byte blocks that decode to 128 KiB of zeros each (RFC 8878, section 3.1.1.2)."""
    rle, size = 1, 128 * 1024
    head = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([10 << 3])  # no content size, no checksum, a window of 1 MiB
    headers = ((size << 3 | rle << 1 | (number == blocks - 1)) for number in range(blocks))
    return head + b"".join(header.to_bytes(3, "little") + b"\0" for header in headers)


def gzip_bomb(size: int) -> bytes:
    """Return a gzip member of `size` zeros, a thousandth of that long."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    part = bytes(1 << 20)
    return b"".join(packer.compress(part) for _ in range(size >> 20)) + packer.flush()


def split(blob: bytes, sizes: Sequence[int]) -> list[bytes]:
    """`blob` in parts of these sizes, then the rest, if there is any."""
    parts, at = [], 0
    for size in sizes:
        parts.append(blob[at : at + size])
        at += size
    return [part for part in [*parts, blob[at:]] if part]


def every(blob: bytes, size: int) -> Iterator[bytes]:
    """`blob` in chunks of `size`."""
    return (blob[at : at + size] for at in range(0, len(blob), size))


def span_of(packed: bytes, length: int, codec: Codec) -> Span:
    """Return a span whose compressed bytes are all of `packed`."""
    return Span(0, 0, length, 0, len(packed), codec, hashlib.sha256(packed).digest())


def _bgzf_block(part: bytes) -> bytes:
    length = len(gzip_member(part, extra=b"BC\x02\x00\x00\x00"))
    return gzip_member(part, extra=b"BC\x02\x00" + struct.pack("<H", length - 1))
