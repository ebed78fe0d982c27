"""The presence map of a flat layer: which of its spans are there, for all processes (`store.flat`).

The map has a byte for each span, shared by all processes through mmap:

    bit 0      present: the span's bytes are in the file, and right
    bit 1      synced: they are on the disk, not only in the page cache
    bits 2-7   generation: counts evictions

Its header names what the marks were verified by (`layer.index.LayerIndex.binding`): another index that would
let other bytes pass begins two new files.

The map and the flat file belong together. They get and lose their names under an exclusive lock on the map,
the flat file first: who has opened both, and then the lock, has a pair if both have their names still.
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
UNBOUND = bytes(24)  # what nobody has said a binding of
FIRST = 64  # where the marks begin
_TRIES = 10  # at opening files that others replace meanwhile
_LARGEST = 1 << 43  # bytes of a flat layer: what a file may have on ext4, about


def read_shape(directory: Path) -> tuple[int, int] | None:
    """The spans and the size of the flat layer in `directory`, as its map has them; None if there is no map.

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
    """Take the names of a flat layer's files away; who has them open keeps them. Raises OSError."""
    with _map_locked(directory):
        for name in ("flat", "presence"):
            (directory / name).unlink(missing_ok=True)


def replace(directory: Path, flat: Path, fd: int, *, size: int, spans: int, binding: bytes) -> None:
    """Give the whole, verified flat layer at `flat`, open as `fd`, the name and a map of its own.

    Raises OSError.
    """
    held = new_file(directory, TEMPORARY, "-presence")
    try:
        os.pwrite(held.fd, HEADER.pack(MAGIC, boot_id(), spans, size, binding), 0)
        os.pwrite(held.fd, bytes([PRESENT]) * spans or b"\0", FIRST)
        os.ftruncate(fd, size)
        with _map_locked(directory) as old:
            if old is not None:
                os.pwrite(old, bytes(HEADER.size), 0)  # if this process dies between the two, it says nothing
            flat.rename(directory / "flat")
            held.path.rename(directory / "presence")
    finally:
        held.path.unlink(missing_ok=True)
        held.release()


@contextmanager
def _map_locked(directory: Path) -> Iterator[int | None]:
    """Hold the lock of the map that has the name, so that no pair is opened meanwhile; one is made for it."""
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
    """The mark of a span that is not there any more."""
    return (mark & ~(PRESENT | SYNCED)) + _GENERATION & 0xFF
