"""From a layer's path to a directory of the tree so far: symlinks stay inside the image, parents are made."""

from __future__ import annotations

from collections.abc import Iterator

from imgfs.errors import InvalidImage
from imgfs.layer.index import LayerIndex
from imgfs.layer.limits import NAME_LIMIT
from imgfs.tree.budget import Budget
from imgfs.tree.builder import DIRECTORY, SYMLINK, Draft, Found
from imgfs.tree.merge_state import Notes
from imgfs.tree.paths import LINK_LIMIT, WHITEOUT_PREFIX, clean, shown
from imgfs.tree.schema import ROOT


class Walk:
    """Resolves one layer's paths, all of them clean.

    An entry `x/y` makes a directory of a lower layer's symlink or other non-directory `x`: containerd and
    podman unpack a layer by itself, where `x` is a directory that then hides what is below. Symlinks of its
    own a layer follows. For what is only looked at, whiteouts and hard links' targets, a lower symlink is a
    way through unless the layer has a directory entry of its own there, wherever that comes in the layer.
    """

    def __init__(self, draft: Draft, notes: Notes, index: LayerIndex, budget: Budget) -> None:
        self._budget = budget
        self._draft = draft
        self._notes = notes
        self._index = index
        self._first_ino = draft.next_ino
        self._has_own = False
        draft.known.clear()  # what led through a symlink may not do so in this layer

    def directory(self, path: bytes) -> int:
        """The directory that `path` leads to, for an entry; what is missing is made, behind symlinks too.

        Raises InvalidImage where something else is in the way.
        """
        head, _, name = path.rpartition(b"/")
        near = self._draft.known.get(head)
        found = self._draft.find(near, name) if near and name else None
        ino = found[0] if found and found[1] == DIRECTORY else self._make(path)
        self._draft.remember(path, ino)
        return ino

    def find(self, path: bytes, *, lower: bool = False) -> Found | None:
        """What is at `path`, its last component not followed; None if nothing is.

        `lower` asks for the view of the layers below, which this layer's directories have not changed.
        """
        if not path:
            return ROOT, DIRECTORY
        head, _, name = path.rpartition(b"/")
        parent = self._draft.known.get(head)
        if parent is None:
            parent = self.find_directory(head, lower=lower)
        return None if parent is None else self._draft.find(parent, name)

    def find_directory(self, path: bytes, *, lower: bool = False) -> int | None:
        """The directory that `path` leads to, symlinks followed; None if there is none. Makes nothing."""
        route = _Route(path, self._budget)
        for parent, name, depth in route:
            found = self._draft.find(parent, name)
            if found is None:
                return None
            if found[1] == DIRECTORY:
                route.enter(found[0])
                continue
            stays = lower or not self._is_replaced(path, depth, found)
            if found[1] != SYMLINK or not stays or not route.follow(self._draft.target(found[0])):
                return None
        return route.here

    def _make(self, path: bytes) -> int:
        route = _Route(path, self._budget)
        for parent, name, depth in route:
            found = self._draft.find(parent, name)
            if found and found[1] != DIRECTORY and self._gives_way(path, depth, found):
                self._draft.remove(parent, name, found)
                found = None
            if found and found[1] == SYMLINK:
                if not route.follow(self._draft.target(found[0])):
                    raise InvalidImage(f"the symlinks on the way are a loop, or more than {LINK_LIMIT}")
            else:
                route.enter(self._directory_at(parent, name, found))
        return route.here

    def _directory_at(self, parent: int, name: bytes, found: Found | None) -> int:
        if found is None:
            if len(name) > NAME_LIMIT or name.startswith(WHITEOUT_PREFIX):
                raise InvalidImage(f"a symlink on the way leads to {shown(name)!r}, which cannot be made")
            self._budget.imply()
            return self._draft.add_directory(parent, name)
        if found[1] != DIRECTORY:
            raise InvalidImage(f"{shown(name)!r} on the way is not a directory")
        return found[0]

    def _gives_way(self, path: bytes, depth: int, found: Found) -> bool:
        """Whether a non-directory, met after `depth` components of `path`, gives way to an entry below it."""
        is_lower = found[0] < self._first_ino
        return (depth > 0 and is_lower) or self._is_replaced(path, depth, found)

    def _is_replaced(self, path: bytes, depth: int, found: Found) -> bool:
        """Whether a non-directory, met after `depth` components of `path`, is one no more in this layer."""
        if depth == 0 or (found[1] == SYMLINK and found[0] >= self._first_ino):
            return False
        if not self._has_own:  # most layers never ask
            self._notes.own(map(clean, self._index.directories()))
            self._has_own = True
        return self._notes.is_own(b"/".join(path.split(b"/")[:depth]))


class _Route:
    """A path being followed: yields (directory, name, depth), and after each wants `enter` or `follow`.

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
        """Go on in a directory."""
        self._inos.append(ino)

    def follow(self, target: bytes) -> bool:
        """Go on along a symlink; False if there were too many."""
        self._links += 1
        if target.startswith(b"/"):
            del self._inos[1:]
        names = target.split(b"/")
        self._budget.look_up(len(names))
        self._ahead.extend((name, 0) for name in reversed(names))
        return self._links <= LINK_LIMIT
