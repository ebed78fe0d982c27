"""The OCI merge rules, one test each."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from imgfs.errors import InvalidImage
from imgfs.layer.entry import Entry, Extent, Kind
from imgfs.tree.database import ROOT, Node
from imgfs.tree.paths import clean
from imgfs.tree.reader import Tree
from tests.support.layers import merged
from tests.support.tarmake import (
    archive,
    device,
    directory,
    fifo,
    file,
    hardlink,
    header,
    opaque,
    pax,
    symlink,
    whiteout,
)


def names(tree: Tree) -> set[str]:
    """All paths; a directory's ends in a slash."""
    return {path.decode() + ("/" if stat.S_ISDIR(node.mode) else "") for path, node in _below(tree, b"", 1)}


def _below(tree: Tree, prefix: bytes, ino: int) -> Iterator[tuple[bytes, Node]]:
    for _, name, node in tree.children(ino):
        yield prefix + name, node
        if stat.S_ISDIR(node.mode):
            yield from _below(tree, prefix + name + b"/", node.ino)


def at(tree: Tree, path: bytes) -> Node:
    return tree.resolve(path, follow=False)


def layer_of(tree: Tree, path: bytes) -> int:
    return tree.extents(at(tree, path).ino)[0]


def xattrs(name: bytes, value: bytes, count: int = 1) -> Entry:
    """A file with so many attributes; `name` has the number of each in it, if there are several."""
    names = [name % number for number in range(count)] if count > 1 else [name]
    return Entry(b"f", Kind.FILE, 0o644, 0, 0, 0, 0, xattrs=dict.fromkeys(names, value))


def refusal(tmp_path: Path, *layers: bytes | list[Entry]) -> str:
    with pytest.raises(InvalidImage) as caught, merged(tmp_path, *layers):
        pass
    return str(caught.value)


# --- kinds and attributes


def test_every_kind_keeps_its_attributes(tmp_path: Path) -> None:
    layer = archive(
        file("f", b"12345", mode=0o4755, uid=7, gid=8, mtime_ns=5_000_000_001, xattrs={b"user.a": b"\0b"}),
        symlink("s", "some/where", mtime_ns=-1_000_000_000),
        device("c", "c", 1, 3),
        device("b", "b", 259, 70000),
        fifo("p", mode=0o640),
        directory("d", mode=0o1777),
    )
    with merged(tmp_path, layer) as tree:
        f = at(tree, b"f")
        assert f[1:] == (stat.S_IFREG | 0o4755, 7, 8, 5, 5_000_000_001, 1, 0, 1, *[5_000_000_001] * 2, True)
        assert tree.xattrs(f.ino) == {b"user.a": b"\0b"}
        s = at(tree, b"s")
        assert (stat.S_IFMT(s.mode), s.size, s.mtime_ns) == (stat.S_IFLNK, 10, -1_000_000_000)
        assert tree.target(s.ino) == b"some/where"
        assert (at(tree, b"c").mode, at(tree, b"c").device) == (stat.S_IFCHR | 0o600, os.makedev(1, 3))
        assert (at(tree, b"b").mode, at(tree, b"b").device) == (stat.S_IFBLK | 0o600, os.makedev(259, 70000))
        assert at(tree, b"p").mode == stat.S_IFIFO | 0o640
        assert at(tree, b"d").mode == stat.S_IFDIR | 0o1777


def test_a_directory_counts_its_subdirectories_as_links(tmp_path: Path) -> None:
    layer = archive(directory("d"), directory("d/e"), directory("d/f"), file("d/g"), directory("d/e/h"))
    with merged(tmp_path, layer) as tree:
        assert [at(tree, path).nlink for path in (b"", b"d", b"d/e", b"d/f")] == [3, 4, 3, 2]


def test_missing_parents_are_roots_and_of_no_date(tmp_path: Path) -> None:
    with merged(tmp_path, archive(file("a/b/c"))) as tree:
        assert names(tree) == {"a/", "a/b/", "a/b/c"}
        for path in (b"", b"a", b"a/b"):
            node = at(tree, path)
            assert (node.mode, node.uid, node.gid, node.mtime_ns) == (stat.S_IFDIR | 0o755, 0, 0, 0)


def test_a_missing_parent_described_later_is_as_described(tmp_path: Path) -> None:
    with merged(tmp_path, archive(file("a/b"), directory("a", mode=0o700, uid=3, mtime_ns=9))) as tree:
        assert at(tree, b"a")[1:6] == (stat.S_IFDIR | 0o700, 3, 0, 0, 9)
        assert names(tree) == {"a/", "a/b"}


def test_of_an_entry_for_the_root_only_the_time_counts(tmp_path: Path) -> None:
    """As for containerd and podman, which pass over it: what a builder packs may be closed to all but one."""
    private = directory("./", mode=0o700, uid=4, gid=5, mtime_ns=6, xattrs={b"user.x": b"1"})
    for spelt in (private, directory("/", mode=0o1777, gid=5, mtime_ns=6)):
        with merged(tmp_path, archive(directory("./", mtime_ns=1)), archive(spelt)) as tree:
            assert at(tree, b"")[1:6] == (stat.S_IFDIR | 0o755, 0, 0, 0, 6)
            assert tree.xattrs(ROOT) == {}


