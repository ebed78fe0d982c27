"""Writers of eStargz and zstd:chunked layers for tests, out of a tar stream; and a reader to compare with.

made = estargz_layer(tarmake.archive(tarmake.file("a", b"body")), chunk=2)
toc, ranges = fetched(find_toc(made.layer), made.blob)
files(toc, made.blob)  # {b"a": b"body"}

A blob is the tar, cut where a table of contents wants to point into it, each piece packed alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

import zstandard

from imgfs.layer.entry import Codec, Entry, Extent, Kind, Span
from imgfs.layer.tar.reader import tar_entries
from imgfs.layer.toc.toc import Fetch, Range, Toc
from imgfs.oci.descriptor import Descriptor, Digest
from tests.support import blobs, tarmake

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
OLD, NEW = "io.containers.zstd-chunked.", "io.github.containers.zstd-chunked."

_TYPES = {
    Kind.FILE: "reg",
    Kind.DIRECTORY: "dir",
    Kind.SYMLINK: "symlink",
    Kind.HARDLINK: "hardlink",
    Kind.CHARACTER: "char",
    Kind.BLOCK: "block",
    Kind.FIFO: "fifo",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_T = TypeVar("_T")

Fields = dict[str, Any]


class Made(NamedTuple):
    """A layer: its blob and descriptor; the JSON of its table, and how that is packed in another image."""

    blob: bytes
    layer: Descriptor
    toc: bytes
    external: bytes = b""

    def without(self, *names: str) -> Descriptor:
        """Return the layer's descriptor without some annotations."""
        return self.noted({key: text for key, text in self.layer.annotations.items() if key not in names})

    def noted(self, annotations: Mapping[str, str]) -> Descriptor:
        """Return the layer's descriptor with these annotations only."""
        return Descriptor(self.layer.media_type, self.layer.digest, self.layer.size, annotations)


def estargz_layer(
    tar: bytes, *, chunk: int = 4 << 20, shared: int = 0, footer: str = "estargz", level: int = 6
) -> Made:
    """Return an eStargz layer. Streams hold `shared` flat bytes or more (innerOffset).

    `footer` as in FOOTERS.
    """
    table, cuts = _streams(tar, chunk, shared)
    pieces = [blobs.gzip_member(piece) for piece in _cut(tar if footer == "external" else tar[:-1024], cuts)]
    offsets = _offsets(pieces)
    for fields in table:
        if "offset" in fields:
            fields["offset"] = offsets[cuts.index(fields["offset"])]
    body = json.dumps({"version": 1, "entries": list(map(_sparing, table))}, indent="\t").encode()
    packed = gzip_toc(body, level)
    payloads = b"".join(pieces)
    blob = payloads + FOOTERS[footer](len(payloads))
    if footer != "external":
        blob = payloads + packed + FOOTERS[footer](len(payloads))
    return _made(blob, GZIP, body, {TOC_DIGEST: str(Digest.of(body))}, packed)


def chunked_layer(
    tar: bytes, *, chunk: int = 4 << 20, dialect: str = "2023", zeros: bool = True, surplus: bool = False
) -> Made:
    """Return a zstd:chunked layer: `dialect` "2021", "2022" or "2023"; chunks of nothing but zeros are holes.

    With `surplus`, as stargz-snapshotter writes them: the next member's header is in a file's last frame, and
    no `endOffset` tells where that ends.
    """
    table, cuts = _streams(tar, chunk, 0)
    ends = [extent.flat + extent.length for entry in tar_entries(tar) for extent in entry.extents]
    places = sorted({0, *cuts, *([] if surplus else ends)})
    pieces = [zstandard.compress(piece) for piece in _cut(tar, places)]
    offsets = dict(zip(places, _offsets(pieces), strict=True))
    _finish_chunks(table, tar, offsets, zeros, surplus)
    payloads = b"".join(pieces)
    body = json.dumps({"version": 1, "entries": list(map(_sparing, table))}).encode()
    packed = zstandard.compress(body)
    at = len(payloads) + 8
    numbers = (at, len(packed), len(body), 1)
    prefix = OLD if dialect == "2021" else NEW
    position = ":".join(map(str, numbers))
    notes = {prefix + "manifest-checksum": str(Digest.of(packed)), prefix + "manifest-position": position}
    if surplus:
        notes[TOC_DIGEST] = str(Digest.of(body))
    blob = payloads + _skippable(packed)
    if dialect == "2023":
        split = b"tar-split"
        blob += _skippable(split)
        blob += _skippable(struct.pack("<7Q", *numbers, at + len(packed) + 8, len(split), 99) + b"GNUlInUx")
    else:
        blob += _skippable(struct.pack("<4Q", *numbers) + b"GnUlInUx")
    return _made(blob, ZSTD, body, notes)


