from __future__ import annotations

import bz2
import lzma
import resource
import time
import zlib
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from zstandard import ZstdCompressor, train_dictionary

from imgfs.errors import IntegrityError, InvalidImage, Unavailable
from imgfs.layer.codec import frames
from imgfs.layer.codec.blob import MAGIC_LENGTH, Cut, decoder, sniff
from imgfs.layer.codec.frames import FRAMED, ZstdFrames
from imgfs.layer.codec.span import decode_span
from imgfs.layer.codec.zlib_engine import ZlibEngine
from imgfs.layer.entry import ChunkDigest, Codec, Span
from tests.support import blobs
from tests.support.blobs import (
    deflate,
    gzip_member,
    gzip_members,
    prose,
    skippable,
    span_of,
    zstd_bomb,
    zstd_frames,
)
from tests.support.children import Child
from tests.support.tarmake import archive, file

TEXT = prose(60_000)
MIB = 1 << 20


def decoded(blob: bytes, *, step: int = 4096, chunks: list[bytes] | None = None) -> tuple[bytes, list[Cut]]:
    """The flat bytes of a whole blob, and its cuts."""
    cuts: list[Cut] = []
    decode = decoder(sniff(blob), cuts.append, step, ZlibEngine)
    flat = b"".join(bytes(piece) for chunk in chunks or [blob] for piece in decode.pieces(chunk))
    decode.finish()
    return flat, cuts


def flat_of(span: Span, packed: bytes, size: int = 1 << 20) -> bytes:
    """What a span decodes to, its bytes fed in chunks of `size`."""
    return b"".join(bytes(piece) for piece in decode_span(span, blobs.every(packed, size)))


def deflate_span() -> tuple[Span, bytes, bytes]:
    """A span that begins in mid-byte: (span, its compressed bytes, its flat bytes)."""
    text = TEXT[:6000]
    blob = gzip_member(text, deflate([text], memory=1, flush=zlib.Z_NO_FLUSH))
    _, cuts = decoded(blob, step=500)
    first, second = next(pair for pair in pairwise(cuts) if pair[0].checkpoint and pair[0].checkpoint.bits)
    packed = blob[first.start : second.start + bool(second.checkpoint and second.checkpoint.bits)]
    span = span_of(packed, second.flat - first.flat, Codec.DEFLATE)._replace(checkpoint=first.checkpoint)
    return span, packed, text[first.flat : second.flat]


def spans() -> dict[str, tuple[Span, bytes, bytes]]:
    """A span of every codec: (span, its compressed bytes, its flat bytes)."""
    text = TEXT[:900]
    packed = {
        "identity": (text, Codec.IDENTITY),
        "gzip": (gzip_member(text), Codec.GZIP),
        "gzip members": (gzip_members(text, 300), Codec.GZIP),
        "zstd": (zstd_frames([text]), Codec.ZSTD),
        "xz": (lzma.compress(text[:300]) + lzma.compress(text[300:]), Codec.XZ),
        "bzip2": (bz2.compress(text), Codec.BZIP2),
        "zstd frames": (
            skippable(b"skip me") + zstd_frames([text[:300], b"", text[300:]], checksum=False, sized=False),
            Codec.ZSTD,
        ),
    }
    made = {name: (span_of(body, len(text), codec), body, text) for name, (body, codec) in packed.items()}
    return {**made, "deflate": deflate_span()}


SPANS = spans()
CODECS = pytest.mark.parametrize("name", sorted(SPANS))


