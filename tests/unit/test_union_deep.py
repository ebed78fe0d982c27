"""Scratches that are deep, many-named or odd: whatever they hold, they can be opened, listed and removed."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imgfs.errors import MountError
from imgfs.overlay.diff import ChangeKind
from imgfs.overlay.scratch import Scratch, ScratchBase
from imgfs.overlay.scratch_opened import ScratchTerms, scratch_diff, scratch_overlay
from imgfs.overlay.xattrs import Owner
from imgfs.tree.database import ROOT
from imgfs.tree.reader import Tree
from tests.support import tarmake as tar
from tests.support.children import Child
from tests.support.layers import merged
from tests.support.mounted import sha256
from tests.support.union_sights import TarBytes, find, ino, place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and trusted xattrs need root")

DEPTH = 3_000
OWNER = Owner(0, 0, 0o755)
BASE = ScratchBase("oci:/none:test", sha256(b"manifest"), 1)
FAR = b"/".join([b"n" * 203] * 20)  # the longest path of an image: too long for the kernel below a scratch
LAYER = tar.archive(
    tar.directory("./", mode=0o711, uid=4, mtime_ns=1_500_000_000_123_456_789),
    tar.file("a", b"two names", mtime_ns=2),
    tar.directory("d", mtime_ns=3),
    tar.file("d/f", b"file", mtime_ns=4),
    tar.file("same", b"file", mtime_ns=4),
    tar.file(FAR + b"/one", b"far", mtime_ns=5),
    tar.hardlink(FAR + b"/other", FAR + b"/one"),
)
CONTENT = TarBytes(LAYER)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    with merged(tmp_path_factory.mktemp("tree"), LAYER) as tree:
        yield tree


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    yield Scratch(tmp_path / "scratch", str(tmp_path / "scratch"))
    subprocess.run(["rm", "-rf", tmp_path / "scratch"], check=True)


def dig(tree: Tree, scratch: Scratch) -> None:
    """Make directories in each other, and a file in the last."""
    with scratch_overlay(scratch, ScratchTerms(tree, CONTENT, BASE, "dug")) as overlay:
        at = ROOT
        for _ in range(DEPTH):
            at = overlay.entries.make(at, b"deep", stat.S_IFDIR, OWNER).ino
        overlay.entries.make(at, b"file", stat.S_IFREG, OWNER)


def descend(tree: Tree, scratch: Scratch) -> int:
    """How deep it is."""
    with scratch_overlay(scratch, ScratchTerms(tree, CONTENT, BASE, "descended")) as overlay:
        at, depth = overlay.union.file(ROOT), 0
        while (below := overlay.union.find(at.ino, b"deep")) is not None:
            at, depth = below, depth + 1
        assert overlay.union.find(at.ino, b"file") is not None
        return depth


def test_a_deep_scratch_can_be_opened_again(tree: Tree, scratch: Scratch) -> None:
    dig(tree, scratch)
    assert descend(tree, scratch) == DEPTH


def test_the_size_of_a_deep_scratch_is_told(tree: Tree, scratch: Scratch) -> None:
    dig(tree, scratch)
    assert scratch.disk_usage() >= 0


def test_a_deep_scratch_can_be_reset_and_removed(tree: Tree, scratch: Scratch) -> None:
    dig(tree, scratch)
    scratch.reset()
    assert not scratch.upper.exists()
    dig(tree, scratch)
    scratch.remove()
    assert not scratch.directory.exists()


def test_the_changes_of_a_deep_scratch_are_listed(tree: Tree, scratch: Scratch) -> None:
    dig(tree, scratch)
    with scratch_diff(scratch, tree, CONTENT) as changes:
        paths = [change.path for change in changes if change.kind is ChangeKind.ADDED]
    assert len(paths) == DEPTH + 1
    assert paths[-1] == b"deep/" * DEPTH + b"file"


def test_a_deep_directory_moves_as_a_whole_and_goes(tree: Tree, scratch: Scratch) -> None:
    dig(tree, scratch)
    with scratch_overlay(scratch, ScratchTerms(tree, CONTENT, BASE, "moved")) as overlay:
        overlay.entries.rename(place(overlay, b"deep"), place(overlay, b"d/deep"), 0)
        at = ino(overlay, b"d")
        while (below := overlay.union.find(at, b"deep")) is not None:
            at = below.ino
        overlay.entries.unlink(at, b"file")
        assert list(overlay.union.children(at)) == []


def test_a_killed_copy_up_far_down_is_finished(tree: Tree, scratch: Scratch) -> None:
    """The names in its journal are longer, below the scratch, than a path may be."""
    with scratch_overlay(scratch, ScratchTerms(tree, CONTENT, BASE, "killed")) as overlay:
        overlay.copyup.up(ino(overlay, FAR + b"/one"))
        above = overlay.union.nodes[ino(overlay, FAR)]
        fd = overlay.union.directory_fd(above)
        os.link(b"one", scratch.work / "imgfs/0", src_dir_fd=fd)
        os.unlink(b"other", dir_fd=fd)
        (scratch.work / "imgfs/links-0").write_bytes(FAR + b"/one\0" + FAR + b"/other")
    with scratch_overlay(scratch, ScratchTerms(tree, CONTENT, BASE, "opened again")) as overlay:
        one, other = (find(overlay.union, FAR + name) for name in (b"/one", b"/other"))
        assert one is not None
        assert one is other
        assert overlay.union.attributes(one).nlink == 2


# -- the scratch itself


def test_looking_at_a_scratch_that_was_reset_leaves_it_so(tree: Tree, scratch: Scratch) -> None:
    with scratch_overlay(scratch, ScratchTerms(tree, CONTENT, BASE, "begun")) as overlay:
        overlay.set_mode(ino(overlay, b"a"), 0o600)
    scratch.reset()
    with scratch_diff(scratch, tree, CONTENT) as changes:
        assert list(changes) == []
    with scratch_overlay(scratch, ScratchTerms(tree, CONTENT, BASE, "again")) as overlay:
        root, lower = overlay.union.attributes(overlay.union.file(ROOT)), tree.node(ROOT)
        assert lower is not None
        assert (root.mode, root.uid, root.mtime_ns) == (lower.mode, lower.uid, lower.mtime_ns)


def test_a_socket_in_the_place_of_a_file_does_not_bring_the_file_back(tree: Tree, scratch: Scratch) -> None:
    with scratch_overlay(scratch, ScratchTerms(tree, CONTENT, BASE, "changed")) as overlay:
        for name in (b"a", b"d/f"):
            overlay.entries.unlink(*place(overlay, name))
            overlay.entries.make(*place(overlay, name), stat.S_IFSOCK, OWNER)
    with scratch_diff(scratch, tree, CONTENT) as changes:
        assert {entry.path for entry, _ in changes.members()} >= {b".wh.a", b"d/.wh.f"}


def test_links_made_and_broken_are_changes_although_all_else_is_the_same(
    tree: Tree, scratch: Scratch
) -> None:
    with scratch_overlay(scratch, ScratchTerms(tree, CONTENT, BASE, "linked")) as overlay:
        overlay.entries.unlink(*place(overlay, b"same"))
        overlay.entries.link(ino(overlay, b"d/f"), *place(overlay, b"same"))
    with scratch_diff(scratch, tree, CONTENT) as changes:
        assert {b"d/f", b"same"} <= {entry.path for entry, _ in changes.members()}


def test_a_scratch_of_another_image_is_refused_until_it_is_reset(tree: Tree, scratch: Scratch) -> None:
    other = ScratchBase("oci:/none:other", sha256(b"other"), 1)
    with scratch_overlay(scratch, ScratchTerms(tree, CONTENT, BASE, "begun")) as overlay:
        overlay.set_mode(ino(overlay, b"a"), 0o600)
    with pytest.raises(MountError, match="was made on oci:/none:test"):
        scratch.check(other)
    with pytest.raises(MountError, match="up to layer 1"):
        scratch.check(ScratchBase(BASE.reference, BASE.digest, 2))
    scratch.reset()
    scratch.check(other)


def test_a_reset_that_is_killed_leaves_no_half_of_the_changes(
    tree: Tree, scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scratch_overlay(scratch, ScratchTerms(tree, CONTENT, BASE, "changed")) as overlay:
        for name in (b"one", b"two"):
            overlay.entries.make(ROOT, name, stat.S_IFREG, OWNER)
    monkeypatch.setattr(os, "unlink", lambda *_, **__: os._exit(9))  # of the first file that is removed
    with Child(scratch.reset) as child:
        assert child.join() == 9
    monkeypatch.undo()
    with scratch_diff(scratch, tree, CONTENT) as changes:
        assert list(changes) == []
    scratch.reset()
    assert sorted(os.listdir(scratch.directory)) == ["ctimes", "lock", "scratch.json"]


@pytest.mark.parametrize("throw_away", [Scratch.reset, Scratch.remove])
def test_changes_that_are_thrown_away_while_they_are_read_are_not_taken_for_all(
    tree: Tree, scratch: Scratch, throw_away: Callable[[Scratch], None]
) -> None:
    with scratch_overlay(scratch, ScratchTerms(tree, CONTENT, BASE, "changed")) as overlay:
        for name in (b"one", b"two"):
            overlay.entries.make(ROOT, name, stat.S_IFDIR, OWNER)
    with scratch_diff(scratch, tree, CONTENT) as changes:
        members = changes.members()
        next(members)
        throw_away(scratch)
        with pytest.raises(MountError, match="has been reset or removed meanwhile"):
            list(members)
        with pytest.raises(MountError, match="has been reset or removed meanwhile"):
            list(changes)