@pytest.mark.parametrize("entry", [file("."), symlink("..", "/etc"), hardlink("/", "x")])
def test_a_root_that_is_no_directory_is_refused(tmp_path: Path, entry: bytes) -> None:
    assert "the root" in refusal(tmp_path, archive(entry))


def test_sparse_files_know_how_much_of_them_is_there(tmp_path: Path) -> None:
    extents = (Extent(512, 1024, 512), Extent(8192, 100, 2048))
    with merged(tmp_path, [Entry(b"s", Kind.FILE, 0o644, 0, 0, 10000, 0, extents=extents)]) as tree:
        node = at(tree, b"s")
        assert (node.size, node.blocks) == (10000, 3)
        assert tree.extents(node.ino) == (0, extents)


# --- cleaning


@pytest.mark.parametrize(
    "path",
    ["a/b", "./a/b", "/a/b", "a//b", "a/./b", "a/b/", "../a/b", "a/x/../b", "/../../a/b/.", "x/../a/b"],
)
def test_paths_are_cleaned(tmp_path: Path, path: str) -> None:
    with merged(tmp_path, archive(directory(path, mode=0o700))) as tree:
        assert names(tree) == {"a/", "a/b/"}
        assert at(tree, b"a/b").mode == stat.S_IFDIR | 0o700


def test_dotdot_goes_no_higher_than_the_root() -> None:
    assert clean(b"../../x/../../y") == b"y"
    assert clean(b"/..") == b""


def test_hidden_files_and_names_with_dots_are_ordinary(tmp_path: Path) -> None:
    with merged(
        tmp_path, archive(file(".a"), file("d/..b"), file("d/.wh"), file("d/c.wh.d"), file("..."))
    ) as tree:
        assert names(tree) == {".a", "d/", "d/..b", "d/.wh", "d/c.wh.d", "..."}


def test_names_have_at_most_255_bytes_and_paths_4095(tmp_path: Path) -> None:
    long = "/".join(["x" * 255] * 16)
    assert len(long) == 4095
    with merged(tmp_path, archive(file(long))) as tree:
        assert at(tree, long.encode()).nlink == 1
    for path in ("y" * 256, f"d/{'y' * 256}/z", f"d/{'y' * 256}"):
        assert "longer than 255 bytes" in refusal(tmp_path, archive(file(path)))


def test_names_with_a_nul_are_refused(tmp_path: Path) -> None:
    assert "NUL" in refusal(tmp_path, [Entry(b"a\0b", Kind.FILE, 0o644, 0, 0, 0, 0)])


# --- upper over lower


def test_a_directory_over_a_directory_merges_and_is_described_anew(tmp_path: Path) -> None:
    lower = archive(directory("d", mode=0o700, uid=1, mtime_ns=5, xattrs={b"user.old": b"1"}), file("d/x"))
    upper = archive(directory("d", mode=0o755, gid=2, mtime_ns=6, xattrs={b"user.new": b"2"}), file("d/y"))
    with merged(tmp_path, lower, upper) as tree:
        assert names(tree) == {"d/", "d/x", "d/y"}
        assert at(tree, b"d")[1:6] == (stat.S_IFDIR | 0o755, 0, 2, 0, 6)
        assert tree.xattrs(at(tree, b"d").ino) == {b"user.new": b"2"}


def test_an_upper_entry_below_a_lower_directory_leaves_it_as_it_is(tmp_path: Path) -> None:
    with merged(tmp_path, archive(directory("d", mode=0o700, uid=1)), archive(file("d/x"))) as tree:
        assert at(tree, b"d")[1:3] == (stat.S_IFDIR | 0o700, 1)


@pytest.mark.parametrize("upper", [file("d"), symlink("d", "x"), device("d", "c", 1, 3), fifo("d")])
def test_anything_else_over_a_directory_removes_all_of_it(tmp_path: Path, upper: bytes) -> None:
    lower = archive(file("d/x"), file("d/e/y"), hardlink("kept", "d/e/y"))
    with merged(tmp_path, lower, archive(upper)) as tree:
        assert names(tree) == {"d", "kept"}
        assert at(tree, b"kept").nlink == 1
        assert tree.node_count == 3


@pytest.mark.parametrize("lower", [file("d"), symlink("d", "e"), fifo("d")])
def test_a_directory_over_anything_else_replaces_it(tmp_path: Path, lower: bytes) -> None:
    with merged(tmp_path, archive(lower, directory("e")), archive(directory("d"), file("d/x"))) as tree:
        assert names(tree) == {"d/", "d/x", "e/"}


def test_a_file_over_a_file_is_the_upper_one(tmp_path: Path) -> None:
    lower = archive(file("f", b"lower", xattrs={b"user.a": b"1"}))
    with merged(tmp_path, lower, archive(file("f", b"up"))) as tree:
        assert (at(tree, b"f").size, layer_of(tree, b"f"), at(tree, b"f").has_xattrs) == (2, 1, False)
        assert tree.node_count == 2


def test_of_duplicates_in_one_layer_the_last_wins(tmp_path: Path) -> None:
    layer = archive(file("f", b"1"), symlink("f", "x"), file("f", b"333"), file("d/x"), file("d"), file("e"))
    with merged(tmp_path, layer + b"") as tree:
        assert names(tree) == {"f", "d", "e"}
        assert at(tree, b"f").size == 3