# What a blob is packed with


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (gzip_member(b"x"), "gzip"),
        (zstd_frames([b"x"]), "zstd"),
        *((skippable(b"", variant), "zstd") for variant in range(16)),
        (b"\xfd7zXZ\x00\x00\x04", "xz"),
        (b"BZh91AY&SY", "bzip2"),
        (archive(file("x")), "tar"),
        (archive(file("PK\x03\x04")), "tar"),
        (b"", "tar"),
        (bytes(1024), "tar"),
        (b"\x1f", "tar"),
        (b"\x60\x2a\x4d\x18", "tar"),
        (b"]" + bytes(600), "tar"),  # a member's name, before ustar
    ],
)
def test_the_magic_tells_how_a_blob_is_packed(head: bytes, name: str) -> None:
    assert sniff(head) == name
    assert sniff(head[:MAGIC_LENGTH]) == name


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x04\x22\x4d\x18\x60", "lz4"),
        (b"PK\x03\x04\x14\0", "zip"),
        (b"\x02\x21\x4c\x18\x60", "lz4"),
        (b"\x1f\x9d\x90", r"compress \(\.Z\)"),
        (b"LZIP\x01\x0c", "lzip"),
        (b"7z\xbc\xaf\x27\x1c\0\x04", "7-zip"),
        (b"\xff\x06\x00\x00sNaPpY", "snappy"),
        (b"\x27\xb5\x2f\xfd\0", "a zstd older than its standard"),
        (lzma.compress(b"x", lzma.FORMAT_ALONE), "lzma"),
    ],
)
def test_other_formats_are_refused_by_name(head: bytes, name: str) -> None:
    for start in (head, head[:MAGIC_LENGTH]):
        with pytest.raises(InvalidImage, match=f"packed with {name}, "):
            sniff(start)


# Whole blobs


def test_a_zstd_layer_that_needs_a_dictionary_is_refused_in_our_words() -> None:
    samples: list[Any] = [b"tar data ustar " * 20 + bytes([number % 256]) * 50 for number in range(500)]
    blob = ZstdCompressor(dict_data=train_dictionary(2048, samples)).compress(bytes(1000))
    with pytest.raises(InvalidImage, match="zstd: it needs a dictionary, which no layer brings"):
        decoded(blob)


def test_a_tar_is_cut_at_every_step() -> None:
    flat, cuts = decoded(bytes(10_000), step=4096)
    assert flat == bytes(10_000)
    assert cuts == [Cut(at, at, Codec.IDENTITY) for at in (4096, 8192)]


def test_there_is_no_cut_at_the_end_of_a_tar() -> None:
    assert decoded(bytes(8192), step=4096)[1] == [Cut(4096, 4096, Codec.IDENTITY)]


def test_a_gzip_member_is_cut_inside_with_a_checkpoint_at_least_a_step_apart() -> None:
    blob = gzip_member(TEXT, deflate([TEXT], memory=1, flush=zlib.Z_NO_FLUSH))
    flat, cuts = decoded(blob)
    assert flat == TEXT
    assert len(cuts) > 5
    assert all(after.flat - before.flat >= 4096 for before, after in pairwise(cuts))
    assert {cut.codec for cut in cuts[:-1]} == {Codec.DEFLATE}
    assert all(cut.checkpoint for cut in cuts[:-1])


def test_gzip_members_are_cut_between_without_a_checkpoint() -> None:
    flat, cuts = decoded(gzip_members(TEXT, 3000))
    assert flat == TEXT
    assert {(cut.codec, cut.checkpoint, cut.flat % 3000) for cut in cuts} == {(Codec.GZIP, None, 0)}


def test_one_zstd_frame_has_no_cut_before_its_end() -> None:
    blob = zstd_frames([TEXT])
    assert decoded(blob) == (TEXT, [Cut(len(blob), len(TEXT), Codec.ZSTD)])


def test_zstd_frames_are_cut_between_at_least_a_step_apart() -> None:
    blob = zstd_frames(blobs.every(TEXT, 1500))
    flat, cuts = decoded(blob)
    assert flat == TEXT
    assert [cut.flat for cut in cuts] == list(range(4500, len(TEXT) + 1, 4500))[: len(cuts)]
    for cut in cuts:
        assert decoded(blob[cut.start :] or zstd_frames([b""]))[0] == TEXT[cut.flat :]


def test_skippable_zstd_frames_are_skipped() -> None:
    blob = skippable(b"first") + zstd_frames([b"one"]) + skippable(b"") + zstd_frames([b"two"])
    assert decoded(blob + skippable(bytes(5000)))[0] == b"onetwo"


