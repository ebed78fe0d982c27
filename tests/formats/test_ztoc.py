from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import IntegrityError, InvalidImage
from imgfs.layer.entry import WINDOW, Checkpoint, Codec, Entry, Extent, Kind, Span
from imgfs.layer.soci.flatbuffer import FlatbufferBuilder
from imgfs.layer.soci.ztoc import (
    INFO,
    POINT,
    POINTS_HEAD,
    TAR_POINTS,
    TOC,
    ZTOC,
    Ztoc,
    parse_mod_time,
    parse_ztoc,
)
from imgfs.layer.soci.ztoc_writer import (
    Inexpressible,
    Member,
    build_ztoc,
    format_mod_time,
    members,
    soci_spans,
)
from imgfs.layer.tar.reader import tar_entries
from tests.support import tarmake
from tests.support.blobs import deflate, gzip_member, gzip_members, prose, zstd_frames
from tests.support.patience import allowed
from tests.support.tarmake import archive, device, directory, fifo, file, hardlink, symlink, whiteout
from tests.support.ztocs import Layer, decoded, flatc_reads, flatc_writes, reader, scanned

SECOND = 1_000_000_000
needs_flatc = pytest.mark.skipif(shutil.which("flatc") is None, reason="flatc is not installed")


def layer_tar() -> bytes:
    """A tar of 150 KB with one of everything that a zTOC has words for."""
    source = random.Random(5)
    files = [file(f"lib/{number}", prose(source.randrange(9000), number)) for number in range(20)]
    return archive(
        directory("lib/", mode=0o1777, uid=1000, gid=1000, mtime_ns=1_700_000_000 * SECOND),
        *files,
        file(
            "noise", source.randbytes(30_000), xattrs={b"security.capability": b"\1\0\0\2\xff"}, mode=0o4755
        ),
        file("empty", mtime_ns=-5 * SECOND + 7),
        file(b"not utf-8 \xff", b"body", uid=(1 << 32) - 2),
        tarmake.gnu_long(b"very-" * 40) + tarmake.member("short", b"0", b"long", magic=tarmake.GNU),
        symlink("lib64", "lib", mtime_ns=1_700_000_000_120_000_000),
        hardlink("again", "noise"),
        device("null", "c", 1, 3),
        device("disk", "b", 259, 70_000),
        fifo("pipe"),
        whiteout("gone"),
        directory("etc/", xattrs={b"user.a": b"", b"user.b": b"\0"}),
        file("end", prose(5000)),
    )


TAR = layer_tar()


def gzipped(flat: bytes, level: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, 31, 2)
    return packer.compress(flat) + packer.flush()


BLOBS = {
    "tar": TAR,
    **{f"gzip -{level}": gzipped(TAR, level) for level in (1, 6, 9)},
    "gzip, stored": gzipped(TAR, 0),
    "gzip with a name": gzip_member(
        TAR, deflate([TAR], memory=2, flush=0), name=b"layer.tar", header_crc=True
    ),
    "gzip, an empty block last": gzip_member(TAR, deflate([TAR], memory=3, flush=2)),
}
LAYERS = {name: scanned(blob) for name, blob in BLOBS.items()}
GZIP = LAYERS["gzip -6"]
EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)


def parsed(layer: Layer) -> Ztoc:
    return parse_ztoc(layer.ztoc(), size=len(layer.blob))


@EVERY_LAYER
def test_what_is_built_is_read(name: str) -> None:
    layer = LAYERS[name]
    ztoc = parsed(layer)
    assert ztoc.entries == layer.entries == tar_entries(TAR)
    assert ztoc.spans == layer.soci_spans()
    assert ztoc[2:] == (len(TAR), "tar" if name == "tar" else "gzip", "test")


@EVERY_LAYER
def test_every_span_of_a_ztoc_decodes_to_the_tar(name: str) -> None:
    layer = LAYERS[name]
    spans = parsed(layer).spans
    assert len(spans) >= 3
    assert decoded(spans, layer.blob) == TAR


