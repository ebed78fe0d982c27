"""Ranges of files: allocated, punched and zeroed; searched for data and holes; copied without reading them.

A file that has only its attributes in the upper directory (metacopy) has the data and the holes of the
image's file, up to the size that it has itself.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial

from imgfs import syscalls
from imgfs.errors import ImgfsError
from imgfs.layer.entry import Extent, seek_extents
from imgfs.overlay.copyup_data import copy_ranges
from imgfs.overlay.lookup import File
from imgfs.overlay.node import UpperNode
from imgfs.overlay.overlay import Overlay
from imgfs.owned.writing import copy_range, pwrite_all

_CHUNK = 16 << 20  # bytes copied between two looks whether the caller waits still
_ZEROS = 1 << 20  # bytes of zeros written at once
_PUNCH = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE

RangeCopy = Callable[[Future[None]], int]
"""Copies until what it is given is settled; returns how many bytes. For any thread to call, once."""


class Ranges:
    """The ranges of the files of `overlay`. Raises OSError."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._tree = overlay.union.tree
        self._content = overlay.content

    def allocate(self, node: UpperNode, mode: int, offset: int, length: int) -> None:
        """Do what `mode` (FALLOC_FL_*) says to a file that has data of its own."""
        syscalls.fallocate(self._overlay.data(node), mode, offset, length)

    def seek(self, file: File, offset: int, whence: int) -> int:
        """Return where a file's next data or hole is (`os.SEEK_DATA`, `os.SEEK_HOLE`). Raises ENXIO."""
        if isinstance(file, UpperNode) and file.data is None:
            return os.lseek(self._overlay.data(file), offset, whence)
        _, extents, size = self._in_image(file)
        return seek_extents(extents, size, offset, whence)

    def copy(self, source: File, offset: int, target: UpperNode, at: int, length: int) -> RangeCopy:
        """Return what copies bytes to `at` in a file that has data of its own.

        It raises as `ImageData.copy` does, if it has not copied anything. It must be called.
        """
        out = os.dup(self._overlay.data(target))
        if isinstance(source, UpperNode) and source.data is None:
            back = os.dup(self._overlay.data(source))

            def copy_own(done: int, count: int, _given_up: Future[None]) -> int:
                return copy_range(back, offset + done, out, at + done, count)

            return partial(_in_steps, copy_own, length, (back, out))
        layer, extents, size = self._in_image(source)

        def copy_of_image(done: int, count: int, given_up: Future[None]) -> int:
            for begin, end, is_data in _runs(extents, offset + done, offset + done + count):
                if is_data:
                    self._content.copy(layer, extents, begin, end - begin, out, at + begin - offset, given_up)
                else:
                    _zero(out, at + begin - offset, end - begin)
            return count

        return partial(_in_steps, copy_of_image, min(length, size - offset), (out,))

    def _in_image(self, file: File) -> tuple[int, Sequence[Extent], int]:
        """Return layer and extents of a file whose data is the image's, and the size that it has now."""
        if not isinstance(file, UpperNode):
            return self._tree.contents(file.ino)
        layer, extents = self._tree.extents(file.data or 0)
        return layer, extents, os.fstat(self._overlay.data(file)).st_size


def _runs(extents: Sequence[Extent], start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (begin, end, whether it is data) of the data and the holes in a part of a file."""
    for offset, length in copy_ranges(extents, start, end):
        if start < offset:
            yield start, offset, False
        yield offset, offset + length, True
        start = offset + length
    if start < end:
        yield start, end, False


def _in_steps(
    step: Callable[[int, int, Future[None]], int], length: int, fds: Sequence[int], given_up: Future[None]
) -> int:
    """Copy by `step`, which is told what is done and how much to do; close `fds` in the end."""
    done = 0
    try:
        while done < length and not (done and given_up.done()):
            count = step(done, min(_CHUNK, length - done), given_up)
            if count == 0:
                break
            done += count
    except (OSError, ImgfsError):
        if not done:
            raise
    finally:
        for fd in fds:
            os.close(fd)
    return done


def _zero(fd: int, offset: int, length: int) -> None:
    """Have a range read as zeros, without room on the disk where its file system can."""
    try:
        syscalls.fallocate(fd, _PUNCH, offset, length)
    except OSError as failure:
        if failure.errno != errno.EOPNOTSUPP:
            raise
        for at in range(offset, offset + length, _ZEROS):
            pwrite_all(fd, bytes(min(_ZEROS, offset + length - at)), at)
    if os.fstat(fd).st_size < offset + length:
        os.ftruncate(fd, offset + length)
