"""Reading a merged tree: lookup, children, attributes, resolving paths; and what is no tree."""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import StoreError
from imgfs.layer.entry import Entry, Extent, Kind
from imgfs.layer.indexwriter import IndexWriter
from imgfs.tree.database import ROOT, STRIDE
from imgfs.tree.merge import merge
from imgfs.tree.names import NodeNames
from imgfs.tree.reader import Tree
from tests.support.layers import merged, write_tree
from tests.support.tarmake import archive, directory, file, hardlink, symlink


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    layer = archive(
        file("usr/lib/x", b"body", xattrs={b"user.k": b"v"}),
        symlink("lib", "usr/lib"),
        symlink("usr/up", "../lib/x"),
        symlink("abs", "/usr/lib/../lib/x"),
        symlink("above", "../../usr"),
        symlink("loop", "loop"),
        symlink("gone", "no/where"),
        hardlink("hard", "usr/lib/x"),
    )
    with merged(tmp_path, layer) as tree:
        yield tree


def refused(tree: Tree, path: bytes) -> int | None:
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        tree.resolve(path)
    return caught.value.errno


def test_the_root_is_ino_1(tree: Tree) -> None:
    root = tree.node(1)
    assert root == tree.resolve(b"") == tree.resolve(b"/")
    assert root is not None
    assert root.nlink == 3


