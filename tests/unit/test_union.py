"""The union of an upper directory and an image, without a kernel: overlayfs's rules and its marks."""

from __future__ import annotations

import contextlib
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imgfs.overlay.diff import Diff
from imgfs.overlay.node import UPPER_INO
from imgfs.overlay.upper import Upper
from imgfs.overlay.xattrs import METACOPY, OPAQUE, TRUSTED, Owner
from imgfs.tree.database import ROOT
from imgfs.tree.reader import Tree
from tests.support import tarmake as tar
from tests.support.layers import merged
from tests.support.union_sights import TarBytes, find, ino, overlay_of, place, read, sights

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and trusted xattrs need root")

OWNER = Owner(5, 6, 0o644)
LAYER = tar.archive(
    tar.directory("./", mtime_ns=1),
    tar.file("a", b"two names", mtime_ns=2),
    tar.directory("d", mode=0o750, mtime_ns=3),
    tar.hardlink("d/b", "a"),
    tar.file("d/f", b"in a directory", mtime_ns=4),
    tar.directory("d/deep", mtime_ns=5),
    tar.file("d/deep/g", b"deep", mtime_ns=6),
    tar.file("d/deep/h", b"deep too", mtime_ns=7),
    tar.directory("e", mtime_ns=8),
    tar.file("e/i", b"in e", mtime_ns=9),
)
CONTENT = TarBytes(LAYER)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    with merged(tmp_path_factory.mktemp("tree"), LAYER) as tree:
        yield tree


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """An upper directory that somebody else fills."""
    path = tmp_path / "upper"
    path.mkdir()
    return path


def names(tree: Tree, scratch: Path, path: bytes = b"") -> list[bytes]:
    with overlay_of(tree, CONTENT, scratch) as overlay:
        return sorted(name for name, _ in overlay.union.children(ino(overlay, path)))


def body(tree: Tree, scratch: Path, path: bytes) -> bytes:
    with overlay_of(tree, CONTENT, scratch) as overlay:
        found = find(overlay.union, path)
        assert found is not None
        return read(overlay, CONTENT, found)


def mark(path: Path, name: bytes, value: bytes = b"y") -> None:
    os.setxattr(path, TRUSTED + name, value)


def kernels_copy(path: Path, size: int, redirect: bytes | None = None) -> None:
    """A file as overlayfs leaves it with `metacopy=on`: attributes without data (overlayfs.rst)."""
    path.touch()
    os.truncate(path, size)
    mark(path, METACOPY, b"")
    if redirect:
        mark(path, b"redirect", redirect)


# -- what is in the upper directory


def test_a_whiteout_hides_a_name(tree: Tree, tmp_path: Path, upper: Path) -> None:
    os.mknod(upper / "a", stat.S_IFCHR, 0)
    assert names(tree, tmp_path) == [b"d", b"e"]


@pytest.mark.parametrize(
    "name", ["trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque"]
)
def test_an_opaque_directory_hides_what_is_below_it(
    tree: Tree, tmp_path: Path, upper: Path, name: str
) -> None:
    (upper / "d").mkdir()
    os.setxattr(upper / "d", name, b"y")
    (upper / "d/new").touch()
    assert names(tree, tmp_path, b"d") == [b"new"]


def test_a_mark_with_another_value_is_none(tree: Tree, tmp_path: Path, upper: Path) -> None:
    (upper / "d").mkdir()
    mark(upper / "d", OPAQUE, b"x")  # overlayfs: there are whiteouts in it that are files with an attribute
    assert names(tree, tmp_path, b"d") == [b"b", b"deep", b"f"]


def test_a_directory_over_a_file_and_a_file_over_a_directory_stand_alone(
    tree: Tree, tmp_path: Path, upper: Path
) -> None:
    (upper / "a").mkdir()
    (upper / "d").write_bytes(b"file")
    assert names(tree, tmp_path, b"a") == []
    assert body(tree, tmp_path, b"d") == b"file"


def test_a_redirect_shows_the_image_s_directory_elsewhere(tree: Tree, tmp_path: Path, upper: Path) -> None:
    os.mknod(upper / "d", stat.S_IFCHR, 0)
    (upper / "moved").mkdir()
    mark(upper / "moved", b"redirect", b"d")
    assert names(tree, tmp_path, b"moved") == [b"b", b"deep", b"f"]
    assert names(tree, tmp_path) == [b"a", b"e", b"moved"]


def test_a_redirect_from_the_root_leads_anywhere(tree: Tree, tmp_path: Path, upper: Path) -> None:
    (upper / "e/moved").mkdir(parents=True)
    mark(upper / "e/moved", b"redirect", b"/d/deep")
    assert names(tree, tmp_path, b"e/moved") == [b"g", b"h"]


