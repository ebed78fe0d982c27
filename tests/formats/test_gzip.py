from __future__ import annotations

import random
import zlib
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imgfs.errors import InvalidImage
from imgfs.layer.codec.gzip import Inflater
from imgfs.layer.codec.zlib_engine import OUTPUT
from imgfs.layer.entry import WINDOW, Checkpoint
from tests.support import blobs
from tests.support.blobs import bgzf, deflate, gzip_member, gzip_members, prose

TEXT = prose(70_000)
NOISE = random.Random(1).randbytes(70_000)
MIXED = b"".join(blobs.split(TEXT, [5000] * 7)[i] + NOISE[i * 900 :][:900] + bytes(3000) for i in range(7))
FIXED = zlib.Z_FIXED
NOTHING = zlib.Z_NO_FLUSH
TRAILER = 8


class Place(NamedTuple):
    """A boundary: what was consumed and produced when it was reached, its kind, its checkpoint."""

    consumed: int
    produced: int
    kind: str
    checkpoint: Checkpoint


def fed(blob: bytes, size: int, inflater: Inflater) -> bytes:
    """All that an inflater gives for `blob`, fed in chunks of `size`."""
    chunks = blobs.every(blob, size)
    return b"".join(bytes(piece) for chunk in chunks for piece in inflater.pieces(chunk, 1 << 62))


def inflated(blob: bytes, size: int = 1 << 20) -> bytes:
    """All that the members of `blob` hold, fed in chunks of `size`."""
    inflater = Inflater()
    flat = fed(blob, size, inflater)
    assert inflater.complete
    assert (inflater.consumed, inflater.produced) == (len(blob), len(flat))
    return flat


def places(blob: bytes) -> list[Place]:
    """Every boundary of a blob."""
    inflater = Inflater()
    found = []
    for _ in inflater.pieces(blob, 0):
        if inflater.boundary:
            checkpoint = inflater.checkpoint()
            found.append(Place(inflater.consumed, inflater.produced, inflater.boundary, checkpoint))
    return found


def cuts(chunks: list[bytes], step: int) -> tuple[bytes, list[Place]]:
    """The flat bytes, and the first boundary at least `step` flat bytes after each one before."""
    inflater = Inflater()
    flat, found = b"", []
    stop = step
    for chunk in chunks:
        for piece in inflater.pieces(chunk, stop):
            flat += piece
            if inflater.boundary and inflater.produced >= stop:
                found.append(
                    Place(inflater.consumed, inflater.produced, inflater.boundary, inflater.checkpoint())
                )
                stop = inflater.until = inflater.produced + step
    return flat, found


def resumed(blob: bytes, place: Place, end: int | None = None) -> bytes:
    """What decoding from a block boundary on gives, up to `end` bytes."""
    inflater = Inflater(place.checkpoint)
    rest = blob[place.consumed - bool(place.checkpoint.bits) :]
    return b"".join(bytes(piece) for piece in inflater.pieces(rest, 1 << 62, end))


def resumed_by_stdlib(packed: bytes, place: Place) -> bytes:
    """The same without our code: bits moved to a byte boundary, then zlib with the window as dictionary.

    Moved bits are good for anything but stored blocks in mid-byte: those begin at a byte of the file.
    """
    bits = place.checkpoint.bits
    rest = int.from_bytes(packed[place.consumed - bool(bits) :], "little") >> (-bits % 8 if bits else 0)
    unpacker = zlib.decompressobj(-15, zdict=place.checkpoint.window)
    return unpacker.decompress(rest.to_bytes(len(packed), "little"))


NUMBERS = b"".join(b"%d %d\n" % (number, number**3) for number in range(20_000))

PACKED = {
    "stored": (TEXT, deflate([TEXT], level=0, flush=NOTHING)),
    "fastest": (TEXT * 8, deflate([TEXT * 8], level=1, flush=NOTHING)),
    "default": (TEXT * 8, deflate([TEXT * 8], level=6, flush=NOTHING)),
    "best": (NUMBERS, deflate([NUMBERS], level=9, flush=NOTHING)),
    "tiny blocks": (TEXT, deflate([TEXT], memory=1, flush=NOTHING)),
    "tiny fixed blocks": (TEXT, deflate([TEXT], memory=1, strategy=FIXED, flush=NOTHING)),
    "tiny blocks, stored among them": (MIXED, deflate([MIXED], memory=1, flush=NOTHING)),
    "sync flushes": (MIXED, deflate(blobs.every(MIXED, 1500), flush=zlib.Z_SYNC_FLUSH)),
    "full flushes": (MIXED, deflate(blobs.every(MIXED, 1500), flush=zlib.Z_FULL_FLUSH)),
    "partial flushes": (MIXED, deflate(blobs.every(MIXED, 700), flush=zlib.Z_PARTIAL_FLUSH)),
    "literals only": (TEXT, deflate([TEXT], strategy=zlib.Z_HUFFMAN_ONLY, flush=NOTHING)),
    "runs only": (MIXED, deflate([MIXED], strategy=zlib.Z_RLE, flush=NOTHING)),
    "noise": (NOISE, deflate([NOISE], flush=NOTHING)),
}


