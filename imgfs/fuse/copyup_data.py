"""Copying the data of files up while their callers wait: in threads, one caller for each file.

All who write to a file or cut it wait for the one that copies. If that one is interrupted, or finds the disk
full or the registry away, its copy is undone, and the next of them does it anew.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Iterator

import trio

from imgfs.fuse.interrupts import undone_or_done
from imgfs.overlay.node import UpperNode
from imgfs.overlay.overlay import Overlay
from imgfs.overlay.undo import undo_copy_up


class Fills:
    """The copies under way of the data of files in `overlay`, as many as `limiter` allows.

    Whoever waits here may be cancelled; what returns has not been, so that what its caller does next, without
    waiting, is answered as done.
    """

    def __init__(self, overlay: Overlay, limiter: trio.CapacityLimiter) -> None:
        self._overlay = overlay
        self._limiter = limiter
        self._locks: dict[UpperNode, trio.Lock] = {}

    def must_wait(self, node: UpperNode, size: int) -> bool:
        """Whether, before a file is cut, data has to be copied up, or another caller is just doing that."""
        return node in self._locks or (node.data is not None and size > 0)

    async def truncate(self, node: UpperNode, size: int) -> None:
        """Cut or lengthen a file; of the image's data only what stays is copied up."""
        async with self._alone_with(node):
            if node.data is not None and size:
                await self._copy(node, size)
            await trio.lowlevel.checkpoint_if_cancelled()
            self._overlay.truncate(node, size)

    async def fill(self, node: UpperNode) -> None:
        """Have the data of a file its own."""
        if node.data is not None:
            async with self._alone_with(node):
                if node.data is not None:
                    await self._copy(node, sys.maxsize)
                    self._overlay.copyup.filled(node)
        await trio.lowlevel.checkpoint_if_cancelled()

    @contextlib.contextmanager
    def undoing(self, node: UpperNode) -> Iterator[None]:
        """Around what needs a file's data: if it fails, and is the last that does, its copy-up is undone."""
        try:
            yield
        except BaseException:
            if node not in self._locks:
                undo_copy_up(self._overlay.union, node)
            raise

    @contextlib.asynccontextmanager
    async def _alone_with(self, node: UpperNode) -> AsyncIterator[None]:
        lock = self._locks.setdefault(node, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(node, None)

    async def _copy(self, node: UpperNode, size: int) -> None:
        async with self._limiter:
            copy = self._overlay.copyup.fill(node, size)
            try:
                await undone_or_done(copy)
            except BaseException:
                self._overlay.copyup.not_filled(node)
                raise
