"""A file of an image as a raw binary file object: each read fetches what is not in the store yet."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from imgfs.api.entries import AnyPath, path_error

if TYPE_CHECKING:
    from typing_extensions import Buffer

_LARGEST = 1 << 20  # bytes that are read at once


class ReadingFile(io.RawIOBase):
    """Reads a file of `size` bytes by `read_at` (offset, length). Seekable; `name` is its path."""

    def __init__(self, name: str, size: int, read_at: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self.name = name
        self.mode = "rb"
        self.size = size
        self._read_at = read_at
        self._offset = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next byte."""
        self._check_open()
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset, which may be behind the end."""
        self._check_open()
        origins = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self.size}
        if whence not in origins:
            raise ValueError(f"whence: {whence!r} is none of {sorted(origins)}")
        if origins[whence] + offset < 0:
            raise ValueError(f"negative offset: {origins[whence] + offset}")
        self._offset = origins[whence] + offset
        return self._offset

    def readinto(self, buffer: Buffer) -> int:
        """Read into a buffer, up to 1 MiB at once; 0 at the end."""
        self._check_open()
        view = memoryview(buffer).cast("B")
        length = min(len(view), _LARGEST, max(0, self.size - self._offset))
        if length:
            view[:length] = self._read_at(self._offset, length)
            self._offset += length
        return length

    def readall(self) -> bytes:
        """Read all that is left."""
        parts = []
        while part := self.read(_LARGEST):
            parts.append(part)
        return b"".join(parts)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


def is_text_mode(path: AnyPath, mode: str, buffering: int) -> bool:
    """Return True if a mode is one for text; raises ValueError, and OSError if it would write."""
    letters = set(mode)
    if len(letters) != len(mode) or not letters <= set("rwxabt+") or {"b", "t"} <= letters:
        raise ValueError(f"invalid mode: {mode!r}")
    if letters & set("wxa+"):
        raise path_error(errno.EROFS, path)
    if "r" not in letters:
        raise ValueError(f"invalid mode: {mode!r}")
    if "b" not in letters and buffering == 0:
        raise ValueError("text has to be buffered")
    return "b" not in letters