ZSTD = (
    skippable(bytes(300))
    + zstd_frames(blobs.every(TEXT[:30_000], 2500))
    + skippable(b"")
    + zstd_frames([b"", TEXT[30_000:40_000], TEXT[40_000:]], checksum=False, sized=False)
    + skippable(b"table of contents")
)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 3000), max_size=30))
@example(sizes=[1] * len(ZSTD))
@example(sizes=[1023, 1, 1024])
def test_how_a_zstd_blob_is_cut_into_chunks_changes_nothing(sizes: list[int]) -> None:
    assert decoded(ZSTD, chunks=blobs.split(ZSTD, sizes)) == decoded(ZSTD)
    assert decoded(ZSTD)[0] == TEXT


@pytest.mark.parametrize("blob", [gzip_member(TEXT), zstd_frames([TEXT]), skippable(b"12345678")])
@pytest.mark.parametrize("missing", [1, 3, 8])
def test_a_blob_cannot_end_in_mid_member(blob: bytes, missing: int) -> None:
    with pytest.raises(InvalidImage, match=r"^(gzip|zstd) offset \d+: the \w+ stream ends in mid-\w+$"):
        decoded(blob[:-missing])


@pytest.mark.parametrize("tail", [b"garbage", bytes(100), gzip_member(b"x")])
def test_zstd_is_followed_by_nothing_else(tail: bytes) -> None:
    blob = zstd_frames([TEXT])
    with pytest.raises(InvalidImage, match=f"^zstd offset {len(blob)}: zstd: "):
        decoded(blob + tail)


def test_a_wrong_zstd_checksum_is_refused() -> None:
    blob = bytearray(zstd_frames([TEXT]))
    blob[-1] ^= 1
    with pytest.raises(InvalidImage, match="zstd: "):
        decoded(bytes(blob))


def test_a_zstd_window_may_have_2_gib_but_not_more() -> None:
    frame = bytearray(zstd_bomb(1))
    flat = decoded(bytes(frame))[0]
    frame[5] = (31 - 10) << 3  # the window's exponent
    assert decoded(bytes(frame))[0] == flat
    frame[5] += 1
    with pytest.raises(InvalidImage, match="zstd: "):
        decoded(bytes(frame))


@pytest.mark.parametrize("is_parted", [False, True])
def test_a_hostile_zstd_window_costs_a_span_no_more_memory_than_it_decodes_to(is_parted: bool) -> None:
    """The frame says 2 GiB of window and holds 512 MiB; the index says 1 MiB, all of a page of the window."""
    frame = bytearray(zstd_bomb(4096))
    frame[5] = (31 - 10) << 3  # the window's exponent
    span = span_of(bytes(frame), MIB, Codec.ZSTD)
    span = parted(span, bytes(MIB), (0, MIB)) if is_parted else span

    def read() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            assert flat_of(span, bytes(frame)) == bytes(MIB)
        except InvalidImage:
            assert not is_parted  # of a digest, all that decodes counts
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB

    with Child(read) as child:
        assert child.join() == 0


@pytest.mark.parametrize(("name", "pack"), [("xz", lzma.compress), ("bzip2", bz2.compress)])
def test_streams_are_cut_between_them(name: str, pack: Callable[[bytes], bytes]) -> None:
    texts = [TEXT[:9000], b"", TEXT[9000:9100], TEXT[9100:]]
    packed = [pack(text) for text in texts]
    for size in (1, 1000, MIB):
        flat, cuts = decoded(b"".join(packed), chunks=list(blobs.every(b"".join(packed), size)))
        assert flat == TEXT
        assert cuts == [
            Cut(len(packed[0]), 9000, FRAMED[name]),
            Cut(sum(map(len, packed)), len(TEXT), FRAMED[name]),
        ]
    for cut in (1, 7, len(packed[0]) // 2, len(packed[0]) - 1):
        with pytest.raises(InvalidImage, match=f"the {name} stream ends in mid-frame"):
            decoded(packed[0][:cut] if cut > 6 else pack(b"x")[:20])
    for damage in (packed[0][:50] + b"\xff" * 50 + packed[0][100:], packed[0] + b"garbage"):
        with pytest.raises(InvalidImage, match=name):
            decoded(damage)


def test_an_xz_file_may_be_padded() -> None:
    padded = lzma.compress(b"one") + bytes(8) + lzma.compress(b"two") + bytes(4)
    assert decoded(padded, chunks=list(blobs.every(padded, 3)))[0] == b"onetwo"


def test_xz_that_wants_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "XZ_MEMORY_LIMIT", 1 << 20)
    with pytest.raises(InvalidImage, match=r"xz: Memory usage limit"):
        decoded(lzma.compress(TEXT, preset=6))