@pytest.mark.parametrize("redirect", [b"/none/at/all", b"none", b"/", b"", b"/d/f", b"//d//deep", b"../d"])
def test_a_redirect_into_the_void_shows_an_upper_directory(
    tree: Tree, tmp_path: Path, upper: Path, redirect: bytes
) -> None:
    (upper / "new").mkdir()
    (upper / "new/file").touch()
    mark(upper / "new", b"redirect", redirect)
    assert b"file" in names(tree, tmp_path, b"new")


def test_a_metacopy_has_the_data_of_the_image(tree: Tree, tmp_path: Path, upper: Path) -> None:
    (upper / "d").mkdir()
    kernels_copy(upper / "d/f", 14)
    kernels_copy(upper / "d/moved", 4, b"/d/deep/g")
    kernels_copy(upper / "d/near", 14, b"f")
    assert body(tree, tmp_path, b"d/f") == b"in a directory"
    assert body(tree, tmp_path, b"d/moved") == b"deep"
    assert body(tree, tmp_path, b"d/near") == b"in a directory"


# -- the kernel's marks outlive what imgfs does


@pytest.mark.parametrize(("redirect", "old"), [(None, b"d/f"), (b"f", b"d/near")])
@pytest.mark.parametrize("new", [b"d/n", b"e/n"])
def test_a_kernel_s_metacopy_keeps_its_data_when_it_is_renamed(
    tree: Tree, tmp_path: Path, upper: Path, redirect: bytes | None, old: bytes, new: bytes
) -> None:
    (upper / "d").mkdir()
    kernels_copy(tmp_path / "upper" / os.fsdecode(old), 14, redirect)
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        overlay.entries.rename(place(overlay, old), place(overlay, new), 0)
    assert body(tree, tmp_path, new) == b"in a directory"


def test_a_kernel_s_metacopy_keeps_its_data_when_it_is_linked(
    tree: Tree, tmp_path: Path, upper: Path
) -> None:
    (upper / "d").mkdir()
    kernels_copy(upper / "d/f", 14)
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        overlay.entries.link(ino(overlay, b"d/f"), *place(overlay, b"e/n"))
    assert body(tree, tmp_path, b"e/n") == b"in a directory"


def test_a_kernel_s_metacopy_keeps_its_data_when_its_directory_moves(
    tree: Tree, tmp_path: Path, upper: Path
) -> None:
    (upper / "d").mkdir()
    kernels_copy(upper / "d/f", 14)
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        overlay.entries.rename(place(overlay, b"d"), place(overlay, b"moved"), 0)
    assert body(tree, tmp_path, b"moved/f") == b"in a directory"


def test_what_is_deleted_in_a_redirected_directory_stays_so_when_the_one_above_has_moved(
    tree: Tree, tmp_path: Path, upper: Path
) -> None:
    (upper / "e/moved").mkdir(parents=True)
    mark(upper / "e/moved", b"redirect", b"/d/deep")
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        overlay.entries.rename(place(overlay, b"e"), place(overlay, b"n"), 0)
        overlay.entries.unlink(*place(overlay, b"n/moved/g"))
    assert names(tree, tmp_path, b"n/moved") == [b"h"]


# -- directories


def test_a_moved_directory_takes_all_of_the_image_with_it(tree: Tree, tmp_path: Path) -> None:
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        before = sights(overlay, CONTENT)
        overlay.entries.rename(place(overlay, b"d"), place(overlay, b"e/n"), 0)
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        after = sights(overlay, CONTENT)
    assert b"d" not in after
    for path in (b"/f", b"/deep", b"/deep/g", b"/deep/h"):
        assert after[b"e/n" + path] == before[b"d" + path]
    assert after[b"e/n/b"].group == after[b"a"].group == b"a"


def test_a_new_directory_in_the_place_of_the_image_s_is_empty(tree: Tree, tmp_path: Path) -> None:
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        overlay.entries.unlink(*place(overlay, b"e/i"))
        overlay.entries.rmdir(*place(overlay, b"e"))
        overlay.entries.make(*place(overlay, b"e"), stat.S_IFDIR, OWNER)
    assert names(tree, tmp_path, b"e") == []
    assert os.getxattr(tmp_path / "upper/e", "trusted.overlay.opaque") == b"y"


def test_links_of_a_merged_directory_count_its_subdirectories(tree: Tree, tmp_path: Path) -> None:
    def links(path: bytes) -> int:
        found = find(overlay.union, path)
        assert found is not None
        return overlay.union.attributes(found).nlink

    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        assert (links(b""), links(b"d"), links(b"e")) == (4, 3, 2)
        overlay.entries.make(*place(overlay, b"d/n"), stat.S_IFDIR, OWNER)
        assert links(b"d") == 4
        overlay.entries.rename(place(overlay, b"d/deep"), place(overlay, b"e/deep"), 0)
        assert (links(b"d"), links(b"e")) == (3, 3)
        overlay.entries.rmdir(*place(overlay, b"d/n"))
        assert links(b"d") == 2
        overlay.entries.unlink(*place(overlay, b"d/f"))
        overlay.entries.make(*place(overlay, b"d/f"), stat.S_IFDIR, OWNER)
        assert links(b"d") == 3
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        assert (links(b""), links(b"d"), links(b"e")) == (4, 3, 3)


