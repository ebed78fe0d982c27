"""Indexes and trees that travel: lean or whole, their windows apart, and what is refused of them."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from pathlib import Path

import pytest
import zstandard

from imgfs.errors import IntegrityError, InvalidImage, StoreError
from imgfs.layer.artifact import Windows, pack, unpack, write_shared, write_windows
from imgfs.layer.entry import Checkpoint, ChunkDigest, Codec, Entry, Extent, Kind, Span
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter, import_index
from imgfs.layer.schema import ExternalBlob
from imgfs.tree.import_tree import import_tree
from imgfs.tree.reader import Tree
from tests.support.blobs import prose
from tests.support.layers import write_tree
from tests.support.tarmake import archive, file

FILE = Entry(b"etc/passwd", Kind.FILE, 0o644, 0, 0, 10, 0, extents=(Extent(0, 10, 512),))
SPANS = [
    Span(0, 0, 100, 0, 50, Codec.GZIP, bytes(32)),
    Span(1, 100, 200, 49, 90, Codec.DEFLATE, b"\1" * 32, Checkpoint(3, prose(32768, 1))),
    Span(2, 200, 300, 90, 140, Codec.DEFLATE, b"\2" * 32, Checkpoint(0, prose(32768, 2))),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An index of one file and three spans."""
    writer = IndexWriter(tmp_path / "index")
    writer.add_entry(FILE)
    for span in SPANS:
        writer.add_span(span)
    writer.finish(digest="d", diff_id="i", format="gzip", size=140, flat_size=300)
    return tmp_path / "index"


def checkpoints() -> list[tuple[int, Checkpoint]]:
    return [(span.number, span.checkpoint) for span in SPANS if span.checkpoint]


def shared(path: Path, *, lean: bool) -> tuple[Path, Windows, bytes]:
    """The index in the form in which it travels, and the blob of its windows."""
    made, windows_path = path.with_name(f"shared-{lean}"), path.with_name("windows")
    with LayerIndex(path) as index:
        windows = write_windows(checkpoints(), windows_path)
        assert windows
        write_shared(index, made, lean=lean, windows=windows)
    return made, windows, windows_path.read_bytes()


@pytest.mark.parametrize("lean", [True, False])
def test_a_shared_index_has_the_same_spans_and_says_where_their_windows_are(path: Path, lean: bool) -> None:
    made, windows, body = shared(path, lean=lean)
    assert windows.blob == ExternalBlob(f"sha256:{hashlib.sha256(body).hexdigest()}", len(body))
    with LayerIndex(made) as index:
        assert index.windows == windows.blob
        assert index.blob is None
        assert list(index.bounds()) == [span[1:5] for span in SPANS]
        for span in SPANS:
            place = index.remote_window(span.number)
            assert bool(place) == bool(span.checkpoint)
            assert index.span(span.number, body[slice(*place)] if place else None) == span


def test_a_lean_index_has_no_entries_and_says_so(path: Path) -> None:
    for lean in (True, False):
        made, _, _ = shared(path, lean=lean)
        with LayerIndex(made) as index:
            assert index.summary.is_lean is lean
            assert list(index.entries()) == ([] if lean else [FILE])


def test_the_same_index_is_shared_as_the_same_bytes(path: Path) -> None:
    made, *rest = shared(path, lean=False)
    body = made.read_bytes()
    made.unlink()
    again, *others = shared(path, lean=False)
    assert (again.read_bytes(), others) == (body, rest)


def test_without_checkpoints_there_are_no_windows(tmp_path: Path) -> None:
    assert write_windows([], tmp_path / "windows") is None
    assert not (tmp_path / "windows").exists()


def test_a_seekable_copy_takes_the_place_of_the_layers_own_spans(path: Path, tmp_path: Path) -> None:
    blob, spans = ExternalBlob("sha256:copy", 77), [Span(0, 0, 300, 0, 77, Codec.ZSTD, bytes(32))]
    with LayerIndex(path) as index:
        write_shared(index, tmp_path / "copied", lean=True, windows=None, copy=(blob, spans))
    with LayerIndex(tmp_path / "copied") as index:
        assert (index.blob, index.windows, list(index.spans())) == (blob, None, spans)


def test_a_packed_file_is_unpacked_with_windows_of_8_mib_and_no_larger(tmp_path: Path) -> None:
    body = bytes(20 << 20)
    (tmp_path / "made").write_bytes(body)
    pack(tmp_path / "made", tmp_path / "packed")
    frame = bytearray((tmp_path / "packed").read_bytes())
    unpack([bytes(frame)], tmp_path / "unpacked", len(body))
    assert (tmp_path / "unpacked").read_bytes() == body
    assert zstandard.get_frame_parameters(bytes(frame)).window_size == 8 << 20
    frame[5] = (24 - 10) << 3  # the window's exponent (RFC 8878, section 3.1.1.1.2)
    with pytest.raises(InvalidImage, match="zstd offset 0: zstd: "):
        unpack([bytes(frame)], tmp_path / "again", len(body))


