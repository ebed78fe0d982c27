"""The JSON table of contents: entries, spans, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import InvalidImage
from imgfs.layer.entry import ChunkDigest, Codec, Entry, Extent, Kind
from imgfs.layer.tar.header import OFFSET_LIMIT
from imgfs.layer.toc import document
from imgfs.layer.toc.toc import Toc, read_toc
from tests.support.tocmake import check

END = 1000
DIGEST = "sha256:" + "ab" * 32

Fields = dict[str, Any]


def toc_of(*entries: Fields, codec: Codec = Codec.GZIP, **more: object) -> Toc:
    document = {"version": 1, "entries": entries, **more}
    return read_toc(json.dumps(document).encode(), codec=codec, end=END)


def reg(name: str = "f", size: int = 10, offset: int = 100, **more: object) -> Fields:
    return {
        "name": name,
        "type": "reg",
        "size": size,
        "offset": offset,
        "chunkDigest": DIGEST,
        **more,
    }


def chunk(at: int, offset: int, **more: object) -> Fields:
    return {
        "name": "f",
        "type": "chunk",
        "chunkOffset": at,
        "offset": offset,
        "chunkDigest": DIGEST,
        **more,
    }


def entry_of(**fields: object) -> Entry:
    return toc_of({"name": "x", **fields}).entries[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("reg", Kind.FILE),
        ("dir", Kind.DIRECTORY),
        ("symlink", Kind.SYMLINK),
        ("hardlink", Kind.HARDLINK),
        ("char", Kind.CHARACTER),
        ("block", Kind.BLOCK),
        ("fifo", Kind.FIFO),
    ],
)
def test_every_type_has_its_kind(name: str, kind: Kind) -> None:
    assert entry_of(type=name, linkName="y").kind is kind


def test_fields_left_out_are_zero() -> None:
    assert entry_of(type="dir") == Entry(b"x", Kind.DIRECTORY, 0, 0, 0, 0, 0)


def test_an_entry_is_what_its_fields_say() -> None:
    found = entry_of(
        type="char",
        mode=0o20644,
        uid=5,
        gid=6,
        devMajor=1,
        devMinor=3,
        userName="me",
        modtime="1970-01-01T00:00:02Z",
    )
    assert found == Entry(b"x", Kind.CHARACTER, 0o644, 5, 6, 0, 2_000_000_000, device=(1, 3))


def test_only_links_have_targets_and_only_devices_numbers() -> None:
    assert entry_of(type="symlink", linkName="../y", devMajor=1).target == b"../y"
    assert entry_of(type="symlink", linkName="../y", devMajor=1).device == (0, 0)
    assert entry_of(type="dir", linkName="../y").target == b""


def test_xattrs_are_base64() -> None:
    value = b"\0\xff binary"
    found = entry_of(type="dir", xattrs={"user.a": base64.b64encode(value).decode(), "user.empty": ""})
    assert found.xattrs == {b"user.a": value, b"user.empty": b""}


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00Z", 0),  # a time that was never set
        ("2020-09-13T12:26:40.123456789Z", 1_600_000_000_123_456_789),
        ("2020-09-13T12:26:40.5Z", 1_600_000_000_500_000_000),
        ("2020-09-13T14:26:40+02:00", 1_600_000_000_000_000_000),
        ("1969-12-31T23:59:58.25Z", -1_750_000_000),
    ],
)
def test_times_are_exact(text: str, nanoseconds: int) -> None:
    assert entry_of(type="dir", modtime=text).mtime_ns == nanoseconds


def test_names_stay_as_they_are_and_in_order() -> None:
    names = ["./b/", "a", "/c", "d/../e", ".wh.gone", "a", "\u00e4/\U0001f600"]
    found = toc_of(*({"name": name, "type": "dir"} for name in names))
    assert [entry.path for entry in found.entries] == [name.encode() for name in names]


@pytest.mark.parametrize("prefix", ["", "./", "/"])
def test_the_formats_own_files_are_hidden_at_the_root_only(prefix: str) -> None:
    own = [".no.prefetch.landmark", ".prefetch.landmark", "stargz.index.json"]
    entries = [reg(prefix + name, 1, 100 + number) for number, name in enumerate(own)]
    below = [reg(f"d/{name}", 1, 200 + number) for number, name in enumerate(own)]
    found = toc_of(*entries, *below)
    assert [entry.path for entry in found.entries] == [f"d/{name}".encode() for name in own]
    assert [span.start for span in found.spans] == [200, 201, 202]


def test_the_landmark_says_how_far_to_prefetch() -> None:
    assert toc_of(reg("a"), reg(".prefetch.landmark", 1, 300), reg("b", 1, 400)).prefetch_end == 300
    assert toc_of(reg(".no.prefetch.landmark", 1, 300)).prefetch_end == 0
    assert toc_of(reg("a")).prefetch_end is None


def test_a_span_ends_where_the_next_payload_begins_or_the_payloads_do() -> None:
    found = toc_of(reg("b", offset=500), reg("a", offset=100), reg(".prefetch.landmark", 1, 300))
    assert [(span.start, span.end) for span in found.spans] == [(100, 300), (500, END)]


def test_an_end_offset_ends_a_span_before_that() -> None:
    found = toc_of(reg("a", endOffset=120), reg("b", offset=500, endOffset=600))
    assert [(span.start, span.end) for span in found.spans] == [(100, 120), (500, 600)]


def test_files_begin_at_blocks_of_the_flat_layer_in_the_order_of_the_blob() -> None:
    found = toc_of(reg("late", 600, 500), reg("early", 10, 100), reg("last", 7, 700))
    assert [(entry.path, entry.extents) for entry in found.entries] == [
        (b"late", (Extent(0, 600, 512),)),
        (b"early", (Extent(0, 10, 0),)),
        (b"last", (Extent(0, 7, 1536),)),
    ]
    assert [(span.flat_start, span.flat_end) for span in found.spans] == [(0, 10), (512, 1112), (1536, 1543)]
    assert found.flat_size == 1543


def test_the_chunks_of_a_file_are_one_extent() -> None:
    found = toc_of(reg(size=250, chunkSize=100), chunk(100, 200, chunkSize=100), chunk(200, 300))
    assert found.entries[0].extents == (Extent(0, 250, 0),)
    assert [(span.flat_start, span.flat_end) for span in found.spans] == [(0, 100), (100, 200), (200, 250)]


def test_chunks_apart_in_the_blob_are_extents_of_their_own() -> None:
    found = toc_of(reg(size=150, chunkSize=100), chunk(100, 300), reg("g", 10, 200))
    first, second = found.entries[0].extents
    assert (first.offset, first.length, second.offset, second.length) == (0, 100, 100, 50)
    assert first.flat + first.length <= found.entries[1].extents[0].flat < second.flat


def test_zeros_are_a_hole_and_nobodys_span() -> None:
    found = toc_of(
        reg(size=3000, chunkSize=1000, endOffset=400),
        chunk(1000, 200, chunkSize=1000, chunkType="zeros"),
        chunk(2000, 300, chunkSize=1000),
    )
    first, second = found.entries[0].extents
    assert (first.offset, first.length, second.offset, second.length) == (0, 1000, 2000, 1000)
    assert [(span.start, span.end) for span in found.spans] == [(100, 200), (300, 400)]


def test_a_file_may_be_zeros_alone() -> None:
    found = toc_of(reg(chunkType="zeros", chunkDigest=""))
    assert (found.entries[0].size, found.entries[0].extents, found.spans) == (10, (), [])


def test_empty_files_have_no_extents_and_need_no_digest() -> None:
    found = toc_of({"name": "x", "type": "reg"})
    assert (found.entries[0].extents, found.spans, found.flat_size) == ((), [], 0)


def test_payloads_that_share_a_stream_are_parts_of_one_span() -> None:
    found = toc_of(reg("a", 10, 100, innerOffset=512), reg("b", 20, 100, innerOffset=1536), reg("c", 5, 300))
    assert [(span.start, span.end) for span in found.spans] == [(100, 300), (300, END)]
    span = found.spans[0]
    digest = bytes.fromhex("ab" * 32)
    assert span.parts == (ChunkDigest(512, 10, digest), ChunkDigest(1536, 20, digest))
    assert (span.flat_start, span.flat_end) == (0, 1556)
    assert [entry.extents for entry in found.entries[:2]] == [(Extent(0, 10, 512),), (Extent(0, 20, 1536),)]


def test_a_file_that_goes_on_in_the_next_stream_is_one_extent() -> None:
    found = toc_of(
        reg(size=150, chunkSize=100, innerOffset=512), chunk(100, 200), reg("g", 10, 200, innerOffset=924)
    )
    assert found.entries[0].extents == (Extent(0, 150, 512),)
    assert found.entries[1].extents[0].flat % 512 == 0


def test_files_that_name_one_payload_share_it() -> None:
    found = toc_of(reg("a"), reg("b"))
    assert found.entries[0].extents == found.entries[1].extents
    assert len(found.spans) == 1
    assert len(found.spans[0].parts) == 1


def test_the_files_digest_serves_where_one_chunk_is_all_of_it() -> None:
    whole = reg()
    whole["digest"] = whole.pop("chunkDigest")
    assert toc_of(whole, codec=Codec.ZSTD).spans[0].parts[0].digest == bytes.fromhex("ab" * 32)


def test_the_fields_of_the_document_may_come_in_any_order() -> None:
    body = b' { "tarSplitDigest": "x", "entries" : [ {"name":"x", "type":"dir"} ] , "version": 1 }\n'
    assert len(read_toc(body, codec=Codec.ZSTD, end=0).entries) == 1
    assert read_toc(b'{"version":1,"entries":null}', codec=Codec.ZSTD, end=0).entries == []


def test_the_window_does_not_show() -> None:
    names = [f"{number}{'x' * (number % 700)}" for number in range(20_000)]
    found = toc_of(*({"name": name, "type": "dir"} for name in names))
    assert [entry.path.decode() for entry in found.entries] == names


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([{"name": "x", "type": "door"}], "TOC.entries[0]: type: 'door' is unknown"),
        ([{"name": "x", "type": []}], "unknown"),
        ([{"name": "x"}], "unknown"),
        ([{"type": "dir"}], "name: expected a path"),
        ([{"name": "a\0b", "type": "dir"}], "name: expected a path"),
        ([{"name": "a\ufffdb", "type": "dir"}], "not UTF-8"),
        ([{"name": "\ud800", "type": "dir"}], "not text"),
        ([{"name": "x", "type": "symlink"}], "linkName"),
        ([{"name": "x", "type": "dir", "mode": -1}], "mode"),
        ([{"name": "x", "type": "dir", "uid": 1 << 32}], "owner"),
        ([{"name": "x", "type": "dir", "uid": 1.0}], "uid"),
        ([{"name": "x", "type": "char", "devMajor": 1 << 32}], "device"),
        ([{"name": "x", "type": "dir", "modtime": "yesterday"}], "modtime"),
        ([{"name": "x", "type": "dir", "modtime": "2020-13-01T00:00:00Z"}], "modtime"),
        ([{"name": "x", "type": "dir", "modtime": 5}], "modtime"),
        ([{"name": "x", "type": "dir", "xattrs": ["a"]}], "xattrs"),
        ([{"name": "x", "type": "dir", "xattrs": {"a": "?"}}], "base64"),
        ([{"name": "x", "type": "dir", "xattrs": {"a": [1]}}], "base64"),
        ([{"name": "x", "type": "dir", "xattrs": {"": "YQ=="}}], "name"),
        ([reg(), reg(size=-1)], "TOC.entries[1]: size"),
        ([reg(size=True)], "size"),
        ([reg(size=OFFSET_LIMIT + 1)], "size"),
        ([reg(offset=-1)], "offset"),
        ([reg(offset=END)], "payloads end"),
        ([reg(innerOffset=-1)], "innerOffset"),
        ([reg(innerOffset=OFFSET_LIMIT)], "larger than a layer"),
        ([reg(chunkOffset=1)], "chunkOffset"),
        ([reg(chunkSize=11)], "chunkSize"),
        ([reg(chunkSize=9)], "do not add up"),
        ([reg(chunkSize=9), {"name": "x", "type": "dir"}], "do not add up"),
        ([reg(chunkSize=4), chunk(5, 200)], "chunkOffset"),
        ([reg(chunkSize=4), chunk(4, 200, chunkSize=7)], "chunkSize"),
        ([reg(chunkSize=4), chunk(4, 200), chunk(10, 300)], "chunkSize"),
        ([chunk(0, 100)], "follows no file"),
        ([{"name": "f", "type": "reg"}, chunk(0, 100)], "follows no file"),
        ([reg("g", chunkSize=4), chunk(4, 200)], "another file"),
        ([reg(chunkDigest="")], "chunkDigest"),
        ([reg(chunkDigest="sha512:" + "ab" * 64)], "chunkDigest"),
        ([reg(chunkDigest="sha256:" + "zz" * 32)], "chunkDigest"),
        ([reg(chunkDigest="sha256:" + "a " * 32)], "chunkDigest"),
        ([reg(chunkSize=4, digest=DIGEST, chunkDigest=""), chunk(4, 200)], "chunkDigest"),
        ([reg(endOffset=100)], "ends at 100"),
        ([reg(endOffset=END + 1)], "ends at 1001"),
        ([reg(endOffset=201), reg("g", offset=200)], "ends at 201"),
        ([reg(), reg("g", innerOffset=9)], "overlaps"),
        ([reg(), reg("g", 11)], "overlaps"),
        ([reg(), reg("g", chunkDigest="sha256:" + "cd" * 32)], "overlaps"),
        (["x"], "expected an object"),
    ],
)
def test_what_cannot_be_is_refused_and_named(entries: list[Any], says: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        toc_of(*entries)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"{}x",
        b'{"entries":[',
        b'{"entries":[{}',
        b'{"entries":[{},]}',
        b'{"entries":{}}',
        b'{"entries":[] "version":1}',
        b'{"entries":[],"entries":[]}',
        b'{"version":2,"entries":[]}',
        b'{"version":"1"}',
        b"{1:2}",
        b'\xff{"entries":[]}',
        b'{"entries":[{"name":NaN,"type":"dir"}]}',
        b'{"entries":[{"size":' + b"9" * 5000 + b"}]}",
        b'{"entries":' + b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"entries":[' + b'{"a":' * 100_000,
    ],
)
def test_what_is_no_table_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidImage):
        read_toc(body, codec=Codec.GZIP, end=END)


def test_an_entry_without_end_is_refused_before_it_takes_memory() -> None:
    body = b'{"entries":[{"a":[' + b"[]," * (8 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidImage, match="too long"):
            read_toc(body, codec=Codec.GZIP, end=END)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20  # the text, and one entry's 2 MiB as objects
    finally:
        tracemalloc.stop()


def test_more_entries_than_a_layer_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "ENTRIES_LIMIT", 3)
    entries = [reg(str(number), 1, 100 + number) for number in range(4)]
    assert len(toc_of(*entries[:3]).spans) == 3
    with pytest.raises(InvalidImage, match="more than 3"):
        toc_of(*entries)


def test_a_million_repetitions_share_one_span() -> None:
    found = toc_of(*[reg()] * 20_000)
    assert (len(found.entries), len(found.spans), len(found.spans[0].parts)) == (20_000, 1, 1)


_NUMBERS = st.one_of(
    st.integers(0, 3), st.integers(90, 110), st.sampled_from([-1, END, OFFSET_LIMIT, 1 << 70]), st.integers()
)
_VALUES = st.one_of(
    _NUMBERS, st.none(), st.booleans(), st.text(max_size=5), st.lists(st.integers(), max_size=2)
)
_NUMBER_NAMES = [
    "size",
    "offset",
    "innerOffset",
    "endOffset",
    "chunkSize",
    "chunkOffset",
    "mode",
    "uid",
    "devMajor",
]
_FIELDS = st.fixed_dictionaries(
    {
        "name": st.one_of(st.sampled_from(["f", ".prefetch.landmark"]), st.text(max_size=4)),
        "type": st.sampled_from(["reg", "reg", "chunk", "dir", "symlink", "char"]),
    },
    optional={
        **dict.fromkeys(_NUMBER_NAMES, st.one_of(_NUMBERS, _NUMBERS, _VALUES)),
        "linkName": _VALUES,
        "modtime": st.one_of(st.just("2020-09-13T12:26:40Z"), _VALUES),
        "xattrs": st.one_of(st.dictionaries(st.text(max_size=3), _VALUES, max_size=2), _VALUES),
        "digest": st.just(DIGEST),
        "chunkDigest": st.one_of(st.just(DIGEST), _VALUES),
        "chunkType": st.sampled_from(["", "zeros"]),
    },
)


@given(st.lists(_FIELDS, max_size=6))
def test_any_table_is_read_into_what_holds_together_or_refused(entries: list[Fields]) -> None:
    try:
        found = toc_of(*entries)
    except InvalidImage:
        return
    check(found, END)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30), st.booleans()), max_size=8), st.randoms())
def test_every_byte_of_every_file_has_its_place(pieces: list[tuple[int, int, bool]], source: Any) -> None:
    """Files of random sizes in random chunks, some zeros, in any order in the blob: all are found again."""
    starts = source.sample(range(100, 900), sum(-(-size // step) for size, step, _ in pieces))
    entries: list[Fields] = []
    for number, (size, step, holes) in enumerate(pieces):
        for at in range(0, size, step):
            fields = chunk(at, starts.pop(), name=str(number), chunkSize=min(step, size - at))
            fields |= {"type": "chunk" if at else "reg", "size": 0 if at else size}
            fields |= {"chunkType": "zeros"} if holes and at // step % 2 else {}
            entries.append(fields)
    found = toc_of(*entries)
    check(found, END)
    taken: set[int] = set()
    for entry, (size, step, holes) in zip(found.entries, pieces, strict=True):
        there = {at for extent in entry.extents for at in range(extent.offset, extent.offset + extent.length)}
        assert there == {at for at in range(size) if not (holes and at // step % 2)}
        places = {at for extent in entry.extents for at in range(extent.flat, extent.flat + extent.length)}
        assert len(places) == len(there)
        assert not taken & places
        taken |= places
        assert all((extent.flat - extent.offset) % 512 == 0 for extent in entry.extents)


def test_the_digest_is_of_the_chunk() -> None:
    body = hashlib.sha256(b"x").hexdigest()
    found = toc_of(reg(chunkDigest=f"sha256:{body}"))
    assert found.spans[0].parts == (ChunkDigest(0, 10, bytes.fromhex(body)),)
    assert found.spans[0].digest == b""