# Block boundaries


@pytest.mark.parametrize("kind", PACKED)
def test_decoding_resumes_byte_exact_at_every_block_boundary(kind: str) -> None:
    flat, packed = PACKED[kind]
    blob = gzip_member(flat, packed)
    blocks = [place for place in places(blob) if place.kind == "block"]
    assert blocks
    for place in blocks:
        assert resumed(blob, place) == flat[place.produced :]


@pytest.mark.parametrize("kind", ["tiny blocks", "tiny fixed blocks", "partial flushes"])
def test_blocks_begin_at_all_eight_bits_of_a_byte(kind: str) -> None:
    flat, packed = PACKED[kind]
    assert {place.checkpoint.bits for place in places(gzip_member(flat, packed))} == set(range(8))


@pytest.mark.parametrize("kind", ["tiny blocks", "tiny fixed blocks", "stored"])
def test_a_checkpoint_is_all_that_any_inflate_needs(kind: str) -> None:
    flat, packed = PACKED[kind]
    blob = gzip_member(flat, packed)
    for place in [place for place in places(blob) if place.kind == "block"][::7]:
        assert resumed_by_stdlib(blob, place) == flat[place.produced :]


def test_a_window_is_the_last_32_kib_or_all_there_is_of_the_member() -> None:
    first, second = TEXT[:20_000], TEXT
    blob = b"".join(gzip_member(part, deflate([part], memory=1, flush=NOTHING)) for part in (first, second))
    flat, lengths = first + second, set()
    for place in places(blob):
        if place.kind == "block":
            member = 0 if place.produced < len(first) else len(first)
            window = flat[max(member, place.produced - WINDOW) : place.produced]
            lengths.add(len(window))
            assert place.checkpoint.window in (window, flat[: len(first)][-WINDOW:])  # the first's very end
    assert min(lengths) < 300
    assert max(lengths) == WINDOW


def test_a_checkpoint_near_the_start_has_a_short_window_and_works() -> None:
    flat, packed = PACKED["tiny blocks"]
    blob = gzip_member(flat, packed)
    near = [place for place in places(blob) if place.kind == "block" and 0 < place.produced < 5000]
    assert near
    for place in near:
        assert place.checkpoint.window == flat[: place.produced]
        assert resumed(blob, place) == flat[place.produced :]


def test_the_boundary_before_the_last_block_counts_and_the_one_after_it_is_the_members_end() -> None:
    blob = gzip_member(TEXT, deflate([TEXT[:100], TEXT[100:]]))
    found = places(blob)
    assert [place.kind for place in found].count("member") == 1
    assert found[-1][:3] == (len(blob), len(TEXT), "member")


# Members


def test_members_follow_each_other() -> None:
    assert inflated(gzip_members(TEXT, 999)) == TEXT
    assert inflated(bgzf(TEXT, 3000)) == TEXT


def test_every_members_end_is_a_boundary() -> None:
    blob = gzip_members(TEXT, 9000)
    members = [place for place in places(blob) if place.kind == "member"]
    assert [place.produced for place in members] == [*range(9000, len(TEXT), 9000), len(TEXT)]
    for place in members:
        assert inflated(blob[place.consumed :]) == TEXT[place.produced :]


def test_empty_members_hold_nothing() -> None:
    empty = gzip_member(b"")
    blob = empty + gzip_member(b"one") + empty * 3 + gzip_member(b"two") + empty
    assert inflated(blob) == b"onetwo"
    assert inflated(empty) == b""


