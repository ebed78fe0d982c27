"""eStargz: footers, the table of contents out of a blob, and layers that nobody should have made."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import IntegrityError, InvalidImage
from imgfs.layer.codec.span import decode_span
from imgfs.layer.tar.reader import tar_entries
from imgfs.layer.toc import estargz
from imgfs.layer.toc.detect import find_toc
from imgfs.layer.toc.estargz import External, Footer, external_toc, fetch_toc, parse_footer, read_external_toc
from imgfs.layer.toc.toc import Toc
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import Manifest
from tests.support import blobs, tarmake
from tests.support.tocmake import (
    FOOTERS,
    GZIP,
    TOC_DIGEST,
    Made,
    bare,
    check,
    estargz_layer,
    fetched,
    files,
    gzip_footer,
    gzip_toc,
    subfield,
    tar_files,
)

TAR = tarmake.archive(
    tarmake.directory("etc/", mode=0o750, uid=3, gid=4, mtime_ns=1_600_000_000_000_000_000),
    tarmake.file("etc/motd", b"hello\n", mode=0o4755, xattrs={b"user.a": b"\0\xff"}),
    tarmake.file("empty"),
    tarmake.file("big", blobs.prose(5000), mtime_ns=1_600_000_000_123_456_789),
    tarmake.symlink("link", "etc/motd"),
    tarmake.hardlink("hard", "big"),
    tarmake.device("null", "c", 1, 3),
    tarmake.fifo("pipe"),
    tarmake.whiteout("gone"),
    tarmake.file("last", bytes(3000)),
)


def toc_of(made: Made) -> Toc:
    found, _ = fetched(find_toc(made.layer), made.blob)
    assert isinstance(found, Toc)
    check(found, len(made.blob))
    return found


def rewritten(made: Made, body: bytes) -> Made:
    """A layer whose table is another, and whose manifest says so."""
    at = parse_footer(made.blob[-51:], len(made.blob)).toc
    assert at is not None
    blob = made.blob[:at] + gzip_toc(body) + FOOTERS["estargz"](at)
    layer = Descriptor(GZIP, Digest.of(blob), len(blob), {TOC_DIGEST: str(Digest.of(body))})
    return Made(blob, layer, body)


@pytest.mark.parametrize("shared", [0, 1, 700, 2000, 1 << 20])
@pytest.mark.parametrize("chunk", [1 << 20, 1000, 512, 333])
def test_a_layer_reads_as_its_tar_does(chunk: int, shared: int) -> None:
    made = estargz_layer(TAR, chunk=chunk, shared=shared)
    found = toc_of(made)
    assert [bare(entry) for entry in found.entries] == [bare(entry) for entry in tar_entries(TAR)]
    assert files(found, made.blob) == tar_files(TAR)
    assert all(len(entry.extents) <= 1 for entry in found.entries)
    assert all(extent.flat % 512 == 0 for entry in found.entries for extent in entry.extents)


@pytest.mark.parametrize("shared", [0, 2000])
def test_spans_decode_to_what_their_parts_say(shared: int) -> None:
    made = estargz_layer(TAR, chunk=1000, shared=shared)
    for span in toc_of(made).spans:
        decoded = b"".join(map(bytes, decode_span(span, [made.blob[span.start : span.end]])))
        assert len(decoded) == span.flat_end - span.flat_start


def test_a_span_with_another_byte_is_noticed() -> None:
    made = estargz_layer(TAR)
    span = toc_of(made).spans[1]
    packed = bytearray(made.blob[span.start : span.end])
    packed[20] ^= 1
    with pytest.raises(IntegrityError):
        list(decode_span(span, [bytes(packed)]))


def test_shared_streams_make_fewer_spans() -> None:
    tar = tarmake.archive(*(tarmake.file(str(number), b"%d" % number) for number in range(40)))
    assert len(toc_of(estargz_layer(tar)).spans) == 40
    shared = toc_of(estargz_layer(tar, shared=10_000)).spans
    assert len(shared) == 4
    assert shared[0].start == 0  # a stream may begin with the very first header


def test_the_landmark_ends_what_is_to_be_prefetched() -> None:
    tar = tarmake.archive(
        tarmake.file("first", b"1" * 100),
        tarmake.file(".prefetch.landmark", b"\x0f"),
        tarmake.file("then", b"2"),
    )
    for shared in (0, 1 << 20):
        found = toc_of(estargz_layer(tar, shared=shared))
        assert [entry.path for entry in found.entries] == [b"first", b"then"]
        assert found.prefetch_end == found.spans[0].end


@pytest.mark.parametrize("name", [name for name in FOOTERS if name != "external"])
def test_every_footer_is_found(name: str) -> None:
    made = estargz_layer(TAR, footer=name)
    assert files(toc_of(made), made.blob) == tar_files(TAR)


def test_footers_have_the_lengths_their_writers_give_them() -> None:
    assert [len(FOOTERS[name](0)) for name in ("estargz", "legacy", "external", "short")] == [51, 47, 46, 48]


@pytest.mark.parametrize("length", [51, 60, 512, 4000])
def test_a_footer_is_read_out_of_any_tail(length: int) -> None:
    made = estargz_layer(TAR)
    footer = parse_footer(made.blob[-length:], len(made.blob))
    assert footer.start == len(made.blob) - 51
    assert footer.toc is not None
    assert made.blob[footer.toc :].startswith(b"\x1f\x8b")


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        bytes(51),
        FOOTERS["estargz"](0)[:-1],
        FOOTERS["estargz"](0) + b"\0",
        FOOTERS["estargz"](1 << 20),
        gzip_footer(subfield(b"SG", b"00000000000000g0STARGZ")),
        gzip_footer(subfield(b"SG", b"-000000000000001STARGZ")),
        gzip_footer(subfield(b"SG", b"0x00000000000001STARGZ")),
        gzip_footer(subfield(b"XX", b"0000000000000001STARGZ")),
        gzip_footer(b"SG\xff\xff" + b"0000000000000001STARGZ"),
        gzip_footer(b"SG\x16"),
        gzip_footer(b"", b"\x01\x01\x00\xfe\xffx"),
        blobs.gzip_member(b"no footer"),
    ],
)
def test_what_is_no_footer_is_refused(tail: bytes) -> None:
    with pytest.raises(InvalidImage):
        parse_footer(tail, 1000 + len(tail))


def test_the_table_of_an_ordinary_layer_comes_in_one_request() -> None:
    made = estargz_layer(TAR)
    _, ranges = fetched(find_toc(made.layer), made.blob)
    assert ranges == [(0, len(made.blob))]


def test_a_table_larger_than_the_tail_takes_one_request_more() -> None:
    source = random.Random(0)
    tar = tarmake.archive(*(tarmake.file(source.randbytes(20).hex(), b"x") for _ in range(4000)))
    made = estargz_layer(tar, shared=1 << 30)
    found, ranges = fetched(find_toc(made.layer), made.blob)
    assert isinstance(found, Toc)
    assert len(found.entries) == 4000
    size = len(made.blob)
    at = parse_footer(made.blob[-51:], size).toc
    assert ranges == [(size - (64 << 10), size), (at, size - (64 << 10))]


def test_a_tail_is_a_64th_of_the_layer_and_a_mebibyte_at_most() -> None:
    for size, length in ((100, 100), (1 << 20, 64 << 10), (32 << 20, 512 << 10), (1 << 33, 1 << 20)):
        layer = Descriptor(GZIP, Digest.of(b""), size, {TOC_DIGEST: str(Digest.of(b""))})
        assert next(fetch_toc(layer)) == (size - length, size)


def test_a_layer_whose_manifest_vouches_for_no_table_has_none() -> None:
    made = estargz_layer(TAR)
    assert find_toc(made.without(TOC_DIGEST)) is None


def test_a_table_in_another_image_is_read_from_there() -> None:
    made = estargz_layer(TAR, chunk=1000, shared=600, footer="external")
    elsewhere, _ = fetched(find_toc(made.layer), made.blob)
    assert elsewhere == External(len(made.blob) - 46)
    found = read_external_toc(made.external, made.layer, elsewhere)
    check(found, elsewhere.end)
    assert files(found, made.blob) == tar_files(TAR)


def test_the_table_in_another_image_is_the_one_that_names_the_layer() -> None:
    layer = Descriptor(GZIP, Digest.of(b"layer"), 5)
    others = [Descriptor(GZIP, Digest.of(name), 1, {}) for name in (b"a", b"b")]
    annotations = {"containerd.io/snapshot/stargz/layer.digest": str(layer.digest)}
    right = Descriptor(GZIP, Digest.of(b"toc"), 1, annotations)
    tocs = Manifest("", others[0], (*others, right))
    assert external_toc(tocs, layer) == right
    assert external_toc(tocs, others[0]) is None


def test_a_table_in_another_image_must_be_the_one_that_the_layers_manifest_names() -> None:
    made = estargz_layer(TAR, footer="external")
    other = estargz_layer(tarmake.archive(tarmake.file("a", b"b")), footer="external")
    with pytest.raises(IntegrityError):
        read_external_toc(other.external, made.layer, External(len(made.blob)))


def test_another_table_than_the_manifest_names_is_refused() -> None:
    made = estargz_layer(TAR)
    layer = made.noted({TOC_DIGEST: str(Digest.of(b"other"))})
    with pytest.raises(IntegrityError, match="table of contents"):
        fetched(find_toc(layer), made.blob)


def test_an_annotation_that_is_no_digest_is_refused() -> None:
    made = estargz_layer(TAR)
    with pytest.raises(InvalidImage, match="annotation"):
        fetched(find_toc(made.noted({TOC_DIGEST: "md5:0"})), made.blob)


def test_fewer_bytes_than_wanted_are_noticed() -> None:
    made = estargz_layer(TAR)
    reader = find_toc(made.layer)
    assert reader is not None
    next(reader)
    with pytest.raises(IntegrityError, match="length"):
        reader.send(made.blob[1:])


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"no gzip",
        blobs.gzip_member(b""),
        blobs.gzip_member(bytes(512)),
        blobs.gzip_member(tarmake.archive(tarmake.file("other.json", b"{}"))),
        blobs.gzip_member(tarmake.header(b"stargz.index.json", size=5)),
        gzip_toc(b"{}")[:-9],
        blobs.gzip_bomb(64 << 20),
    ],
)
def test_a_broken_table_is_refused(packed: bytes) -> None:
    layer = Descriptor(GZIP, Digest.of(b""), 100, {TOC_DIGEST: str(Digest.of(b"{}"))})
    with pytest.raises(InvalidImage):
        read_external_toc(packed, layer, External(100))


def test_a_table_of_very_much_the_same_is_no_bomb() -> None:
    same = {"type": "dir", "mode": 0o755, "modtime": "2020-09-13T12:26:40Z"}
    entries = [same | {"name": f"usr/share/{'x' * 99}/{number:06}"} for number in range(30_000)]
    made = rewritten(estargz_layer(TAR), json.dumps({"version": 1, "entries": entries}).encode())
    assert len(toc_of(made).entries) == 30_000


def test_a_huge_table_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estargz, "LIMIT", 100)
    made = estargz_layer(TAR)
    with pytest.raises(InvalidImage, match="over 100 bytes"):
        fetched(find_toc(made.layer), made.blob)


MADE = estargz_layer(TAR, chunk=1000, shared=600)
MADE_TOC = toc_of(MADE)


@given(st.data())
def test_damage_is_found_or_harmless(data: Any) -> None:
    """A blob with bytes changed or missing gives the same table, or an error that says so."""
    blob = bytearray(MADE.blob)
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(1, min(400, len(blob)))) * -1] = data.draw(st.integers(0, 255))
    try:
        found, _ = fetched(find_toc(MADE.layer), bytes(blob))
    except (InvalidImage, IntegrityError):
        return
    assert found in (MADE_TOC, External(len(blob) - 46))


@given(st.binary(max_size=200))
def test_no_tail_makes_trouble(tail: bytes) -> None:
    for end in (b"", FOOTERS["estargz"](7)):
        try:
            assert parse_footer(tail + end, 1000) == Footer(7, 1000 - len(end))
        except InvalidImage:
            assert not end
