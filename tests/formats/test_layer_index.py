from __future__ import annotations

import random
import sqlite3
import struct
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import InvalidImage, StoreError
from imgfs.layer.entry import WINDOW, Checkpoint, Codec, Entry, Extent, Kind, Span
from imgfs.layer.growing import Withdrawn, growing_index
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.schema import Summary
from imgfs.layer.sqlite import LARGEST
from imgfs.parallel import begun
from tests.support.blobs import prose

SUMMARY = Summary("sha256:" + "a" * 64, "sha256:" + "b" * 64, "gzip", 1234, 5678, 0)
PLAIN = Entry(b"etc/passwd", Kind.FILE, 0o644, 0, 0, 10, 0, extents=(Extent(0, 10, 512),))


def write(path: Path, entries: Iterable[Entry] = (), spans: Iterable[Span] = ()) -> Path:
    """Write an index of these entries and spans."""
    writer = IndexWriter(path)
    for entry in entries:
        writer.add_entry(entry)
    for span in spans:
        writer.add_span(span)
    finish(writer)
    return path


def finish(writer: IndexWriter) -> None:
    writer.finish(
        digest=SUMMARY.digest,
        diff_id=SUMMARY.diff_id,
        format=SUMMARY.format,
        size=SUMMARY.size,
        flat_size=SUMMARY.flat_size,
    )


def entries_of(path: Path) -> list[Entry]:
    """All entries of an index."""
    with LayerIndex(path) as index:
        return list(index.entries())


def everything(path: Path) -> int:
    """Read all there is in an index; how many rows that is."""
    with LayerIndex(path) as index:
        rows = [*index.entries(), *index.whiteout_candidates(), *index.hardlinks(), *index.directories()]
        bounds = list(index.bounds())
        spans = [index.span(number) for number in range(index.span_count())]
        return len(rows) + len(bounds) + len(spans)


def many_entries(count: int) -> list[Entry]:
    """Entries of every kind, so many that they fill a few pages."""
    kinds = list(Kind)
    return [
        PLAIN._replace(
            path=b"usr/share/%d/" % number + bytes([97 + number % 26]) * (number % 60),
            kind=kinds[number % len(kinds)],
            xattrs={b"user.n": bytes(number % 40)} if number % 5 == 0 else {},
            extents=(Extent(1, 2, number), Extent(4, 5, 512)) if number % 3 else PLAIN.extents,
        )
        for number in range(count)
    ]


def many_spans(count: int) -> list[Span]:
    """Spans of 100 flat bytes each, every other one with a checkpoint."""
    source = random.Random(5)
    return [
        Span(
            number,
            100 * number,
            100 * number + 100,
            60 * number,
            60 * number + 61,
            Codec.DEFLATE,
            source.randbytes(32),
            Checkpoint(number % 8, prose(3000, number)) if number % 2 else None,
        )
        for number in range(count)
    ]


# Entries


@pytest.mark.parametrize(
    "entry",
    [
        PLAIN,
        Entry(b"\xff\xfe not utf-8 \n", Kind.FILE, 0o7777, (1 << 32) - 1, (1 << 32) - 1, 0, -1),
        Entry(b"", Kind.DIRECTORY, 0o755, 0, 0, 0, 1_700_000_000_123_456_789),
        Entry(b"link", Kind.SYMLINK, 0o777, 1, 2, 0, 0, target=b"../\xe9"),
        Entry(b"hard", Kind.HARDLINK, 0o644, 0, 0, 0, 0, target=b"etc/passwd"),
        Entry(b"tty", Kind.CHARACTER, 0o600, 0, 5, 0, 0, device=(4, 64)),
        Entry(b"disk", Kind.BLOCK, 0o600, 0, 6, 0, 0, device=((1 << 32) - 1, (1 << 32) - 1)),
        Entry(b"pipe", Kind.FIFO, 0o600, 0, 0, 0, 0),
        PLAIN._replace(size=(1 << 63) - 1, extents=(Extent(0, (1 << 63) - 1, (1 << 63) - 1),)),
    ],
    ids=lambda entry: entry.path.decode("ascii", "replace"),
)
def test_an_entry_is_read_as_it_was_written(entry: Entry, tmp_path: Path) -> None:
    assert entries_of(write(tmp_path / "index", [entry])) == [entry]


