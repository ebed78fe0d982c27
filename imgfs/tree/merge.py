"""Merging layers by the OCI rules (image-spec layer.md, "Applying Changesets"; else as containerd does).

A layer's whiteouts apply first, wherever they are in the layer, and hide only files of the layers below. Then
its entries apply, in order. A character device 0/0 is a whiteout at its position in the layer, as it is for
all engines that unpack onto overlayfs. A hard link's target is resolved at the link's position; if it does
not exist there, at the end of the layer; if not there either, among the files that the layer's whiteouts hid.
AUFS metadata never shows, but hard links may refer to it: Docker once stored files with several names so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from imgfs.errors import InvalidImage, StoreError
from imgfs.layer.entry import Entry, Kind
from imgfs.layer.growing import GrowingIndex, LayerEntries, Withdrawn
from imgfs.owned.writing import explained
from imgfs.tree.builder import CHARACTER, DIRECTORY, IMPLIED, Dirent, TreeBuilder
from imgfs.tree.database import ROOT
from imgfs.tree.merge_state import MergeState
from imgfs.tree.paths import OPAQUE, WHITEOUT_PREFIX, Budget, clean, is_reserved, parse_whiteout, shown
from imgfs.tree.walk import PathWalk


def merge(layers: Iterable[LayerEntries], path: Path) -> None:
    """Merge `layers`, the lowest first, into a tree: a new file at `path`, complete on return.

    Takes each layer from `layers` when those below it have been merged, so the iterator may wait for the next
    one. The same layers give the same inos. Memory is bounded, whatever the layers' size. After an exception
    the file at `path` is not a tree. Raises InvalidImage, naming layer and path, StoreError, and what
    `layers` raises; Withdrawn if an index that grows cannot be merged before it is whole.
    """
    merge_by(TreeBuilder, layers, path)


def merge_by(kind: type[TreeBuilder], layers: Iterable[LayerEntries], path: Path) -> None:
    """Merge as `merge` does, by a builder of this `kind`."""
    spaces, budget = [], Budget()
    try:
        with closing(kind(path)) as builder:
            for number, index in enumerate(layers):
                builder.begin_layer(number)
                _Layer(builder, index, number, budget).apply()
                builder.end_layer()
                spaces.append(index.summary.space)
            builder.finish(spaces)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{path}: the layers cannot be merged: {explained(error, path)}") from error


_NOTHING = Dirent(0, CHARACTER)  # the target of a hard link to a whiteout: no node


class _Layer:
    """One layer that is merged into the tree.

    Of one that still grows the whiteouts are not known, which count before any entry: at the first that would
    hide names it is Withdrawn.
    """

    def __init__(self, builder: TreeBuilder, index: LayerEntries, number: int, budget: Budget) -> None:
        self._budget = budget
        self._builder = builder
        self._index = index
        self._number = number
        self._is_early = isinstance(index, GrowingIndex) and not index.is_complete
        self._state = MergeState(builder)
        self._walk = PathWalk(builder, self._state, index, budget)

    def apply(self) -> None:
        """Merge the layer."""
        if self._number and not self._is_early:
            self._hide()
        path = b""
        try:
            for entry in self._index.entries():
                path = entry.path
                if self._is_early and self._number and WHITEOUT_PREFIX in path:
                    raise Withdrawn
                self._budget.add_entry()
                self._add(entry)
        except InvalidImage as error:
            if self._is_early:  # it may be the transport's fault, or be different behind whiteouts
                raise Withdrawn from error
            raise self._located(error, path) from error
        self._link_later()
        self._state.end()

    def _hide(self) -> None:
        """Remove the names that this layer's whiteouts hide; all whiteouts are read before any is applied."""
        for entry in self._index.whiteout_candidates():
            with self._locating(entry.path):
                if whiteout := parse_whiteout(clean(entry.path)):
                    self._hide_below(*whiteout)
        if self._state.hides():
            self._hold_targets()
            self._state.remove_hidden()
            self._release_targets()

    def _hide_below(self, directory: bytes, name: bytes) -> None:
        parent = self._walk.find_directory(directory)
        if parent is None:
            return
        if name == OPAQUE:
            self._state.hide_all(parent)
        else:
            self._state.hide(parent, name)

    def _hold_targets(self) -> None:
        """Pin the targets that hard links of this layer have below: its whiteouts may remove them."""
        for entry in self._index.hardlinks():
            with self._locating(entry.path):
                target = clean(entry.target)
            found = self._walk.find(target, lower=True)
            if found and found.type != DIRECTORY:
                self._state.hold(target, found)

    def _release_targets(self) -> None:
        """Unpin the targets that no whiteout has hidden."""
        for path, held in self._state.holdings():
            if self._walk.find(path, lower=True) == held:
                self._state.release(path, held)

    def _add(self, entry: Entry) -> None:
        path = clean(entry.path)
        if is_reserved(path):
            self._put_aside(path, entry)
            return
        if not path:
            self._describe_root(entry)
            return
        head, _, name = path.rpartition(b"/")
        parent = self._builder.known.get(head) or self._walk.directory(head)
        if entry.kind is Kind.DIRECTORY:
            self._add_directory(parent, path, entry)
        elif entry.kind is Kind.HARDLINK:
            self._link(parent, path, entry)
        elif _is_whiteout_device(entry):
            self._remove(parent, path)
        else:
            self._replace(parent, name, entry)

    def _describe_root(self, entry: Entry) -> None:
        """Take the root's time from an entry, and nothing else: containerd and podman pass over the entry.

        Their root is open to all; what builders pack may be a directory of `mktemp -d`, closed to others.
        """
        if entry.kind is not Kind.DIRECTORY:
            raise InvalidImage("the entry would make the root something else than a directory")
        self._builder.describe(ROOT, IMPLIED._replace(mtime_ns=entry.mtime_ns))

    def _replace(self, parent: int, name: bytes, entry: Entry) -> None:
        """Add a node, replacing the one that has its name; mostly the name is free, so try that first."""
        if not self._builder.add(parent, name, entry, self._number):
            taken = self._builder.find(parent, name)
            if taken:
                self._builder.remove(parent, name, taken)
            self._builder.add(parent, name, entry, self._number)

    def _remove(self, parent: int, path: bytes) -> None:
        """Remove the node that has the name; hard links to the path make nothing either."""
        name = path.rpartition(b"/")[2]
        if taken := self._builder.find(parent, name):
            self._builder.remove(parent, name, taken)
        self._state.put_aside(path, _NOTHING)

    def _put_aside(self, path: bytes, entry: Entry) -> None:
        """Keep AUFS metadata for the hard links that refer to it."""
        if entry.kind is Kind.DIRECTORY or parse_whiteout(path):
            return
        if entry.kind is not Kind.HARDLINK:
            self._state.put_aside(path, self._builder.add_nameless(entry, self._number))
        elif found := self._find(clean(entry.target)):
            self._builder.pin(_linkable(found, entry.target)[0])
            self._state.put_aside(path, found)

    def _add_directory(self, parent: int, path: bytes, entry: Entry) -> None:
        """Add a directory, or give the one of that name the entry's attributes."""
        name = path.rpartition(b"/")[2]
        taken = self._builder.find(parent, name)
        if taken and taken.type == DIRECTORY:
            self._builder.describe(taken.ino, entry)
            self._builder.remember(path, taken.ino)
        elif taken:
            self._builder.remove(parent, name, taken)
            self._builder.add_directory(
                parent, name, entry
            )  # if it was a symlink, `path` may have led through it
        else:
            self._builder.remember(path, self._builder.add_directory(parent, name, entry))

    def _link(self, parent: int, path: bytes, entry: Entry) -> None:
        """Make a hard link; the entry's own attributes do not count, its target's do, as in umoci."""
        target, name = clean(entry.target), path.rpartition(b"/")[2]
        found = self._find(target)
        if found == _NOTHING:
            self._remove(parent, path)
            return
        if found:
            self._builder.link(parent, name, _linkable(found, target))
            return
        if taken := self._builder.find(parent, name):
            self._builder.remove(parent, name, taken)
        self._state.link_later(path, target)

    def _find(self, path: bytes) -> Dirent | None:
        """Return the node that a hard link to `path` refers to at this position in the layer."""
        return self._walk.find(path) or self._state.aside(path)

    def _link_later(self) -> None:
        """Make the hard links whose target did not exist at their position; chains of them in any order."""
        last_first = True
        while self._try_links(self._find, last_first) or self._try_links(self._state.held, last_first):
            last_first = not last_first
        for _, path, target in self._state.later():
            with self._locating(path):
                raise InvalidImage(f"a hard link to {shown(target)!r}, which is not in the image")

    def _try_links(self, find: Callable[[bytes], Dirent | None], last_first: bool) -> bool:
        """Make those hard links whose target `find` finds; return True if there were any."""
        linked = False
        for seq, path, target in self._state.later(last_first=last_first):
            with self._locating(path):
                self._budget.look_up(1)
                if found := find(target):
                    self._link_if_free(path, _linkable(found, target))
                    self._state.linked(seq)
                    linked = True
        return linked

    def _link_if_free(self, path: bytes, found: Dirent) -> None:
        """Make a link, unless a later entry of the layer has its name."""
        head, _, name = path.rpartition(b"/")
        if found == _NOTHING:
            self._walk.directory(head)
            return
        self._builder.pin(found.ino)  # a directory that is made on the way may take its place
        parent = self._walk.directory(head)
        if self._builder.find(parent, name) is None:
            self._builder.link(parent, name, found)
        self._builder.unpin(found.ino)

    @contextmanager
    def _locating(self, path: bytes) -> Iterator[None]:
        try:
            yield
        except InvalidImage as error:
            raise self._located(error, path) from error

    def _located(self, error: InvalidImage, path: bytes) -> InvalidImage:
        digest = self._index.summary.digest
        return InvalidImage(str(error), where=f"layer {self._number} ({digest[:19]}…), {shown(path)}")


def _is_whiteout_device(entry: Entry) -> bool:
    return entry.kind is Kind.CHARACTER and entry.device == (0, 0)


def _linkable(found: Dirent, target: bytes) -> Dirent:
    if found.type == DIRECTORY:
        raise InvalidImage(f"a hard link to {shown(target)!r}, which is a directory")
    return found
