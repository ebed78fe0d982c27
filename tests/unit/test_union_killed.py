"""The scratch when its process is killed, or the disk refuses, at any step of a change: all of it or nothing.

Each change is made in a process of its own, which is ended before its first system call that changes
something, before its second, and so on; then the scratch is opened anew.
"""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import stat
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from imgfs.overlay.entries import EXCHANGE
from imgfs.overlay.node import UpperNode
from imgfs.overlay.overlay import Overlay
from imgfs.overlay.xattrs import Owner
from imgfs.tree.reader import Tree
from tests.support import tarmake as tar
from tests.support.children import code_of
from tests.support.layers import write_tree
from tests.support.union_fuse import CHANGING, NEEDING_ROOM, Fuse, FusedUpper
from tests.support.union_sights import Sight, TarBytes, find, ino, overlay_of, place, sights

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and trusted xattrs need root")

LAYER = tar.archive(
    tar.directory("./", mtime_ns=1),
    tar.file("a", b"three names", mode=0o640, uid=7, mtime_ns=2, xattrs={b"user.x": b"y"}),
    tar.hardlink("b", "a"),
    tar.directory("d", mode=0o750, uid=3, mtime_ns=3),
    tar.hardlink("d/c", "a"),
    tar.file("d/f", b"in a directory", mtime_ns=4),
    tar.directory("d/deep", mtime_ns=5),
    tar.file("d/deep/g", b"deep", mtime_ns=6, mode=0o4755),
    tar.symlink("d/s", "f", mtime_ns=7),
    tar.directory("e", mtime_ns=8),
    tar.file("e/h", b"in e", mtime_ns=9),
    tar.file("f", b"alone", mtime_ns=10),
)
OWNER = Owner(5, 6, 0o644)
FINISHED, FAILED, KILLED = 0, 8, 9

Act = Callable[[Overlay], object]
State = dict[bytes, Sight]


def change(path: bytes) -> Act:
    return lambda overlay: overlay.set_mode(ino(overlay, path), 0o600)


def touch(path: bytes) -> Act:
    return lambda overlay: overlay.set_times(ino(overlay, path), None, time.time_ns())


def unlink(path: bytes) -> Act:
    return lambda overlay: overlay.entries.unlink(*place(overlay, path))


def rmdir(path: bytes) -> Act:
    return lambda overlay: overlay.entries.rmdir(*place(overlay, path))


def rename(old: bytes, new: bytes, flags: int = 0) -> Act:
    return lambda overlay: overlay.entries.rename(place(overlay, old), place(overlay, new), flags)


def link(old: bytes, new: bytes) -> Act:
    return lambda overlay: overlay.entries.link(ino(overlay, old), *place(overlay, new))


def make(path: bytes, kind: int = stat.S_IFDIR) -> Act:
    return lambda overlay: overlay.entries.make(*place(overlay, path), kind, OWNER)


def fill(path: bytes) -> Act:
    """Give a file its own data, as before the first write."""

    def act(overlay: Overlay) -> None:
        node = overlay.copyup.up(ino(overlay, path))
        overlay.data_copyup.fill(node, sys.maxsize)()
        overlay.data_copyup.filled(node)

    return act


def several(*acts: Act) -> Act:
    def act(overlay: Overlay) -> None:
        for one in acts:
            one(overlay)

    return act


def nothing(overlay: Overlay) -> None:
    pass


EMPTY_D = several(*map(unlink, (b"d/c", b"d/f", b"d/s", b"d/deep/g")), rmdir(b"d/deep"))
EMPTY_E = unlink(b"e/h")
CASES: dict[str, tuple[Act, Act]] = {
    "copy up a file with three names": (nothing, change(b"b")),
    "copy up below directories": (nothing, change(b"d/deep/g")),
    "copy up one that has lost a name": (unlink(b"b"), change(b"a")),
    "copy data up": (touch(b"f"), fill(b"f")),
    "unlink an image file": (nothing, unlink(b"f")),
    "unlink a copied one": (change(b"f"), unlink(b"f")),
    "unlink one of three names": (nothing, unlink(b"d/c")),
    "rmdir of what the image has": (EMPTY_E, rmdir(b"e")),
    "rmdir of a new one": (make(b"n"), rmdir(b"n")),
    "rename an image file": (nothing, rename(b"f", b"n")),
    "rename over an image file": (nothing, rename(b"f", b"e/h")),
    "rename over one of three names": (nothing, rename(b"f", b"a")),
    "rename one of three names": (nothing, rename(b"a", b"e/n")),
    "rename a new file over a whiteout": (
        several(make(b"n", stat.S_IFREG), unlink(b"f")),
        rename(b"n", b"f"),
    ),
    "rename an image directory": (nothing, rename(b"d", b"e/n")),
    "rename an image directory over one that is empty": (EMPTY_E, rename(b"d", b"e")),
    "rename a new directory over one that is empty": (several(EMPTY_E, make(b"n")), rename(b"n", b"e")),
    "rename a new directory over a whiteout": (several(unlink(b"f"), make(b"n")), rename(b"n", b"f")),
    "rename an image directory over a whiteout": (unlink(b"f"), rename(b"d", b"f")),
    "rename a directory over one that is empty": (several(EMPTY_D, make(b"n")), rename(b"n", b"d")),
    "exchange image files": (nothing, rename(b"f", b"a", EXCHANGE)),
    "exchange image directories": (nothing, rename(b"d", b"e", EXCHANGE)),
    "exchange a file and a directory": (nothing, rename(b"f", b"d", EXCHANGE)),
    "link an image file": (nothing, link(b"a", b"e/n")),
    "link over a whiteout": (unlink(b"f"), link(b"a", b"f")),
    "mkdir over a whiteout": (several(EMPTY_E, rmdir(b"e")), make(b"e")),
}