@pytest.mark.parametrize(
    "xattrs",
    [
        {},
        {b"user.a": b""},
        {b"": b"x"},
        {b"security.capability": bytes(range(256)), b"user.\0\xff": b"\0" * 70_000, b"user.a": b"=\n"},
    ],
)
def test_xattrs_are_binary(xattrs: dict[bytes, bytes], tmp_path: Path) -> None:
    (entry,) = entries_of(write(tmp_path / "index", [PLAIN._replace(xattrs=xattrs)]))
    assert entry.xattrs == xattrs


@pytest.mark.parametrize(
    ("size", "extents"),
    [
        (0, ()),
        (1 << 40, ()),  # one hole
        (10, (Extent(0, 10, 512),)),
        (11, (Extent(0, 10, 512),)),  # a hole at the end
        (10, (Extent(1, 9, 512),)),
        (10, (Extent(0, 3, 512), Extent(5, 2, 515), Extent(7, 1, 0))),
        (1 << 62, tuple(Extent(number << 20, 512, number << 9) for number in range(5000))),
    ],
)
def test_extents_leave_holes_where_they_did(size: int, extents: tuple[Extent, ...], tmp_path: Path) -> None:
    (entry,) = entries_of(write(tmp_path / "index", [PLAIN._replace(size=size, extents=extents)]))
    assert (entry.size, entry.extents) == (size, extents)


@pytest.mark.parametrize("mtime", [1 << 90, -(1 << 90), 1 << 63, -(1 << 63) - 1, 5])
def test_times_beyond_64_bits_of_nanoseconds_stay_themselves(mtime: int, tmp_path: Path) -> None:
    (entry,) = entries_of(write(tmp_path / "index", [PLAIN._replace(mtime_ns=mtime)]))
    assert entry.mtime_ns == mtime


def test_entries_keep_their_order_however_many_and_equal(tmp_path: Path) -> None:
    entries = many_entries(2500) + [PLAIN] * 3
    path = write(tmp_path / "index", entries)
    assert entries_of(path) == entries
    with LayerIndex(path) as index:
        assert index.summary == SUMMARY._replace(entries=2503)


numbers = st.integers(0, (1 << 63) - 1)
some_entries = st.builds(
    Entry,
    path=st.binary(max_size=50),
    kind=st.sampled_from(Kind),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, (1 << 32) - 1),
    gid=st.integers(0, (1 << 32) - 1),
    size=numbers,
    mtime_ns=st.integers(-(1 << 63), (1 << 63) - 1),
    target=st.binary(max_size=50),
    device=st.tuples(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1)),
    xattrs=st.dictionaries(st.binary(max_size=9), st.binary(max_size=9), max_size=4),
    extents=st.lists(st.builds(Extent, numbers, numbers, numbers), max_size=4).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(entries=st.lists(some_entries, max_size=6))