def test_parts_are_kept(tmp_path: Path) -> None:
    parts = (ChunkDigest(0, 60, b"\3" * 32), ChunkDigest(70, 30, b"\4" * 32))
    span = Span(0, 0, 100, 0, 50, Codec.GZIP, b"", None, parts)
    writer = IndexWriter(tmp_path / "index")
    writer.add_spans([span])
    writer.finish(digest="d", diff_id="i", format="estargz", size=50, flat_size=100, space="toc:x")
    with LayerIndex(tmp_path / "index") as index:
        assert index.span(0) == span
        assert index.summary.space == "toc:x"


@pytest.mark.parametrize("window", [b"", b"noise", bytes(40000), zstandard.compress(prose(32768, 2))])
def test_a_window_that_arrives_damaged_or_is_another_is_an_integrity_error(path: Path, window: bytes) -> None:
    made, _, _ = shared(path, lean=True)
    with LayerIndex(made) as index, pytest.raises(IntegrityError, match="window of span 1"):
        index.span(1, window)


@pytest.mark.parametrize("place", ["-1, 5", "5, 5", "0, 1000000000", "NULL, 5"])
def test_a_window_outside_of_its_blob_is_a_store_error(path: Path, place: str) -> None:
    made, _, _ = shared(path, lean=True)
    start, end = place.split(", ")
    change(made, f"UPDATE checkpoint SET start = {start}, end = {end} WHERE number = 1")
    with LayerIndex(made) as index, pytest.raises(StoreError, match="damaged"):
        index.remote_window(1)


def test_an_index_that_cannot_tell_its_windows_from_others_is_of_another_format(path: Path) -> None:
    made, _, _ = shared(path, lean=True)
    change(made, "UPDATE checkpoint SET window = NULL WHERE number = 2")
    with pytest.raises(StoreError, match="of another format"):
        LayerIndex(made)
    with pytest.raises(InvalidImage, match="rows that make no sense: checkpoint"):
        import_index(made, "registry/app")


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(33)])
def test_what_is_no_digest_of_a_window_is_refused(path: Path, digest: bytes) -> None:
    made, _, _ = shared(path, lean=True)
    change(made, f"UPDATE checkpoint SET window = x'{digest.hex()}' WHERE number = 2")
    with pytest.raises(InvalidImage, match="rows that make no sense: checkpoint"):
        import_index(made, "registry/app")


def test_what_vouches_for_an_index_or_a_tree_is_noted_in_it(path: Path, tmp_path: Path) -> None:
    made, _, _ = shared(path, lean=False)
    import_index(made, "registry/app")
    with LayerIndex(path) as own, LayerIndex(made) as index:
        assert (own.summary.origin, index.summary.origin) == ("", "registry/app")
    write_tree(tmp_path / "tree", [archive(file("x"))], tmp_path)
    import_tree(tmp_path / "tree", "registry/app")
    with Tree(tmp_path / "tree") as tree:
        assert (tree.origin, tree.spaces()) == ("registry/app", ["tar"])


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER UPDATE ON summary BEGIN DELETE FROM span; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE more (x)",
        "DROP TABLE elsewhere",
        "ALTER TABLE span ADD COLUMN more",
        "DROP INDEX hardlink",
    ],
)
def test_an_index_with_anything_more_or_less_in_it_is_refused(path: Path, statement: str) -> None:
    change(path, statement)
    with pytest.raises(InvalidImage, match="not a layer index of this imgfs"):
        import_index(path, "registry/app")


@pytest.mark.parametrize("value", ["NULL", "'x'", "x'01'", "0.5", "9e99", "-1", "4294967296"])
@pytest.mark.parametrize("column", ["uid", "nlink"])
def test_a_tree_with_a_row_that_makes_no_sense_is_refused(tmp_path: Path, column: str, value: str) -> None:
    write_tree(tmp_path / "tree", [archive(file("x"), file("y"))], tmp_path)
    change(tmp_path / "tree", f"UPDATE node SET {column} = {value} WHERE ino = 2")
    with pytest.raises(InvalidImage, match="rows that make no sense: node"):
        import_tree(tmp_path / "tree", "registry/app")


@pytest.mark.parametrize("body", [b"", b"noise" * 1000, b"SQLite format 3\0" + bytes(4096)])
def test_a_file_that_is_no_database_is_refused(body: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(body)
    for refuse in (import_index, import_tree):
        with pytest.raises(InvalidImage, match=r"not a (layer index|tree) of this imgfs"):
            refuse(tmp_path / "file", "registry/app")


def test_the_path_of_a_node_in_a_tree_that_bites_its_tail_ends(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", [archive(file("a/b/c"))], tmp_path)
    shutil.copy(tmp_path / "tree", tmp_path / "loop")
    change(tmp_path / "loop", "UPDATE dirent SET parent = 3 WHERE name = CAST('a' AS BLOB)")
    with Tree(tmp_path / "tree") as tree, Tree(tmp_path / "loop") as loop:
        assert tree.path(4) == b"a/b/c"
        assert len(loop.path(4)) < 100_000


def change(path: Path, statement: str) -> None:
    """Do something to a file that nobody should."""
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()