# --- whiteouts


def test_a_whiteout_hides_the_lower_name_and_itself(tmp_path: Path) -> None:
    lower = archive(file("a"), file("d/b"), file("d/e/c"), file("d/keep"))
    with merged(tmp_path, lower, archive(whiteout("a"), whiteout("d/b"), whiteout("d/e"))) as tree:
        assert names(tree) == {"d/", "d/keep"}
        assert tree.node_count == 3


@pytest.mark.parametrize("in_order", [True, False])
def test_a_whiteout_never_hides_what_its_own_layer_has(tmp_path: Path, in_order: bool) -> None:
    upper = [whiteout("bar"), file("bar", b"new"), whiteout("d"), file("d/y")]
    with merged(
        tmp_path, archive(file("bar"), file("d/x")), archive(*(upper if in_order else upper[::-1]))
    ) as tree:
        assert names(tree) == {"bar", "d/", "d/y"}
        assert layer_of(tree, b"bar") == 1


@pytest.mark.parametrize("in_order", [True, False])
def test_an_opaque_directory_hides_all_that_lower_layers_have_in_it(tmp_path: Path, in_order: bool) -> None:
    lower = archive(directory("d", mode=0o700), file("d/a"), file("d/e/b"), file("d/e/c"), file("out"))
    upper = [opaque("d"), file("d/n"), file("d/e/c", b"new")]
    with merged(tmp_path, lower, archive(*(upper if in_order else upper[::-1]))) as tree:
        assert names(tree) == {"d/", "d/n", "d/e/", "d/e/c", "out"}
        assert at(tree, b"d").mode == stat.S_IFDIR | 0o700


def test_an_opaque_root_hides_everything_lower(tmp_path: Path) -> None:
    with merged(tmp_path, archive(file("a"), file("d/b")), archive(opaque(""), file("n"))) as tree:
        assert names(tree) == {"n"}
        assert tree.node_count == 2


def test_whiteouts_of_what_is_not_there_hide_and_create_nothing(tmp_path: Path) -> None:
    layer = archive(whiteout("no"), whiteout("no/such"), opaque("none"), whiteout("f/x"), opaque("f"))
    with merged(tmp_path, archive(file("f")), layer) as tree:
        assert names(tree) == {"f"}


def test_whiteouts_in_the_lowest_layer_are_hidden_too(tmp_path: Path) -> None:
    with merged(tmp_path, archive(file("a"), whiteout("a"), opaque(""))) as tree:
        assert names(tree) == {"a"}


def test_whiteouts_of_any_kind_count(tmp_path: Path) -> None:
    upper = archive(directory(".wh.d/"), hardlink(".wh.f", ".wh..wh.plnk/1"), device(".wh.c", "c", 0, 0))
    with merged(tmp_path, archive(file("d/x"), file("f"), file("c")), upper) as tree:
        assert names(tree) == set()


def test_a_whiteout_reaches_through_a_lower_symlink(tmp_path: Path) -> None:
    lower = archive(symlink("lib", "usr/lib"), file("usr/lib/x"), file("usr/lib/y"))
    with merged(tmp_path, lower, archive(whiteout("lib/x"))) as tree:
        assert names(tree) == {"lib", "usr/", "usr/lib/", "usr/lib/y"}


def test_whiteouts_are_all_read_before_any_is_obeyed(tmp_path: Path) -> None:
    lower = archive(symlink("lib", "usr/lib"), file("usr/lib/x"), file("usr/lib/y"))
    for upper in ([whiteout("lib"), whiteout("lib/x")], [whiteout("lib/x"), whiteout("lib")]):
        with merged(tmp_path, lower, archive(*upper)) as tree:
            assert names(tree) == {"usr/", "usr/lib/", "usr/lib/y"}


def test_a_whiteout_in_a_directory_that_replaces_a_symlink_hides_nothing(tmp_path: Path) -> None:
    lower = archive(symlink("lib", "usr/lib"), file("usr/lib/x"))
    with merged(tmp_path, lower, archive(whiteout("lib/x"), opaque("lib"), directory("lib"))) as tree:
        assert names(tree) == {"lib/", "usr/", "usr/lib/", "usr/lib/x"}


def test_aufs_metadata_is_hidden_with_all_below_it(tmp_path: Path) -> None:
    layer = archive(
        directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2"), file("d/.wh..wh.aufs"), file(".wh.x/y")
    )
    with merged(tmp_path, archive(file("d/k"), file("x")), layer) as tree:
        assert names(tree) == {"d/", "d/k", "x"}


@pytest.mark.parametrize("in_order", [True, False])
def test_a_hard_link_may_mean_a_file_of_aufss_metadata(tmp_path: Path, in_order: bool) -> None:
    members = [
        file(".wh..wh.plnk/1.2", b"shared", uid=7),
        hardlink("b", ".wh..wh.plnk/1.2"),
        hardlink("d/c", "/.wh..wh.plnk/1.2"),
    ]
    with merged(tmp_path, archive(*(members if in_order else members[::-1]))) as tree:
        assert names(tree) == {"b", "d/", "d/c"}
        assert at(tree, b"b") == at(tree, b"d/c")
        assert (at(tree, b"b").nlink, at(tree, b"b").size, at(tree, b"b").uid) == (2, 6, 7)
        assert tree.node_count == 3


