"""The conversation with the kernel: requests come out of /dev/fuse one by one, answers go back in any order.

Most requests are answered within some microseconds and without waiting for anything, so one task takes them
one after the other. It asks the kernel itself whether there is another, or comes one within a millisecond;
only if not, or after many, does it wait in trio, where everything else gets its turn. What has to wait for
the network or the disk is a coroutine, which becomes a task of its own, and holds nobody up.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeAlias

import trio

from imgfs.fuse.boundary import errno_of
from imgfs.fuse.protocol import (
    ANSWER_HEAD,
    HEAD,
    HEAD_SIZE,
    INIT_IN,
    INIT_OUT,
    MAJOR,
    MINOR,
    MOST_PAGES,
    READ_BUFFER,
    WRITE_MOST,
    Head,
    Offer,
    Opcode,
)

IN_BACKGROUND = 512  # reads past its cache that the kernel may have under way; of itself it allows 12
_MOST = 256  # requests in a row without a look at anything else
_PATIENCE = 1  # milliseconds to wait for a request outside of trio, while nobody waits for anything else
_OFFERS = (
    Offer.ASYNC_READ
    | Offer.ATOMIC_O_TRUNC
    | Offer.EXPORT_SUPPORT
    | Offer.BIG_WRITES
    | Offer.AUTO_INVAL_DATA
    | Offer.DO_READDIRPLUS
    | Offer.ASYNC_DIO
    | Offer.PARALLEL_DIROPS
    | Offer.MAX_PAGES
    | Offer.CACHE_SYMLINKS
)
_NOTHING_THERE = (errno.EAGAIN, errno.ENOENT, errno.EINTR)
_UNHEARD = (errno.ENOENT, errno.ENODEV)  # who has asked has been killed; has unmounted

log = logging.getLogger(__name__)

Answer: TypeAlias = bytes | memoryview | None  # None: the kernel expects none
Handler: TypeAlias = Callable[[Head, memoryview], Answer | Coroutine[Any, Any, bytes]]


class Session:
    """Has `handlers`, by opcode, answer the requests that come from `descriptor`: an open /dev/fuse, mounted.

    A handler is given a request's head and body, good until it returns, and returns the answer, or a
    coroutine for it. What it raises becomes an errno. What nobody handles is refused with ENOSYS: most of
    that the kernel does not ask again. `greeted` is told what the kernel can do, once it has been answered.
    """

    def __init__(
        self,
        descriptor: int,
        handlers: Mapping[Opcode, Handler],
        greeted: Callable[[int], None],
        *,
        writeback: bool = False,
    ) -> None:
        self._descriptor = descriptor
        self._greeted = greeted
        self._offers = _OFFERS | (Offer.WRITEBACK_CACHE if writeback else 0)
        self._handlers: dict[int, Handler] = {
            Opcode.INIT: self._greet,
            Opcode.FORGET: _nothing,
            Opcode.BATCH_FORGET: _nothing,
        }
        self._handlers.update(handlers.items())
        self._room = memoryview(bytearray(READ_BUFFER))
        self._waiting = 0  # requests that are tasks
        self._row = 0  # requests since the last look at anything else
        self._reading = trio.CancelScope()

    async def serve(self) -> None:
        """Answer until it is unmounted, or `end` is called: then what is under way is answered still."""
        os.set_blocking(self._descriptor, False)  # what has been asked may be taken back before it is read
        async with trio.open_nursery() as nursery:
            with self._reading:
                await self._read_all(nursery)
                nursery.cancel_scope.cancel()  # unmounted: nobody waits for an answer

    def end(self) -> None:
        """Take no more requests."""
        self._reading.cancel()

    async def _read_all(self, nursery: trio.Nursery) -> None:
        poll, rooms = select.poll(), [self._room]
        poll.register(self._descriptor, select.POLLIN)
        while True:
            if self._row >= _MOST or not poll.poll(0 if self._waiting else _PATIENCE):
                self._row = 0
                await trio.lowlevel.wait_readable(self._descriptor)
            self._row += 1
            try:
                length = os.readv(self._descriptor, rooms)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno not in _NOTHING_THERE:
                    raise
            else:
                self._take(length, nursery)

    def _take(self, length: int, nursery: trio.Nursery) -> None:
        """Have the request that has been read answered."""
        head = Head._make(HEAD.unpack_from(self._room))
        handler = self._handlers.get(head.opcode)
        if handler is None:
            self._send(head.unique, errno.ENOSYS)
            return
        try:
            answer = handler(head, self._room[HEAD_SIZE:length])
        except Exception as error:  # noqa: BLE001  (the mount lives)
            self._send(head.unique, errno_of(error, _told(head)))
            return
        if isinstance(answer, Coroutine):
            self._waiting += 1
            self._row = _MOST  # let it begin
            nursery.start_soon(self._answer_later, head, answer)
        elif answer is not None:
            self._send(head.unique, 0, answer)

    async def _answer_later(self, head: Head, answer: Coroutine[Any, Any, bytes]) -> None:
        try:
            self._send(head.unique, 0, await answer)
        except Exception as error:  # noqa: BLE001  (the mount lives)
            self._send(head.unique, errno_of(error, _told(head)))
        finally:
            self._waiting -= 1

    def _send(self, unique: int, number: int, body: bytes | memoryview = b"") -> None:
        """Answer with a body, or with an errno."""
        head = ANSWER_HEAD.pack(ANSWER_HEAD.size + len(body), -number, unique)
        try:
            os.writev(self._descriptor, (head, body))
        except OSError as error:
            if error.errno not in _UNHEARD:
                log.exception("the kernel does not take an answer of %d bytes", len(body))

    def _greet(self, head: Head, body: memoryview) -> None:
        """Agree with the kernel on what both can do."""
        _, _, read_ahead, offered = INIT_IN.unpack_from(body)
        limits = IN_BACKGROUND, IN_BACKGROUND * 3 // 4, WRITE_MOST, 1, MOST_PAGES, 0
        answer = INIT_OUT.pack(MAJOR, MINOR, read_ahead, offered & self._offers, *limits)
        self._send(head.unique, 0, answer)
        self._greeted(offered)


def _nothing(_head: Head, _body: memoryview) -> None:
    """Nothing is kept for a file, so nothing can be forgotten."""


def _told(head: Head) -> str:
    """A request, for the log."""
    return f"opcode {head.opcode}, ino {head.ino}"
