"""A directory being listed in as many replies as the kernel asks for."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Generic, TypeVar

from imgfs.fuse.protocol import Squash, listed, listed_dot
from imgfs.fuse.views import Children, View

DOTS = (b".", b"..")
F = TypeVar("F")


class Listing(Generic[F]):
    """A directory being listed: where the kernel is, and the rest of the query.

    Positions: `.` is 1, `..` is 2, then the tree's own positions moved up by two. What an iterator has given
    but the reply had no room for is put back and comes first the next time.
    """

    def __init__(self, children: Children[F], directory: int) -> None:
        self.directory = directory
        self._children = children
        self._rest: Iterator[tuple[int, bytes, F | None]] = iter(())
        self._held: tuple[int, bytes, F | None] | None = None  # put back: comes before the rest
        self.position = -1  # of the last entry that was read and not put back
        self._before = -1  # of the one before that

    def read_from(self, position: int) -> Iterator[tuple[int, bytes, F | None]]:
        """The entries behind `position`; the child is None for `.` and `..`."""
        if position != self.position:
            self._rest, self._held, self.position = self._start(position), None, position
        while entry := self._take():
            self._before, self.position = self.position, entry[0]
            yield entry

    def put_back(self, position: int, name: bytes, child: F | None) -> None:
        """Take back the entry just read, for which the reply had no room."""
        self._held = position, name, child
        self.position = self._before

    def reply(self, view: View[F], position: int, room: int, squash: Squash) -> bytes:
        """The entries behind `position` with their attributes, as many as `room` bytes hold."""
        entries = []
        for number, name, child in self.read_from(position):
            entry = self._entry(view, number, name, child, squash)
            room -= len(entry)
            if room < 0:
                self.put_back(number, name, child)
                break
            entries.append(entry)
            if entry and child is not None:
                view.reference(child)
        return b"".join(entries)

    def _entry(self, view: View[F], position: int, name: bytes, child: F | None, squash: Squash) -> bytes:
        if child is None:
            return listed_dot(position, name, self.directory)
        try:
            return listed(position, name, view.child_attributes(child), squash)
        except OSError as error:
            if error.errno == errno.ESTALE:  # removed since the last reply, which had no room for it
                return b""
            raise

    def _take(self) -> tuple[int, bytes, F | None] | None:
        held, self._held = self._held, None
        return held or next(self._rest, None)

    def _start(self, position: int) -> Iterator[tuple[int, bytes, F | None]]:
        for number, name in enumerate(DOTS, 1):
            if number > position:
                yield number, name, None
        shift = len(DOTS)
        for number, name, child in self._children(self.directory, max(0, position - shift)):
            yield number + shift, name, child
