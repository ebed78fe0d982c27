"""Changes of names happen once, even if a killed daemon's successor gets the request again.

The kernel resends unanswered requests (FUSE_NOTIFY_RESEND), and cannot know whether they were carried out.
They are carried out one at a time: before each, the inos that its names lead to are written to memory that
outlives the process, with the number of the request. If that number comes again, the inos that the names lead
to now tell how far the killed process had come.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Mapping
from typing import TypeAlias

from imgfs.fuse.opcodes import RESENT, Opcode
from imgfs.fuse.protocol import (
    Head,
    NewName,
    create_in,
    link_in,
    mkdir_in,
    mknod_in,
    name_in,
    names_in,
    rename2_in,
    rename_in,
)
from imgfs.fuse.session import Answer, Handler
from imgfs.overlay.lookup import is_directory
from imgfs.overlay.overlay import Overlay

SIZE = 4096  # bytes of the memory
_RECORD = struct.Struct("QQQ")  # the request's number, what its names meant: inos, 0 for nothing
_NUMBER = struct.Struct("Q")
_DONE = b""
Names: TypeAlias = tuple[tuple[int, bytes], ...]


def _renamed(head: Head, new: NewName) -> Names:
    return (head.ino, new.name), (new.new_parent, new.new_name)


_NAMES: Mapping[Opcode, Callable[[Head, memoryview], Names]] = {
    Opcode.MKNOD: lambda head, body: ((head.ino, mknod_in(body)[0]),),
    Opcode.MKDIR: lambda head, body: ((head.ino, mkdir_in(body)[0]),),
    Opcode.CREATE: lambda head, body: ((head.ino, create_in(body)[0]),),
    Opcode.SYMLINK: lambda head, body: ((head.ino, names_in(body)[0]),),
    Opcode.LINK: lambda head, body: ((head.ino, link_in(body)[1]),),
    Opcode.UNLINK: lambda head, body: ((head.ino, name_in(body)),),
    Opcode.RMDIR: lambda head, body: ((head.ino, name_in(body)),),
    Opcode.RENAME: lambda head, body: _renamed(head, rename_in(body)),
    Opcode.RENAME2: lambda head, body: _renamed(head, rename2_in(body)),
}
_MAKES = (Opcode.MKNOD, Opcode.MKDIR, Opcode.CREATE, Opcode.SYMLINK)
_REMOVES = (Opcode.UNLINK, Opcode.RMDIR)


class Once:
    """Wraps the handlers of `overlay` that change names; `memory` is a descriptor of `new_memory`.

    `lookup` returns a directory's entry, packed.
    """

    def __init__(self, memory: int, overlay: Overlay, lookup: Callable[[int, bytes], bytes]) -> None:
        self._memory = mmap.mmap(memory, SIZE)
        self._union = overlay.union
        self._entries = overlay.entries
        self._lookup = lookup
        self._unique = 0  # of the request whose change is to be written down; 0 if it has been
        overlay.entries.before_change = self._begin

    def handlers(self, given: Mapping[Opcode, Handler]) -> dict[Opcode, Handler]:
        """Return handlers that call the `given` ones, and change nothing twice for a resent request."""
        return {opcode: self._wrapped(opcode, handler) for opcode, handler in given.items()}

    def _wrapped(self, opcode: Opcode, handler: Handler) -> Handler:
        if opcode not in _NAMES:
            return handler

        def handle(head: Head, body: memoryview) -> Answer:
            before = self._begun(head.unique) if head.unique & RESENT else None
            self._unique = head.unique & ~RESENT if before is None else 0
            if before is not None:
                names = _NAMES[opcode](head, body)
                answer = self._done(opcode, names, before, list(map(self._ino, names)))
                if answer is not None:
                    return answer
            found = handler(head, body)
            assert isinstance(found, bytes)  # changes of names do not wait
            return found

        return handle

    def _begin(self, ino: int, other: int) -> None:
        """Record a request: its number last, so that it never stands beside another request's inos."""
        if self._unique:
            _NUMBER.pack_into(self._memory, 0, 0)
            _RECORD.pack_into(self._memory, 0, 0, ino, other)
            _NUMBER.pack_into(self._memory, 0, self._unique)
            self._unique = 0

    def _begun(self, unique: int) -> list[int] | None:
        """Return the inos before a request that a killed process had begun; None if it had not."""
        number, *inos = _RECORD.unpack_from(self._memory)
        return inos if number == unique & ~RESENT else None

    def _done(self, opcode: Opcode, names: Names, before: list[int], now: list[int]) -> bytes | None:
        """Return the answer if the request had been carried out; None if it has to be. Raises OSError."""
        if opcode in _MAKES:
            if now[0] and not before[0]:  # perhaps not complete, and no program has seen it
                self._remove(*names[0])
            return None
        if opcode == Opcode.LINK:
            return self._lookup(*names[0]) if now[0] and not before[0] else None
        if opcode in _REMOVES:
            return _DONE if before[0] and not now[0] else None
        return _DONE if now[1] == before[0] != before[1] else None

    def _remove(self, parent: int, name: bytes) -> None:
        found = self._union.find(parent, name)
        if found is not None:
            (self._entries.rmdir if is_directory(found) else self._entries.unlink)(parent, name)

    def _ino(self, name: tuple[int, bytes]) -> int:
        """Return the ino that a name leads to now; 0 if there is no such name."""
        try:
            found = self._union.find(*name)
        except OSError:  # the handler will say so
            return 0
        return found.ino if found else 0


def new_memory() -> int:
    """Return a descriptor of memory for `Once`, which other processes may hold open, too."""
    memory = os.memfd_create("imgfs-once")
    os.truncate(memory, SIZE)
    return memory
