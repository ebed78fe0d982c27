"""Random stacks of layers, merged on disk and in a simple model of objects in dicts: both must agree."""

from __future__ import annotations

import posixpath
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import InvalidImage
from imgfs.layer.entry import Entry, Kind
from imgfs.layer.growing import GrowingIndex, Withdrawn
from imgfs.layer.index import LayerIndex
from imgfs.tree.database import ROOT
from imgfs.tree.merge import merge
from imgfs.tree.reader import Tree
from tests.support.layers import merged, write_index

# A path, or a link's target, as a stack of layers uses them: few names, so that they meet.
_NAMES = st.sampled_from(["a", "b", "c"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_TARGETS = st.one_of(_PATHS, _PATHS.map("/".__add__), _PATHS.map("../".__add__), st.just(".."), st.just("."))
_SPELLINGS = st.sampled_from(["{}", "{}", "{}", "./{}", "/{}", "{}/", "x/..//{}", "../{}"])


@st.composite
def _entries(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from([Kind.FILE, Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.HARDLINK]))
    path = draw(st.one_of(_PATHS, _PATHS, _PATHS, st.just(".") if kind is Kind.DIRECTORY else _PATHS))
    if kind is Kind.FILE and draw(st.integers(0, 2)) == 0:
        parent, name = posixpath.split(path)
        path = posixpath.join(parent, draw(st.sampled_from([f".wh.{name}", ".wh..wh..opq", ".wh..wh.x"])))
    target = draw(_TARGETS) if kind in (Kind.SYMLINK, Kind.HARDLINK) else ""
    spelt = draw(_SPELLINGS).format(path)
    return Entry(spelt.encode(), kind, 0o700, 0, 0, 0, 0, target.encode())


def _stamped(layers: list[list[Entry]]) -> list[list[Entry]]:
    """The same layers, every entry known by its date."""
    return [
        [entry._replace(mtime_ns=1000 * number + at) for at, entry in enumerate(layer, start=1)]
        for number, layer in enumerate(layers)
    ]


LAYERS = st.lists(st.lists(_entries(), max_size=10), min_size=1, max_size=4).map(_stamped)


Row = tuple[str, int, int, str, int]  # path, file type, stamp, target, nlink


@dataclass(eq=False)
class Thing:
    """A file of the model; implied directories have the date 0."""

    kind: Kind
    stamp: int = 0
    target: str = ""
    layer: int = -1
    children: dict[str, Thing] = field(default_factory=dict)


class Refused(Exception):
    """The model takes the stack for an invalid image, because of `entry`."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry


class Model:
    """The rules once more, without a thought for size or speed."""

    lower_gives_way = True  # an entry below a lower non-directory makes a directory of it

    def __init__(self, layers: Sequence[Sequence[Entry]]) -> None:
        self.root = Thing(Kind.DIRECTORY)
        self.made_parents = False
        self.entry = Entry(b"", Kind.FILE, 0, 0, 0, 0, 0)  # what is being added
        for self.number, layer in enumerate(layers):
            members = [(_clean(entry.path), entry) for entry in layer]
            self.own = {path for path, entry in members if entry.kind is Kind.DIRECTORY}
            links = {_clean(entry.target) for _, entry in members if entry.kind is Kind.HARDLINK}
            self.lower = {path: self.find(path, lower=True) for path in links}
            self.hide([path for path, _ in members])
            self.lower = {
                path: it for path, it in self.lower.items() if self.find(path, lower=True) is not it
            }
            self.waiting: dict[str, Entry] = {}
            for path, self.entry in members:
                if ".wh." not in path:
                    self.add(path, self.entry)
            self.link_waiting()

    def rows(self) -> list[Row]:
        return sorted(_model_rows(self.root))

    def hide(self, paths: Sequence[str]) -> None:
        hidden = []
        for parent, name in map(posixpath.split, paths):
            if name.startswith(".wh.") and (directory := self.walk(parent, make=False)):
                if name == ".wh..wh..opq":
                    hidden += [(directory, child) for child in directory.children]
                elif not name.startswith(".wh..wh."):
                    hidden.append((directory, name[4:]))
        for directory, name in hidden:
            directory.children.pop(name, None)

    def add(self, path: str, entry: Entry) -> None:
        if not path:
            if entry.kind is not Kind.DIRECTORY:
                raise Refused(entry)
            self.root.stamp = entry.mtime_ns
            return
        parent, name = self.parent(path)
        if entry.kind is Kind.HARDLINK:
            self.link(parent, path, entry)
            return
        there = parent.children.get(name)
        if there and there.kind is entry.kind is Kind.DIRECTORY:
            there.stamp = entry.mtime_ns
            return
        parent.children[name] = Thing(entry.kind, entry.mtime_ns, entry.target.decode(), self.number)

    def link(self, parent: Thing, path: str, entry: Entry) -> None:
        name, found = posixpath.basename(path), self.find(_clean(entry.target))
        if found is None:
            parent.children.pop(name, None)
            self.waiting.pop(path, None)
            self.waiting[path] = entry
        else:
            parent.children[name] = self.linkable(found)

    def link_waiting(self) -> None:
        while self.link_found(lower=False) or self.link_found(lower=True):
            pass
        for entry in self.waiting.values():
            raise Refused(entry)

    def link_found(self, *, lower: bool) -> bool:
        before = len(self.waiting)
        for path, entry in reversed(list(self.waiting.items())):
            self.entry, target = entry, _clean(entry.target)
            found = self.lower.get(target) if lower else self.find(target)
            if lower and found and found.kind is Kind.DIRECTORY:
                continue
            if found:
                parent, name = self.parent(path)
                parent.children.setdefault(name, self.linkable(found))
                del self.waiting[path]
        return len(self.waiting) < before

    def linkable(self, found: Thing) -> Thing:
        if found.kind is Kind.DIRECTORY:
            raise Refused(self.entry)
        return found

    def parent(self, path: str) -> tuple[Thing, str]:
        head, name = posixpath.split(path)
        parent = self.walk(head, make=True)
        assert parent is not None
        return parent, name

    def find(self, path: str, *, lower: bool = False) -> Thing | None:
        if not path:
            return self.root
        head, name = posixpath.split(path)
        parent = self.walk(head, make=False, lower=lower)
        return parent.children.get(name) if parent else None

    def walk(self, path: str, *, make: bool, lower: bool = False) -> Thing | None:
        """The directory at `path`; `make` what is missing, or else None."""
        route, ahead, links = [self.root], _prefixes(path), 0
        while ahead:
            name, prefix = ahead.pop(0)
            if name in ("", ".", ".."):
                route = route[:-1] if name == ".." and len(route) > 1 else route
                continue
            there = route[-1].children.get(name)
            if there and there.kind is not Kind.DIRECTORY and not lower:
                is_below = make and self.lower_gives_way and prefix and there.layer < self.number
                there = None if is_below or self.gives_way(there, prefix) else there
            if there is None:
                if not make:
                    return None
                there = route[-1].children[name] = Thing(Kind.DIRECTORY)
                self.made_parents = True
            if there.kind is Kind.SYMLINK and links < 40:
                links += 1
                route = [self.root] if there.target.startswith("/") else route
                ahead = [(part, None) for part in there.target.split("/")] + ahead
            elif there.kind is Kind.DIRECTORY:
                route.append(there)
            elif make:
                raise Refused(self.entry)
            else:
                return None
        return route[-1]

    def gives_way(self, there: Thing, prefix: str | None) -> bool:
        return prefix in self.own and not (there.kind is Kind.SYMLINK and there.layer == self.number)


def accepted(layers: list[list[Entry]]) -> list[list[Entry]]:
    """The stack without the entries that the model refuses."""
    while True:
        try:
            Model(layers)
        except Refused as refused:
            layers = [[entry for entry in layer if entry is not refused.entry] for layer in layers]
        else:
            return layers


def _clean(path: bytes) -> str:
    return posixpath.normpath("//" + path.decode()).lstrip("/")


def _prefixes(path: str) -> list[tuple[str, str | None]]:
    parts = path.split("/")
    return [(part, "/".join(parts[: at + 1])) for at, part in enumerate(parts)]


def _model_rows(root: Thing) -> Iterator[Row]:
    everything = list(_model_paths("", root))
    counts: dict[Thing, int] = {}
    for _, thing in everything:
        counts[thing] = counts.get(thing, 0) + 1
    for path, thing in everything:
        below = sum(child.kind is Kind.DIRECTORY for child in thing.children.values())
        nlink = 2 + below if thing.kind is Kind.DIRECTORY else counts[thing]
        yield path, _FORMATS[thing.kind], thing.stamp, thing.target, nlink


_FORMATS = {Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}


def _model_paths(path: str, thing: Thing) -> Iterator[tuple[str, Thing]]:
    yield path, thing
    for name, child in thing.children.items():
        yield from _model_paths(f"{path}/{name}", child)


def tree_rows(tree: Tree, path: str = "", ino: int = ROOT) -> Iterator[Row]:
    node = tree.node(ino)
    assert node is not None
    target = tree.target(ino).decode() if stat.S_ISLNK(node.mode) else ""
    yield path, stat.S_IFMT(node.mode), node.mtime_ns, target, node.nlink
    for _, name, child in tree.children(ino):
        yield from tree_rows(tree, f"{path}/{name.decode()}", child.ino)


@settings(max_examples=300, deadline=None)
@given(LAYERS.map(accepted) | LAYERS)
def test_random_stacks_merge_as_the_model_says(layers: list[list[Entry]]) -> None:
    try:
        expected = Model(layers).rows()
    except Refused:
        expected = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with merged(Path(scratch), *layers) as tree:
                assert sorted(tree_rows(tree)) == expected
                distinct = {node for _, _, node in _everything(tree, ROOT)}
                assert tree.node_count == 1 + len(distinct)
        except InvalidImage:
            assert expected == []


class _Late(GrowingIndex):
    """An index that is whole once all its entries have been read as they came, or all of it is needed."""

    def __init__(self, path: Path, whole: LayerIndex) -> None:
        super().__init__(path)
        self._late = whole

    def _written(self, count: int) -> list[Entry]:
        if not (found := super()._written(count)):
            self.complete(self._late)
        return found

    def _wait(self) -> LayerIndex:
        self.complete(self._late)
        return super()._wait()


@settings(max_examples=100, deadline=None)
@given(LAYERS.map(accepted) | LAYERS)
def test_layers_merged_while_they_grow_are_as_if_they_were_whole_or_withdrawn(
    layers: list[list[Entry]],
) -> None:
    hides = any(b".wh." in entry.path for layer in layers[1:] for entry in layer)
    with (
        tempfile.TemporaryDirectory() as scratch,
        ExitStack() as stack,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("imgfs.layer.growing._POLL", 0.0)
        try:
            with merged(Path(scratch), *layers) as tree:
                expected = sorted(tree_rows(tree))
        except InvalidImage:
            expected = []
        paths = [Path(scratch, f"{number}") for number in range(len(layers))]
        for path, entries in zip(paths, layers, strict=True):
            write_index(path, entries)
        late = [_Late(path, stack.enter_context(LayerIndex(path))) for path in paths]
        try:
            merge(late, Path(scratch, "tree"))
        except Withdrawn:
            assert hides or not expected
        except InvalidImage:
            assert not expected
        else:
            with Tree(Path(scratch, "tree")) as tree:
                assert sorted(tree_rows(tree)) == expected


def _everything(tree: Tree, ino: int) -> Iterator[tuple[int, bytes, int]]:
    for position, name, node in tree.children(ino):
        yield position, name, node.ino
        if stat.S_ISDIR(node.mode):
            yield from _everything(tree, node.ino)


_ALPHABET = st.sampled_from([b"/", b".", b"a", b"b", b".wh.", b".wh..wh..opq", b"\0", b"\xff", b"x" * 256])
_BYTES = st.lists(_ALPHABET, max_size=8).map(b"".join)
_HOSTILE = st.builds(
    Entry,
    path=_BYTES,
    kind=st.sampled_from(Kind),
    mode=st.integers(0, 1 << 40),
    uid=st.integers(-1, 1 << 33),
    gid=st.just(0),
    size=st.integers(-1, 1),
    mtime_ns=st.integers(-(1 << 70), 1 << 70),
    target=_BYTES,
    device=st.tuples(st.integers(-1, 5000), st.integers(-1, 1 << 21)),
    xattrs=st.dictionaries(st.binary(max_size=3), st.binary(max_size=3), max_size=2),
    extents=st.just(()),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(_HOSTILE, max_size=3), min_size=1, max_size=3))
def test_any_entries_make_a_sound_tree_or_an_invalid_image(layers: list[list[Entry]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        names = []
        try:
            with merged(Path(scratch), *layers) as tree:
                names = [name for _, name, _ in _everything(tree, ROOT)]
        except InvalidImage as error:
            complaint = error.where
        else:
            complaint = "layer"
        assert complaint is not None
        assert complaint.startswith("layer")
        assert all(0 < len(name) < 256 and not set(b"/\0") & set(name) for name in names)
        assert not {name for name in names if name in (b".", b"..") or name.startswith(b".wh.")}