@EVERY_LAYER
def test_spans_lie_side_by_side_and_share_a_byte_at_most(name: str) -> None:
    layer = LAYERS[name]
    spans = parsed(layer).spans
    assert (spans[0].flat_start, spans[-1].flat_end, spans[-1].end) == (0, len(TAR), len(layer.blob))
    for span, after in pairwise(spans):
        shared = 1 if after.checkpoint and after.checkpoint.bits else 0
        assert (after.flat_start, after.start) == (span.flat_end, span.end - shared)


def test_the_first_span_begins_after_the_gzip_header() -> None:
    assert parsed(GZIP).spans[0].start == 10
    named = parsed(LAYERS["gzip with a name"]).spans[0]
    assert (named.start, named.codec, named.checkpoint) == (22, Codec.DEFLATE, Checkpoint(0, b""))


@pytest.mark.parts
@pytest.mark.parametrize("command", ["gzip -1 -c", "gzip -9 -c", "pigz -c", "pigz -p 1 -1 -c"])
def test_what_real_tools_pack_is_indexed_and_decoded_span_by_span(command: str) -> None:
    words = command.split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    flat = archive(*(file(f"{number}", prose(40_000, number)) for number in range(30)))
    blob = subprocess.run(words, input=flat, stdout=subprocess.PIPE, check=True, timeout=allowed(60)).stdout
    layer = scanned(blob, step=65_536)
    ztoc = parsed(layer)
    assert ztoc.entries == layer.entries
    assert len(ztoc.spans) >= 5
    assert decoded(ztoc.spans, blob) == flat


def test_the_blob_s_end_belongs_to_the_last_span_where_a_scan_leaves_it_out() -> None:
    flat = archive(file("a", prose(40_000)))
    layers = [
        scanned(gzip_member(flat, deflate([flat], memory=2, flush=flush)), step=1000) for flush in (0, 2)
    ]
    assert [layer.spans[-1].end == len(layer.blob) for layer in layers] == [True, False]
    for layer in layers:
        spans = parsed(layer).spans
        assert spans[-1].end == len(layer.blob)
        assert decoded(spans, layer.blob) == flat


def test_tar_headers_are_where_the_snapshotter_looks_for_them() -> None:
    """It takes them to begin at the next block after a payload (ztoc_marshaler.go, TarHeaderOffset)."""
    header = 0
    for entry, offset in members(reader(TAR)):
        end = offset + entry.size + -entry.size % tarmake.BLOCK
        (alone,) = tar_entries(TAR[header:end])
        assert (alone.path, alone.kind, alone.xattrs) == (entry.path, entry.kind, entry.xattrs)
        header = end
    assert TAR[header:] == tarmake.end()


def test_the_same_layer_makes_the_same_ztoc() -> None:
    assert scanned(GZIP.blob).ztoc() == GZIP.ztoc()


def test_zeros_that_pad_the_archive_may_be_left_out_of_the_uncompressed_size() -> None:
    flat = archive(file("a", prose(9000))) + bytes(100_000)
    layer = scanned(gzipped(flat, 6), step=1000)
    end = flat.index(bytes(1024)) // 512 * 512 + 1024
    body = build_ztoc(
        members(reader(flat)), layer.soci_spans(), size=len(layer.blob), flat_size=end, tool="test"
    )
    ztoc = parse_ztoc(body, size=len(layer.blob))
    assert (ztoc.flat_size, ztoc.spans[-1].flat_end) == (end, end)
    assert decoded(ztoc.spans, layer.blob) == flat[:end]