def test_aufss_metadata_may_be_a_hard_link_itself_or_stand_there_twice(tmp_path: Path) -> None:
    plink = ".wh..wh.plnk/1.2"
    layer = archive(file(plink), file("a", b"x"), hardlink(plink, "a"), hardlink("b", plink))
    with merged(tmp_path, layer, archive(whiteout("a"))) as tree:
        assert names(tree) == {"b"}
        assert (at(tree, b"b").size, at(tree, b"b").nlink, tree.node_count) == (1, 1, 2)


def test_aufss_metadata_of_one_layer_says_nothing_to_the_next(tmp_path: Path) -> None:
    layers = archive(file(".wh..wh.plnk/1.2")), archive(hardlink("b", ".wh..wh.plnk/1.2"))
    assert "not in the image" in refusal(tmp_path, *layers)


# --- whiteouts as overlayfs has them


@pytest.mark.parametrize("lower", [file("a"), file("a/b/c"), symlink("a", "x")])
def test_a_device_0_0_hides_the_lower_name_and_itself(tmp_path: Path, lower: bytes) -> None:
    upper = archive(device("a", "c", 0, 0), device("n", "c", 0, 0))
    with merged(tmp_path, archive(lower, file("k")), upper) as tree:
        assert names(tree) == {"k"}
        assert tree.node_count == 2


def test_a_device_0_0_is_a_whiteout_where_it_stands(tmp_path: Path) -> None:
    whiteout_of = device("a", "c", 0, 0)
    with merged(tmp_path, archive(file("a/b")), archive(whiteout_of, file("a/c"))) as tree:
        assert names(tree) == {"a/", "a/c"}
    with merged(tmp_path, archive(file("a")), archive(file("a", b"new"), whiteout_of)) as tree:
        assert names(tree) == set()


@pytest.mark.parametrize("in_order", [True, False])
def test_a_hard_link_to_a_device_0_0_is_a_whiteout_too(tmp_path: Path, in_order: bool) -> None:
    upper = [device("a", "c", 0, 0), hardlink("b", "a")]
    lower = archive(*([file("a"), file("b")] if in_order else [file("b")]))
    with merged(tmp_path, lower, archive(*(upper if in_order else upper[::-1]))) as tree:
        assert names(tree) == set()


def test_other_devices_are_devices(tmp_path: Path) -> None:
    layer = archive(device("b", "b", 0, 0), device("c", "c", 0, 1), device("d", "c", 1, 0))
    with merged(tmp_path, layer) as tree:
        assert names(tree) == {"b", "c", "d"}


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh..."])
def test_a_whiteout_that_names_no_file_is_refused(tmp_path: Path, name: str) -> None:
    for layers in ([archive(file(f"d/{name}"))], [archive(file("d/x")), archive(file(f"d/{name}"))]):
        assert "names no file" in refusal(tmp_path, *layers)


# --- symlinks on the way


@pytest.mark.parametrize(
    "target", ["usr/lib", "/usr/lib", "../../usr/lib", "usr/../usr//lib/.", "hop", "/hop/."]
)
def test_an_entry_below_a_symlink_of_its_layer_lands_in_its_target(tmp_path: Path, target: str) -> None:
    lower = archive(directory("usr/lib"), file("usr/lib/old"))
    upper = archive(symlink("lib", target), symlink("hop", "usr/lib"), file("lib/x"), file("lib/d/y"))
    landed = {"usr/lib/old", "usr/lib/x", "usr/lib/d/", "usr/lib/d/y"}
    with merged(tmp_path, lower, upper) as tree:
        assert names(tree) == {"lib", "hop", "usr/", "usr/lib/"} | landed


@pytest.mark.parametrize("lower", [symlink("x", "usr/lib"), symlink("x", "no/where"), file("x"), fifo("x")])
def test_an_entry_below_what_is_no_directory_in_a_lower_layer_makes_it_one(
    tmp_path: Path, lower: bytes
) -> None:
    with merged(tmp_path, archive(file("usr/lib/y"), lower), archive(file("x/d/y"))) as tree:
        assert names(tree) == {"usr/", "usr/lib/", "usr/lib/y", "x/", "x/d/", "x/d/y"}
        assert at(tree, b"x").mode == stat.S_IFDIR | 0o755


def test_dotdot_in_a_symlink_starts_where_the_symlink_really_is(tmp_path: Path) -> None:
    links = symlink("s", "a/b"), symlink("a/b/up", "../t")
    with merged(tmp_path, archive(directory("a/b"), directory("a/t"), *links, file("s/up/x"))) as tree:
        assert "a/t/x" in names(tree)


def test_an_entry_below_a_symlink_of_its_own_layer_lands_in_its_target(tmp_path: Path) -> None:
    with merged(tmp_path, archive(directory("t"), symlink("s", "t"), file("s/x"))) as tree:
        assert names(tree) == {"t/", "t/x", "s"}


def test_the_target_of_a_dangling_symlink_is_made(tmp_path: Path) -> None:
    with merged(tmp_path, archive(symlink("s", "no/where"), file("s/x"))) as tree:
        assert names(tree) == {"s", "no/", "no/where/", "no/where/x"}


