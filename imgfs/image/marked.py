"""An image's files, a directory at a time; each with a mark if a layer, or another image, is looked at.

A view lists one directory when it is asked to, so an image of a million files is open at once. A view of
changes shows directories that did not change only if something below them did: to know that, it walks
through what did not change, as far as the first change.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from imgfs.image.compare import changes, pairs
from imgfs.image.files import Found, ImageFiles

_DEPTH = 4096  # directories in a path: bounds an imported tree with cycles


class Item(NamedTuple):
    """A path in a view: as it was, as it is, or both; `change` is "" or "added", "changed", "deleted"."""

    old: Found | None
    new: Found | None
    change: str = ""
    what: tuple[str, ...] = ()  # in what a changed one differs, as `compare.Difference` has it

    @property
    def found(self) -> Found:
        """Return the file as it is, or, if it is deleted, as it was."""
        found = self.new or self.old
        assert found is not None
        return found

    @property
    def name(self) -> bytes:
        """Return the last part of the path."""
        return self.found.path.rpartition(b"/")[2]

    @property
    def is_directory(self) -> bool:
        """Return True if there is anything to list in it."""
        return any(one is not None and one.is_directory for one in (self.old, self.new))


class FileView(ABC):
    """Files to walk in. Listings raise InterruptedError once what they were given up by is settled."""

    @abstractmethod
    def until(self, given_up: Future[None]) -> FileView:
        """Return the same view, for work that ends when `given_up` is settled."""

    @abstractmethod
    def files_of(self, item: Item) -> ImageFiles:
        """Return what reads `item.found`."""

    @abstractmethod
    def at(self, path: bytes) -> Item | None:
        """Return what is at a path, None if that is not there in any form."""

    @abstractmethod
    def children(self, item: Item) -> Iterator[Item]:
        """Yield what the view shows in a directory, by name."""

    def below(self, top: Item) -> Iterator[Item]:
        """Yield what the view shows below a directory, directories before what is in them."""
        levels = [self.children(top)]
        while levels:
            item = next(levels[-1], None)
            if item is None:
                levels.pop()
                continue
            yield item
            if item.is_directory:
                _check_depth(levels, item)
                levels.append(self.children(item))


class FilesView(FileView):
    """All files of an image, without marks."""

    def __init__(self, files: ImageFiles) -> None:
        self._files = files

    def until(self, given_up: Future[None]) -> FilesView:
        """Return the same view, for work that ends when `given_up` is settled."""
        return FilesView(self._files.until(given_up))

    def files_of(self, item: Item) -> ImageFiles:  # noqa: ARG002 (one image has them all)
        """Return what reads a file."""
        return self._files

    def at(self, path: bytes) -> Item | None:
        """Return what is at a path."""
        found = self._files.at(path)
        return Item(None, found) if found else None

    def children(self, item: Item) -> Iterator[Item]:
        """Yield what is in a directory."""
        if item.is_directory:
            for child in self._files.children(item.found):
                yield Item(None, child)


class _ChangesView(FileView):
    """What changed between two trees; `before` is None below the lowest layer."""

    def __init__(self, before: ImageFiles | None, after: ImageFiles) -> None:
        self._before = before
        self._after = after

    @abstractmethod
    def _marked(self, old: Found | None, new: Found | None) -> Item:
        """Return the item for a path, with its mark."""

    def files_of(self, item: Item) -> ImageFiles:
        """Return what reads a file: the tree before the change, if the file is deleted."""
        return self._after if item.new or self._before is None else self._before

    def at(self, path: bytes) -> Item | None:
        """Return what is at a path in either tree."""
        old = self._before.at(path) if self._before else None
        new = self._after.at(path)
        return self._marked(old, new) if old or new else None

    def children(self, item: Item) -> Iterator[Item]:
        """Yield what changed in a directory, and directories with changes below them."""
        for old, new in pairs(self._before, item.old, self._after, item.new):
            child = self._marked(old, new)
            if child.change or (child.is_directory and self._has_changes(child)):
                yield child

    def _has_changes(self, top: Item) -> bool:
        """Return True if anything below a directory changed; stops at the first change."""
        levels = [pairs(self._before, top.old, self._after, top.new)]
        while levels:
            pair = next(levels[-1], None)
            if pair is None:
                levels.pop()
                continue
            item = self._marked(*pair)
            if item.change:
                return True
            if item.is_directory:
                _check_depth(levels, item)
                levels.append(pairs(self._before, item.old, self._after, item.new))
        return False


class LayerView(_ChangesView):
    """What one layer adds, changes (perhaps to the same) and deletes."""

    def __init__(self, before: ImageFiles | None, after: ImageFiles, layer: int) -> None:
        super().__init__(before, after)
        self._layer = layer

    def until(self, given_up: Future[None]) -> LayerView:
        """Return the same view, for work that ends when `given_up` is settled."""
        before = self._before.until(given_up) if self._before else None
        return LayerView(before, self._after.until(given_up), self._layer)

    def _marked(self, old: Found | None, new: Found | None) -> Item:
        if new is None:
            return Item(old, None, "deleted")
        if self._after.layer(new) != self._layer:
            return Item(old, new)
        if old is None:
            return Item(None, new, "added")
        assert self._before is not None
        return Item(old, new, "changed")


class ImagesView(_ChangesView):
    """What differs in two images; contents count by digests, and are read only where those do not tell."""

    def __init__(self, before: ImageFiles, after: ImageFiles) -> None:
        super().__init__(before, after)
        self._old = before

    def until(self, given_up: Future[None]) -> ImagesView:
        """Return the same view, for work that ends when `given_up` is settled."""
        return ImagesView(self._old.until(given_up), self._after.until(given_up))

    def _marked(self, old: Found | None, new: Found | None) -> Item:
        if new is None:
            return Item(old, None, "deleted")
        if old is None:
            return Item(None, new, "added")
        what = changes(self._old, old, self._after, new)
        return Item(old, new, "changed" if what else "", what)


def _check_depth(levels: Sequence[object], item: Item) -> None:
    if len(levels) >= _DEPTH:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(item.found.path))