def test_links_are_counted_once_and_then_kept(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(4)
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        root, entries = overlay.union.root, overlay.entries
        calls: list[Callable[[bytes], object]] = [
            lambda name: entries.unlink(ROOT, name),
            lambda name: entries.rmdir(ROOT, name),
            lambda name: entries.rename((ROOT, name), (ROOT, chance.choice((b"a", b"d", b"x"))), 0),
            lambda name: entries.make(ROOT, name, stat.S_IFDIR, OWNER),
            lambda name: entries.create(ROOT, name, OWNER),
        ]
        for number in range(150):
            with contextlib.suppress(OSError):
                chance.choice(calls)(chance.choice((b"a", b"d", b"e", b"x", b"y")))
            links = overlay.union.attributes(root).nlink
            root.links = None
            assert links == overlay.union.attributes(root).nlink, number
        entries.create(ROOT, b"0", OWNER)
        monkeypatch.delattr(Upper, "scan")
        for number in range(20):
            entries.make(ROOT, b"d%d" % number, stat.S_IFDIR, OWNER)
            entries.rename((ROOT, b"%d" % number), (ROOT, b"%d" % (number + 1)), 0)
            assert overlay.union.attributes(root).nlink == links + number + 1


def test_inos_are_the_same_when_the_scratch_is_opened_again(tree: Tree, tmp_path: Path) -> None:
    paths = [b"", b"a", b"d", b"d/b", b"d/deep", b"d/deep/g", b"d/renamed", b"e", b"e/new", b"e/dir"]
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        inos = {path: ino(overlay, path) for path in paths if find(overlay.union, path)}
        overlay.set_mode(inos[b"a"], 0o600)
        overlay.set_mode(inos[b"d/deep"], 0o700)
        overlay.set_mode(inos[b"d/deep/g"], 0o600)
        assert {path: ino(overlay, path) for path in inos} == inos
        moved = ino(overlay, b"d/f")
        overlay.entries.rename(place(overlay, b"d/f"), place(overlay, b"d/renamed"), 0)
        overlay.entries.make(*place(overlay, b"e/new"), stat.S_IFREG, OWNER)
        overlay.entries.make(*place(overlay, b"e/dir"), stat.S_IFDIR, OWNER)
        inos = {path: ino(overlay, path) for path in paths}
    assert inos[b"a"] == inos[b"d/b"]
    assert inos[b"d/renamed"] == moved
    assert inos[b""] == ROOT
    assert min(inos[b"e/new"], inos[b"e/dir"]) > UPPER_INO
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        assert {path: ino(overlay, path) for path in reversed(paths)} == dict(reversed(inos.items()))


def test_attributes_that_are_more_than_a_file_may_have_here_stop_no_copy_up(tmp_path: Path) -> None:
    many = {b"user.%03d" % number: bytes(100) for number in range(300)}  # ext4 has a block for them
    layer = tar.archive(tar.directory("d", xattrs=many), tar.file("d/f", b"f", xattrs=many))
    with merged(tmp_path, layer) as tree, overlay_of(tree, TarBytes(layer), tmp_path / "scratch") as overlay:
        for path in (b"d/f", b"d"):
            number = ino(overlay, path)
            overlay.set_mode(number, 0o700)
            found = overlay.xattrs(number)
            assert set(found) <= set(many)
            assert len(found) > 10


def test_what_a_file_system_has_no_room_for_stops_no_copy_up(tmp_path: Path) -> None:
    kept = {b"user.kept": b"1", b"trusted.kept": b"2"}
    odd = {b"com.apple.provenance": b"mac", b"user.large": bytes(60_000)}  # larger than a block of ext4
    layer = tar.archive(tar.directory("d", xattrs=kept | odd), tar.file("d/f", b"f", xattrs=kept | odd))
    with merged(tmp_path, layer) as tree, overlay_of(tree, TarBytes(layer), tmp_path / "scratch") as overlay:
        for path in (b"d/f", b"d"):
            number = ino(overlay, path)
            overlay.set_xattr(number, b"user.new", b"3")
            found = set(overlay.xattrs(number)) - {b"user.large"}
            assert found == {*kept, b"user.new"}


@pytest.mark.timeout(20)
def test_what_is_put_in_the_place_of_a_file_is_not_read_as_its_bytes(tree: Tree, upper: Path) -> None:
    """A container may put a FIFO or a device there, while its scratch is committed."""
    (upper / "new").write_bytes(b"new")
    with overlay_of(tree, CONTENT, upper.parent) as overlay:
        [body] = [body for entry, body in Diff(overlay.union, CONTENT).members() if entry.path == b"new"]
        (upper / "new").unlink()
        os.mkfifo(upper / "new")
        with pytest.raises(OSError, match="Stale file handle: 'new'"):
            list(body)