def test_any_entries_are_read_as_they_were_written(
    entries: list[Entry], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert entries_of(write(tmp_path_factory.mktemp("any") / "index", entries)) == entries


# The rows a merge asks for


def test_every_whiteout_is_among_the_candidates_in_order(tmp_path: Path) -> None:
    paths = [b".wh.a", b"x/.wh..wh..opq", b"plain", b"x/a.wh.b", b"x/.wh", b"\xff/.wh.\xff", b".WH.a", b""]
    path = write(tmp_path / "index", [PLAIN._replace(path=path) for path in paths])
    with LayerIndex(path) as index:
        found = [entry.path for entry in index.whiteout_candidates()]
    assert found == [b".wh.a", b"x/.wh..wh..opq", b"x/a.wh.b", b"\xff/.wh.\xff"]


def test_hard_links_and_directories_are_found_by_kind_in_order(tmp_path: Path) -> None:
    entries = many_entries(300)
    with LayerIndex(write(tmp_path / "index", entries)) as index:
        assert list(index.hardlinks()) == [entry for entry in entries if entry.kind is Kind.HARDLINK]
        directories = list(index.directories())
    assert directories == [entry.path for entry in entries if entry.kind is Kind.DIRECTORY]


# Spans


@pytest.mark.parametrize(
    "checkpoint",
    [None, Checkpoint(0, b""), Checkpoint(7, b"w"), Checkpoint(3, random.Random(1).randbytes(WINDOW))],
)
@pytest.mark.parametrize("codec", Codec)
def test_a_span_is_read_as_it_was_written(
    codec: Codec, checkpoint: Checkpoint | None, tmp_path: Path
) -> None:
    span = Span(0, 0, 1 << 62, 1 << 61, 1 << 62, codec, bytes(range(32)), checkpoint)
    with LayerIndex(write(tmp_path / "index", spans=[span])) as index:
        assert index.span(0) == span
        assert index.span(0).codec is codec


def test_spans_are_found_by_number(tmp_path: Path) -> None:
    spans = many_spans(70)
    with LayerIndex(write(tmp_path / "index", spans=spans)) as index:
        assert index.span_count() == 70
        assert [index.span(number) for number in reversed(range(70))] == spans[::-1]
        assert list(index.bounds()) == [tuple(span[1:5]) for span in spans]


@pytest.mark.parametrize("number", [-1, 2, 1 << 40])
def test_a_span_there_is_none_of_is_a_store_error(number: int, tmp_path: Path) -> None:
    with (
        LayerIndex(write(tmp_path / "index", spans=many_spans(2))) as index,
        pytest.raises(StoreError, match="no span"),
    ):
        index.span(number)


# The file


@pytest.mark.parametrize("name", ["plain", "with space", "100%", "a?b#c", "ü"])
def test_an_index_may_be_anywhere(name: str, tmp_path: Path) -> None:
    assert entries_of(write(tmp_path / name, [PLAIN])) == [PLAIN]


def test_an_index_needs_only_to_be_readable_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path / "index", [PLAIN])
    path.chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        assert entries_of(path) == [PLAIN]
        assert list(tmp_path.iterdir()) == [path]
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("body", [b"", b"no database", bytes(5000), b"SQLite format 3\0", b"\x1f\x8b" * 4000])
def test_a_file_that_is_no_index_is_a_store_error(body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.write_bytes(body)
    with pytest.raises(StoreError, match=f"^{path}: "):
        LayerIndex(path)


def test_a_missing_file_and_a_directory_are_store_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(StoreError, match=f"^{path}: "):
            LayerIndex(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE summary SET format_number = 1",
        "UPDATE summary SET format_number = NULL",
        "DELETE FROM summary",
        "DROP TABLE summary",
        "ALTER TABLE summary ADD COLUMN more",
    ],
)
def test_an_index_of_another_format_is_a_store_error(statement: str, tmp_path: Path) -> None:
    path = write(tmp_path / "index", [PLAIN])
    change(path, statement)
    with pytest.raises(StoreError, match=f"^{path}: .*; remove it to index the layer again$"):
        LayerIndex(path)


def test_entries_are_read_while_others_are_still_written(tmp_path: Path) -> None:
    path, entries = tmp_path / "index", many_entries(2500)
    writer = IndexWriter(path, shared=True)
    for entry in entries:
        writer.add_entry(entry)
    with growing_index(path) as growing:
        read = growing.entries()
        assert list(islice(read, 2000)) == entries[:2000]
        finish(writer)
        with LayerIndex(path) as index:
            growing.complete(index)
            assert list(read) == entries[2000:]
            assert growing.summary == index.summary


def test_a_scan_waits_until_what_it_has_written_is_read(tmp_path: Path) -> None:
    path, entries = tmp_path / "index", many_entries(2000)
    writer = IndexWriter(path, shared=True)
    for entry in entries[:1000]:
        writer.add_entry(entry)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader, growing_index(path) as growing:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entry").fetchone()
        writing = begun(lambda: list(map(writer.add_entry, entries[1000:])), "writing")
        with pytest.raises(TimeoutError):
            writing.result(0.2)
        reader.execute("COMMIT")
        writing.result(30)
        assert list(islice(growing.entries(), 2000)) == entries
    writer.close()


