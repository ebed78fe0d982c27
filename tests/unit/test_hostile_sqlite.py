"""Files of others are taken in at a cost that their size says, and what is taken in is a tree or an index."""

from __future__ import annotations

import os
import random
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from imgfs.errors import InvalidImage, StoreError
from imgfs.layer import sqlite
from imgfs.layer.entry import Codec, Entry, Kind, Span
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter, import_index
from imgfs.layer.sqlite import has_schema
from imgfs.tree.builder import TreeBuilder
from imgfs.tree.database import MILESTONES, SCHEMA
from imgfs.tree.import_tree import import_tree
from imgfs.tree.reader import Tree
from tests.support.hostile_sqlite import change, loop, share_children
from tests.support.layers import write_tree
from tests.support.tarmake import archive, device, directory, file, hardlink, symlink

ORIGIN = "registry.test/app"
TREE_TABLES = ("summary", "layer", "node", "dirent")
INDEX_TABLES = ("summary", "entry", "span", "checkpoint", "elsewhere")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    layer = archive(
        directory("a"),
        file("a/b", b"x", xattrs={b"user.a": b"1"}),
        hardlink("a/c", "a/b"),
        directory("a/d"),
        directory("a/d/e"),
        symlink("l", "a/b"),
        device("null", "c", 1, 3),
        *(file(f"many/{number}", b"m") for number in range(300)),
    )
    write_tree(tmp_path / "tree", [layer], tmp_path)
    return tmp_path / "tree"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    writer = IndexWriter(tmp_path / "index")
    for number in range(300):
        writer.add_entry(Entry(b"%d" % number, Kind.FILE, 0o644, 0, 0, 0, 0, xattrs={b"user.a": b"1"}))
        writer.add_span(Span(number, number, number + 1, number, number + 1, Codec.IDENTITY, bytes(32)))
    digest = "sha256:" + "0" * 64
    writer.finish(digest=digest, diff_id=digest, format="tar", size=300, flat_size=300)
    return tmp_path / "index"


def refusal(path: Path, *, is_tree: bool) -> str:
    with pytest.raises(InvalidImage) as caught:
        (import_tree if is_tree else import_index)(path, ORIGIN)
    assert list(path.parent.glob("*.anew*")) == []
    return str(caught.value)


# -- b-trees that are none -----------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TREE_TABLES)
@pytest.mark.parametrize("depth", [1, 9, 30])
def test_a_tree_whose_pages_are_shared_is_refused(tree: Path, table: str, depth: int) -> None:
    share_children(tree, table, depth=depth)
    refusal(tree, is_tree=True)


@pytest.mark.parametrize("table", INDEX_TABLES)
@pytest.mark.parametrize("depth", [1, 9, 30])
def test_an_index_whose_pages_are_shared_is_refused(index: Path, table: str, depth: int) -> None:
    try:
        share_children(index, table, depth=depth)
    except KeyError:
        pytest.skip("a table without rows")
    if table in ("checkpoint", "elsewhere"):  # of which no row is ever met
        with pytest.raises(InvalidImage):
            import_index(index, ORIGIN)
        return
    refusal(index, is_tree=False)


@pytest.mark.parametrize("table", TREE_TABLES)
def test_a_tree_whose_pages_go_in_circles_is_refused(tree: Path, table: str) -> None:
    loop(tree, table)
    refusal(tree, is_tree=True)


def test_rows_that_are_there_again_and_again_are_refused(index: Path) -> None:
    share_children(index, "summary", depth=9)
    assert "than its size allows" in refusal(index, is_tree=False)


def test_the_work_is_bounded_by_the_size(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "STEPS_EACH", 0)
    monkeypatch.setattr(sqlite, "STEPS_MORE", 1000)
    monkeypatch.setattr(sqlite, "_LOOK", 100)
    assert "more work than its size allows" in refusal(tree, is_tree=True)