def gzip_toc(body: bytes, level: int = 6) -> bytes:
    """Return a table of contents as eStargz packs it."""
    packer = zlib.compressobj(level, wbits=31)
    return packer.compress(tarmake.archive(tarmake.file("stargz.index.json", body))) + packer.flush()


def gzip_footer(extra: bytes, empty: bytes = b"\x01\x00\x00\xff\xff") -> bytes:
    """Return an empty gzip member with an extra field, and `empty` for its deflate data."""
    return b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H", len(extra)) + extra + empty + bytes(8)


def subfield(name: bytes, value: bytes) -> bytes:
    """One of an extra field's (RFC 1952, section 2.3.1.1)."""
    return name + struct.pack("<H", len(value)) + value


FOOTERS: Mapping[str, Callable[[int], bytes]] = {
    "estargz": lambda at: gzip_footer(subfield(b"SG", b"%016xSTARGZ" % at)),
    "legacy": lambda at: gzip_footer(b"%016xSTARGZ" % at),
    "short": lambda at: gzip_footer(subfield(b"SG", b"%016xSTARGZ" % at), b"\x03\x00"),
    "more fields": lambda at: gzip_footer(subfield(b"XX", b"?") + subfield(b"SG", b"%016xSTARGZ" % at)),
    "external": lambda _: gzip_footer(subfield(b"SG", b"STARGZEXTERNALTOC")),
}


def fetched(reader: Fetch[_T] | None, blob: bytes) -> tuple[_T, list[Range]]:
    """Return what a reader returns when it is sent what it wants of `blob`, and what it wanted."""
    assert reader is not None
    ranges: list[Range] = []
    try:
        wanted = next(reader)
        while True:
            start, end = wanted
            assert 0 <= start < end <= len(blob), f"{wanted} is no range of {len(blob)} bytes"
            ranges.append(wanted)
            wanted = reader.send(blob[start:end])
    except StopIteration as stop:
        return stop.value, ranges


def files(toc: Toc, blob: bytes) -> dict[bytes, bytes]:
    """Return every file's bytes, decoded out of the blob through the spans, their digests checked."""
    flat: dict[int, bytes] = {}
    for span in toc.spans:
        decoded = _decoded(span, blob[span.start : span.end])
        assert len(decoded) >= span.flat_end - span.flat_start
        for part in span.parts:
            body = decoded[part.skip : part.skip + part.length]
            assert hashlib.sha256(body).digest() == part.digest
            flat[span.flat_start + part.skip] = body
    return {entry.path: _content(entry, flat) for entry in toc.entries if entry.kind is Kind.FILE}


def tar_files(tar: bytes) -> dict[bytes, bytes]:
    """Return every file's bytes, straight out of a tar without sparse files."""
    return {
        entry.path: b"".join(tar[flat : flat + length] for _, length, flat in entry.extents)
        for entry in tar_entries(tar)
        if entry.kind is Kind.FILE
    }


def bare(entry: Entry, *, seconds: bool = False) -> Entry:
    """Return the entry but for where its bytes are, its time in whole seconds: all that eStargz says."""
    time = round(entry.mtime_ns / 1e9) * 1_000_000_000 if seconds else entry.mtime_ns
    return entry._replace(extents=(), mtime_ns=time)


def check(toc: Toc, end: int) -> None:
    """Assert what holds of every table of contents, however hostile: `end` is where its payloads end."""
    at = flat = 0
    known: set[int] = set()
    for number, span in enumerate(toc.spans):
        assert span.number == number
        assert at <= span.start < span.end <= end
        assert flat <= span.flat_start < span.flat_end <= toc.flat_size
        at, flat = span.end, span.flat_end
        skip = 0
        for part in span.parts:
            assert skip <= part.skip
            assert part.length > 0
            skip = part.skip + part.length
            known.update((span.flat_start + part.skip, span.flat_start + skip))
        assert span.flat_start + skip == span.flat_end
    for entry in toc.entries:
        last = 0
        for extent in entry.extents:
            assert last <= extent.offset
            assert {extent.flat, extent.flat + extent.length} <= known
            last = extent.offset + extent.length
        assert last <= entry.size


