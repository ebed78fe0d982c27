"""Room on the disk that is kept for removals: what frees a full one has to be written down first."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_SIZE = 1 << 20  # bytes: each removal takes some pages of SQLite's log, and an image has many layers


class Reserve:
    """A file at `path` that takes room, and is removed when there is no other."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self) -> None:
        """Take the room, unless it is taken, or there is none."""
        with suppress(OSError):
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(file, 0, _SIZE)
            finally:
                os.close(file)

    def give(self) -> bool:
        """Give the room back; return False if there was none."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