@pytest.mark.parametrize("size", [1, 2, 7, 1 << 20])
def test_a_members_header_may_have_every_optional_field(size: int) -> None:
    fields = gzip_member(
        b"one", name=b"layer.tar", comment=b"a comment", extra=b"XX\4\0abcd", header_crc=True
    )
    blob = fields + gzip_member(b"two", name=b"n") + gzip_member(b"three", extra=bytes(70))
    assert inflated(blob, size) == b"onetwothree"


def test_a_wrong_header_checksum_is_left_to_the_digests() -> None:
    blob = bytearray(gzip_member(b"one", header_crc=True))
    blob[10] ^= 1
    assert inflated(bytes(blob)) == b"one"


def test_reserved_header_flags_are_refused() -> None:
    blob = bytearray(gzip_member(b"one"))
    blob[3] |= 0x40
    with pytest.raises(InvalidImage, match="gzip offset 0: a gzip header with reserved flags"):
        inflated(bytes(blob))


def test_a_header_without_an_end_is_refused() -> None:
    blob = bytearray(gzip_member(b"one")[:10]) + b"x" * (1 << 21)
    blob[3] = 8
    with pytest.raises(InvalidImage, match="header of over"):
        inflated(bytes(blob))


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_zeros_after_the_last_member_are_padding(size: int) -> None:
    assert inflated(gzip_member(TEXT) + bytes(1000), size) == TEXT


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    "tail", [b"garbage", b"\x1f\x8b\x09\0", bytes(9) + b"x", bytes(9) + gzip_member(b"late")]
)
def test_anything_else_after_the_last_member_is_refused(tail: bytes, size: int) -> None:
    with pytest.raises(InvalidImage, match=r"no gzip header|after the zero padding"):
        inflated(gzip_member(b"one") + tail, size)


@pytest.mark.parametrize("tail", [b"\x1f", b"\x1f\x8b", gzip_member(b"")[:9]])
def test_what_may_yet_become_a_header_is_not_complete(tail: bytes) -> None:
    inflater = Inflater()
    assert fed(gzip_member(b"one") + tail, 100, inflater) == b"one"
    assert not inflater.complete


def test_a_resumed_member_is_followed_by_the_next_ones() -> None:
    flat, packed = PACKED["tiny blocks"]
    blob = gzip_member(flat, packed) + gzip_member(b"") + gzip_member(TEXT, name=b"n") + gzip_member(b"end")
    blocks = [place for place in places(blob) if place.kind == "block" and place.produced < len(flat)]
    for place in (blocks[0], blocks[len(blocks) // 2], blocks[-1]):
        assert resumed(blob, place) == (flat + TEXT + b"end")[place.produced :]


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_a_resumed_member_ends_right_however_its_trailer_is_cut(size: int) -> None:
    flat, packed = PACKED["tiny blocks"]
    blob = gzip_member(flat, packed) + gzip_member(b"next")
    place = [place for place in places(blob) if place.kind == "block" and place.produced < len(flat)][-1]
    inflater = Inflater(place.checkpoint)
    rest = blob[place.consumed - bool(place.checkpoint.bits) :]
    pieces = (bytes(piece) for chunk in blobs.every(rest, size) for piece in inflater.pieces(chunk, 1 << 62))
    assert b"".join(pieces) == flat[place.produced :] + b"next"
    assert inflater.complete
    assert inflater.consumed == len(rest)


# Chunks


BLOBS = {
    "one member": gzip_member(*PACKED["tiny blocks"]),
    "flushes": gzip_member(*PACKED["sync flushes"]),
    "members": gzip_members(MIXED, 3000) + bytes(20),
    "zeros": gzip_member(bytes(600_000)),
}
WHOLE = {name: {step: cuts([blob], step) for step in (1, 1500, 20_000)} for name, blob in BLOBS.items()}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(BLOBS)),
    step=st.sampled_from([1, 1500, 20_000]),
    sizes=st.lists(st.integers(1, 4000), max_size=30),
)
@example(name="flushes", step=1500, sizes=[1] * 30_000)
@example(name="one member", step=1500, sizes=[1] * 30_000)
@example(name="zeros", step=20_000, sizes=[1] * 2_000)
def test_how_the_input_is_cut_changes_neither_bytes_nor_boundaries(
    name: str, step: int, sizes: list[int]
) -> None:
    assert cuts(blobs.split(BLOBS[name], sizes), step) == WHOLE[name][step]