@pytest.mark.parametrize("target", [".wh.x", "a/.wh..wh..opq", "y" * 256])
def test_a_symlink_target_that_no_layer_could_have_is_not_made(tmp_path: Path, target: str) -> None:
    assert "cannot be made" in refusal(tmp_path, archive(symlink("s", target), file("s/x")))


@pytest.mark.parametrize("in_order", [True, False])
def test_a_directory_of_the_layer_itself_replaces_a_lower_symlink(tmp_path: Path, in_order: bool) -> None:
    lower = archive(symlink("lib", "usr/lib"), file("usr/lib/old"))
    upper = [directory("lib/", mode=0o700), file("lib/x")]
    with merged(tmp_path, lower, archive(*(upper if in_order else upper[::-1]))) as tree:
        assert names(tree) == {"lib/", "lib/x", "usr/", "usr/lib/", "usr/lib/old"}
        assert at(tree, b"lib").mode == stat.S_IFDIR | 0o700


def test_what_led_through_a_symlink_in_one_layer_need_not_in_the_next(tmp_path: Path) -> None:
    lower = archive(symlink("s", "t"), file("s/one"))
    with merged(tmp_path, lower, archive(file("s/two")), archive(file("s/three"))) as tree:
        assert names(tree) == {"t/", "t/one", "s/", "s/two", "s/three"}


@pytest.mark.parametrize("loop", [[symlink("a", "a")], [symlink("a", "b"), symlink("b", "/a")]])
def test_a_loop_of_symlinks_as_a_parent_is_refused(tmp_path: Path, loop: list[bytes]) -> None:
    assert "loop" in refusal(tmp_path, archive(*loop, file("a/x")))


def test_forty_symlinks_may_be_on_the_way_but_not_more(tmp_path: Path) -> None:
    chain = [symlink(f"{n}", f"{n + 1}") for n in range(40)]
    with merged(tmp_path, archive(*chain, directory("40"), file("0/x"))) as tree:
        assert "40/x" in names(tree)
    assert "loop" in refusal(tmp_path, archive(*chain, symlink("40", "d"), directory("d"), file("0/x")))


# --- non-directories on the way


@pytest.mark.parametrize("way", [file("f"), fifo("f"), device("f", "c", 1, 3)])
def test_an_entry_below_a_non_directory_is_refused(tmp_path: Path, way: bytes) -> None:
    message = refusal(tmp_path, archive(way, file("f/x")))
    assert message.startswith("layer 0 (sha256:")
    assert "'f' on the way is not a directory" in message


def test_a_symlink_to_a_file_is_no_way_either(tmp_path: Path) -> None:
    assert "not a directory" in refusal(tmp_path, archive(file("f")), archive(symlink("s", "f"), file("s/x")))


@pytest.mark.parametrize("in_order", [True, False])
def test_a_directory_of_the_layer_itself_replaces_a_non_directory(tmp_path: Path, in_order: bool) -> None:
    upper = [directory("f", mode=0o700), file("f/d/x")]
    with merged(tmp_path, archive(file("f")), archive(*(upper if in_order else upper[::-1]))) as tree:
        assert names(tree) == {"f/", "f/d/", "f/d/x"}
        assert at(tree, b"f").mode == stat.S_IFDIR | 0o700


def test_a_directory_may_replace_the_symlink_that_led_to_it(tmp_path: Path) -> None:
    layer = archive(symlink("c", ".."), directory("c/c"), file("c/c/a"))
    with merged(tmp_path, layer) as tree:
        assert names(tree) == {"c/", "c/c/", "c/c/a"}


# --- hard links


def test_hard_links_share_one_node(tmp_path: Path) -> None:
    layer = archive(file("a", b"x", uid=3), hardlink("b", "a"), hardlink("d/c", "./b"), hardlink("e", "../a"))
    with merged(tmp_path, layer) as tree:
        assert {at(tree, path).ino for path in (b"a", b"b", b"d/c", b"e")} == {at(tree, b"a").ino}
        assert (at(tree, b"a").nlink, at(tree, b"b").uid) == (4, 3)
        assert tree.node_count == 3


def test_a_hard_links_target_may_be_in_a_lower_layer(tmp_path: Path) -> None:
    with merged(tmp_path, archive(file("a", b"x")), archive(hardlink("b", "/a"))) as tree:
        assert at(tree, b"b") == at(tree, b"a")
        assert (at(tree, b"a").nlink, layer_of(tree, b"b")) == (2, 0)


@pytest.mark.parametrize("upper", [file("a", b"new"), symlink("a", "x"), whiteout("a")])
def test_changing_one_name_of_a_lower_file_leaves_its_others(tmp_path: Path, upper: bytes) -> None:
    with merged(tmp_path, archive(file("a", b"x"), hardlink("b", "a")), archive(upper)) as tree:
        assert (at(tree, b"b").nlink, layer_of(tree, b"b"), at(tree, b"b").size) == (1, 0, 1)


@pytest.mark.parametrize("hiding", [whiteout("d/a"), whiteout("d"), opaque("d")])
@pytest.mark.parametrize("in_order", [True, False])
def test_a_hard_link_may_take_over_what_its_layer_whites_out(
    tmp_path: Path, hiding: bytes, in_order: bool
) -> None:
    upper = [hiding, hardlink("b", "d/a"), hardlink("c", "d/a"), hardlink("e", "b")]
    lower = archive(file("d/a", b"x"), file("d/n"))
    with merged(tmp_path, lower, archive(*(upper if in_order else upper[::-1]))) as tree:
        assert {"b", "c", "e"} <= names(tree)
        assert "d/a" not in names(tree)
        assert (at(tree, b"b").nlink, layer_of(tree, b"b")) == (3, 0)