@pytest.mark.parametrize("pack", [lzma.compress, bz2.compress])
def test_a_bomb_of_streams_comes_in_pieces_of_bounded_size(pack: Callable[[bytes], bytes]) -> None:
    blob = pack(bytes(64 * MIB))
    pieces = decoder(sniff(blob), lambda _: None).pieces(blob)
    assert max(len(next(pieces)) for _ in range(40)) <= 256 << 10


def test_a_zstd_bomb_comes_in_pieces_of_bounded_size() -> None:
    pieces = ZstdFrames().pieces(zstd_bomb(50_000))  # 200 kB that hold 6 GiB
    sizes = [len(next(pieces)) for _ in range(4)]
    assert max(sizes) <= 33 * MIB


# Spans


@CODECS
@pytest.mark.parametrize("size", [1, 2, 100, MIB])
def test_a_span_decodes_to_its_flat_bytes_however_it_arrives(name: str, size: int) -> None:
    span, packed, flat = SPANS[name]
    assert flat_of(span, packed, size) == flat


@CODECS
def test_damage_to_any_byte_of_a_span_is_an_integrity_error(name: str) -> None:
    span, packed, _ = SPANS[name]
    for at in range(len(packed)):
        for mask in (1, 0x80, 0xFF):
            body = bytearray(packed)
            body[at] ^= mask
            with pytest.raises(IntegrityError, match=r"^span 0: expected "):
                flat_of(span, bytes(body))


@CODECS
@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=400), at=st.integers(0, 400), size=st.integers(1, 500))
def test_other_bytes_than_the_spans_are_an_integrity_error(
    name: str, body: bytes, at: int, size: int
) -> None:
    span, packed, _ = SPANS[name]
    other = packed[:at] + body
    if other != packed:
        with pytest.raises(IntegrityError, match=r"^span 0: expected "):
            flat_of(span, other, size)


