"""A directory being listed in as many replies as the kernel asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

DOTS = (b".", b"..")
Children: TypeAlias = Callable[[int, int], Iterator[tuple[int, bytes, Any]]]
"""(directory, position) -> (position, name, file) of the children behind the position, counted from 1."""


class Listing:
    """A directory being listed: where the kernel is, and the rest of the query.

    Positions: `.` is 1, `..` is 2, then the tree's own positions moved up by two. What an iterator has given
    but the reply had no room for is put back and comes first the next time.
    """

    def __init__(self, children: Children, directory: int) -> None:
        self.directory = directory
        self._children = children
        self._rest: Iterator[tuple[int, bytes, Any]] = iter(())
        self._held: tuple[int, bytes, Any] | None = None  # put back: comes before the rest
        self.position = -1  # of the last entry that was read and not put back
        self._before = -1  # of the one before that

    def read_from(self, position: int) -> Iterator[tuple[int, bytes, Any]]:
        """The entries behind `position`; the node is None for `.` and `..`."""
        if position != self.position:
            self._rest, self._held, self.position = self._start(position), None, position
        while entry := self._take():
            self._before, self.position = self.position, entry[0]
            yield entry

    def put_back(self, position: int, name: bytes, node: Any) -> None:
        """The entry just read had no room."""
        self._held = position, name, node
        self.position = self._before

    def _take(self) -> tuple[int, bytes, Any] | None:
        held, self._held = self._held, None
        return held or next(self._rest, None)

    def _start(self, position: int) -> Iterator[tuple[int, bytes, Any]]:
        for number, name in enumerate(DOTS, 1):
            if number > position:
                yield number, name, None
        shift = len(DOTS)
        for number, name, node in self._children(self.directory, max(0, position - shift)):
            yield number + shift, name, node