def test_a_node_held_for_a_link_that_found_another_target_is_let_go(tmp_path: Path) -> None:
    upper = archive(whiteout("a"), file("a", b"new"), hardlink("b", "a"))
    with merged(tmp_path, archive(file("a")), upper) as tree:
        assert (at(tree, b"b").nlink, layer_of(tree, b"b"), tree.node_count) == (2, 1, 2)


def test_a_link_to_a_lower_file_that_its_layer_has_replaced_finds_nothing(tmp_path: Path) -> None:
    upper = archive(file("d"), hardlink("b", "d/a"), whiteout("unrelated"))
    assert "not in the image" in refusal(tmp_path, archive(file("d/a"), file("unrelated")), upper)


def test_a_hard_links_target_may_come_later(tmp_path: Path) -> None:
    layer = archive(hardlink("c", "b"), hardlink("b", "d/a"), hardlink("e", "c"), file("d/a", b"x"))
    with merged(tmp_path, layer) as tree:
        assert names(tree) == {"b", "c", "d/", "d/a", "e"}
        assert at(tree, b"e").nlink == 4


def test_a_later_target_is_preferred_to_one_whited_out(tmp_path: Path) -> None:
    upper = archive(whiteout("a"), hardlink("b", "a"), file("a", b"new"))
    with merged(tmp_path, archive(file("a")), upper) as tree:
        assert layer_of(tree, b"b") == 1


def test_a_link_means_the_lower_file_until_its_layer_replaces_that(tmp_path: Path) -> None:
    with merged(tmp_path, archive(file("a")), archive(hardlink("b", "a"), file("a", b"new"))) as tree:
        assert (layer_of(tree, b"b"), layer_of(tree, b"a")) == (0, 1)


def test_a_later_entry_at_a_waiting_links_path_wins(tmp_path: Path) -> None:
    layer = archive(hardlink("b", "a"), file("b", b"own"), hardlink("c", "z"), hardlink("c", "a"), file("a"))
    with merged(tmp_path, layer) as tree:
        assert (at(tree, b"b").size, at(tree, b"c").ino) == (3, at(tree, b"a").ino)


def test_a_waiting_link_replaces_what_was_there(tmp_path: Path) -> None:
    with merged(tmp_path, archive(file("b/old")), archive(hardlink("b", "a"), file("a"))) as tree:
        assert names(tree) == {"a", "b"}


def test_a_hard_link_to_a_symlink_links_the_symlink(tmp_path: Path) -> None:
    with merged(tmp_path, archive(file("f"), symlink("s", "f"), hardlink("t", "s"))) as tree:
        assert tree.target(at(tree, b"t").ino) == b"f"
        assert (at(tree, b"s").nlink, at(tree, b"f").nlink) == (2, 1)


def test_a_hard_links_target_is_found_through_symlinked_parents(tmp_path: Path) -> None:
    lower = archive(symlink("lib", "/usr/lib"), file("usr/lib/x"))
    with merged(tmp_path, lower, archive(hardlink("y", "lib/x"), hardlink("lib/z", "y"))) as tree:
        assert at(tree, b"lib/z").nlink == 3
        assert at(tree, b"lib/z") == at(tree, b"usr/lib/x")


def test_a_hard_link_to_itself_changes_nothing(tmp_path: Path) -> None:
    with merged(tmp_path, archive(file("a", b"x")), archive(hardlink("a", "./a"))) as tree:
        assert (at(tree, b"a").nlink, layer_of(tree, b"a")) == (1, 0)


def test_a_hard_link_in_place_of_a_directory_may_save_a_file_of_it(tmp_path: Path) -> None:
    with merged(tmp_path, archive(file("d/a", b"x"), file("d/b")), archive(hardlink("d", "d/a"))) as tree:
        assert names(tree) == {"d"}
        assert (at(tree, b"d").nlink, at(tree, b"d").size, tree.node_count) == (1, 1, 2)


def test_a_waiting_link_below_its_own_target_keeps_it(tmp_path: Path) -> None:
    layer = archive(directory("c"), hardlink("c/a", "a/c"), file("c", b"x"), symlink("a", ".."))
    with merged(tmp_path, layer) as tree:
        assert names(tree) == {"a", "c/", "c/a"}
        assert (at(tree, b"c/a").nlink, at(tree, b"c/a").size, tree.node_count) == (1, 1, 4)


@pytest.mark.parametrize("layer", [[directory("t")], [], [symlink("loop", "loop")]])
def test_a_hard_link_to_a_directory_or_nothing_is_refused(tmp_path: Path, layer: list[bytes]) -> None:
    for target in ("t", "loop/t"):
        message = refusal(tmp_path, archive(*layer, hardlink("some/link", target)))
        assert f"some/link: a hard link to '{target}', which is" in message


