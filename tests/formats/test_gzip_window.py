from __future__ import annotations

import bisect
import random
import zlib
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imgfs.errors import InvalidImage
from imgfs.layer.codec.blob import Cut, decoder
from imgfs.layer.codec.gzip import sparse_window
from imgfs.layer.codec.span import decode_span
from imgfs.layer.codec.zlib_engine import ZlibEngine
from imgfs.layer.entry import WINDOW, Checkpoint, Codec, Span
from tests.support.blobs import deflate, gzip_member, gzip_members, prose, span_of
from tests.support.tarmake import archive, file

TEXT = prose(120_000)
NOISE = random.Random(1).randbytes(150_000)
TAR = archive(*(file(f"f{number}", TEXT[number * 7000 :][:9000]) for number in range(12)))
FULL = NOISE[:WINDOW].replace(b"\0", b"\1")  # a window without a zero of its own

Match = tuple[int, int]  # length (3 to 258), distance (1 to 32768)
Token = int | Match  # a literal or a match

# RFC 1951, section 3.2.5
EXTRA_OF_LENGTH = [0] * 8 + [bits for bits in range(1, 6) for _ in range(4)] + [0]
LENGTHS = [3 + sum(1 << bits for bits in EXTRA_OF_LENGTH[:code]) for code in range(28)] + [258]
EXTRA_OF_DISTANCE = [max(0, code // 2 - 1) for code in range(30)]
DISTANCES = [1 + sum(1 << bits for bits in EXTRA_OF_DISTANCE[:code]) for code in range(30)]


def fixed_block(tokens: Iterable[Token], *, bits: int = 0, last: bool = False) -> bytes:
    """A deflate block with fixed codes (RFC 1951, section 3.2.6) that says just these tokens.

    It begins in the upper `bits` bits of its first byte, whose others are set, if `bits` is not 0.
    """
    written = ["1" * (-bits % 8), "1" if last else "0", "10"]  # BTYPE 1, its lower bit first
    for token in tokens:
        written += [_symbol(token)] if isinstance(token, int) else _match(*token)
    line = "".join([*written, _symbol(256)])
    line += "0" * (-len(line) % 8)
    return bytes(int(line[at : at + 8][::-1], 2) for at in range(0, len(line), 8))


def _match(length: int, distance: int) -> Iterator[str]:
    code = bisect.bisect(LENGTHS, length) - 1
    yield _symbol(257 + code) + _extra(length - LENGTHS[code], EXTRA_OF_LENGTH[code])
    code = bisect.bisect(DISTANCES, distance) - 1
    yield f"{code:05b}" + _extra(distance - DISTANCES[code], EXTRA_OF_DISTANCE[code])


def _symbol(value: int) -> str:
    for first, code, width in ((280, 0xC0, 8), (256, 0, 7), (144, 0x190, 9)):
        if value >= first:
            return f"{code + value - first:0{width}b}"
    return f"{0x30 + value:08b}"


def _extra(value: int, width: int) -> str:
    return f"{value:0{width}b}"[::-1] if width else ""


def origins(tokens: Iterable[Token], size: int) -> list[int | None]:
    """Where in a window of `size` bytes each flat byte is copied from, if it is; matches must be in reach."""
    known: list[int | None] = list(range(size))
    for token in tokens:
        if isinstance(token, int):
            known.append(None)
        else:
            length, distance = token
            run = known[len(known) - distance :][:length]
            known += (run * (length // len(run) + 1))[:length]
    return known[size:]


def only(window: bytes, places: Iterable[int | None]) -> bytes:
    """`window` with zeros for all that is at none of `places`."""
    kept = set(places)
    return bytes(byte if at in kept else 0 for at, byte in enumerate(window))


def in_mid_member(packed: bytes, length: int, window: bytes, bits: int = 0) -> Span:
    return span_of(packed, length, Codec.DEFLATE)._replace(checkpoint=Checkpoint(bits, window))


def spans_in_mid_member(blob: bytes, step: int) -> list[tuple[Span, bytes]]:
    """The spans of a gzip blob that have a checkpoint, and their compressed bytes."""
    cuts: list[Cut] = []
    decode = decoder("gzip", cuts.append, step, ZlibEngine)
    size = sum(len(piece) for piece in decode.pieces(blob))
    found = []
    for cut, end in pairwise([*cuts, Cut(len(blob), size, Codec.GZIP)]):
        if cut.checkpoint:
            packed = blob[cut.start : end.start + bool(end.checkpoint and end.checkpoint.bits)]
            span = in_mid_member(packed, end.flat - cut.flat, cut.checkpoint.window, cut.checkpoint.bits)
            found.append((span, packed))
    return found


def flat_of(span: Span, packed: bytes) -> bytes:
    return b"".join(map(bytes, decode_span(span, [packed])))


def assert_decodes_as_before(span: Span, packed: bytes) -> bytes:
    """Compare what the span decodes to with either window; returns the sparse one."""
    assert span.checkpoint is not None
    sparse = sparse_window(span, packed)
    lean = span._replace(checkpoint=span.checkpoint._replace(window=sparse))
    assert len(sparse) == len(span.checkpoint.window)
    assert flat_of(lean, packed) == flat_of(span, packed)
    return sparse


# What deflate writers write


@pytest.mark.parametrize(
    "blob",
    [
        *(gzip_member(TEXT, deflate([TEXT], level=level, memory=2)) for level in (1, 6, 9)),
        gzip_member(TEXT, deflate([TEXT[:40_000], TEXT[40_000:]], level=0)),
        gzip_member(TEXT, deflate([TEXT], memory=1, strategy=zlib.Z_FIXED)),
        gzip_member(TEXT, deflate([TEXT], memory=1, strategy=zlib.Z_HUFFMAN_ONLY)),
        gzip_member(TEXT, deflate([TEXT[:50_000], TEXT[50_000:]], flush=zlib.Z_FULL_FLUSH)),
        gzip_member(TAR, deflate([TAR], memory=3)),
        gzip_member(TEXT[:9000], deflate([TEXT[:9000]], memory=1)) * 5,
    ],
    ids=["level 1", "level 6", "level 9", "stored", "fixed", "no matches", "full flush", "tar", "members"],
)
@pytest.mark.parametrize("step", [1, 10_000, 45_000])
def test_a_span_decodes_to_the_same_bytes_with_its_sparse_window(blob: bytes, step: int) -> None:
    found = spans_in_mid_member(blob, step)
    assert found
    for span, packed in found[:12] + found[-12:]:
        assert_decodes_as_before(span, packed)


@given(
    parts=st.lists(
        st.tuples(st.sampled_from([TEXT, NOISE, TAR, bytes(80_000)]), st.integers(0, 40_000)),
        min_size=2,
        max_size=8,
    ),
    level=st.integers(0, 9),
    memory=st.integers(1, 9),
    step=st.integers(1, 60_000),
)
@settings(max_examples=40, deadline=None)
def test_any_span_decodes_to_the_same_bytes_with_its_sparse_window(
    parts: list[tuple[bytes, int]], level: int, memory: int, step: int
) -> None:
    texts = [source[size // 3 : size] for source, size in parts]
    blob = gzip_member(b"".join(texts), deflate(texts, level=level, memory=memory))
    for span, packed in spans_in_mid_member(blob, step)[:5]:
        assert_decodes_as_before(span, packed)


# Just the bytes that are referred to


def test_bytes_that_are_not_referred_to_are_zero() -> None:
    flat = FULL[20_000:20_400] + b"literals" + FULL[5000:6000] + b"more" + FULL[-7:]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, FULL)
    packed = packer.compress(flat) + packer.flush()
    sparse = assert_decodes_as_before(in_mid_member(packed, len(flat), FULL), packed)
    assert sparse == only(FULL, [*range(5000, 6000), *range(20_000, 20_400), *range(WINDOW - 7, WINDOW)])


def test_every_byte_of_the_window_can_be_told_from_the_others() -> None:
    for first in range(0, WINDOW, 4096):
        tokens: list[Token] = [(256, WINDOW - first)] * 16  # each 256 bytes further on
        packed = fixed_block(tokens)
        assert sparse_window(in_mid_member(packed, 4096, FULL), packed) == only(
            FULL, range(first, first + 4096)
        )


@pytest.mark.parametrize("bits", range(8))
def test_a_span_may_begin_in_mid_byte(bits: int) -> None:
    packed = fixed_block([7, (10, 300), (5, WINDOW)], bits=bits)
    span = in_mid_member(packed, 16, FULL, bits)
    assert assert_decodes_as_before(span, packed) == only(FULL, origins([7, (10, 300), (5, WINDOW)], WINDOW))


@pytest.mark.parametrize("body", [b"", b"x" * 40_000, NOISE[:40_000], TEXT[:40_000]])
def test_a_window_that_nothing_refers_to_is_all_zeros(body: bytes) -> None:
    packed = deflate([body])
    assert sparse_window(in_mid_member(packed, len(body), FULL), packed) == bytes(WINDOW)


def test_the_farthest_match_of_the_last_flat_byte_in_reach_counts() -> None:
    tokens: list[Token] = [1] * (WINDOW - 1) + [(3, WINDOW)]  # the last byte of the window, and two ones
    packed = fixed_block(tokens)
    assert sparse_window(in_mid_member(packed, WINDOW + 2, FULL), packed) == only(FULL, [WINDOW - 1])


def test_a_copy_of_a_copy_counts_however_late() -> None:
    tokens: list[Token] = [(100, 5000), *[2] * 32_000, (50, 32_100), *[3] * 32_000, (9, 32_050)]
    packed = fixed_block(tokens)
    span = in_mid_member(packed, len(origins(tokens, WINDOW)), FULL)
    assert assert_decodes_as_before(span, packed) == only(FULL, range(WINDOW - 5000, WINDOW - 4900))


def test_what_only_flat_bytes_past_the_span_refer_to_is_zero() -> None:
    packed = fixed_block([(100, 5000), (100, 900)])
    span = in_mid_member(packed, 130, FULL)
    assert sparse_window(span, packed) == only(FULL, origins([(100, 5000), (30, 900)], WINDOW))


def test_a_following_member_does_not_refer_to_the_window() -> None:
    end = fixed_block([(100, 5000)], last=True) + bytes(8)
    packed = end + gzip_members(TEXT[:3000], 1000)
    assert assert_decodes_as_before(in_mid_member(packed, 3100, FULL), packed) == only(
        FULL, range(WINDOW - 5000, WINDOW - 4900)
    )


TOKENS = st.lists(
    st.one_of(
        st.integers(0, 255),
        st.tuples(st.integers(3, 258), st.one_of(st.integers(1, 300), st.integers(1, WINDOW))),
    ),
    max_size=300,
)


@given(
    size=st.one_of(st.just(WINDOW), st.integers(0, WINDOW)),
    drawn=TOKENS,
    bits=st.integers(0, 7),
    part=st.floats(0, 1),
)
@example(size=0, drawn=[5, (258, 1)], bits=0, part=1.0)
@example(size=1, drawn=[(258, 1), 6, (10, 259)], bits=3, part=1.0)
@example(size=WINDOW, drawn=[(258, WINDOW)] * 300, bits=1, part=1.0)
@settings(max_examples=150, deadline=None)
def test_what_is_kept_is_what_the_matches_lead_back_to(
    size: int, drawn: list[Token], bits: int, part: float
) -> None:
    tokens: list[Token] = []
    behind = size
    for token in drawn:
        if isinstance(token, int) or token[1] <= behind:  # in reach: others are errors
            tokens.append(token)
            behind += 1 if isinstance(token, int) else token[0]
    packed = fixed_block(tokens, bits=bits)
    window = FULL[:size]
    length = int(part * (behind - size))
    span = in_mid_member(packed, length, window, bits)
    assert sparse_window(span, packed) == only(window, origins(tokens, size)[:length])


# Bombs and what is corrupt


def test_a_bomb_is_decoded_no_farther_than_the_window_is_in_reach() -> None:
    start = fixed_block([(258, 3)] * 130)
    span = in_mid_member(start, 1 << 40, FULL)
    assert sparse_window(span, start) == only(FULL, range(WINDOW - 3, WINDOW))


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (b"\x07", "invalid block type"),
        (fixed_block([(3, 900)]), "too far back"),
        (fixed_block([1, 2], last=True) + bytes(8) + b"junk", "no gzip header"),
        (fixed_block([1, 2], last=True) + bytes(8) + gzip_member(b"", fixed_block([(3, 1)])), "too far back"),
        (fixed_block([1, 2]), "span 0 ends after 2 flat bytes, not 1000 or more"),
        (b"", "span 0 ends after 0 flat bytes, not 1000 or more"),
    ],
)
def test_compressed_bytes_that_are_corrupt_are_the_images_fault(packed: bytes, message: str) -> None:
    with pytest.raises(InvalidImage, match=message):
        sparse_window(in_mid_member(packed, 1000, FULL[:800]), packed)