@pytest.fixture(scope="module")
def tree_at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tree")
    write_tree(directory / "tree", [LAYER], directory)
    return directory / "tree"


@pytest.fixture(scope="module")
def tree(tree_at: Path) -> Iterator[Tree]:
    with Tree(tree_at) as tree:
        yield tree


def seen(tree: Tree, scratch: Path) -> State:
    """What a new process sees."""
    content = TarBytes(LAYER)
    with overlay_of(tree, content, scratch) as overlay:
        return sights(overlay, content)


def whole(tree: Tree, case: str, scratch: Path) -> tuple[State, State]:
    """What there is before and after a change that nothing disturbs."""
    first, then = CASES[case]
    content = TarBytes(LAYER)
    with overlay_of(tree, content, scratch) as overlay:
        first(overlay)
        before = sights(overlay, content)
        then(overlay)
        after = sights(overlay, content)
    assert seen(tree, scratch) == after
    return before, after


def attempt(tree: Path, case: str, scratch: Path, make_fuse: Callable[[], Fuse]) -> NoReturn:
    """Change in a process with a fuse, and end it with what `_change` returns."""
    with Tree(tree) as opened:
        os._exit(_change(opened, case, scratch, make_fuse()))


def _change(tree: Tree, case: str, scratch: Path, fuse: Fuse) -> int:
    first, then = CASES[case]
    content = TarBytes(LAYER)
    (scratch / "upper").mkdir(parents=True)
    FusedUpper.fuse = fuse
    with Overlay(tree, content, FusedUpper(scratch / "upper", scratch / "work"), durable=False) as overlay:
        first(overlay)
        fuse.light()
        try:
            then(overlay)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            (scratch / "seen").write_bytes(pickle.dumps(sights(overlay, content)))
            return FAILED
        return FINISHED


def _die() -> None:
    os._exit(KILLED)


def _refuse() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def different(state: State, *right: State) -> list[str]:
    """How a state differs from the one of the right ones that it is nearest to."""
    told = []
    for one in right:
        paths = sorted(state.keys() | one.keys())
        told.append(
            [
                f"{os.fsdecode(path)}: {_fields(state.get(path), one.get(path))}"
                for path in paths
                if state.get(path) != one.get(path)
            ]
        )
    return min(told, key=len)


def _fields(found: Sight | None, right: Sight | None) -> str:
    if found is None or right is None:
        return "missing" if found is None else "too much"
    pairs = zip(Sight._fields, found, right, strict=True)
    return ", ".join(f"{name} {one!r}, not {other!r}" for name, one, other in pairs if one != other)


@pytest.mark.parametrize("case", CASES)
def test_a_kill_at_any_step_leaves_all_of_a_change_or_nothing(
    case: str, tree: Tree, tree_at: Path, tmp_path: Path
) -> None:
    states = whole(tree, case, tmp_path / "whole")
    for step in itertools.count(1):
        scratch = tmp_path / f"{step}"
        code = code_of(attempt, tree_at, case, scratch, partial(Fuse, step, CHANGING, _die))
        assert different(seen(tree, scratch), *states) == [], f"killed before step {step}"
        assert os.listdir(scratch / "work/imgfs") == []
        if code == FINISHED:
            break
        assert code == KILLED
    assert step > 1


@pytest.mark.parametrize("case", CASES)
def test_a_change_that_fails_for_want_of_room_is_done_or_not(
    case: str, tree: Tree, tree_at: Path, tmp_path: Path
) -> None:
    states = whole(tree, case, tmp_path / "whole")
    for step in itertools.count(1):
        scratch = tmp_path / f"{step}"
        code = code_of(attempt, tree_at, case, scratch, partial(Fuse, step, NEEDING_ROOM, _refuse))
        if code == FINISHED:
            break
        assert code == FAILED, f"step {step}"
        there: State = pickle.loads((scratch / "seen").read_bytes())
        assert different(there, *states) == [], f"seen when step {step} had failed"
        assert different(seen(tree, scratch), there) == [], f"opened anew when step {step} had failed"


def test_a_link_that_a_killed_process_wrote_down_is_made(tree: Tree, tmp_path: Path) -> None:
    """The journal names paths; some of the links are there already."""
    with overlay_of(tree, TarBytes(LAYER), tmp_path) as overlay:
        overlay.copyup.up(ino(overlay, b"a"))
        node = find(overlay.union, b"a")
        assert isinstance(node, UpperNode)
    os.link(tmp_path / "upper/a", tmp_path / "work/imgfs/0")
    (tmp_path / "work/imgfs/links-0").write_bytes(b"a\0b\0d/c")
    (tmp_path / "upper/b").unlink()
    found = seen(tree, tmp_path)
    assert [found[path].group for path in (b"a", b"b", b"d/c")] == [b"a"] * 3
