"""ISA-L as the inflate engine: the same bytes as zlib, and boundaries that either can begin at."""

from __future__ import annotations

import functools
import itertools
import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import InvalidImage
from imgfs.layer.codec import isal_engine
from imgfs.layer.codec.blob import Cut, decoder, fastest_engine
from imgfs.layer.codec.gzip import Inflater
from imgfs.layer.codec.isal_engine import IsalEngine
from imgfs.layer.codec.span import decode_span
from imgfs.layer.codec.zlib_engine import ZlibEngine
from imgfs.layer.entry import Codec, Span
from tests.support import blobs
from tests.support.blobs import deflate, gzip_member, gzip_members, prose, span_of

TEXT = prose(900_000)
NOISE = random.Random(7).randbytes(300_000)
MIXED = b"".join(
    TEXT[at : at + 40_000] + NOISE[at // 4 :][:9000] + bytes(70_000) for at in range(0, 400_000, 40_000)
)
BLOBS = {
    "level 1": (TEXT, gzip_member(TEXT, deflate([TEXT], level=1))),
    "level 6": (TEXT, gzip_member(TEXT, deflate([TEXT], level=6))),
    "level 9, mixed": (MIXED, gzip_member(MIXED, deflate([MIXED], level=9))),
    "stored": (NOISE, gzip_member(NOISE, deflate([NOISE], level=0))),
    "incompressible": (NOISE, gzip_member(NOISE, deflate([NOISE], level=6))),  # stored blocks, too
    "tiny blocks": (MIXED, gzip_member(MIXED, deflate([MIXED], memory=1))),
    "fixed codes": (TEXT, gzip_member(TEXT, deflate([TEXT], strategy=zlib.Z_FIXED))),
    "flushes": (MIXED, gzip_member(MIXED, deflate(blobs.every(MIXED, 5000), flush=zlib.Z_SYNC_FLUSH))),
    "zeros": (bytes(5_000_000), gzip_member(bytes(5_000_000))),
    "members": (MIXED, gzip_members(MIXED, 30_000) + bytes(100)),
    "tiny members": (TEXT[:20_000], gzip_members(TEXT[:20_000], 10)),
}


def scanned(chunks: list[bytes], step: int) -> tuple[bytes, list[Cut]]:
    """The flat bytes of a gzip blob and its cuts, with ISA-L."""
    cuts: list[Cut] = []
    decode = decoder("gzip", cuts.append, step, IsalEngine)
    flat = b"".join(bytes(piece) for chunk in chunks for piece in decode.pieces(chunk))
    decode.finish()
    return flat, cuts


@functools.cache
def cuts_of_tiny_blocks() -> list[Cut]:
    return scanned([BLOBS["tiny blocks"][1]], 20_000)[1]


def spans(blob: bytes, flat: bytes, cuts: list[Cut]) -> list[Span]:
    """The spans that the cuts make, as a scan writes them."""
    ends = [(cut.start + bool(cut.checkpoint and cut.checkpoint.bits), cut.flat) for cut in cuts]
    begins = [Cut(0, 0, Codec.GZIP), *cuts]
    return [
        span_of(blob[begin.start : end], flat_end - begin.flat, begin.codec)._replace(
            checkpoint=begin.checkpoint
        )
        for begin, (end, flat_end) in zip(begins, [*ends, (len(blob), len(flat))], strict=True)
        if flat_end > begin.flat
    ]


def test_the_library_is_installed_here_and_does_what_it_is_used_for() -> None:
    assert isal_engine.available()
    assert isal_engine.can_resume()
    assert isinstance(fastest_engine(), IsalEngine)


@pytest.mark.parametrize("size", [997, 65_536, 1 << 20])
@pytest.mark.parametrize("kind", BLOBS)
@pytest.mark.parametrize("by", [True, False], ids=["isal", "zlib"])
def test_every_span_decodes_alone_by_either_engine(
    kind: str, size: int, by: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isal_engine, "can_resume", lambda: by)
    flat, blob = BLOBS[kind]
    got, cuts = scanned(list(blobs.every(blob, size)), 20_000)
    assert got == flat
    begins = [0, *(cut.flat for cut in cuts)]
    starts = [0, *(cut.start for cut in cuts)]
    for begin, start, span in zip(begins, starts, spans(blob, flat, cuts), strict=False):
        packed = blob[start : start + (span.end - span.start)]
        piece = b"".join(bytes(part) for part in decode_span(span, [packed]))
        assert piece == flat[begin : begin + len(piece)]


@pytest.mark.parametrize(
    "kind", ["level 1", "level 6", "level 9, mixed", "stored", "incompressible", "tiny blocks", "members"]
)
def test_boundaries_are_found_about_as_often_as_asked_for(kind: str) -> None:
    flat, blob = BLOBS[kind]
    _, cuts = scanned([blob], 100_000)
    assert len(cuts) >= max(2, len(flat) // 100_000 // 2)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_how_a_blob_is_cut_into_chunks_changes_no_byte(data: st.DataObject) -> None:
    flat, blob = BLOBS[
        data.draw(st.sampled_from(["tiny blocks", "flushes", "members", "tiny members", "stored"]))
    ]
    places = sorted(data.draw(st.lists(st.integers(0, len(blob)), max_size=40)))
    chunks = [blob[start:end] for start, end in itertools.pairwise([0, *places, len(blob)])]
    assert scanned(chunks, data.draw(st.integers(1, 50_000)))[0] == flat


def test_a_blob_may_arrive_byte_by_byte() -> None:
    flat, blob = BLOBS["tiny members"]
    assert scanned(list(blobs.every(blob, 1)), 500)[0] == flat


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_of_a_damaged_span_both_engines_make_the_same_or_an_error(data: st.DataObject) -> None:
    blob = BLOBS["tiny blocks"][1]
    cut = data.draw(st.sampled_from([cut for cut in cuts_of_tiny_blocks() if cut.checkpoint]))
    assert cut.checkpoint
    window = cut.checkpoint.window[data.draw(st.integers(0, len(cut.checkpoint.window))) :]
    packed = bytearray(blob[cut.start : cut.start + 6000])
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(0, 255))
    found = []
    for engine in (IsalEngine(), ZlibEngine()):
        inflater = Inflater(cut.checkpoint._replace(window=window), engine)
        try:
            found.append(b"".join(map(bytes, inflater.pieces(bytes(packed), 3001, 3000))))
        except InvalidImage:
            found.append(b"")
    assert b"" in found or found[0] == found[1]


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, len(BLOBS["tiny blocks"][1]) - 1), mask=st.integers(1, 255))
def test_damage_gives_other_bytes_for_the_digests_or_an_error_with_an_offset(at: int, mask: int) -> None:
    blob = bytearray(BLOBS["tiny blocks"][1])
    blob[at] ^= mask
    inflater, failed = Inflater(engine=IsalEngine()), None
    try:
        for chunk in blobs.every(bytes(blob), 30_000):
            for _ in inflater.pieces(chunk, 10_000):
                pass
    except InvalidImage as error:
        failed = error
    if failed is not None:
        assert 0 <= int((failed.where or "").removeprefix("gzip offset ")) <= len(blob)
    assert inflater.produced <= 1032 * len(blob)
