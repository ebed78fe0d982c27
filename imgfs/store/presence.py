"""The presence map of a flat layer: which of its spans are present, for all processes (`store.flat`).

The map has a byte for each span, shared by all processes through mmap:

    bit 0      present: the span's bytes are in the file, and right
    bit 1      synced: they are on the disk, not only in the page cache
    bits 2-7   generation: counts evictions

Its header names the index that the marks were verified by (`layer.index.LayerIndex.binding`): an index that
would accept other bytes begins two new files.

The map and the flat file belong together. They get and lose their names under an exclusive lock on the map,
the flat file first: a process that opens both, and then locks, has a pair if both have their names still.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgfs.errors import StoreError
from imgfs.owned.held import leads_to, new_file
from imgfs.store.atomic import TEMPORARY, boot_id
from imgfs.store.pin import lock_on

PRESENT, SYNCED = 1, 2
_GENERATION = 4  # the lowest bit of the generation
MAGIC = b"imgfsmap"
HEADER = struct.Struct("<8s16sQQ24s")  # magic, boot id, spans, flat size, binding
BINDING = slice(40, 64)  # of the header
UNBOUND = bytes(24)  # the binding of marks whose index is not known
FIRST = 64  # offset of the first mark
_TRIES = 10  # at opening files that other processes replace meanwhile
_LARGEST = 1 << 43  # bytes of a flat layer: what a file may have on ext4, about


def read_shape(directory: Path) -> tuple[int, int] | None:
    """Return spans and size of the flat layer in `directory`, as its map has them; None without a map.

    Raises OSError.
    """
    presence = directory / "presence"
    try:
        with open(presence, "rb") as file:
            header, length = file.read(HEADER.size), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return None
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        return None
    _, _, spans, size, _ = HEADER.unpack(header)
    return (spans, size) if length == FIRST + max(1, spans) and size <= _LARGEST else None


def drop(directory: Path) -> None:
    """Unlink a flat layer's files; processes that have them open keep them. Raises OSError."""
    with _map_locked(directory):
        for name in ("flat", "presence"):
            (directory / name).unlink(missing_ok=True)


def replace(directory: Path, flat: Path, fd: int, *, size: int, spans: int, binding: bytes) -> None:
    """Make the complete, verified file at `flat`, open as `fd`, the flat layer, with a new map.

    Raises OSError.
    """
    held = new_file(directory, TEMPORARY, "-presence")
    try:
        os.pwrite(held.fd, HEADER.pack(MAGIC, boot_id(), spans, size, binding), 0)
        os.pwrite(held.fd, bytes([PRESENT]) * spans or b"\0", FIRST)
        os.ftruncate(fd, size)
        with _map_locked(directory) as old:
            if old is not None:
                os.pwrite(old, bytes(HEADER.size), 0)  # a process killed between the two leaves no valid map
            flat.rename(directory / "flat")
            held.path.rename(directory / "presence")
    finally:
        held.path.unlink(missing_ok=True)
        held.release()


@contextmanager
def _map_locked(directory: Path) -> Iterator[int | None]:
    """Hold the lock of the current map, so that no pair is opened meanwhile; create it if there is none."""
    path = directory / "presence"
    for _ in range(_TRIES):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            yield None  # no other process can make one either
            return
        try:
            with lock_on(fd, fcntl.LOCK_EX):
                if leads_to(path, fd):
                    yield fd
                    return
        finally:
            os.close(fd)
    raise StoreError(f"{directory}: the flat layer is replaced again and again")


def evicted(mark: int) -> int:
    """Return the mark of a span that is evicted: absent, with the next generation."""
    return (mark & ~(PRESENT | SYNCED)) + _GENERATION & 0xFF
