"""A checksum in each of the store's SQLite files, by which damage of the disk is told from an index.

It is in the file itself, so that it comes and goes with it in one rename: four bytes of the header that
SQLite leaves to its users ("user version", sqlite.org/fileformat2.html, 1.3) hold the CRC-32 of all the
others, never zero. A file without one, from before there were any, has zero there and is taken as it is.
It is no proof against people: who may write to the store may change anything.
"""

from __future__ import annotations

from binascii import crc32
from pathlib import Path

from imgfs.errors import StoreError
from imgfs.store.atomic import store_errors

_MAGIC = b"SQLite format 3\0"
_PLACE = slice(60, 64)  # of the user version, big-endian
_HEADER = 100  # bytes
_PIECE = 256 << 10
AT_ONCE = 8 << 20  # bytes that a process looks through on its way: some milliseconds at the most


def write_checksum(path: Path) -> None:
    """Write its checksum into a complete SQLite file; what is none is left alone. Raises StoreError."""
    with store_errors(path):
        found = _sums(path)
        if found is not None and found[0] != found[1]:
            with open(path, "r+b") as file:
                file.seek(_PLACE.start)
                file.write(found[1].to_bytes(4, "big"))


def matches_checksum(path: Path) -> bool | None:
    """Whether a SQLite file has its checksum; None if it has none, or is no such file. Raises StoreError."""
    with store_errors(path):
        found = _sums(path)
    return found[0] == found[1] if found and found[0] else None


def _sums(path: Path) -> tuple[int, int] | None:
    """The checksum that a SQLite file has, and the one it should have."""
    with open(path, "rb", buffering=0) as file:
        head = bytearray(file.read(_HEADER))
        if len(head) < _HEADER or not head.startswith(_MAGIC):
            return None
        told = int.from_bytes(head[_PLACE], "big")
        head[_PLACE] = bytes(4)
        checksum = crc32(head)
        piece = memoryview(bytearray(_PIECE))
        while count := file.readinto(piece):
            checksum = crc32(piece[:count], checksum)
    return told, checksum or 1


class ChecksumCache:
    """Looks at files' seals as they are used, each file once, as long as it costs next to nothing.

    `budget` is how many bytes may be looked through; files that are too large for what is left pass unseen.
    """

    def __init__(self, budget: int = AT_ONCE) -> None:
        self._left = budget
        self._known: dict[tuple[int, ...], bool] = {}

    def is_intact(self, path: Path) -> bool:
        """Whether the file is there and not seen to be damaged. Raises StoreError."""
        with store_errors(path):
            try:
                found = path.stat()
            except FileNotFoundError:
                return False
        name = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        if name not in self._known:
            if found.st_size > self._left:
                return True
            self._left -= found.st_size
            try:
                self._known[name] = matches_checksum(path) is not False
            except StoreError:  # it cannot be read: then it may be made anew
                self._known[name] = False
        return self._known[name]
