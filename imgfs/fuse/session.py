"""The conversation with the kernel: requests come out of /dev/fuse one by one, answers go back in any order.

Most requests are answered within some microseconds and without waiting for anything, so one task takes them
one after the other. It asks the kernel itself whether there is another, or comes one within a millisecond;
only if not, or after many, does it wait in trio, where everything else gets its turn. What has to wait for
the network or the disk is a coroutine, which becomes a task of its own, and holds no other request up. The
kernel may take such a request back (see `interrupts`).
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import TypeAlias

import trio

from imgfs.errors import MountError
from imgfs.fuse.errors import FUSEError, errno_of
from imgfs.fuse.interrupts import UnderWay, fills_page_cache
from imgfs.fuse.opcodes import (
    MAJOR,
    MAX_PAGES,
    MAX_WRITE,
    MINOR,
    NEEDED_MINOR,
    READ_BUFFER,
    RESENT,
    InitFlag,
    NotifyCode,
    Opcode,
)
from imgfs.fuse.protocol import (
    ANSWER_HEAD,
    HEAD,
    HEAD_SIZE,
    INIT_IN,
    INIT_OUT,
    INTERRUPT_IN,
    INVALIDATE_INODE_OUT,
    Head,
)

IN_BACKGROUND = 512  # reads past its cache that the kernel may have under way; of itself it allows 12
_MOST = 256  # requests in a row without a look at anything else
_PATIENCE = 1  # milliseconds to wait for a request outside of trio, while no other task waits
_OFFERS = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.EXPORT_SUPPORT
    | InitFlag.BIG_WRITES
    | InitFlag.AUTO_INVAL_DATA
    | InitFlag.DO_READDIRPLUS
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
)
_ACLS = InitFlag.POSIX_ACL | InitFlag.DONT_MASK | InitFlag.SETXATTR_EXT
_INTERRUPT = int(Opcode.INTERRUPT)
_NO_REQUEST = (errno.EAGAIN, errno.ENOENT, errno.EINTR)
_ENDED = (errno.ENODEV, errno.ECONNABORTED)  # unmounted; connection aborted (linux: fs/fuse/dev.c)
_NOT_TAKEN = (errno.ENOENT, errno.ENODEV)  # request aborted, or inode forgotten; unmounted

_NO_PAGES = -1  # in place of the offset of an invalidation: of the attributes alone

log = logging.getLogger(__name__)

Answer: TypeAlias = bytes | memoryview | None  # None: the kernel expects none
Handler: TypeAlias = Callable[[Head, memoryview], Answer | Coroutine[object, object, bytes]]
_OPEN = "/proc/self/fd"


class Session:
    """Has `handlers`, by opcode, answer the requests that come from `descriptor`: an open /dev/fuse, mounted.

    A handler is given a request's head and body, good until it returns, and returns the answer, or a
    coroutine for it. What it raises becomes an errno. An opcode without a handler is refused with
    ENOSYS: most of those the kernel does not send again. `greeted` is told what the
    kernel can do, once it has been answered.

    `writable`: set-id bits are taken away by the handlers (HANDLE_KILLPRIV_V2). With `writeback` the kernel
    gathers what is written, with `acls` it obeys files' ACLs. `stands_below`: another file system reads, and
    makes EIO of EINTR.

    ASYNC_DIO is not agreed to: with it the kernel waits for direct reads in a way that no signal ends, and
    after a direct write does not drop what it had cached of those bytes (fs/fuse/file.c, fuse_direct_IO).
    """

    def __init__(
        self,
        descriptor: int,
        handlers: Mapping[Opcode, Handler],
        greeted: Callable[[int], None],
        *,
        writable: bool = False,
        writeback: bool = False,
        acls: bool = False,
        stands_below: bool = False,
    ) -> None:
        self._descriptor = descriptor
        self._greeted = greeted
        self.offers = _OFFERS | (InitFlag.HANDLE_KILLPRIV_V2 if writable else 0)
        self.offers |= InitFlag.WRITEBACK_CACHE if writeback else 0
        self.offers |= _ACLS if acls else 0
        self._stands_below = stands_below
        self._handlers: dict[int, Handler] = {
            Opcode.INIT: self._greet,
            Opcode.FORGET: _nothing,
            Opcode.BATCH_FORGET: _nothing,
        }
        self._handlers.update(handlers.items())
        self._room = memoryview(bytearray(READ_BUFFER))
        self._under_way: dict[int, UnderWay] = {}  # requests that are tasks, by their numbers
        self.offered = 0  # what the kernel can do (InitFlag), once it has greeted
        self._newest = 0  # the number of the last request
        self._invalidating: set[int] = set()  # inodes whose attributes a thread invalidates
        self._row = 0  # requests since the last look at anything else
        self._reading = trio.CancelScope()
        self.has_ended = trio.Event()  # no more requests are taken
        self._refusal: MountError | None = None  # of a kernel that is too old

    async def serve(self) -> None:
        """Answer until it is unmounted, or `end` is called: then what is under way is answered still.

        Raises MountError if the kernel is too old.
        """
        os.set_blocking(self._descriptor, False)  # what has been asked may be taken back before it is read
        async with trio.open_nursery() as nursery:
            with self._reading:
                await self._read_all(nursery)
                nursery.cancel_scope.cancel()  # unmounted: no request waits for an answer
            self.has_ended.set()
        if self._refusal:
            raise self._refusal

    def resume(self, offered: int, *, resend: bool) -> None:
        """Go on in the place of a process that the kernel has greeted.

        `offered` is what the kernel can do. It is to `resend` what a killed one has left unanswered.
        """
        self.offered = offered
        self._greeted(offered)
        if resend:
            self._write(ANSWER_HEAD.pack(ANSWER_HEAD.size, NotifyCode.RESEND, 0), b"")

    def end(self) -> None:
        """Take no more requests."""
        self._reading.cancel()

    async def _read_all(self, nursery: trio.Nursery) -> None:
        poll, rooms = select.poll(), [self._room]
        poll.register(self._descriptor, select.POLLIN)
        while True:
            if self._row >= _MOST or not poll.poll(0 if self._under_way else _PATIENCE):
                self._row = 0
                await trio.lowlevel.wait_readable(self._descriptor)
            self._row += 1
            try:
                length = os.readv(self._descriptor, rooms)
            except OSError as error:
                if error.errno in _ENDED:
                    return
                if error.errno not in _NO_REQUEST:
                    raise
            else:
                self._take(length, nursery)

    def _take(self, length: int, nursery: trio.Nursery) -> None:
        """Have the request that has been read answered."""
        head = Head._make(HEAD.unpack_from(self._room))
        if head.opcode == _INTERRUPT:
            self._interrupt(head, INTERRUPT_IN.unpack_from(self._room, HEAD_SIZE)[0], nursery)
            return
        self._newest = head.unique & ~RESENT
        handler = self._handlers.get(head.opcode)
        if handler is None:
            self._send(head.unique, errno.ENOSYS)
            return
        try:
            answer = handler(head, self._room[HEAD_SIZE:length])
        except Exception as error:  # noqa: BLE001  (the mount lives)
            self._send(head.unique, errno_of(error, _request_text(head)))
            return
        if isinstance(answer, Coroutine):
            until_killed = self._stands_below or fills_page_cache(head, self._room[HEAD_SIZE:length])
            self._under_way[head.unique] = waiting = UnderWay(head, until_killed)
            self._row = _MOST  # let it begin
            nursery.start_soon(self._answer_later, waiting, answer)
        elif answer is not None:
            self._send(head.unique, 0, answer)

    async def _answer_later(self, waiting: UnderWay, answer: Coroutine[object, object, bytes]) -> None:
        number, body = errno.EINTR, b""
        try:
            with waiting.scope:
                body = await answer
                number = 0
        except Exception as error:  # noqa: BLE001  (the mount lives)
            number = errno_of(error, _request_text(waiting.head))
        finally:
            del self._under_way[waiting.head.unique]
        self._send(waiting.head.unique, number, body)

    def _interrupt(self, head: Head, unique: int, nursery: trio.Nursery) -> None:
        """Have a request that its caller does not wait for answered with EINTR, if it is not done by then.

        None that is answered is ever looked for again. One that has not been read yet is asked for once more
        (EAGAIN, linux/fuse.h): this task reads all of them, so it does not happen; libfuse allows for it too.
        """
        waiting = self._under_way.get(unique)
        if waiting is None:
            if unique & ~RESENT > self._newest:
                self._send(head.unique, errno.EAGAIN)
        elif waiting.until_killed:
            nursery.start_soon(waiting.cancel_when_killed, lambda: unique in self._under_way)
        else:
            waiting.scope.cancel()

    def invalidate_attributes(self, ino: int) -> None:
        """Have the kernel ask for a file's attributes when it next needs them; it keeps what it has gathered.

        Only for a file that a caller under way has open: if one is being let go of, the kernel waits for
        that, which may wait for answers.
        """
        self._notify_invalid(ino, _NO_PAGES)

    def invalidate_attributes_soon(self, ino: int) -> None:
        """The same for any file, in a thread."""
        if ino not in self._invalidating:
            self._invalidating.add(ino)
            threading.Thread(target=self._invalidate, args=(ino,), daemon=True).start()

    def _invalidate(self, ino: int) -> None:
        self._invalidating.discard(ino)
        self.invalidate_attributes(ino)

    async def write_back(self, ino: int) -> None:
        """Have the kernel write what it has gathered of a file, and forget its pages."""
        await trio.to_thread.run_sync(self._invalidate_pages, ino, abandon_on_cancel=True)

    def forget_pages_soon(self, inos: Iterable[int]) -> None:
        """Have the kernel forget the pages of files, those that programs have mapped, too; in a thread."""
        threading.Thread(target=self._forget_pages, args=(inos,), name="imgfs-pages", daemon=True).start()

    def _forget_pages(self, inos: Iterable[int]) -> None:
        for ino in inos:
            self._invalidate_pages(ino)

    def _invalidate_pages(self, ino: int) -> None:
        """Have the kernel forget what it has of a file; what it has gathered it writes, and waits for that.

        It waits for pages that are being read, too: requests must be answered meanwhile.
        """
        self._notify_invalid(ino, 0)

    def _notify_invalid(self, ino: int, offset: int) -> None:
        body = INVALIDATE_INODE_OUT.pack(ino, offset, 0)
        self._write(ANSWER_HEAD.pack(ANSWER_HEAD.size + len(body), NotifyCode.INVALIDATE_INODE, 0), body)

    def _send(self, unique: int, number: int, body: bytes | memoryview = b"") -> None:
        """Answer with a body, or with an errno."""
        self._write(ANSWER_HEAD.pack(ANSWER_HEAD.size + len(body), -number, unique), body)

    def _write(self, head: bytes, body: bytes | memoryview) -> None:
        try:
            os.writev(self._descriptor, (head, body))
        except OSError as error:
            if error.errno not in _NOT_TAKEN:
                log.exception("the kernel does not take an answer of %d bytes", len(body))

    def _greet(self, head: Head, body: memoryview) -> None:
        """Agree with the kernel on what both can do."""
        major, minor, read_ahead, offered = INIT_IN.unpack_from(body)
        if (major, minor) < (MAJOR, NEEDED_MINOR):
            self._refusal = MountError(
                f"this kernel speaks FUSE {major}.{minor}; imgfs needs {MAJOR}.{NEEDED_MINOR} (Linux 5.1)"
            )
            self.end()
            raise FUSEError(errno.EPROTO)
        limits = IN_BACKGROUND, IN_BACKGROUND * 3 // 4, MAX_WRITE, 1, MAX_PAGES, 0
        answer = INIT_OUT.pack(MAJOR, MINOR, read_ahead, offered & self.offers, *limits)
        self._send(head.unique, 0, answer)
        self.offered = offered
        self._greeted(offered)


def _nothing(_head: Head, _body: memoryview) -> None:
    """Nothing is kept for a file, so nothing can be forgotten."""


def _request_text(head: Head) -> str:
    """A request, for the log."""
    return f"opcode {head.opcode}, ino {head.ino}"


def device_of(mount: Callable[[], None]) -> int:
    """Return the descriptor of /dev/fuse that `mount` opens. Raises MountError if it opens none."""
    before = _devices()
    mount()
    opened = _devices() - before
    if not opened:
        raise MountError("libfuse has mounted, but has not opened /dev/fuse")
    return opened.pop()


def _devices() -> set[int]:
    found = set()
    for name in os.listdir(_OPEN):
        with suppress(FileNotFoundError):  # the directory's own
            if os.readlink(f"{_OPEN}/{name}") == "/dev/fuse":
                found.add(int(name))
    return found
