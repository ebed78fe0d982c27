"""Trees of all versions: what shows is as in a plain tree, and what is hidden is what a model has lost."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings

from imgfs.errors import InvalidImage, StoreError
from imgfs.layer.entry import Entry, Extent, Kind
from imgfs.layer.tar.reader import tar_entries
from imgfs.tree import versions
from imgfs.tree.paths import Budget
from imgfs.tree.versions import VersionsTree
from tests.support import tarmake as tar
from tests.support.layers import all_versions as versions_of
from tests.unit.test_merge_model import LAYERS, Model, accepted, tree_rows


@contextmanager
def all_versions(*layers: list[Entry]) -> Iterator[VersionsTree]:
    with tempfile.TemporaryDirectory() as scratch, versions_of(Path(scratch), *layers) as (tree, _):
        yield tree


def entries(*members: bytes) -> list[Entry]:
    return list(tar_entries(tar.archive(*members)))


@settings(max_examples=60, deadline=None)
@given(LAYERS.map(accepted))
def test_what_each_layer_of_a_random_stack_hides_is_listed(layers: list[list[Entry]]) -> None:
    after = [
        {(path, stamp) for path, kind, stamp, *_ in Model(layers[:count]).rows() if kind != stat.S_IFDIR}
        for count in range(len(layers) + 1)
    ]
    shown_paths = [{path for path, *_ in Model(layers[:count]).rows()} for count in range(len(layers) + 1)]
    with all_versions(*layers) as tree:
        assert sorted(tree_rows(tree)) == Model(layers).rows()
        found = list(tree.hidden())
    assert all(hidden.is_replaced == (hidden.path.decode() in shown_paths[hidden.hider]) for hidden in found)
    files = [hidden for hidden in found if not stat.S_ISDIR(hidden.node.mode)]
    listed = {(hidden.path.decode(), hidden.node.mtime_ns, hidden.hider) for hidden in files}
    for number, (before, now) in enumerate(pairwise(after), 1):
        assert {(*name, number) for name in before - now} <= listed
        older = {stamp for _, stamp, hider in listed if hider == number and stamp // 1000 < number - 1}
        assert older <= {stamp for _, stamp in before}
    shown = {stamp for _, stamp in after[-1]}
    assert {hidden.node.nlink > 0 for hidden in files if hidden.node.mtime_ns in shown} <= {True}
    assert {hidden.node.nlink for hidden in files if hidden.node.mtime_ns not in shown} <= {0}


def test_bytes_are_lost_when_the_last_name_is() -> None:
    lower = entries(tar.file("a", b"x" * 1000), tar.hardlink("b", "a"), tar.file("d/c", b"y" * 10))
    middle = entries(tar.whiteout("a"), tar.file("d/c", b"z" * 20))
    with all_versions(lower, middle) as tree:
        assert [(lost.path, lost.size) for lost in tree.lost(9)] == [(b"/d/c", 10)]
        assert tree.stored() == 1030
    with all_versions(lower, middle, entries(tar.whiteout("b"), tar.whiteout("d"))) as tree:
        assert [(*lost[:4], lost.is_replaced) for lost in tree.lost(9)] == [
            (b"/b", 1000, 1, 3, False),
            (b"/d/c", 20, 2, 3, False),
            (b"/d/c", 10, 1, 2, True),
        ]
        assert [tuple(each) for each in tree.lost_sums()] == [
            (1, 2, True, 1, 10),
            (1, 3, False, 1, 1000),
            (2, 3, False, 1, 20),
        ]
        assert tree.hidden_below(b"/d", 3) == 20


def test_holes_are_not_lost_and_what_a_layer_hides_itself_is() -> None:
    sparse = Entry(b"s", Kind.FILE, 0o600, 0, 0, 1 << 40, 0, extents=(Extent(0, 512, 0),))
    twice = Entry(b"t", Kind.FILE, 0o600, 0, 0, 5, 0, extents=(Extent(0, 5, 512),))
    with all_versions([sparse, twice, twice], entries(tar.whiteout("s"))) as tree:
        assert [tuple(lost) for lost in tree.lost(9)] == [
            (b"/s", 512, 1, 2, False),
            (b"/t", 5, 1, 1, True),
        ]


def test_a_hidden_name_is_where_it_was_not_where_a_symlink_led() -> None:
    lower = entries(tar.file("usr/bin/key", b"k"), tar.symlink("bin", "usr/bin"))
    with all_versions(lower, entries(tar.whiteout("bin/key")), entries(tar.opaque("usr"))) as tree:
        assert [(hidden.path, hidden.hider) for hidden in tree.hidden()] == [
            (b"/usr/bin", 3),
            (b"/usr/bin/key", 2),
        ]


def test_directories_know_the_layer_that_made_them() -> None:
    with all_versions(entries(tar.directory("a")), entries(tar.file("b/c", b""))) as tree:
        assert [tree.contents(tree.resolve(path).ino)[0] for path in (b"a", b"b")] == [0, 1]


def test_paths_that_cost_more_than_they_take_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of directories, hidden from below: each time all the way up, unless that is bounded."""
    deep = [tar.file(f"{'d/' * count}f", b"") for count in range(1, 1500, 15)]
    hides = [tar.whiteout(f"{'d/' * count}f") for count in range(1486, 0, -15)]
    with all_versions(entries(*deep), entries(*hides)) as tree:
        assert len(list(tree.hidden())) == 100
    budget = Budget()
    budget.look_up(170_000)
    monkeypatch.setattr(versions, "Budget", lambda: budget)
    with pytest.raises(InvalidImage, match="more than the"), all_versions(entries(*deep), entries(*hides)):
        pass


def test_a_path_longer_than_linux_has_is_not_listed() -> None:
    name, chain = "n" * 200, "d" * 200
    half = "/".join([chain] * 15)
    deep = tar.file(f"link/{half}/{name}", b"1234")
    lower = entries(tar.file(f"{half}/x", b""), tar.symlink("link", half), deep)
    with all_versions(lower, entries(tar.whiteout(chain))) as tree:
        assert max(len(hidden.path) for hidden in tree.hidden()) <= 4095
        assert sum(each.size for each in tree.lost_sums()) == 0
        assert tree.stored() == 4


def test_what_is_hidden_takes_room_by_the_nodes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_ROOM_MORE", 64 << 10)
    name = "n" * 250
    lower = entries(*(tar.file(f"{'/'.join([name] * 15)}/{number}", b"") for number in range(100)))
    with pytest.raises(StoreError, match="full"), all_versions(lower, entries(tar.whiteout(name))):
        pass
