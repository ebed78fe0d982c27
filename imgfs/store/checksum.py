"""A checksum in each of the store's SQLite files, by which damage of the disk is told from an index.

It is in the file itself, so that it comes and goes with it in one rename: four bytes of the header that
SQLite leaves to its users ("user version", sqlite.org/fileformat2.html, 1.3) hold the CRC-32 of all the
others, never zero. A file without one, from before there were any, has zero there and is taken as it is.
It is no proof against people: a user who may write to the store may change anything.
"""

from __future__ import annotations

from binascii import crc32
from pathlib import Path

from imgfs.errors import StoreError
from imgfs.store.atomic import store_errors

_MAGIC = b"SQLite format 3\0"
_CHECKSUM = slice(60, 64)  # of the user version, big-endian
_HEADER = 100  # bytes
_PIECE = 256 << 10
READ_BUDGET = 8 << 20  # bytes that a process reads for checksums: some milliseconds at most


def write_checksum(path: Path) -> None:
    """Write its checksum into a complete SQLite file; other files are left alone. Raises StoreError."""
    with store_errors(path):
        sums = _sums(path)
        if sums is not None and sums[0] != sums[1]:
            with open(path, "r+b") as file:
                file.seek(_CHECKSUM.start)
                file.write(sums[1].to_bytes(4, "big"))


def matches_checksum(path: Path) -> bool | None:
    """Return True if a SQLite file matches its checksum; None if it has none, or is not SQLite.

    Raises StoreError.
    """
    with store_errors(path):
        sums = _sums(path)
    return sums[0] == sums[1] if sums and sums[0] else None


def _sums(path: Path) -> tuple[int, int] | None:
    """Return the checksum that a SQLite file has, and the one it should have; None for other files."""
    with open(path, "rb", buffering=0) as file:
        head = bytearray(file.read(_HEADER))
        if len(head) < _HEADER or not head.startswith(_MAGIC):
            return None
        stored = int.from_bytes(head[_CHECKSUM], "big")
        head[_CHECKSUM] = bytes(4)
        checksum = crc32(head)
        piece = memoryview(bytearray(_PIECE))
        while count := file.readinto(piece):
            checksum = crc32(piece[:count], checksum)
    return stored, checksum or 1


class ChecksumCache:
    """Verifies files' checksums as they are used, each file once, as long as that costs next to nothing.

    `budget` is how many bytes may be read; files that are larger than what is left are not verified.
    """

    def __init__(self, budget: int = READ_BUDGET) -> None:
        self._left = budget
        self._known: dict[tuple[int, ...], bool] = {}

    def is_intact(self, path: Path) -> bool:
        """Return True if the file exists and is not known to be damaged. Raises StoreError."""
        with store_errors(path):
            try:
                stat = path.stat()
            except FileNotFoundError:
                return False
        identity = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if identity not in self._known:
            if stat.st_size > self._left:
                return True
            self._left -= stat.st_size
            try:
                self._known[identity] = matches_checksum(path) is not False
            except StoreError:  # it cannot be read: it will be made anew
                self._known[identity] = False
        return self._known[identity]