@pytest.mark.parametrize(
    ("blob", "complaint"),
    [
        (gzip_members(TAR, 30_000), "is GZIP: a zTOC takes one gzip member"),
        (zstd_frames([TAR]), "a zstd layer"),
        (zstd_frames([TAR[:9000], TAR[9000:]]), "is ZSTD"),
    ],
)
def test_a_blob_that_is_not_one_gzip_member_is_inexpressible(blob: bytes, complaint: str) -> None:
    layer = scanned(blob)
    with pytest.raises(Inexpressible, match=complaint):
        layer.soci_spans()


def test_members_inside_of_a_span_are_decoded() -> None:
    """Newer writers go on over a member's end, where the C code had stopped (internal/gzipinfo/build.go)."""
    blob = gzip_members(TAR, 30_000)
    digest = hashlib.sha256(blob[10:]).digest()
    span = Span(0, 0, len(TAR), 10, len(blob), Codec.DEFLATE, digest, Checkpoint(0, b""))
    body = build_ztoc([], [span], size=len(blob), flat_size=len(TAR), tool="test")
    assert decoded(parse_ztoc(body, size=len(blob)).spans, blob) == TAR


SPARSE = [(4096, b"x" * 700), (500_000, b"y" * 512)]


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        (tarmake.sparse_pax("1.0", "holes", 1 << 20, SPARSE), "'holes' is sparse"),
        (tarmake.sparse_pax("0.0", "holes", 1 << 20, SPARSE), "'holes' is sparse"),
        (tarmake.sparse_old("holes", 1 << 20, SPARSE), "'holes' is sparse"),
        (tarmake.sparse_old("holes", 1 << 20, []), "'holes' is sparse"),
        (tarmake.member("dumped/", b"D", b"Yname\0"), "'dumped/' has a payload"),
        (file("ancient", mtime_ns=-62_135_596_801 * SECOND), "in no year from 1 to 9999"),
        (file("late", mtime_ns=253_402_300_800 * SECOND), "in no year from 1 to 9999"),
    ],
)
def test_what_an_entry_of_a_ztoc_has_no_words_for_is_inexpressible(member: bytes, complaint: str) -> None:
    layer = scanned(archive(file("a", b"body"), member, file("b")))
    with pytest.raises(Inexpressible, match=complaint):
        layer.ztoc()


def test_bytes_that_are_not_the_span_s_are_an_integrity_error() -> None:
    with pytest.raises(IntegrityError, match="span 0"):
        soci_spans(GZIP.spans, size=len(GZIP.blob), read=reader(GZIP.blob[:50] + b"?" + GZIP.blob[51:]))


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (b"1970-01-01T00:00:00Z", 0),
        (b"2023-11-14T22:13:20.12Z", 1_700_000_000_120_000_000),
        (b"2023-11-15T00:13:20+02:00", 1_700_000_000 * SECOND),
        (b"2023-11-14T16:43:20-05:30", 1_700_000_000 * SECOND),
        (b"0001-01-01T00:00:00Z", -62_135_596_800 * SECOND),
        (b"1969-12-31T23:59:55.000000007Z", -5 * SECOND + 7),
        (b"9999-12-31T23:59:59.999999999Z", 253_402_300_800 * SECOND - 1),
    ],
)
def test_times_are_rfc_3339_with_their_zone(text: bytes, nanoseconds: int) -> None:
    assert parse_mod_time(text) == nanoseconds
    if text.endswith(b"Z"):
        assert format_mod_time(nanoseconds) == text


@given(st.integers(-62_135_596_800 * SECOND, 253_402_300_800 * SECOND - 1))
def test_a_time_is_kept_to_the_nanosecond(nanoseconds: int) -> None:
    assert parse_mod_time(format_mod_time(nanoseconds)) == nanoseconds


@pytest.mark.parametrize(
    "text", [b"", b"today", b"2023-02-30T00:00:00Z", b"2023-01-01T24:00:00Z", b"0000-01-01T00:00:00Z"]
)
def test_what_is_not_a_time_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidImage, match="is not a"):
        parse_mod_time(text)


