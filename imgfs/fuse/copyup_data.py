"""Copying the data of files up while their callers wait: in threads, one caller for each file.

All callers that write to a file or truncate it wait for the one that copies. If its copy is interrupted, or
the disk is full, or the registry away, the copy is undone, and the next of them starts anew.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Iterator

import trio

from imgfs.fuse.tasks import undone_or_done
from imgfs.overlay.copyup_data import undo_copy_up
from imgfs.overlay.node import UpperNode
from imgfs.overlay.overlay import Overlay


class Fills:
    """The copies under way of the data of files in `overlay`, as many as `limiter` allows: each has a lock.

    A caller that waits here may be cancelled. A caller that returns has not been: what it then does without
    waiting is reported as done.
    """

    def __init__(
        self, overlay: Overlay, limiter: trio.CapacityLimiter, locks: dict[UpperNode, trio.Lock]
    ) -> None:
        self._overlay = overlay
        self._limiter = limiter
        self._locks = locks

    async def truncate(self, node: UpperNode, size: int) -> None:
        """Set a file's size; of the image's data only what stays is copied up."""
        async with self._alone_with(node):
            if node.data is not None and size:
                await self._copy(node, size)
            await trio.lowlevel.checkpoint_if_cancelled()
            self._overlay.truncate(node, size)

    async def fill(self, node: UpperNode) -> None:
        """Copy up the data of a file, if that is not done yet."""
        if node.data is not None:
            async with self._alone_with(node):
                if node.data is not None:
                    await self._copy(node, sys.maxsize)
                    self._overlay.data_copyup.filled(node)
        await trio.lowlevel.checkpoint_if_cancelled()

    @contextlib.contextmanager
    def undoing(self, node: UpperNode) -> Iterator[None]:
        """Undo a file's copy-up if the body fails, unless other callers still wait for its data."""
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
            copy = self._overlay.data_copyup.fill(node, size)
            try:
                await undone_or_done(copy)
            except BaseException:
                self._overlay.data_copyup.not_filled(node)
                raise
