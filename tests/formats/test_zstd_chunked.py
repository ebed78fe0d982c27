"""zstd:chunked: its three dialects, positions and footers, and layers that nobody should have made."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import IntegrityError, InvalidImage
from imgfs.layer.codec.span import decode_span
from imgfs.layer.tar.reader import tar_entries
from imgfs.layer.toc import zstd_chunked
from imgfs.layer.toc.detect import find_toc
from imgfs.layer.toc.toc import Toc
from imgfs.layer.toc.zstd_chunked import TocPosition, parse_footer, parse_position
from imgfs.oci.descriptor import Descriptor, Digest
from tests.support import blobs, tarmake
from tests.support.tocmake import (
    NEW,
    OLD,
    TOC_DIGEST,
    ZSTD,
    Made,
    bare,
    check,
    chunked_layer,
    fetched,
    files,
    tar_files,
)

DIALECTS = ("2021", "2022", "2023")
TAR = tarmake.archive(
    tarmake.directory("etc/", mode=0o1777, mtime_ns=1_600_000_000_000_000_000),
    tarmake.file("etc/motd", b"hello\n", uid=7, xattrs={b"security.capability": b"\0\1\xff"}),
    tarmake.file("empty", mtime_ns=1_600_000_000_123_456_789),
    tarmake.file("holes", b"a" * 1000 + bytes(3000) + b"b" * 500),
    tarmake.file("zeros", bytes(2500)),
    tarmake.symlink("link", "etc/motd"),
    tarmake.hardlink("hard", "holes"),
    tarmake.device("disk", "b", 8, 1),
    tarmake.fifo("pipe"),
    tarmake.opaque("etc"),
    tarmake.file("last", blobs.prose(3000)),
)


def toc_of(made: Made, layer: Descriptor | None = None) -> Toc:
    found, _ = fetched(find_toc(layer or made.layer), made.blob)
    assert isinstance(found, Toc)
    check(found, len(made.blob))
    return found


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("chunk", [1 << 20, 1000, 512, 333])
@pytest.mark.parametrize("surplus", [False, True])
def test_a_layer_reads_as_its_tar_does(dialect: str, chunk: int, surplus: bool) -> None:
    made = chunked_layer(TAR, chunk=chunk, dialect=dialect, surplus=surplus)
    found = toc_of(made)
    assert [bare(entry) for entry in found.entries] == [bare(entry) for entry in tar_entries(TAR)]
    assert files(found, made.blob) == tar_files(TAR)


def test_zeros_are_holes() -> None:
    found = {entry.path: entry for entry in toc_of(chunked_layer(TAR, chunk=500)).entries}
    assert [(extent.offset, extent.length) for extent in found[b"holes"].extents] == [(0, 1000), (4000, 500)]
    assert found[b"zeros"].extents == ()
    assert len(found[b"last"].extents) == 1


def test_spans_decode_to_what_their_parts_say() -> None:
    made = chunked_layer(TAR, chunk=1000)
    for span in toc_of(made).spans:
        decoded = b"".join(map(bytes, decode_span(span, [made.blob[span.start : span.end]])))
        assert len(decoded) == span.flat_end - span.flat_start


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_annotated_table_comes_in_one_exact_request(dialect: str) -> None:
    made = chunked_layer(TAR, dialect=dialect)
    prefix = OLD if dialect == "2021" else NEW
    start, length = map(int, made.layer.annotations[prefix + "manifest-position"].split(":")[:2])
    _, ranges = fetched(find_toc(made.layer), made.blob)
    assert ranges == [(start, start + length)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_without_a_position_the_footer_tells(dialect: str) -> None:
    made = chunked_layer(TAR, dialect=dialect)
    layer = made.without(OLD + "manifest-position", NEW + "manifest-position")
    assert toc_of(made, layer) == toc_of(made)
    text = next(text for name, text in made.layer.annotations.items() if name.endswith("position"))
    assert parse_footer(made.blob[-72:], len(made.blob)) == parse_position(text, len(made.blob))


def test_a_layer_whose_manifest_vouches_for_no_table_has_none() -> None:
    made = chunked_layer(TAR)
    assert find_toc(made.without(NEW + "manifest-checksum")) is None


def test_the_digest_of_estargz_serves_where_that_alone_is_given() -> None:
    made = chunked_layer(TAR, dialect="2021", surplus=True)
    assert toc_of(made, made.noted({TOC_DIGEST: made.layer.annotations[TOC_DIGEST]})) == toc_of(made)
    with pytest.raises(IntegrityError):
        toc_of(made, made.noted({TOC_DIGEST: str(Digest.of(b"other"))}))


def test_another_table_than_the_manifest_names_is_refused() -> None:
    made = chunked_layer(TAR)
    notes = dict(made.layer.annotations) | {NEW + "manifest-checksum": str(Digest.of(b"other"))}
    with pytest.raises(IntegrityError, match="table of contents"):
        toc_of(made, made.noted(notes))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1:2:3",
        "100:10:20:2",
        "-1:10:20:1",
        "7:10:20:1",
        "100:0:20:1",
        "995:10:20:1",
        f"100:10:{(256 << 20) + 1}:1",
        "100:10:20:1:",
        " 100:10:20:1",
        "9" * 30 + ":1:1:1",
        "\u0661:10:20:1",
    ],
)
def test_a_position_outside_the_blob_or_of_no_table_is_refused(text: str) -> None:
    assert parse_position("100:10:20:1", 1000) == TocPosition(100, 10, 20)
    with pytest.raises(InvalidImage):
        parse_position(text, 1000)


def test_what_is_no_footer_is_refused() -> None:
    made = chunked_layer(TAR)
    for tail in (b"", bytes(72), made.blob[-71:], made.blob[-73:-1], made.blob + b"\0"):
        with pytest.raises(InvalidImage, match="footer"):
            parse_footer(tail, len(made.blob))


@pytest.mark.parametrize("unpacked", [0, 1, 13, 15, 1 << 20])
def test_a_table_of_another_length_is_refused(unpacked: int) -> None:
    packed = blobs.zstd_frames([b'{"version":1}x'])
    layer = _layer_of(packed, unpacked)
    with pytest.raises(InvalidImage, match="table of contents"):
        fetched(find_toc(layer), bytes(8) + packed)


@pytest.mark.parametrize("packed", [b"x" * 20, blobs.zstd_frames([b"{}"])[:-1], blobs.zstd_bomb(100_000)])
def test_a_broken_table_is_refused(packed: bytes) -> None:
    with pytest.raises(InvalidImage):
        fetched(find_toc(_layer_of(packed, 2)), bytes(8) + packed)


def test_a_table_of_nothing_is_an_empty_layer() -> None:
    packed = blobs.zstd_frames([b'{"version":1,"entries":null}'])
    found, _ = fetched(find_toc(_layer_of(packed, 28)), bytes(8) + packed)
    assert found == Toc([], [], 0, None)


MADE = chunked_layer(TAR, chunk=1000)
MADE_TOC = toc_of(MADE)
FOOTER_ONLY = MADE.without(NEW + "manifest-position")


@given(st.data())
def test_damage_is_found_or_harmless(data: Any) -> None:
    """A blob with bytes changed gives the same table, or an error that says so."""
    blob = bytearray(MADE.blob)
    for _ in range(data.draw(st.integers(1, 4))):
        blob[-data.draw(st.integers(1, 400))] = data.draw(st.integers(0, 255))
    for layer in (MADE.layer, FOOTER_ONLY):
        try:
            found, _ = fetched(find_toc(layer), bytes(blob))
        except (InvalidImage, IntegrityError):
            continue
        assert found == MADE_TOC


def _layer_of(packed: bytes, unpacked: int) -> Descriptor:
    """A layer of nothing but a table of contents, and what the manifest says of that."""
    notes = {
        NEW + zstd_chunked._CHECKSUM: str(Digest.of(packed)),
        NEW + zstd_chunked._POSITION: f"8:{len(packed)}:{unpacked}:1",
    }
    return Descriptor(ZSTD, Digest.of(b""), len(packed) + 8, notes)