@pytest.mark.parts
@needs_flatc
@EVERY_LAYER
def test_flatc_reads_what_is_built(name: str, tmp_path: Path) -> None:
    flat = archive(
        *(file(f"lib/{number}", prose(2000, number)) for number in range(9)), symlink("a", "lib/1")
    )
    layer = scanned(flat if name == "tar" else gzipped(flat, 6))
    fields = flatc_reads(layer.ztoc("imgfs 1"), tmp_path)
    info, files = fields["compression_info"], fields["toc"]["metadata"]
    assert (fields["version"], fields["build_tool_identifier"]) == ("0.9", "imgfs 1")
    assert fields["compressed_archive_size"] == len(layer.blob)
    assert fields["uncompressed_archive_size"] == len(flat)
    assert [one["name"].encode() for one in files] == [entry.path for entry in layer.entries]
    assert [one.get("type") for one in files] == ["reg"] * 9 + ["symlink"]
    assert [one["uncompressed_offset"] for one in files[:9]] == [
        entry.extents[0].flat for entry in layer.entries[:9]
    ]
    assert files[9]["uncompressed_offset"] == files[8]["uncompressed_offset"] + 2048 + 512
    assert files[9]["linkname"] == "lib/1"
    assert info["max_span_id"] == len(info["span_digests"]) - 1 == len(layer.spans) - 1
    assert info.get("compression_algorithm", "Gzip") == ("Uncompressed" if name == "tar" else "Gzip")


def json_fields(layer: Layer) -> dict[str, Any]:
    """A zTOC's fields for flatc, put together here; the kind of JSON that soci's writer would make."""
    spans = layer.soci_spans()
    points = POINTS_HEAD.pack(len(spans), 4096) + points_of(spans)
    return {
        "version": "0.9",
        "build_tool_identifier": "AWS SOCI CLI v0.2",
        "compressed_archive_size": len(layer.blob),
        "uncompressed_archive_size": len(layer.flat),
        "toc": {
            "metadata": [
                {
                    "name": "a",
                    "type": "reg",
                    "uncompressed_offset": 1536,
                    "uncompressed_size": 5,
                    "linkname": "",
                    "mode": 0o100644,
                    "uid": 1,
                    "gid": 2,
                    "uname": "root",
                    "gname": "",
                    "mod_time": "1970-01-01T02:00:00+02:00",
                    "xattrs": [{"key": "path", "value": "a"}, {"key": "SCHILY.xattr.user.x", "value": "y"}],
                }
            ]
        },
        "compression_info": {
            "max_span_id": len(spans) - 1,
            "span_digests": [f"sha256:{span.digest.hex()}" for span in spans],
            "checkpoints": list(points),
        },
    }


@pytest.mark.parts
@needs_flatc
def test_what_flatc_writes_is_read(tmp_path: Path) -> None:
    ztoc = parse_ztoc(flatc_writes(json_fields(GZIP), tmp_path), size=len(GZIP.blob))
    xattrs = {b"user.x": b"y"}
    assert ztoc.entries == [
        Entry(b"a", Kind.FILE, 0o644, 1, 2, 5, 0, xattrs=xattrs, extents=(Extent(0, 5, 1536),))
    ]
    assert decoded(ztoc.spans, GZIP.blob) == TAR
    assert ztoc.tool == "AWS SOCI CLI v0.2"


class Pieces:
    """The zTOC of GZIP, taken apart so that a test can put it together wrong."""

    def __init__(self) -> None:
        self.entries = [Member(Entry(b"a", Kind.FILE, 0o644, 0, 0, 5, 0, extents=(Extent(0, 5, 512),)), 512)]
        self.spans = GZIP.soci_spans()
        self.size = len(GZIP.blob)
        self.flat_size = len(TAR)

    def build(self) -> bytes:
        return build_ztoc(self.entries, self.spans, size=self.size, flat_size=self.flat_size, tool="test")

    def parse(self) -> Ztoc:
        return parse_ztoc(self.build(), size=len(GZIP.blob))

    def span(self, number: int, **changed: object) -> None:
        self.spans[number] = self.spans[number]._replace(**changed)  # type: ignore[arg-type]  # passed on

    def entry(self, offset: int = 512, **changed: object) -> None:
        self.entries.append(Member(self.entries[0].entry._replace(**changed), offset))  # type: ignore[arg-type]  # passed on