@pytest.mark.parametrize("cycle", [["a", "a"], ["a", "b", "a"], ["a", "b", "c", "a"]])
def test_a_cycle_of_hard_links_is_refused(tmp_path: Path, cycle: list[str]) -> None:
    links = [hardlink(path, target) for path, target in pairwise(cycle)]
    assert "which is not in the image" in refusal(tmp_path, archive(*links))


# --- hostile values


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (Entry(b"f", Kind.FILE, 0o644, 1 << 32, 0, 0, 0), "owner"),
        (Entry(b"f", Kind.DIRECTORY, 0o644, 0, -1, 0, 0), "owner"),
        (Entry(b"f", Kind.FILE, 0o644, 0, 0, -1, 0), "size"),
        (Entry(b"f", Kind.BLOCK, 0o644, 0, 0, 0, 0, device=(1, 1 << 20)), "device"),
        (Entry(b"f", Kind.CHARACTER, 0o644, 0, 0, 0, 0, device=(-1, 0)), "device"),
        (Entry(b"f", Kind.SYMLINK, 0o777, 0, 0, 0, 0), "target"),
        (Entry(b"f", Kind.SYMLINK, 0o777, 0, 0, 0, 0, target=b"a\0b"), "target"),
        (Entry(b"f", Kind.SYMLINK, 0o777, 0, 0, 0, 0, target=b"a" * 4096), "target of 4096 bytes"),
        (Entry(b"f", Kind.HARDLINK, 0o777, 0, 0, 0, 0, target=b"a/" * 2048 + b"b"), "path is longer"),
        (Entry(b"f", Kind.FILE, 0o644, 0, 0, 0, (1 << 63) * 10**9), "modification time"),
        (Entry(b"f", Kind.FIFO, 0o644, 0, 0, 0, -(1 << 63) * 10**9 - 1), "modification time"),
        (xattrs(b"user." + b"n" * 251, b""), "name of an extended attribute"),
        (xattrs(b"user.n", bytes(65537)), "an extended attribute is longer"),
        (xattrs(b"trusted.%d", bytes(60_000), 5), "its extended attributes are longer"),
        (xattrs(b"security.%0240d", b"", 300), "the names of its extended attributes"),
    ],
)
def test_values_that_linux_has_no_room_for_are_refused(tmp_path: Path, entry: Entry, complaint: str) -> None:
    directory_first = Entry(b"f", Kind.DIRECTORY, 0o755, 0, 0, 0, 0)
    for layers in ([[entry]], [[directory_first], [entry]]):
        assert complaint in refusal(tmp_path, *layers)


def test_what_linux_has_just_room_for_is_kept(tmp_path: Path) -> None:
    time, names = (1 << 63) * 10**9 - 1, {b"user." + b"n" * 250: bytes(65536), b"security.b": b""}
    layer = [
        Entry(b"f", Kind.FILE, 0o644, (1 << 32) - 2, (1 << 32) - 2, (1 << 63) - 1, time, xattrs=names),
        Entry(b"l", Kind.SYMLINK, 0o777, 0, 0, 0, -(1 << 63) * 10**9, target=b"/" + b"t" * 4094),
        Entry(b"d", Kind.BLOCK, 0o644, 0, 0, 0, 1 << 63, device=((1 << 12) - 1, (1 << 20) - 1)),
    ]
    with merged(tmp_path, layer) as tree:
        assert at(tree, b"f")[2:6] == ((1 << 32) - 2, (1 << 32) - 2, (1 << 63) - 1, time)
        assert tree.xattrs(at(tree, b"f").ino) == names
        assert (at(tree, b"l").mtime_ns, at(tree, b"l").size) == (-(1 << 63) * 10**9, 4095)
        assert at(tree, b"d").mtime_ns == 1 << 63
        assert [node.mtime_ns for _, _, node in tree.children(1)] == [1 << 63, time, -(1 << 63) * 10**9]
        assert [it.node.mtime_ns for it in tree.nodes()] == [0, time, -(1 << 63) * 10**9, 1 << 63]


def test_an_owner_of_minus_one_is_root_as_for_those_who_unpack(tmp_path: Path) -> None:
    directory = [Entry(b"d", Kind.DIRECTORY, 0o755, 0, (1 << 32) - 1, 0, 0)]
    layer = [*directory, Entry(b"f", Kind.FILE, 0o644, (1 << 32) - 1, 7, 0, 0)]
    with merged(tmp_path, [Entry(b"d", Kind.DIRECTORY, 0o755, 5, 5, 0, 0)], layer) as tree:
        assert (at(tree, b"f").uid, at(tree, b"f").gid) == (0, 7)
        assert (at(tree, b"d").uid, at(tree, b"d").gid) == (0, 0)


def test_a_symlink_has_the_mode_that_linux_gives_it(tmp_path: Path) -> None:
    with merged(tmp_path, archive(header("l", b"2", target="t", mode=0o644))) as tree:
        assert at(tree, b"l").mode == stat.S_IFLNK | 0o777


ACL = b"\2\0\0\0" + struct.pack("<HHI", 1, 6, (1 << 32) - 1)


