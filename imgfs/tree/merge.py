"""Merging layers by the OCI rules (image-spec layer.md, "Applying Changesets"; else as containerd does).

Of each layer, the whiteouts come first, wherever they stand: they hide what the layers below have and nothing
else. Then the entries, in their order. A character device 0/0 is a whiteout where it stands, as it is for all
engines that unpack onto overlayfs. A hard link means what its target is at that place in the layer; if that
is nothing, what it is at the layer's end; if nothing still, what the layer's whiteouts hid there. AUFS's
metadata never shows, but hard links may mean it: so Docker once kept files of several names.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from imgfs.errors import InvalidImage, StoreError
from imgfs.layer.entry import Entry, Kind
from imgfs.layer.index import LayerIndex
from imgfs.tree.budget import Budget
from imgfs.tree.builder import CHARACTER, DIRECTORY, Draft, Found
from imgfs.tree.merge_state import Notes
from imgfs.tree.paths import OPAQUE, clean, is_reserved, parse_whiteout, shown
from imgfs.tree.schema import ROOT
from imgfs.tree.walk import Walk


def merge(layers: Iterable[LayerIndex], path: Path) -> None:
    """Merge `layers`, the lowest first, into a tree: a new file at `path`, complete on return.

    Each is asked for when those below it have been merged: whoever gives them may wait for the next one. The
    same layers give the same inos. Memory is bounded, whatever the layers' size. If it raises, what is at
    `path` is no tree. Raises InvalidImage, naming layer and path, StoreError, and what `layers` raises.
    """
    spaces, budget = [], Budget()
    try:
        with closing(Draft(path)) as draft:
            for number, index in enumerate(layers):
                _Layer(draft, index, number, budget).apply()
                spaces.append(index.summary.space)
            draft.finish(spaces)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{path}: the layers cannot be merged: {error}") from error


_NOTHING: Found = (0, CHARACTER)  # what a hard link to a whiteout means


class _Layer:
    """One layer on its way into the draft."""

    def __init__(self, draft: Draft, index: LayerIndex, number: int, budget: Budget) -> None:
        self._budget = budget
        self._draft = draft
        self._index = index
        self._number = number
        self._notes = Notes(draft)
        self._walk = Walk(draft, self._notes, index, budget)

    def apply(self) -> None:
        """Merge the layer."""
        if self._number:
            self._hide()
        path = b""
        try:
            for entry in self._index.entries():
                path = entry.path
                self._budget.add_entry()
                self._add(entry)
        except InvalidImage as error:
            raise self._located(error, path) from error
        self._link_later()
        self._notes.end()

    def _hide(self) -> None:
        """Hide from the layers below what this layer's whiteouts name; all are read before any is obeyed."""
        for entry in self._index.whiteout_candidates():
            with self._locating(entry.path):
                if whiteout := parse_whiteout(clean(entry.path)):
                    self._hide_below(*whiteout)
        if self._notes.hides():
            self._hold_targets()
            self._notes.remove_hidden()
            self._release_targets()

    def _hide_below(self, directory: bytes, name: bytes) -> None:
        parent = self._walk.find_directory(directory)
        if parent is None:
            return
        if name == OPAQUE:
            self._notes.hide_all(parent)
        else:
            self._notes.hide(parent, name)

    def _hold_targets(self) -> None:
        """Keep what hard links of this layer name in the layers below, lest its whiteouts remove it."""
        for entry in self._index.hardlinks():
            with self._locating(entry.path):
                target = clean(entry.target)
            found = self._walk.find(target, lower=True)
            if found and found[1] != DIRECTORY:
                self._notes.hold(target, found)

    def _release_targets(self) -> None:
        """Let go of the targets that no whiteout has hidden."""
        for path, held in self._notes.holdings():
            if self._walk.find(path, lower=True) == held:
                self._notes.release(path, held)

    def _add(self, entry: Entry) -> None:
        path = clean(entry.path)
        if is_reserved(path):
            self._put_aside(path, entry)
            return
        if not path:
            self._describe_root(entry)
            return
        head, _, name = path.rpartition(b"/")
        parent = self._draft.known.get(head) or self._walk.directory(head)
        if entry.kind is Kind.DIRECTORY:
            self._draft.remember(path, self._place_directory(parent, name, entry))
        elif entry.kind is Kind.HARDLINK:
            self._link(parent, path, entry)
        elif _is_whiteout_device(entry):
            self._place_nothing(parent, path)
        else:
            self._place(parent, name, entry)

    def _describe_root(self, entry: Entry) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise InvalidImage("the entry would make the root something else than a directory")
        self._draft.describe(ROOT, entry)

    def _place(self, parent: int, name: bytes, entry: Entry) -> None:
        """Put a node under its name, in place of what has it; mostly the name is free, so first try that."""
        if not self._draft.add(parent, name, entry, self._number):
            taken = self._draft.find(parent, name)
            if taken:
                self._draft.remove(parent, name, taken)
            self._draft.add(parent, name, entry, self._number)

    def _place_nothing(self, parent: int, path: bytes) -> None:
        """Remove what has a name; hard links to the path mean nothing either."""
        name = path.rpartition(b"/")[2]
        if taken := self._draft.find(parent, name):
            self._draft.remove(parent, name, taken)
        self._notes.put_aside(path, _NOTHING)

    def _put_aside(self, path: bytes, entry: Entry) -> None:
        """Keep AUFS's metadata for the hard links that mean it."""
        if entry.kind is Kind.DIRECTORY or parse_whiteout(path):
            return
        if entry.kind is not Kind.HARDLINK:
            self._notes.put_aside(path, self._draft.add_nameless(entry, self._number))
        elif found := self._find(clean(entry.target)):
            self._draft.pin(_linkable(found, entry.target)[0])
            self._notes.put_aside(path, found)

    def _place_directory(self, parent: int, name: bytes, entry: Entry) -> int:
        """Put a directory under its name, or describe anew the one that is there; return its ino."""
        taken = self._draft.find(parent, name)
        if taken and taken[1] == DIRECTORY:
            self._draft.describe(taken[0], entry)
            return taken[0]
        if taken:
            self._draft.remove(parent, name, taken)
        return self._draft.add_directory(parent, name, entry)

    def _link(self, parent: int, path: bytes, entry: Entry) -> None:
        """Make a hard link; the entry's own attributes do not count, its target's do, as in umoci."""
        target, name = clean(entry.target), path.rpartition(b"/")[2]
        found = self._find(target)
        if found == _NOTHING:
            self._place_nothing(parent, path)
            return
        if found:
            self._draft.link(parent, name, _linkable(found, target))
            return
        if taken := self._draft.find(parent, name):
            self._draft.remove(parent, name, taken)
        self._notes.link_later(path, target)

    def _find(self, path: bytes) -> Found | None:
        """What a hard link to a path means now."""
        return self._walk.find(path) or self._notes.aside(path)

    def _link_later(self) -> None:
        """Make the hard links whose target was not there in time, chains of them in whatever order."""
        last_first = True
        while self._try_links(self._find, last_first) or self._try_links(self._notes.held, last_first):
            last_first = not last_first
        for _, path, target in self._notes.later():
            with self._locating(path):
                raise InvalidImage(f"a hard link to {shown(target)!r}, which is not in the image")

    def _try_links(self, find: Callable[[bytes], Found | None], last_first: bool) -> bool:
        """Make those hard links whose target `find` finds; whether there were any."""
        linked = False
        for seq, path, target in self._notes.later(last_first=last_first):
            with self._locating(path):
                self._budget.look_up(1)
                if found := find(target):
                    self._link_if_free(path, _linkable(found, target))
                    self._notes.linked(seq)
                    linked = True
        return linked

    def _link_if_free(self, path: bytes, found: Found) -> None:
        """Make a link, unless a later entry of the layer has taken its place."""
        head, _, name = path.rpartition(b"/")
        parent = self._walk.directory(head)
        if self._draft.find(parent, name) is None and found != _NOTHING:
            self._draft.link(parent, name, found)

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


def _linkable(found: Found, target: bytes) -> Found:
    if found[1] == DIRECTORY:
        raise InvalidImage(f"a hard link to {shown(target)!r}, which is a directory")
    return found