@pytest.fixture
def pieces() -> Pieces:
    return Pieces()


def written(
    points: bytes, digests: Sequence[bytes], *, last: int, algorithm: int = 1, size: int, flat_size: int
) -> bytes:
    """A zTOC without entries that says what it is told."""
    builder = FlatbufferBuilder()
    texts = builder.vector([builder.string(b"sha256:" + digest.hex().encode()) for digest in digests])
    info = builder.table(INFO, [algorithm, last, texts, builder.string(points)])
    toc = builder.table(TOC, [None])
    return builder.finish(builder.table(ZTOC, [builder.string(b"0.9"), None, size, flat_size, toc, info]))


def points_of(spans: Sequence[Span]) -> bytes:
    packed = b""
    for span in spans:
        bits, window = span.checkpoint or Checkpoint(0, b"")
        packed += POINT.pack(span.start + bool(bits), span.flat_start, bits, window.rjust(WINDOW, b"\0"))
    return packed


def gzip_ztoc(points: bytes, **changed: int) -> bytes:
    """A zTOC of GZIP with these checkpoints."""
    digests = [span.digest for span in GZIP.soci_spans()]
    fields = {"last": len(digests) - 1, "size": len(GZIP.blob), "flat_size": len(TAR)} | changed
    return written(points, digests, **fields)


def test_the_older_form_leaves_out_the_first_checkpoint() -> None:
    spans = GZIP.soci_spans()
    body = gzip_ztoc(POINTS_HEAD.pack(len(spans), 4096) + points_of(spans[1:]))
    assert parse_ztoc(body, size=len(GZIP.blob)).spans == spans


COUNT = len(GZIP.spans)
POINTS = points_of(GZIP.soci_spans())