def test_what_a_scan_that_fails_has_written_is_withdrawn(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with closing(IndexWriter(path, shared=True)) as writer, growing_index(path) as growing:
        writer.add_entry(PLAIN)
    with pytest.raises(Withdrawn):
        list(growing.entries())


@pytest.mark.parametrize(("size", "flat_size"), [(1, LARGEST + 1), (LARGEST + 1, 1)])
def test_no_index_is_written_that_would_not_be_read(tmp_path: Path, size: int, flat_size: int) -> None:
    with closing(IndexWriter(tmp_path / "index")) as writer, pytest.raises(InvalidImage, match="more than"):
        writer.finish(digest="", diff_id="", format="gzip", size=size, flat_size=flat_size)


def test_an_index_that_nobody_finished_is_a_store_error(tmp_path: Path) -> None:
    writer = IndexWriter(tmp_path / "index")
    writer.add_entry(PLAIN)
    writer.close()
    with pytest.raises(StoreError):
        LayerIndex(tmp_path / "index")


READS: dict[str, Callable[[LayerIndex], object]] = {
    "entries": lambda index: list(index.entries()),
    "whiteout_candidates": lambda index: list(index.whiteout_candidates()),
    "hardlinks": lambda index: list(index.hardlinks()),
    "span": lambda index: index.span(1),
}


OVERLAPPING = b"".join(struct.pack("<QQ32s", skip, 10, bytes(32)) for skip in (0, 9)).hex()


@pytest.mark.parametrize(
    ("read", "statement"),
    [
        ("entries", "UPDATE entry SET kind = 99"),
        ("entries", "UPDATE entry SET extents = x'0102', flat = NULL"),
        ("entries", "UPDATE entry SET extents = zeroblob(16), flat = NULL"),
        ("entries", "UPDATE entry SET xattrs = 7"),
        ("entries", "DROP TABLE entry"),
        ("whiteout_candidates", "UPDATE entry SET path = '.wh.x', kind = NULL"),
        ("hardlinks", "UPDATE entry SET kind = 3, extents = x'00', flat = NULL"),
        ("span", "UPDATE span SET codec = 77"),
        ("span", f"UPDATE span SET parts = x'{OVERLAPPING}'"),
        ("span", "UPDATE checkpoint SET window = x'00'"),
        ("span", "UPDATE checkpoint SET window = NULL"),
        ("span", "DROP TABLE checkpoint"),
    ],
)
def test_rows_that_make_no_sense_are_store_errors(read: str, statement: str, tmp_path: Path) -> None:
    path = write(tmp_path / "index", [PLAIN], many_spans(2))
    change(path, statement)
    with LayerIndex(path) as index, pytest.raises(StoreError, match=f"^{path}: .*damaged"):
        READS[read](index)


def test_a_window_that_says_it_is_huge_is_a_store_error_before_it_is_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path / "index", spans=many_spans(2))
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(1 << 20)))
    change(path, f"UPDATE checkpoint SET window = x'{frame.hex()}'")
    with LayerIndex(path) as index, pytest.raises(StoreError, match="more than 32768 bytes"):
        index.span(1)


DAMAGED_PAGES = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from([1, 8, 100, 4096]), st.integers(0, 255)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=120, deadline=None)
@given(damage=DAMAGED_PAGES, kept=st.one_of(st.just(1.0), st.floats(0, 1)))
def test_a_damaged_or_truncated_index_is_read_or_is_a_store_error(
    damage: list[tuple[float, int, int]], kept: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "index"
    write(path, many_entries(400), many_spans(40))
    body = bytearray(path.read_bytes())
    for place, length, mask in damage:
        at = int(place * len(body))
        body[at : at + length] = bytes(byte ^ mask for byte in body[at : at + length])
    path.write_bytes(body[: int(kept * len(body))])
    try:
        everything(path)
    except StoreError as error:
        assert str(path) in str(error)  # noqa: PT017  (either is right: not all bytes matter)


def test_a_page_of_noise_in_the_middle_is_a_store_error_when_its_rows_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "index", many_entries(400), many_spans(40))
    body = bytearray(path.read_bytes())
    middle = body.find(b"usr/share/200/") // 4096 * 4096
    body[middle : middle + 4096] = random.Random(9).randbytes(4096)
    path.write_bytes(body)
    with LayerIndex(path) as index, pytest.raises(StoreError, match=f"^{path}: .*damaged.*malformed"):
        list(index.entries())


def change(path: Path, statement: str) -> None:
    """Run an SQL statement on a finished index."""
    db = sqlite3.connect(path)
    try:
        with db:
            db.execute(statement)
    finally:
        db.close()
