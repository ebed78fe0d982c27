"""What copying up must not leave behind, without a kernel: useless copies, moved times, lost capabilities."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from imgfs.overlay.copyup_data import undo_copy_up
from imgfs.overlay.node import UpperNode
from imgfs.overlay.overlay import Overlay
from imgfs.tree.reader import Tree
from tests.support import tarmake as tar
from tests.support.layers import merged
from tests.support.posix_places import fails
from tests.support.union_sights import TarBytes, find, ino, overlay_of, place, sights

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and trusted xattrs need root")

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # linux/capability.h
LAYER = tar.archive(
    tar.directory("./", mtime_ns=1),
    tar.directory("d", mode=0o750, mtime_ns=3),
    tar.file("d/one", b"one name", mode=0o6755, uid=5, gid=6, mtime_ns=4, xattrs={b"user.x": b"y"}),
    tar.file("two", b"two names", mtime_ns=2),
    tar.hardlink("d/names", "two"),
    tar.file("able", b"able", mtime_ns=5, xattrs={b"security.capability": CAPABILITY}),
)
CONTENT = TarBytes(LAYER)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    with merged(tmp_path_factory.mktemp("tree"), LAYER) as tree:
        yield tree


def copied(overlay: Overlay, path: bytes) -> UpperNode:
    """A file copied up without its data."""
    return overlay.copyup.up(ino(overlay, path), with_data=False)


def test_a_copy_that_shows_nothing_new_is_taken_back(tree: Tree, tmp_path: Path) -> None:
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        before = sights(overlay, CONTENT)
        undo_copy_up(overlay.union, copied(overlay, b"d/one"))
        assert not (tmp_path / "upper/d/one").exists()
        assert sights(overlay, CONTENT) == before
        assert overlay.copyup.up(ino(overlay, b"d/one")).data is not None


CHANGES: list[Callable[[Overlay, int], object]] = [
    lambda overlay, number: overlay.set_mode(number, 0o600),
    lambda overlay, number: overlay.set_owner(number, 7, None),
    lambda overlay, number: overlay.set_times(number, None, 9),
    lambda overlay, number: overlay.set_xattr(number, b"user.x", b"z"),
    lambda overlay, number: overlay.entries.link(number, *place(overlay, b"linked")),
    lambda overlay, _: overlay.entries.rename(place(overlay, b"d/one"), place(overlay, b"renamed"), 0),
    lambda overlay, number: overlay.open(overlay.copyup.up(number), writes=True),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_that_has_been_changed_or_opened_stays(
    tree: Tree, tmp_path: Path, change: Callable[[Overlay, int], object]
) -> None:
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        node = copied(overlay, b"d/one")
        change(overlay, node.ino)
        before = sights(overlay, CONTENT)
        undo_copy_up(overlay.union, node)
        assert sights(overlay, CONTENT) == before
        assert find(overlay.union, b"renamed" if node.name == b"renamed" else b"d/one") is node


def test_a_file_with_several_names_keeps_its_copy(tree: Tree, tmp_path: Path) -> None:
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        undo_copy_up(overlay.union, copied(overlay, b"two"))
        assert os.stat(tmp_path / "upper/two").st_ino == os.stat(tmp_path / "upper/d/names").st_ino


def test_a_copy_ends_when_it_is_given_up(tree: Tree, tmp_path: Path) -> None:
    given_up: Future[None] = Future()
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        node = copied(overlay, b"d/one")
        copy = overlay.data_copyup.fill(node, 100)
        given_up.set_result(None)
        with fails(errno.EINTR):
            copy(given_up)
        overlay.data_copyup.not_filled(node)
        undo_copy_up(overlay.union, node)
        assert not (tmp_path / "upper/d/one").exists()


@pytest.mark.parametrize("fails_at_last", [False, True])
def test_copying_data_up_takes_neither_capabilities_nor_the_time_of_change(
    tree: Tree, tmp_path: Path, fails_at_last: bool
) -> None:
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        node = copied(overlay, b"able")
        before = overlay.union.attributes(node)
        overlay.data_copyup.fill(node, 100)()
        (overlay.data_copyup.not_filled if fails_at_last else overlay.data_copyup.filled)(node)
        assert overlay.union.attributes(node) == before._replace(blocks=overlay.union.attributes(node).blocks)
        assert overlay.xattr(node.ino, b"security.capability") == CAPABILITY


def test_a_time_of_change_is_kept_until_something_changes(tree: Tree, tmp_path: Path) -> None:
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        node = copied(overlay, b"d/one")
        assert overlay.union.ctime(node) == 4
        ctimes = overlay.union.ctimes
        ctimes.keep(node, ctimes.on_disk(node, overlay.union.ctime(node)), 123)
        overlay.union.drop(node)
        node = copied(overlay, b"d/one")
        assert overlay.union.ctime(node) == 123
        overlay.set_mode(node.ino, 0o600)
        assert overlay.union.ctime(node) == os.stat(tmp_path / "upper/d/one").st_ctime_ns


def test_privileges_go_once_and_the_group_s_only_with_its_execution(tree: Tree, tmp_path: Path) -> None:
    with overlay_of(tree, CONTENT, tmp_path) as overlay:
        node = copied(overlay, b"d/one")
        assert overlay.drop_privileges(node)
        assert not overlay.drop_privileges(node)
        assert overlay.union.owner(node).mode == 0o755
        overlay.set_mode(node.ino, 0o2745)
        assert not overlay.drop_privileges(node)
        able = copied(overlay, b"able")
        overlay.drop_capability(able)
        assert b"security.capability" not in overlay.xattrs(able.ino)
