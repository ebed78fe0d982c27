"""A layer's blob out of its tar stream: packed right, named right, and lazy to read."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from pathlib import Path

import pytest
import zstandard

from imgfs.errors import UsageError
from imgfs.layer.codec.compress import CODECS, FRAME, Compressed, compress
from imgfs.layer.codec.span import decode_span
from imgfs.layer.entry import Codec
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.scan import scan
from imgfs.oci.descriptor import Descriptor, Digest
from tests.support.blobs import every, prose
from tests.support.tarmake import archive, file

FLAT = archive(*(file(f"f{number}", prose(900_000, number), mtime_ns=1) for number in range(8)))


def packed(flat: bytes, codec: str, chunk: int = 100_000) -> tuple[Compressed, bytes]:
    sink = io.BytesIO()
    done = compress(every(flat, chunk), codec, sink)
    return done, sink.getvalue()


def unpacked(blob: bytes, codec: str) -> bytes:
    if codec == "gzip":
        return gzip.decompress(blob)
    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(blob), read_across_frames=True).read()


def frames(blob: bytes) -> list[int]:
    """The content sizes that the zstd frames of a blob tell, each checked."""
    sizes = []
    while blob:
        size = zstandard.frame_content_size(blob)
        reader = zstandard.ZstdDecompressor().decompressobj()
        assert len(reader.decompress(blob)) == size
        sizes.append(size)
        blob = reader.unused_data
    return sizes


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("flat", [b"", b"x", FLAT], ids=["nothing", "a byte", "a layer"])
def test_both_digests_and_sizes_are_those_of_the_bytes(codec: str, flat: bytes) -> None:
    done, blob = packed(flat, codec)
    assert done == Compressed(Digest.of(blob), len(blob), Digest.of(flat), len(flat))
    assert unpacked(blob, codec) == flat


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_stream_makes_the_same_blob_however_it_is_cut(codec: str) -> None:
    blobs = {packed(FLAT, codec, chunk)[1] for chunk in (512, 1_000_003, FRAME, len(FLAT))}
    assert len(blobs) == 1


def test_gzip_is_one_member_without_name_or_time() -> None:
    _, blob = packed(FLAT, "gzip")
    assert (
        blob[:10] == b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\x03"
    )  # no flags; level 6 is neither best nor fast
    reader = zlib.decompressobj(31)
    assert reader.decompress(blob) == FLAT
    assert reader.eof
    assert reader.unused_data == b""


def test_zstd_frames_are_cut_at_fixed_sizes_that_they_tell() -> None:
    _, blob = packed(FLAT, "zstd")
    whole, rest = divmod(len(FLAT), FRAME)
    assert frames(blob) == [FRAME] * whole + [rest]
    assert whole > 2


@pytest.mark.parametrize("size", [FRAME - 1, FRAME, FRAME + 1, 2 * FRAME])
def test_zstd_has_no_empty_frame_at_the_end(size: int) -> None:
    _, blob = packed(bytes(size), "zstd")
    assert sum(frames(blob)) == size
    assert min(frames(blob)) > 0


def test_nothing_in_zstd_is_one_empty_frame() -> None:
    assert frames(packed(b"", "zstd")[1]) == [0]


@pytest.mark.parametrize("codec", CODECS)
def test_a_lazy_reader_finds_spans_it_can_read_alone(tmp_path: Path, codec: str) -> None:
    done, blob = packed(FLAT, codec)
    layer = Descriptor("", done.digest, done.size)
    scan(every(blob, 65536), layer, done.diff_id, _Nowhere(), IndexWriter(tmp_path / "index"))
    with LayerIndex(tmp_path / "index") as index:
        spans = [index.span(number) for number in range(index.span_count())]
        assert [entry.path for entry in index.entries()] == [f"f{number}".encode() for number in range(8)]
    assert len(spans) >= len(FLAT) // FRAME
    for span in reversed(spans):
        piece = b"".join(map(bytes, decode_span(span, [blob[span.start : span.end]])))
        assert piece == FLAT[span.flat_start : span.flat_end]
    if codec == "zstd":
        assert {span.codec for span in spans} == {Codec.ZSTD}
        assert [span.flat_start for span in spans] == list(range(0, len(FLAT), FRAME))


def test_an_unknown_codec_is_refused_before_anything_is_read() -> None:
    def untouched() -> bytes:
        raise AssertionError

    with pytest.raises(UsageError, match="compression 'xz' is none of gzip, zstd"):
        compress(iter(untouched, b""), "xz", io.BytesIO())


def test_a_sink_that_is_full_says_so_itself() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        compress([FLAT], "zstd", full)


def test_packing_holds_one_frame_not_the_layer() -> None:
    class Longest:
        piece = 0

        def write(self, piece: bytes, /) -> None:
            self.piece = max(self.piece, len(piece))

    sink = Longest()
    noise = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(3 * FRAME // 32))
    compress([noise], "zstd", sink)
    assert sink.piece < FRAME + 1024


class _Nowhere:
    def write(self, offset: int, piece: bytes | memoryview) -> None:
        pass