def test_the_way_up_from_a_directory_that_was_looked_up_is_known(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file that a container makes must not cost a reading of the whole tree."""
    usr = tree.lookup(ROOT, b"usr")
    assert usr
    lib = tree.lookup(usr.ino, b"lib")
    assert lib
    file = tree.lookup(lib.ino, b"x")
    assert file
    with monkeypatch.context() as patched:
        patched.setattr(NodeNames, "_read_parents", lambda _: pytest.fail("all names are read"))
        assert (tree.names(ROOT), tree.names(lib.ino), tree.path(lib.ino)) == (
            [],
            [(usr.ino, b"lib")],
            b"usr/lib",
        )
    assert tree.names(file.ino) == [(ROOT, b"hard"), (lib.ino, b"x")]
    assert tree.names(lib.ino) == [(usr.ino, b"lib")]


def test_lookup_finds_a_child_or_nothing(tree: Tree) -> None:
    lib = tree.lookup(ROOT, b"lib")
    assert lib is not None
    assert lib == tree.node(lib.ino)
    assert tree.lookup(ROOT, b"no") is None
    assert tree.lookup(lib.ino, b"x") is None
    assert tree.lookup(999, b"x") is None
    assert tree.node(999) is None


def test_of_nodes_that_are_all_read_once_no_pages_are_kept(tree: Tree) -> None:
    said: list[str] = []
    tree._db._db.set_trace_callback(said.append)
    assert not tree.has_xattr(b"user.none")
    kept = [int(line.partition("cache_size = -")[2]) for line in said if "cache_size" in line]
    assert len(said) == 3
    assert kept[0] < 100 < 10_000 < kept[1]  # KiB: while they are read, and afterwards


def test_only_what_has_xattrs_says_so(tree: Tree) -> None:
    node = tree.resolve(b"usr/lib/x")
    assert node.has_xattrs is True
    assert tree.xattrs(node.ino) == {b"user.k": b"v"}
    assert tree.resolve(b"usr").has_xattrs is False
    assert tree.xattrs(ROOT) == {}


def test_extents_name_the_layer(tree: Tree, tmp_path: Path) -> None:
    layer, extents = tree.extents(tree.resolve(b"hard").ino)
    assert (layer, extents[0].offset, extents[0].length) == (0, 0, 4)
    assert tree.extents(ROOT) == (0, ())


def test_stored_facts_of_what_is_not_there_are_enoent(tree: Tree) -> None:
    for question in (tree.target, tree.xattrs, tree.extents):
        with pytest.raises(OSError, match="No such file") as caught:
            question(999)
        assert caught.value.errno == errno.ENOENT


def test_the_target_of_what_is_no_symlink_is_einval(tree: Tree) -> None:
    with pytest.raises(OSError, match="Invalid argument") as caught:
        tree.target(ROOT)
    assert caught.value.errno == errno.EINVAL


def test_totals_count_nodes_and_the_bytes_of_files_once(tree: Tree) -> None:
    assert (tree.layer_count, tree.node_count, tree.total_size) == (1, 10, 4)


@pytest.mark.parametrize(
    "path",
    [
        b"usr/lib/x",
        b"//usr/./lib//x",
        b"lib/x",
        b"usr/up",
        b"abs",
        b"above/lib/x",
        b"usr/../../lib/x",
        b"lib/../up",  # the parent of usr/lib is usr, however one got there
        b"hard",
    ],
)
def test_paths_resolve_inside_the_root(tree: Tree, path: bytes) -> None:
    assert tree.resolve(path).size == 4


def test_a_symlink_at_the_very_end_is_followed_only_if_asked(tree: Tree) -> None:
    assert tree.resolve(b"lib", follow=False).size == len(b"usr/lib")
    assert tree.resolve(b"lib") == tree.resolve(b"lib/", follow=False) == tree.resolve(b"usr/lib")


def test_paths_that_lead_nowhere_say_why(tree: Tree) -> None:
    assert refused(tree, b"no") == errno.ENOENT
    assert refused(tree, b"gone") == errno.ENOENT
    assert refused(tree, b"hard/x") == errno.ENOTDIR
    assert refused(tree, b"hard/") == errno.ENOTDIR
    assert refused(tree, b"hard/..") == errno.ENOTDIR
    assert refused(tree, b"loop") == errno.ELOOP
    assert refused(tree, b"loop/x") == errno.ELOOP


def test_children_come_in_the_order_of_their_names_with_their_nodes(tree: Tree) -> None:
    children = list(tree.children(ROOT))
    names = [name for _, name, _ in children]
    assert names == sorted(names) == [b"above", b"abs", b"gone", b"hard", b"lib", b"loop", b"usr"]
    assert [position for position, _, _ in children] == list(range(1, 8))
    assert all(node == tree.lookup(ROOT, name) for _, name, node in children)


def test_files_follow_each_other_as_a_depth_first_reader_meets_them(tmp_path: Path) -> None:
    lower = archive(file("b/x", b"1" * 700), file("a", b"2"), file("d/e/f", b"3"), file("z", b""))
    upper = archive(file("b/c/y", b"4"), symlink("b/s", "x"), file("d/a", b"5"))
    with merged(tmp_path, lower, upper) as tree:
        order = [(layer, extents[0].length) for layer, extents in tree.files_after(ROOT)]
        assert order == []  # the root has no name: nothing is behind it
        paths = [b"a", b"b/c/y", b"b/x", b"d/a", b"d/e/f"]
        sights = [tree.extents(tree.resolve(path).ino) for path in paths]
        for at, path in enumerate(paths):
            assert list(tree.files_after(tree.resolve(path).ino)) == sights[at + 1 :]


def test_what_is_no_directory_has_no_children(tree: Tree) -> None:
    assert list(tree.children(tree.resolve(b"hard").ino)) == []
    assert list(tree.children(999)) == []


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """Two directories of many names each, side by side in the file."""
    entries = [
        Entry(b"%s/%d" % (d, n), Kind.FILE, 0o644, 0, 0, 0, n) for d in (b"a", b"b") for n in range(300)
    ]
    with merged(tmp_path_factory.mktemp("wide"), entries) as tree:
        yield tree


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400) | st.sampled_from([STRIDE - 1, STRIDE, STRIDE + 1]), st.integers(1, 100))
def test_reading_a_directory_goes_on_behind_any_position(wide: Tree, after: int, count: int) -> None:
    parent = wide.resolve(b"a").ino
    everything = list(wide.children(parent))
    assert len(everything) == 300
    assert list(islice(wide.children(parent, after), count)) == everything[after : after + count]


def test_going_on_reads_no_more_than_a_stride_of_what_was_read(wide: Tree, tmp_path: Path) -> None:
    path = tmp_path / "huge"
    entries = [Entry(b"%06d" % n, Kind.FILE, 0o644, 0, 0, 0, n) for n in range(20_000)]
    write_tree(path, [entries], tmp_path)
    steps = []
    with Tree(path) as tree:
        for after in (0, 19_000):
            tree._db._db.set_progress_handler(lambda: steps.append(after), 1)  # noqa: B023  # called at once
            assert next(tree.children(ROOT, after))[0] == after + 1
    assert steps.count(19_000) < steps.count(0) + 20 * STRIDE


def test_a_whole_directory_can_be_read_with_a_new_call_for_each_name(wide: Tree) -> None:
    parent, position, names = wide.resolve(b"b").ino, 0, set()
    while child := next(wide.children(parent, position), None):
        position, name, _ = child
        names.add(name)
    assert (position, len(names)) == (300, 300)


def test_several_threads_may_ask_at_once(wide: Tree) -> None:
    parent = wide.resolve(b"a").ino
    expected = {name: node for _, name, node in wide.children(parent)}
    wrong: list[bytes] = []

    def ask() -> None:
        for name, node in expected.items():
            if wide.lookup(parent, name) != node:
                wrong.append(name)
        if {name: node for _, name, node in wide.children(parent)} != expected:
            wrong.append(b"children")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_file_that_is_no_tree_is_a_store_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tree"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="not a tree"):
        Tree(path)


def test_a_missing_tree_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unable to open"):
        Tree(tmp_path / "none")


def test_a_layer_index_is_no_tree(tmp_path: Path) -> None:
    writer = IndexWriter(tmp_path / "index")
    writer.finish(digest="", diff_id="", format="tar", size=0, flat_size=0)
    with pytest.raises(StoreError, match="tree"):
        Tree(tmp_path / "index")


def test_a_tree_of_another_format_is_a_store_error(tmp_path: Path) -> None:
    path = tmp_path / "tree"
    write_tree(path, [], tmp_path)
    db = sqlite3.connect(path)
    db.execute("UPDATE summary SET format_number = 99")
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="another format"):
        Tree(path)


def test_a_merge_that_was_cut_short_is_no_tree(tmp_path: Path) -> None:
    path = tmp_path / "tree"
    with pytest.raises(Exception, match="names no file"):
        write_tree(path, [archive(file("a"), file(".wh."))], tmp_path)
    with pytest.raises(StoreError):
        Tree(path)


def test_a_damaged_tree_is_a_store_error(tmp_path: Path) -> None:
    path = tmp_path / "tree"
    entries = [Entry(b"%06d" % n, Kind.FILE, 0o644, 0, 0, 0, n) for n in range(5000)]
    write_tree(path, [entries], tmp_path)
    body = bytearray(path.read_bytes())
    body[8192:] = bytes(len(body) - 8192)
    path.write_bytes(body)
    with Tree(path) as tree, pytest.raises(StoreError, match="not a tree"):
        tree.resolve(b"004999")
    with Tree(path) as tree, pytest.raises(StoreError, match="not a tree"):
        list(tree.children(ROOT))


def test_merging_leaves_the_tree_alone_in_its_directory(tmp_path: Path) -> None:
    layers, out = tmp_path / "layers", tmp_path / "out"
    layers.mkdir()
    out.mkdir()
    write_tree(out / "tree", [archive(directory("d"))], layers)
    assert [path.name for path in out.iterdir()] == ["tree"]


def test_an_image_without_layers_is_an_empty_root(tmp_path: Path) -> None:
    merge([], tmp_path / "tree")
    with Tree(tmp_path / "tree") as tree:
        assert (tree.layer_count, tree.node_count, list(tree.children(ROOT))) == (0, 1, [])


def test_totals_too_large_for_64_bits_are_the_most_that_fits(tmp_path: Path) -> None:
    size = (1 << 63) - 1
    entries = [Entry(name, Kind.FILE, 0o644, 0, 0, size, 0) for name in (b"a", b"b")]
    with merged(tmp_path, entries) as tree:
        assert tree.total_size == size
        assert tree.resolve(b"a").size == size


def test_a_place_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be merged"):
        merge([], tmp_path / "none" / "tree")


def test_extents_survive_as_they_were(tmp_path: Path) -> None:
    many = tuple(Extent(at * 1024, 512, at * 512 + (1 << 40)) for at in range(1000))
    entries = [
        Entry(b"many", Kind.FILE, 0o644, 0, 0, 1 << 30, 0, extents=many),
        Entry(b"tail", Kind.FILE, 0o644, 0, 0, 100, 0, extents=(Extent(0, 50, 7),)),
    ]
    with merged(tmp_path, [], entries) as tree:
        assert tree.extents(tree.resolve(b"many").ino) == (1, many)
        assert tree.extents(tree.resolve(b"tail").ino) == (1, (Extent(0, 50, 7),))
