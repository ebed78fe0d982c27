"""The operations on ranges of a writable mount's files: allocate, find data and holes, copy.

Before FALLOCATE and COPY_FILE_RANGE the kernel writes back the range's dirty pages (fs/fuse/file.c,
fuse_writeback_range). Before LSEEK it does not: if a program has the file open to write, the daemon has it do
so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from imgfs.fuse.opcodes import Opcode
from imgfs.fuse.operations import Later, Operations
from imgfs.fuse.privileges import Privileges
from imgfs.fuse.protocol import (
    Head,
    RangeToCopy,
    copy_file_range_in,
    fallocate_in,
    lseek_in,
    position_out,
    write_out,
)
from imgfs.fuse.session import Handler
from imgfs.fuse.union_view import UnionView
from imgfs.overlay.node import UpperNode
from imgfs.overlay.overlay import Overlay

if TYPE_CHECKING:
    from imgfs.fuse.copyup_data import Fills
    from imgfs.overlay.lookup import File

_DONE = b""
_MOST = (1 << 30) - 4096  # bytes copied by one request: an answer to COPY_FILE_RANGE has 32 bits


class RangeOperations:
    """Changes and searches ranges of the files of `overlay`, which `view` shows.

    `reading` has the limiter of the threads that copy; `fills` copies data up. With `writeback` the kernel
    caches writes, and keeps the times of the files that it changes.
    """

    def __init__(
        self,
        view: UnionView,
        overlay: Overlay,
        fills: Callable[[], Fills],
        privileges: Privileges,
        reading: Operations[File],
        *,
        writeback: bool,
    ) -> None:
        self._overlay = overlay
        self._union = overlay.union
        self._nodes = overlay.union.nodes
        self._view = view
        self._ranges = view.ranges
        self._fills = fills
        self._privileges = privileges
        self._reading = reading
        self._writeback = writeback

    def handlers(self) -> dict[Opcode, Handler]:
        """Return the handlers of requests on a range of a file."""
        return {
            Opcode.FALLOCATE: lambda head, body: self.fallocate(head, *fallocate_in(body)),
            Opcode.LSEEK: lambda head, body: self.lseek(head.ino, *lseek_in(body)),
            Opcode.COPY_FILE_RANGE: lambda head, body: self._copy(head, copy_file_range_in(body), write_out),
            Opcode.COPY_FILE_RANGE_64: lambda head, body: self._copy(
                head, copy_file_range_in(body), position_out
            ),
        }

    async def fallocate(self, caller: Head, offset: int, length: int, mode: int) -> bytes:
        """Allocate a range, punch a hole into it, or zero it."""
        from imgfs.fuse.tasks import undone_or_done  # here and below: most mounts have nothing that waits

        node = await self._about_to_change(caller, caller.ino)
        async with self._reading.disk_reads:
            allocate = partial(self._ranges.allocate, node, mode, offset, length)
            await undone_or_done(lambda _: allocate())
        return _DONE

    def lseek(self, ino: int, offset: int, whence: int) -> bytes | Later:
        """Return where the next data or hole begins."""
        node = self._nodes.get(ino)
        if self._writeback and node is not None and node.writers:
            return self._lseek_later(node, offset, whence)
        return position_out(self._view.seek(ino, offset, whence))

    async def _lseek_later(self, node: UpperNode, offset: int, whence: int) -> bytes:
        if self._privileges.session:
            from imgfs.fuse.tasks import abandoned

            await abandoned(partial(self._privileges.session.write_back, node.ino))
        return position_out(self._view.seek(node.ino, offset, whence))

    async def _copy(self, caller: Head, wanted: RangeToCopy, pack: Callable[[int], bytes]) -> bytes:
        """Copy a range to another file, as far as it comes before a signal."""
        from imgfs.fuse.tasks import done_in_part

        target = await self._about_to_change(caller, wanted.target)
        async with self._reading.disk_reads:
            source, length = self._union.file(caller.ino), min(wanted.length, _MOST)
            copy = self._ranges.copy(source, wanted.offset, target, wanted.target_offset, length)
            return pack(await done_in_part(copy))

    async def _about_to_change(self, caller: Head, ino: int) -> UpperNode:
        """Return the node of a file open for writing, its data copied up and its privileges dropped."""
        node = self._nodes[ino]
        await self._fills().fill(node)
        self._privileges.drop_for(caller, ino)
        if self._writeback:
            self._overlay.freeze_time(node)
        return node