def _skippable(body: bytes) -> bytes:
    return blobs.skippable(body, 0)  # the magic that both writers use


def _made(blob: bytes, media_type: str, body: bytes, notes: Mapping[str, str], external: bytes = b"") -> Made:
    return Made(blob, Descriptor(media_type, Digest.of(blob), len(blob), notes), body, external)


def _streams(tar: bytes, chunk: int, shared: int) -> tuple[list[Fields], list[int]]:
    """Return the table, its offsets still those of the tar, and where in the tar to cut."""
    cuts, table = [0], []
    for entry in tar_entries(tar):
        fields = _fields(entry)
        table.append(fields)
        if entry.extents:
            fields["digest"] = _sha256(tar[entry.extents[0].flat :][: entry.size])
        for number, (at, length, flat) in enumerate(_chunks(entry, chunk)):
            if flat - cuts[-1] >= shared or b"landmark" in entry.path:
                cuts.append(flat)
            if number:
                fields = {"name": fields["name"], "type": "chunk"}
                table.append(fields)
            fields |= {"offset": cuts[-1], "innerOffset": flat - cuts[-1], "chunkOffset": at}
            fields |= {
                "chunkDigest": _sha256(tar[flat : flat + length]),
                "chunkSize": 0 if at + length == entry.size else length,
            }
    return table, cuts


def _finish_chunks(
    table: list[Fields], tar: bytes, offsets: dict[int, int], zeros: bool, surplus: bool
) -> None:
    """Make a table that of zstd:chunked: `endOffset`, holes, no digest of a chunk that is all of a file."""
    whole = {entry.path.decode(): entry for entry in tar_entries(tar)}
    for number, fields in enumerate(table):
        if "offset" not in fields:
            continue
        flat, entry = fields["offset"], whole[fields["name"]]
        length = fields["chunkSize"] or entry.size - fields["chunkOffset"]
        if zeros and not tar[flat : flat + length].strip(b"\0") and length < entry.size:
            fields |= {"chunkType": "zeros"}
        if fields["type"] == "reg" and not surplus:
            fields["endOffset"] = offsets[entry.extents[-1].flat + entry.size]
            if length == entry.size:
                del table[number]["chunkDigest"]
        fields |= {"offset": offsets[flat], "chunkSize": 0 if length == entry.size else length}


def _chunks(entry: Entry, chunk: int) -> Iterator[Extent]:
    for extent in entry.extents:
        for at in range(0, extent.length, chunk):
            yield Extent(at, min(chunk, extent.length - at), extent.flat + at)


def _fields(entry: Entry) -> Fields:
    seconds, fraction = divmod(entry.mtime_ns, 1_000_000_000)
    time = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    return {
        "name": entry.path.decode(),
        "type": _TYPES[entry.kind],
        "size": entry.size,
        "modtime": f"{time}.{fraction:09d}Z" if entry.mtime_ns else "",
        "linkName": entry.target.decode(),
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "devMajor": entry.device[0],
        "devMinor": entry.device[1],
        "xattrs": {name.decode(): base64.b64encode(body).decode() for name, body in entry.xattrs.items()},
    }


def _sha256(body: bytes) -> str:
    return str(Digest.of(body))


def _sparing(fields: Fields) -> Fields:
    """Return the fields but for zeros, which are left out."""
    return {name: value for name, value in fields.items() if value or name == "name"}


def _cut(flat: bytes, cuts: list[int]) -> list[bytes]:
    return [flat[start:end] for start, end in zip(cuts, [*cuts[1:], len(flat)], strict=True)]


def _offsets(pieces: list[bytes]) -> list[int]:
    offsets = [0]
    for piece in pieces[:-1]:
        offsets.append(offsets[-1] + len(piece))
    return offsets


def _decoded(span: Span, packed: bytes) -> bytes:
    if span.codec is Codec.GZIP:
        return zlib.decompressobj(wbits=31).decompress(packed)
    flat = b""
    while packed:
        unpacker = zstandard.ZstdDecompressor().decompressobj()
        flat += unpacker.decompress(packed)
        packed = unpacker.unused_data
    return flat


def _content(entry: Entry, flat: Mapping[int, bytes]) -> bytes:
    content = bytearray(entry.size)
    for offset, length, at in entry.extents:
        joined = b""
        while len(joined) < length:
            joined += flat[at + len(joined)]
        content[offset : offset + length] = joined
    return bytes(content)