@pytest.mark.parametrize(
    "value",
    [
        struct.pack("<IIIII", 0x02000001, 32, 0, 0, 0),
        struct.pack("<IIIII", 0x02000000, 32, 0, 0, 0),
        struct.pack("<IIIIII", 0x03000001, 32, 0, 0, 0, 1000),
    ],
)
def test_capabilities_that_the_kernel_knows_are_kept(tmp_path: Path, value: bytes) -> None:
    entry = Entry(b"f", Kind.FILE, 0o755, 0, 0, 0, 0, xattrs={b"security.capability": value})
    with merged(tmp_path, [entry]) as tree:
        assert tree.xattrs(at(tree, b"f").ino) == {b"security.capability": value}


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        (Kind.FILE, {b"security.s", b"trusted.t", b"user.u", b"system.posix_acl_access"}),
        (
            Kind.DIRECTORY,
            {b"security.s", b"trusted.t", b"user.u", b"system.posix_acl_access", b"system.posix_acl_default"},
        ),
        (Kind.SYMLINK, {b"security.s", b"trusted.t"}),
        (Kind.FIFO, {b"security.s", b"trusted.t", b"system.posix_acl_access"}),
    ],
)
def test_attributes_that_linux_cannot_keep_are_left_out(tmp_path: Path, kind: Kind, kept: set[bytes]) -> None:
    no_names = (b"com.apple.provenance", b"user.", b"trusted.", b"nothing", b"system.nfs4_acl", b"User.x")
    there = dict.fromkeys((b"security.s", b"trusted.t", b"user.u", *no_names), b"v")
    acls = {b"system.posix_acl_access": ACL, b"system.posix_acl_default": ACL}
    target = b"t" if kind is Kind.SYMLINK else b""
    entry = Entry(b"f", kind, 0o644, 0, 0, 0, 0, target=target, xattrs={**there, **acls})
    broken = entry._replace(xattrs={b"system.posix_acl_access": b"broken", b"com.apple." + b"n" * 999: b""})
    capabilities = (  # of version 1, of no version, with too much, with too little
        struct.pack("<III", 0x01000000, 32, 0),
        struct.pack("<IIIII", 0x04000000, 32, 0, 0, 0),
        struct.pack("<IIIIII", 0x02000000, 32, 0, 0, 0, 0),
        struct.pack("<IIIII", 0x03000000, 32, 0, 0, 0),
        b"junk",
        b"",
    )
    for value in capabilities:
        with merged(tmp_path, [entry._replace(xattrs={b"security.capability": value})]) as tree:
            assert not at(tree, b"f").has_xattrs
    for layers in ([[entry]], [[entry._replace(xattrs={b"user.old": b""})], [entry]]):
        with merged(tmp_path, *layers) as tree:
            assert tree.xattrs(at(tree, b"f").ino).keys() == kept
    with merged(tmp_path, [broken]) as tree:
        assert not at(tree, b"f").has_xattrs


# --- what paths may cost


def test_components_are_bounded_by_the_entries(tmp_path: Path) -> None:
    deep = b"/".join([b"x"] * 2000)
    layer = [Entry(b"%d/%s" % (number, deep), Kind.FILE, 0o644, 0, 0, 0, 0) for number in range(500)]
    assert "imply more than" in refusal(tmp_path, layer)
    chain = [
        Entry(b"s%d" % n, Kind.SYMLINK, 0, 0, 0, 0, 0, b"./" * 2000 + b"s%d" % (n + 1)) for n in range(30)
    ]
    below = [Entry(b"s%d/f" % (n % 30), Kind.FILE, 0o644, 0, 0, 0, 0) for n in range(500)]
    assert "components allowed" in refusal(tmp_path, chain + below)


def test_chains_of_hard_links_are_made_in_either_order_at_a_cost_that_is_bounded(tmp_path: Path) -> None:
    links = [hardlink(f"{number}", f"{number + 1}") for number in range(1000)]
    for layer in (archive(*links, file("1000")), archive(*links[::-1], file("1000"))):
        with merged(tmp_path, layer) as tree:
            assert at(tree, b"0").nlink == 1001
    order = sorted(range(4000), key=lambda number: number * 1013 % 4000)
    tangled = archive(*(hardlink(f"{number}", f"{number + 1}") for number in order), file("4000"))
    assert "components allowed" in refusal(tmp_path, tangled)


def test_a_directory_made_opaque_again_and_again_is_looked_through_once(tmp_path: Path) -> None:
    lower = archive(*(file(f"d/{number}") for number in range(2000)))
    with merged(tmp_path, lower, archive(*[opaque("d")] * 2000, file("d/n"))) as tree:
        assert names(tree) == {"d/", "d/n"}


def test_a_complaint_names_layer_digest_and_path_in_one_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, archive(), archive(pax({b"path": b"bad\nname/.wh."}), file("x")))
    assert message.startswith("layer 1 (sha256:")
    assert "…), bad\\nname/.wh.: " in message


def test_modes_keep_their_twelve_bits_only(tmp_path: Path) -> None:
    with merged(tmp_path, [Entry(b"f", Kind.FILE, 0o177777, 0, 0, 0, 0)]) as tree:
        assert at(tree, b"f").mode == stat.S_IFREG | 0o7777


def test_the_same_layers_give_the_same_tree(tmp_path: Path) -> None:
    layers = [archive(file("a/b"), file("a/c"), hardlink("d", "a/c")), archive(whiteout("a/b"), file("e/f"))]
    with merged(tmp_path, *layers) as one, merged(tmp_path, *layers) as two:
        assert list(_below(one, b"", 1)) == list(_below(two, b"", 1))