@CODECS
def test_a_span_whose_bytes_are_cut_short_or_go_on_is_an_integrity_error(name: str) -> None:
    span, packed, _ = SPANS[name]
    for body in (b"", packed[:-1], packed[: len(packed) // 2], packed + b"\0", packed + packed):
        with pytest.raises(IntegrityError, match=r"^span 0: expected "):
            flat_of(span, body)


@CODECS
def test_a_span_that_decodes_to_less_than_its_index_says_is_an_integrity_error(name: str) -> None:
    span, packed, flat = SPANS[name]
    longer = span._replace(flat_end=span.flat_end + 1)
    with pytest.raises(IntegrityError) as caught:
        flat_of(longer, packed)
    assert (caught.value.what, caught.value.expected) == ("length of span 0", len(flat) + 1)
    assert caught.value.actual == len(flat)


@pytest.mark.parametrize("name", ["gzip", "gzip members", "deflate"])
def test_an_inflated_span_goes_as_far_as_its_index_says_and_no_further(name: str) -> None:
    span, packed, flat = SPANS[name]
    assert flat_of(span._replace(flat_end=span.flat_end - 10), packed) == flat[:-10]


@pytest.mark.parametrize("name", ["identity", "zstd", "zstd frames"])
def test_a_span_that_decodes_to_more_than_its_index_says_is_an_error(name: str) -> None:
    span, packed, _ = SPANS[name]
    with pytest.raises((IntegrityError, InvalidImage), match=r"length of span 0|more than the 890 bytes"):
        flat_of(span._replace(flat_end=890), packed)


@pytest.mark.parametrize(
    ("bomb", "codec"), [(zstd_bomb(50_000), Codec.ZSTD), (blobs.gzip_bomb(32 * MIB), Codec.GZIP)]
)
def test_a_bomb_in_a_span_gives_no_more_than_its_index_says(bomb: bytes, codec: Codec) -> None:
    taken = 0
    pieces = decode_span(span_of(bomb, 100, codec), [bomb])
    try:
        for piece in pieces:
            taken += len(piece)
    except InvalidImage as error:
        assert codec is Codec.ZSTD, error  # noqa: PT017  (gzip can stop in mid-member, zstd cannot)
    assert taken <= 100


@CODECS
def test_a_span_of_the_right_digest_that_is_not_decodable_is_the_images_fault(name: str) -> None:
    span, _, flat = SPANS[name]
    noise = b"\xff" * 40
    broken = span_of(noise, len(flat), span.codec)._replace(checkpoint=span.checkpoint)
    wrong = IntegrityError if name == "identity" else InvalidImage
    with pytest.raises(wrong):
        flat_of(broken, noise)


@CODECS
def test_what_the_source_raises_comes_out_of_a_span(name: str) -> None:
    span, packed, _ = SPANS[name]

    def cut_off() -> Iterator[bytes]:
        yield packed[: len(packed) // 2]
        raise Unavailable("the connection was cut")

    with pytest.raises(Unavailable):
        list(decode_span(span, cut_off()))


# Spans of a table of contents: digests of flat bytes


def parted(span: Span, flat: bytes, *runs: tuple[int, int]) -> Span:
    """`span` with the digests of those runs of its flat bytes, (skip, length), and none of its own."""
    parts = (ChunkDigest(skip, length, sha256(flat[skip : skip + length]).digest()) for skip, length in runs)
    return span._replace(digest=b"", parts=tuple(parts))


@CODECS
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_the_parts_of_a_span_are_checked(name: str, size: int) -> None:
    span, packed, flat = SPANS[name]
    third = len(flat) // 3
    good = parted(span, flat, (0, third), (third + 7, 5), (2 * third, len(flat) - 2 * third))
    assert flat_of(good, packed, size) == flat
    for number, part in enumerate(good.parts):
        wrong = list(good.parts)
        wrong[number] = part._replace(digest=bytes(32))
        with pytest.raises(IntegrityError, match=rf"span 0, {part.length} bytes from {part.skip}: "):
            flat_of(good._replace(parts=tuple(wrong)), packed, size)


def test_checking_many_parts_takes_one_pass() -> None:
    """200,000 parts, and a piece for each of them: a second of work, hours if pieces and parts multiply."""
    flat, count = b"0123456789abcdef", 200_000
    digest = sha256(flat).digest()
    parts = tuple(ChunkDigest(16 * number, 16, digest) for number in range(count))
    span = Span(0, 0, 16 * count, 0, 16 * count, Codec.IDENTITY, b"", None, parts)
    taken = time.process_time()
    assert sum(map(len, decode_span(span, (flat for _ in range(count))))) == 16 * count
    assert time.process_time() - taken < 30


def test_a_part_behind_the_end_of_a_span_is_not_what_was_said() -> None:
    span = span_of(b"0123456789", 10, Codec.IDENTITY)
    beyond = ChunkDigest(20, 5, sha256(b"01234").digest())
    with pytest.raises(IntegrityError, match="span 0, 5 bytes from 20"):
        flat_of(
            span._replace(parts=(ChunkDigest(0, 10, sha256(b"0123456789").digest()), beyond)), b"0123456789"
        )


@pytest.mark.parametrize("name", ["gzip", "gzip members", "deflate", "zstd", "zstd frames"])
def test_what_a_member_holds_beyond_its_parts_does_not_count(name: str) -> None:
    span, packed, flat = SPANS[name]
    good = parted(span._replace(flat_end=100), flat, (0, 100))
    assert flat_of(good, packed) == flat[:100]


@pytest.mark.parametrize("name", ["gzip", "deflate", "zstd"])
def test_a_span_of_parts_that_cannot_be_decoded_is_another(name: str) -> None:
    span, packed, flat = SPANS[name]
    with pytest.raises(IntegrityError, match="span 0"):
        flat_of(parted(span, flat, (0, len(flat))), b"\xff" * len(packed))
    with pytest.raises(IntegrityError, match=r"length of span 0|span 0, "):
        flat_of(parted(span, flat, (0, len(flat))), packed[: len(packed) // 2])
