"""Resolve a layer's paths in the tree built so far: symlinks stay inside it, missing parents are made."""

from __future__ import annotations

from collections.abc import Iterator

from imgfs.errors import InvalidImage
from imgfs.layer.growing import LayerEntries
from imgfs.layer.limits import NAME_LIMIT
from imgfs.tree.builder import DIRECTORY, SYMLINK, Dirent, TreeBuilder
from imgfs.tree.database import ROOT
from imgfs.tree.merge_state import MergeState
from imgfs.tree.paths import LINK_LIMIT, WHITEOUT_PREFIX, Budget, clean, shown


class PathWalk:
    """Resolves the paths of one layer, all of them clean.

    An entry `x/y` replaces a lower layer's symlink or other non-directory `x` by a directory: containerd and
    podman unpack a layer by itself, where `x` is a directory that then hides the one below. A symlink of the
    same layer is followed. For lookups that make nothing (whiteouts, hard links' targets), a lower symlink is
    followed unless the layer has a directory entry of its own at that path, anywhere in the layer.
    """

    def __init__(self, builder: TreeBuilder, state: MergeState, index: LayerEntries, budget: Budget) -> None:
        self._budget = budget
        self._builder = builder
        self._state = state
        self._index = index
        self._first_ino = builder.next_ino
        self._has_own = False
        builder.known.clear()  # a path that led through a symlink may not do so in this layer

    def directory(self, path: bytes) -> int:
        """Return the directory that `path` leads to, for an entry; make missing ones, behind symlinks too.

        Raises InvalidImage if a component is not a directory and may not be replaced.
        """
        head, _, name = path.rpartition(b"/")
        near = self._builder.known.get(head)
        found = self._builder.find(near, name) if near and name else None
        ino = found.ino if found and found.type == DIRECTORY else self._make(path)
        self._builder.remember(path, ino)
        return ino

    def find(self, path: bytes, *, lower: bool = False) -> Dirent | None:
        """Return the node at `path`, its last component not followed; None if there is none.

        `lower` asks for the view of the layers below, which this layer's directories have not changed.
        """
        if not path:
            return Dirent(ROOT, DIRECTORY)
        head, _, name = path.rpartition(b"/")
        parent = self._builder.known.get(head)
        if parent is None:
            parent = self.find_directory(head, lower=lower)
        return None if parent is None else self._builder.find(parent, name)

    def find_directory(self, path: bytes, *, lower: bool = False) -> int | None:
        """Return the directory that `path` leads to, symlinks followed, or None. Makes nothing."""
        route = _Route(path, self._budget)
        for parent, name, depth in route:
            found = self._builder.find(parent, name)
            if found is None:
                return None
            if found.type == DIRECTORY:
                route.enter(found.ino)
                continue
            stays = lower or not self._is_replaced(path, depth, found)
            if found.type != SYMLINK or not stays or not route.follow(self._builder.target(found.ino)):
                return None
        return route.here

    def _make(self, path: bytes) -> int:
        route = _Route(path, self._budget)
        for parent, name, depth in route:
            found = self._builder.find(parent, name)
            if found and found.type != DIRECTORY and self._is_replaceable(path, depth, found):
                self._builder.remove(parent, name, found)
                found = None
            if found and found.type == SYMLINK:
                if not route.follow(self._builder.target(found.ino)):
                    raise InvalidImage(f"the symlinks on the way are a loop, or more than {LINK_LIMIT}")
            else:
                route.enter(self._directory_at(parent, name, found))
        return route.here

    def _directory_at(self, parent: int, name: bytes, found: Dirent | None) -> int:
        if found is None:
            if len(name) > NAME_LIMIT or name.startswith(WHITEOUT_PREFIX):
                raise InvalidImage(f"a symlink on the way leads to {shown(name)!r}, which cannot be made")
            self._budget.imply()
            return self._builder.add_directory(parent, name)
        if found.type != DIRECTORY:
            raise InvalidImage(f"{shown(name)!r} on the way is not a directory")
        return found.ino

    def _is_replaceable(self, path: bytes, depth: int, found: Dirent) -> bool:
        """Return True if a non-directory, met after `depth` components of `path`, gives way to a directory
        for the entry below it."""
        is_lower = found.ino < self._first_ino
        return (depth > 0 and is_lower) or self._is_replaced(path, depth, found)

    def _is_replaced(self, path: bytes, depth: int, found: Dirent) -> bool:
        """Return True if the layer itself has a directory in place of a non-directory of the layers below,
        met after `depth` components of `path`."""
        if depth == 0 or (found.type == SYMLINK and found.ino >= self._first_ino):
            return False
        if not self._has_own:  # most layers never need the list
            self._state.add_own(map(clean, self._index.directories()))
            self._has_own = True
        return self._state.is_own(b"/".join(path.split(b"/")[:depth]))


class _Route:
    """A path being followed: yields (directory, name, depth); the caller then calls `enter` or `follow`.

    `depth` counts the path's own components up to this one; it is 0 for those of a symlink's target.
    """

    def __init__(self, path: bytes, budget: Budget) -> None:
        self._budget = budget
        self._ahead = [(name, depth) for depth, name in enumerate(path.split(b"/"), start=1)][::-1]
        self._inos = [ROOT]
        self._links = 0
        budget.look_up(len(self._ahead))

    @property
    def here(self) -> int:
        """The directory reached."""
        return self._inos[-1]

    def __iter__(self) -> Iterator[tuple[int, bytes, int]]:
        while self._ahead:
            name, depth = self._ahead.pop()
            if name == b"..":
                del self._inos[max(1, len(self._inos) - 1) :]
            elif name not in (b"", b"."):
                yield self.here, name, depth

    def enter(self, ino: int) -> None:
        """Continue in a directory."""
        self._inos.append(ino)

    def follow(self, target: bytes) -> bool:
        """Continue along a symlink; return False after more than LINK_LIMIT of them."""
        self._links += 1
        if target.startswith(b"/"):
            del self._inos[1:]
        names = target.split(b"/")
        self._budget.look_up(len(names))
        self._ahead.extend((name, 0) for name in reversed(names))
        return self._links <= LINK_LIMIT