def test_a_full_disk_is_no_fault_of_the_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_PAGES_EACH", 0)
    monkeypatch.setattr(sqlite, "_PAGES_MORE", 5)
    assert "more rows than its size allows" in refusal(tree, is_tree=True)
    monkeypatch.setattr(sqlite, "_ROOM", 1 << 62)
    with pytest.raises(StoreError, match="full"):
        import_tree(tree, ORIGIN)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_damaged_what_is_taken_in_can_be_read(tree: Path, index: Path, seed: int) -> None:
    chance = random.Random(seed)
    for path, is_tree in ((tree, True), (index, False)):
        body = bytearray(path.read_bytes())
        for _ in range(chance.choice((1, 3, 30))):
            at = chance.choice((chance.randrange(len(body)), chance.randrange(len(body) // 4096) * 4096))
            body[at : at + 2] = struct.pack(">H", chance.choice((0, 1, 0xFFFF, chance.randrange(1 << 16))))
        path.write_bytes(body)
        try:
            (import_tree if is_tree else import_index)(path, ORIGIN)
        except InvalidImage:
            continue
        if is_tree:
            assert_is_a_tree(path)
        else:
            with LayerIndex(path) as found:
                assert len(list(found.entries())) == found.summary.entries


def assert_is_a_tree(path: Path) -> None:
    """Every node can be reached from the root, by as many names as it has."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with Tree(path) as found:
        reached: dict[int, int] = {}
        for ino in _walk(found, 1):
            reached[ino] = reached.get(ino, 0) + 1
        assert len(reached) == found.node_count - 1
        assert [it.node.ino for it in found.nodes()] == sorted([1, *reached])


def _walk(tree: Tree, ino: int) -> Iterator[int]:
    for _, _, node in tree.children(ino):
        yield node.ino
        if node.mode >> 12 == 4:
            yield from _walk(tree, node.ino)


# -- what else is in it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        "CREATE VIEW v AS SELECT * FROM node",
        "CREATE TRIGGER t AFTER INSERT ON node BEGIN DELETE FROM node; END",
        "CREATE TABLE more (x)",
        "CREATE INDEX more ON node (mode)",
        "DROP TABLE layer; CREATE VIEW layer AS WITH RECURSIVE n (i) AS "
        "(VALUES (0) UNION ALL SELECT i FROM n) SELECT i AS number, 'tar' AS space FROM n",
        "DROP TABLE layer; CREATE TABLE layer (number INTEGER PRIMARY KEY, space TEXT COLLATE nocase)",
        "DROP TABLE layer; CREATE TABLE layer (number INTEGER PRIMARY KEY, space TEXT AS ('tar'))",
        "DROP TABLE layer; CREATE VIRTUAL TABLE layer USING fts5 (number, space)",
        "DROP INDEX milestone",
        "ANALYZE",
        "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = 'CREATE TABLE layer (x)' "
        "WHERE name = 'layer'",
        "PRAGMA writable_schema = ON; UPDATE sqlite_master SET rootpage = 1000 WHERE name = 'layer'",
        "PRAGMA writable_schema = ON; UPDATE sqlite_master SET rootpage = 1 WHERE name = 'layer'",
    ],
)
def test_a_file_of_another_make_is_refused(tree: Path, script: str) -> None:
    change(tree, script)
    refusal(tree, is_tree=True)


@pytest.mark.timeout(20)
def test_a_million_tables_are_not_looked_at(tree: Path) -> None:
    """SQLite would read all of them before the first query, in hours."""
    with closing(sqlite3.connect(tree, isolation_level=None)) as db:
        db.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF; PRAGMA writable_schema = ON;")
        db.execute(
            "WITH n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 300000) "
            "INSERT INTO sqlite_master "
            "SELECT 'table', 'x' || i, 'x' || i, 2, 'CREATE TABLE x' || i || '(a)' FROM n"
        )
    assert not has_schema(tree, f"{SCHEMA}{MILESTONES};")
    assert "not a tree of this imgfs" in refusal(tree, is_tree=True)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (18, b"\2\2"),  # a write-ahead log
        (20, b"\xff"),  # bytes at the end of each page
        (28, b"\xff\xff\xff\xff"),  # pages of the file
        (32, b"\0\0\0\2\xff\xff\xff\xff"),  # a list of free pages
        (44, b"\0\0\0\x09"),  # the format of the table of tables
        (52, b"\0\0\0\2\0\0\0\1\0\0\0\0\0\0\0\1"),  # auto-vacuum
        (68, b"\xde\xad\xbe\xef"),  # an application
    ],
)
def test_what_the_header_says_does_no_harm(tree: Path, at: int, value: bytes) -> None:
    body = bytearray(tree.read_bytes())
    body[at : at + len(value)] = value
    tree.write_bytes(body)
    try:
        import_tree(tree, ORIGIN)
    except InvalidImage:
        return
    assert_is_a_tree(tree)
    assert tree.read_bytes()[18:20] == b"\1\1"


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    change(tmp_path / "utf16", "PRAGMA encoding = 'UTF-16'; CREATE TABLE x (y)")
    refusal(tmp_path / "utf16", is_tree=True)


# -- rows that make no tree ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        "UPDATE dirent SET parent = (SELECT ino FROM dirent WHERE name = x'65') WHERE name = x'61'",  # e/a
        "UPDATE dirent SET parent = (SELECT ino FROM dirent WHERE name = x'64') WHERE name = x'65' "
        "AND 0; UPDATE dirent SET ino = 1 WHERE name = x'65'",
        "UPDATE dirent SET ino = parent WHERE name = x'65'",
        "INSERT INTO dirent SELECT 1, x'7a7a', ino, 99 FROM dirent WHERE name = x'64'",
        "DELETE FROM dirent WHERE name = x'6c'",
        "DELETE FROM dirent WHERE name = x'64'",
        "UPDATE dirent SET parent = (SELECT ino FROM dirent WHERE name = x'62') WHERE name = x'65'",
        "UPDATE dirent SET parent = 99999 WHERE name = x'65'",
        "UPDATE dirent SET ino = 99999 WHERE name = x'65'",
        "UPDATE dirent SET position = 1 WHERE name = x'6c'",
        "UPDATE dirent SET position = position + 1",
        "UPDATE node SET ino = 1 << 30 WHERE target IS NOT NULL; "
        "UPDATE dirent SET ino = 1 << 30 WHERE name = x'6c'",
        "DELETE FROM node WHERE ino = 1",
        "UPDATE node SET mode = 33188 WHERE ino = 1",
        "DELETE FROM node; DELETE FROM dirent",
        "INSERT INTO summary SELECT * FROM summary",
        "DELETE FROM summary",
        *(
            f"UPDATE dirent SET name = {name} WHERE name = x'6c'"
            for name in ("x'2e'", "x'2e2e'", "x''", "'l'")
        ),
        "UPDATE dirent SET name = x'612f62' WHERE name = x'6c'",
        "UPDATE dirent SET name = x'6100' WHERE name = x'6c'",
        "UPDATE dirent SET name = zeroblob(256) WHERE name = x'6c'",
        "UPDATE node SET target = zeroblob(3), size = 3 WHERE target IS NOT NULL",
        "UPDATE node SET target = CAST(replace(hex(zeroblob(2048)), '0', 'a') AS BLOB), size = 4096 "
        "WHERE target IS NOT NULL",
        "UPDATE node SET size = 99 WHERE target IS NOT NULL",
        "UPDATE node SET device = 0 WHERE mode >> 12 = 2",
        "UPDATE node SET device = 1 << 60 WHERE mode >> 12 = 2",
        "UPDATE node SET mtime_ns = x'ffffffffffffffffffffffffffffff7f' WHERE ino = 2",
        "UPDATE node SET extents = zeroblob(25), flat = NULL WHERE size = 1",
        "UPDATE node SET extents = zeroblob(48), flat = NULL WHERE size = 1",
        "UPDATE node SET flat = 0 WHERE mode >> 12 = 4",
        "UPDATE node SET xattrs = x'0300000001000000636f6d31' WHERE ino = 2",  # an attribute `com`
        "UPDATE node SET xattrs = x'ffffffffffffffff' WHERE ino = 2",
    ],
)
def test_what_is_no_tree_is_refused(tree: Path, script: str) -> None:
    change(tree, script)
    assert "rows that make no sense" in refusal(tree, is_tree=True)


def test_what_can_be_counted_is_counted(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "true").write_bytes(tree.read_bytes())
    change(tree, "UPDATE node SET nlink = 7; UPDATE summary SET nodes = 5, size = 5")
    import_tree(tree, ORIGIN)
    with Tree(tree) as found, Tree(tmp_path / "true") as true:
        assert list(found.nodes()) == list(true.nodes())
        assert (found.node_count, found.total_size) == (true.node_count, true.total_size)
    assert_is_a_tree(tree)


def test_a_path_longer_than_linux_allows_is_refused(tmp_path: Path) -> None:
    deep = "/".join(["d" * 255] * 15)
    write_tree(tmp_path / "tree", [archive(directory(deep), symlink("s", deep), file("s/a", b""))], tmp_path)
    import_tree(tmp_path / "tree", ORIGIN)
    below = f"{'s' * 255}/{'t' * 255}"
    layer = archive(symlink("s", deep), directory(deep), directory(f"s/{below}"))
    write_tree(tmp_path / "longer", [layer], tmp_path)
    assert "longer than 4095 bytes" in refusal(tmp_path / "longer", is_tree=True)


@pytest.mark.parametrize(
    "script",
    [
        "UPDATE entry SET extents = zeroblob(25) WHERE seq = 5",
        "UPDATE span SET parts = zeroblob(49) WHERE number = 5",
        "UPDATE summary SET entries = 1 << 40",
        "UPDATE entry SET mtime_ns = x'00'",
        "INSERT INTO summary SELECT * FROM summary",
    ],
)
def test_what_is_no_index_is_refused(index: Path, script: str) -> None:
    change(index, script)
    assert "rows that make no sense" in refusal(index, is_tree=False)


@pytest.mark.parametrize("number", ["77", "'text'", "NULL", "x'00'"])
def test_a_file_of_another_format_is_refused(tree: Path, index: Path, number: str) -> None:
    for path, is_tree in ((tree, True), (index, False)):
        change(path, f"UPDATE summary SET format_number = {number}")
        assert "format" in refusal(path, is_tree=is_tree)


def test_names_that_are_no_text_are_no_obstacle(tree: Path, tmp_path: Path) -> None:
    odd = tmp_path / "caf\udce9 ?#%20"
    odd.mkdir()
    (odd / "tree").write_bytes(tree.read_bytes())
    import_tree(odd / "tree", ORIGIN)
    with Tree(odd / "tree") as found:
        assert found.origin == ORIGIN
    write_tree(odd / "merged", [archive(file("a"))], odd)


def open_files(directory: Path) -> list[str]:
    links = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return [link for link in links if link.startswith(f"{directory}/")]


def test_a_database_that_cannot_be_made_or_opened_is_not_left_open(tmp_path: Path) -> None:
    """An error keeps what raised it alive, and a disk that is full has no room until the file is closed."""
    (tmp_path / "no file").write_bytes(b"x" * 5000)
    (tmp_path / "tree.work").mkdir()
    with pytest.raises(sqlite3.Error) as of_schema:
        sqlite.create_database(tmp_path / "made", "nonsense;")
    with pytest.raises(StoreError) as of_file:
        LayerIndex(tmp_path / "no file")
    with pytest.raises(OSError, match="directory") as of_work:
        TreeBuilder(tmp_path / "tree")
    assert [of_schema, of_file, of_work]
    assert open_files(tmp_path) == []