@pytest.mark.parametrize(
    ("points", "changed", "complaint"),
    [
        (b"", {}, "without checkpoints"),
        (POINTS_HEAD.pack(COUNT, 1) + POINTS[:-1], {}, f"are not {COUNT} checkpoints"),
        (POINTS_HEAD.pack(COUNT + 2, 1) + POINTS, {}, f"are not {COUNT + 2} checkpoints"),
        (POINTS_HEAD.pack(-1, 1), {}, "are not -1 checkpoints"),
        (POINTS_HEAD.pack(0, 1), {}, "are not 0 checkpoints"),
        (POINTS_HEAD.pack((1 << 31) - 1, 1) + POINTS, {}, "are not 2147483647 checkpoints"),
        (POINTS_HEAD.pack(COUNT + 1, 1) + POINTS, {}, f"{COUNT + 1} checkpoints and {COUNT} digests"),
        (POINTS_HEAD.pack(COUNT, 1) + POINTS, {"last": COUNT}, f"digests for {COUNT + 1} spans"),
        (
            POINTS_HEAD.pack(COUNT, 1) + POINTS,
            {"flat_size": -1},
            "without its entries, its spans or its size",
        ),
        (POINTS_HEAD.pack(COUNT, 1) + POINTS, {"algorithm": 3}, "compression algorithm 3 is not known"),
        (POINTS_HEAD.pack(COUNT, 1) + POINTS, {"algorithm": 2}, "do not say how a tar is cut"),
        (TAR_POINTS.pack(2, 0, len(GZIP.blob)), {"algorithm": 2}, "spans of 0 bytes"),
        (TAR_POINTS.pack(2, -1, len(GZIP.blob)), {"algorithm": 2}, "spans of -1 bytes"),
        (TAR_POINTS.pack(2, 1, len(GZIP.blob)), {"algorithm": 2}, f"{COUNT} spans of 1 bytes"),
        (TAR_POINTS.pack(2, 4096, 5), {"algorithm": 2}, "in a tar of 5, not"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(
    points: bytes, changed: dict[str, int], complaint: str
) -> None:
    with pytest.raises(InvalidImage, match=complaint):
        parse_ztoc(gzip_ztoc(points, **changed), size=len(GZIP.blob))


def test_a_ztoc_of_no_spans_is_refused() -> None:
    with pytest.raises(InvalidImage, match="nothing decodes the first byte"):
        parse_ztoc(written(TAR_POINTS.pack(2, 1, 0), [], last=-1, algorithm=2, size=0, flat_size=0), size=0)


def test_a_ztoc_of_another_blob_is_refused() -> None:
    with pytest.raises(InvalidImage, match=r"made for a blob of \d+ bytes, not 5"):
        parse_ztoc(GZIP.ztoc(), size=5)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (b"\3\0\0\x000.9\0", b"\3\0\0\x001.0\0", "version b'1.0'"),
        (b"sha256:", b"sha999:", "digest algorithm 'sha999' is not supported"),
        (b"\3\0\0\0reg\0", b"\3\0\0\0rag\0", "zTOC entry 0: type b'rag' is not known"),
        (b"1970-01-01T00:00:00Z", b"1970-13-01T00:00:00Z", "zTOC entry 0: b'1970-13-01' is not a date"),
        (b"\1\0\0\0a\0", b"\1\0\0\0\0\0", "is not a path"),
    ],
)
def test_a_text_that_says_something_else_is_refused(
    pieces: Pieces, old: bytes, new: bytes, complaint: str
) -> None:
    body = pieces.build()
    assert old in body
    with pytest.raises(InvalidImage, match=complaint):
        parse_ztoc(body.replace(old, new), size=len(GZIP.blob))


def test_spans_that_do_not_fit_together_are_refused() -> None:
    flat, start = GZIP.spans[4].flat_start, GZIP.spans[4].start
    wrong: list[tuple[int, dict[str, object], str]] = [
        (0, {"flat_start": 1}, "nothing decodes the first byte"),
        (3, {"flat_start": flat}, "cannot be"),
        (3, {"flat_start": flat + 1}, "cannot be"),
        (3, {"start": start}, "cannot be"),
        (3, {"start": 1 << 40}, "cannot be"),
        (3, {"start": -2}, "a checkpoint at -"),  # where its bits begin, or the byte before
        (3, {"flat_start": -1}, "a checkpoint at"),
        (3, {"checkpoint": Checkpoint(8, b"")}, "8 bits"),
    ]
    for number, changed, complaint in wrong:
        damaged = Pieces()
        damaged.span(number, **changed)
        with pytest.raises(InvalidImage, match=complaint):
            damaged.parse()


def test_a_span_that_would_be_a_bomb_is_refused(pieces: Pieces) -> None:
    pieces.flat_size = 1 << 50
    with pytest.raises(InvalidImage, match=r"zTOC span \d+: .* cannot be"):
        pieces.parse()


@pytest.mark.parametrize(
    ("offset", "changed", "complaint"),
    [
        (len(TAR), {"size": 1, "extents": (Extent(0, 1, len(TAR)),)}, "are not inside of"),
        (-1, {"size": 0, "extents": ()}, "0 bytes at -1"),
        (514, {"size": 1, "extents": (Extent(0, 1, 514),)}, "overlaps the file before it, at 514"),
        (600, {"path": b"", "size": 0, "extents": ()}, "is not a path"),
        (600, {"path": b"a\0b", "size": 0, "extents": ()}, "is not a path"),
        (600, {"kind": Kind.CHARACTER, "size": 0, "extents": (), "device": (-1, 0)}, "device number -1:0"),
        (600, {"kind": Kind.BLOCK, "size": 0, "extents": (), "device": (0, 1 << 32)}, "is out of range"),
        (600, {"xattrs": {b"": b""}, "size": 0, "extents": ()}, "not a name for an extended attribute"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(
    pieces: Pieces, offset: int, changed: dict[str, object], complaint: str
) -> None:
    pieces.entry(offset, **changed)
    with pytest.raises(InvalidImage, match=complaint) as caught:
        pieces.parse()
    assert "zTOC entry" in str(caught.value)


def test_a_sparse_file_s_records_are_refused(pieces: Pieces) -> None:
    pieces.entry(600, size=0, extents=(), xattrs={b"size": b"9"})
    body = pieces.build().replace(b"SCHILY.xattr.size", b"GNU.sparse.major\0")
    with pytest.raises(InvalidImage, match="a sparse file"):
        parse_ztoc(body, size=len(GZIP.blob))


def test_entries_come_in_the_order_of_the_tar(pieces: Pieces) -> None:
    pieces.entry(2048, path=b"c", size=0, extents=())
    pieces.entry(1024, path=b"b", size=0, extents=())
    assert [entry.path for entry in pieces.parse().entries] == [b"a", b"b", b"c"]


def test_20_000_entries_are_read_in_a_second() -> None:
    size = 512 * 40_000
    found = [
        Member(
            Entry(
                b"usr/share/doc/%d" % number,
                Kind.FILE,
                0o644,
                0,
                0,
                9,
                number * SECOND,
                extents=(Extent(0, 9, at),),
            ),
            at,
        )
        for number, at in enumerate(range(512, size, 1024))
    ]
    span = Span(0, 0, size, 10, size // 1000, Codec.DEFLATE, bytes(32), Checkpoint(0, b""))
    body = build_ztoc(found, [span], size=size // 1000, flat_size=size, tool="test")
    began = time.process_time()
    assert len(parse_ztoc(body, size=size // 1000).entries) == 20_000
    assert time.process_time() - began < 2  # 0.2 where it was written


SMALL = scanned(
    gzipped(archive(directory("d/", xattrs={b"user.a": b"1"}), file("d/f", prose(9000))), 6), step=3000
)
SMALL_TAR = scanned(SMALL.flat, step=3000)


DAMAGED = [(layer.ztoc(), len(layer.blob)) for layer in (SMALL, SMALL_TAR)]


@pytest.mark.parametrize(("body", "size"), DAMAGED, ids=["gzip", "tar"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_ztoc_is_refused_or_says_something_that_fits(
    body: bytes, size: int, data: st.DataObject
) -> None:
    """Half of the places are among the first and last kilobytes: elsewhere are windows mostly."""
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        reach = min(len(damaged), data.draw(st.sampled_from([1500, 1 << 30])))
        at = data.draw(st.integers(0, reach - 1))
        at = at if data.draw(st.booleans()) else len(damaged) - 1 - at
        match data.draw(st.sampled_from(["change", "cut", "insert", "truncate"])):
            case "change":
                damaged[at] = data.draw(st.integers(0, 255))
            case "cut":
                del damaged[at : at + data.draw(st.integers(1, 9))]
            case "insert":
                damaged[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case _:
                del damaged[max(99, at) :]
    try:
        ztoc = parse_ztoc(bytes(damaged), size=size)
    except InvalidImage:
        return
    flat_end = 0
    for span in ztoc.spans:
        assert span.flat_start == flat_end < span.flat_end
        assert 0 <= span.start < span.end <= size
        flat_end = span.flat_end
    assert flat_end == ztoc.flat_size or not ztoc.spans
    assert all(
        0 <= extent.flat <= ztoc.flat_size - extent.length
        for entry in ztoc.entries
        for extent in entry.extents
    )
    blob = SMALL.blob if ztoc.format == "gzip" else SMALL_TAR.blob
    with suppress(InvalidImage, IntegrityError):
        decoded(ztoc.spans, blob)