def test_a_block_that_ends_exactly_at_the_stop_is_a_boundary_however_the_input_is_cut() -> None:
    blob = BLOBS["flushes"]
    for place in [place for place in places(blob) if place.kind == "block" and place.produced][::5]:
        stop, at = place.produced, place.consumed
        assert cuts([blob], stop)[1][0].produced == stop
        assert cuts([blob[:at], blob[at:]], stop) == cuts([blob], stop)
        assert cuts([blob[: at - 1], blob[at - 1 :]], stop) == cuts([blob], stop)


@pytest.mark.parametrize("over", range(1, 1200, 61))
def test_what_zlib_still_holds_when_the_input_is_used_up_is_put_out(over: int) -> None:
    # Four matches of 258 zeros fit into one byte: the last byte's may not have had room in the step before.
    flat = bytes(OUTPUT + over)
    blob = gzip_member(flat + TEXT, deflate([flat, TEXT], flush=zlib.Z_SYNC_FLUSH))
    end = next(place.consumed for place in places(blob) if place.produced >= len(flat))
    inflater = Inflater()
    assert b"".join(map(bytes, inflater.pieces(blob[:end], 1 << 62))) == flat


# Ends and errors


def test_nothing_past_the_end_is_put_out() -> None:
    flat, packed = PACKED["tiny blocks"]
    blob = gzip_member(flat, packed) + gzip_member(TEXT)
    place = places(blob)[20]
    for end in (1, 2, 257, 258, 259, 5000, len(flat) - place.produced, len(flat), len(flat) + 7):
        assert resumed(blob, place, end) == (flat + TEXT)[place.produced :][:end]


@pytest.mark.parametrize("end", [1, OUTPUT - 1, OUTPUT, OUTPUT + 1, 3 * OUTPUT + 5])
def test_a_bomb_is_decoded_to_the_end_asked_for_only(end: int) -> None:
    inflater = Inflater()
    flat = b"".join(bytes(piece) for piece in inflater.pieces(blobs.gzip_bomb(16 << 20), 1 << 62, end))
    assert flat == bytes(end)
    assert inflater.produced == end


def test_a_piece_is_256_kib_at_most() -> None:
    inflater = Inflater()
    sizes = [len(piece) for piece in inflater.pieces(blobs.gzip_bomb(4 << 20), 1 << 62)]
    assert max(sizes) == OUTPUT
    assert sum(sizes) == 4 << 20


@pytest.mark.parametrize("missing", [1, 7, 8, 9, 500, 2_000])
def test_input_that_stops_in_mid_member_is_not_complete(missing: int) -> None:
    inflater = Inflater()
    blob = gzip_member(b"one") + gzip_member(TEXT)
    flat = fed(blob[:-missing], 1 << 20, inflater)
    assert not inflater.complete
    assert (b"one" + TEXT).startswith(flat)


def test_input_that_stops_in_the_trailer_of_a_resumed_member_is_not_complete() -> None:
    blob = gzip_member(*PACKED["tiny blocks"])
    place = places(blob)[-3]
    rest = blob[place.consumed - bool(place.checkpoint.bits) :]
    for missing in range(1, TRAILER + 1):
        inflater = Inflater(place.checkpoint)
        assert list(inflater.pieces(rest[:-missing], 1 << 62))
        assert not inflater.complete


def test_corrupt_data_is_refused_with_its_place() -> None:
    first = gzip_member(TEXT)
    blob = bytearray(first + gzip_member(NOISE, PACKED["noise"][1]))
    at = len(first) + 10
    blob[at] |= 0b110  # a block of type 3, which there is none of (RFC 1951, section 3.2.3)
    with pytest.raises(InvalidImage, match="invalid block type") as caught:
        inflated(bytes(blob))
    assert caught.value.where == f"gzip offset {at + 1}"


@pytest.mark.parametrize("at", [-1, -5])
def test_a_wrong_trailer_is_left_to_the_digests(at: int) -> None:
    blob = bytearray(gzip_member(TEXT))
    blob[at] ^= 1
    assert inflated(bytes(blob)) == TEXT


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, len(BLOBS["members"]) - 1), mask=st.integers(1, 255), size=st.integers(1, 9999))
def test_damage_gives_other_bytes_for_the_digests_or_an_error_with_an_offset(
    at: int, mask: int, size: int
) -> None:
    blob = bytearray(BLOBS["members"])
    blob[at] ^= mask
    inflater, failed = Inflater(), None
    try:
        fed(bytes(blob), size, inflater)
    except InvalidImage as error:
        failed = error
    if failed is not None:
        assert 0 <= int((failed.where or "").removeprefix("gzip offset ")) <= len(blob)
