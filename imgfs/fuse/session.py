"""The FUSE session: requests are read from /dev/fuse one by one, answers are written in any order.

Most requests are answered within some microseconds and without waiting, so one thread answers them in turn. A
request that has to wait for the network or the disk is a coroutine: from the first of them on the session is
served by `tasks`, where it holds up no other request. Only that loads trio, which takes a third of a daemon's
time to start and of its memory; many mounts never need it.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import select
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from imgfs.buffers import buffer
from imgfs.errors import MountError
from imgfs.fuse.agreement import ONCE, agree, offers_of
from imgfs.fuse.busy_poll import BusyPoll
from imgfs.fuse.errors import errno_of
from imgfs.fuse.interrupts import fills_page_cache
from imgfs.fuse.opcodes import (
    READ_BUFFER,
    RESENT,
    ROOT_INO,
    NotifyCode,
    Opcode,
)
from imgfs.fuse.protocol import (
    ANSWER_HEAD,
    HEAD,
    HEAD_SIZE,
    INTERRUPT_IN,
    INVALIDATE_ENTRY_OUT,
    INVALIDATE_INODE_OUT,
    STORE_OUT,
    Head,
)
from imgfs.starting import try_thread

_INIT, _INTERRUPT = int(Opcode.INIT), int(Opcode.INTERRUPT)
_NO_REQUEST = (errno.EAGAIN, errno.ENOENT, errno.EINTR)
_ENDED = (errno.ENODEV, errno.ECONNABORTED)  # unmounted; connection aborted (linux: fs/fuse/dev.c)
_NOT_TAKEN = (errno.ENOENT, errno.ENODEV)  # request aborted, or inode forgotten; unmounted
_SMALL = 4096  # bytes of an answer's body: to copy it costs less than to have the kernel take two buffers
_NO_PAGES = -1  # in place of the offset of an invalidation: of the attributes alone

if TYPE_CHECKING:
    from imgfs.fuse.tasks import Tasks

log = logging.getLogger(__name__)

_BODIES = (bytes, memoryview)
Answer: TypeAlias = bytes | memoryview | int | None  # an int is an errno; None: the kernel expects none
Handler: TypeAlias = Callable[[Head, memoryview], Answer | Coroutine[object, object, bytes]]


class Waiting(NamedTuple):
    """A request whose answer takes time: `answer` is a coroutine that returns the answer's body.

    `until_killed`: only the caller's death cancels it, not every signal. The caller may be a page fault,
    which must not fail with EINTR.
    """

    head: Head
    until_killed: bool
    answer: Coroutine[object, object, bytes]


class Session:
    """Reads requests from `descriptor`, a mount's /dev/fuse, and answers each by the handler of its opcode.

    A handler gets a request's head and body, valid until it returns, and returns the answer's body, or a
    coroutine for it. An exception becomes an errno. An opcode without a handler is refused with ENOSYS: the
    kernel does not send most of those again. `greeted` is called with the kernel's features (InitFlag) after
    FUSE_INIT has been answered; `fuse.agreement` says what is agreed on.

    `stands_below`: another file system reads from this one, and makes EIO of EINTR.
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
        self.descriptor = descriptor
        self._greeted = greeted
        self.offers = offers_of(writable=writable, writeback=writeback, acls=acls, stands_below=stands_below)
        self.understood = self.offers | ONCE
        self._stands_below = stands_below
        self._handlers: dict[int, Handler] = {
            Opcode.FORGET: _nothing,
            Opcode.BATCH_FORGET: _nothing,
        }
        self._handlers.update(handlers.items())
        self._room = buffer(READ_BUFFER)
        self._rooms = (self._room,)
        self._waiting: Waiting | None = None
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self.watched: dict[int, Callable[[], None]] = {}
        self.period, self.beat = math.inf, _nothing_else  # seconds from one call to the next
        self._due = math.inf
        self.offered = 0  # what the kernel can do (InitFlag), once it has greeted
        self._newest = 0  # the number of the last request that a program waits for
        self._invalidating: set[int] = set()  # inodes whose attributes a thread invalidates
        self.is_ending = self.is_aborted = False
        self.at_stop: list[Callable[[], None]] = []  # called once no more requests are taken
        self.tasks: Tasks | None = None  # the requests that wait, once one has to

    def watch(self, descriptor: int, act: Callable[[], None]) -> None:
        """Have the serving thread call `act` whenever a descriptor can be read."""
        self.watched[descriptor] = act
        self._poll.register(descriptor, select.POLLIN)
        if self.tasks:
            self.tasks.watch(descriptor)

    def unwatch(self, descriptor: int) -> None:
        """Undo `watch`."""
        del self.watched[descriptor]
        self._poll.unregister(descriptor)

    def every(self, period: float, beat: Callable[[], None]) -> None:
        """Have the serving thread call `beat` now and every `period` seconds."""
        self.period, self.beat, self._due = period, beat, time.monotonic()
        if self.tasks:
            self.tasks.go_on_beating()

    def serve(self) -> bool:
        """Answer requests. Return True once it is unmounted, False once `end` or `abort` has been called.

        Raises what `greeted` and the functions given to `watch` raise; MountError if the kernel is too old.
        """
        os.set_blocking(self.descriptor, False)  # what has been asked may be taken back before it is read
        try:
            is_unmounted = self._answer_at_once()
        finally:
            if not self._waiting:
                self.stopped()
        if not self._waiting:
            return is_unmounted
        from imgfs.fuse.tasks import serve_by_tasks  # here: only now is it needed

        return serve_by_tasks(self)

    def stopped(self) -> None:
        """Call the functions of `at_stop`: no more requests are read."""
        while self.at_stop:
            self.at_stop.pop()()

    def _answer_at_once(self) -> bool:
        """Answer requests until the mount is gone, the session ends, or a request has to wait."""
        poll = BusyPoll(self._poll.poll)
        while not self.is_ending:
            for descriptor, _ in poll.wait(self._patience()):
                if descriptor != self.descriptor:
                    self.watched[descriptor]()
                elif not self.answer_next():
                    return True
                elif self._waiting:
                    return False
        return False

    def _patience(self) -> float | None:
        """Return the milliseconds until the next beat, after the one that is due; None if there is none."""
        if self._due == math.inf:
            return None
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self.period
            self.beat()
            if self.is_ending:
                return 0
        return max(1, 1000 * (self._due - now))

    def resume(self, offered: int, *, resend: bool) -> None:
        """Take over from a process that has answered FUSE_INIT.

        `offered` are the kernel's features (InitFlag). `resend`: that process was killed, so the kernel is
        asked to send its unanswered requests again.
        """
        self.offered = offered
        self._greeted(offered)
        if resend:
            self._write(ANSWER_HEAD.pack(ANSWER_HEAD.size, NotifyCode.RESEND, 0), b"")

    def end(self) -> None:
        """Read no more requests; those under way are still answered."""
        self.is_ending = True

    def abort(self) -> None:
        """Read no more requests, and leave those under way unanswered."""
        self.is_ending = self.is_aborted = True

    def answer_next(self) -> bool:
        """Read a request, if there is one, and answer it unless it has to wait. False once unmounted."""
        try:
            length = os.readv(self.descriptor, self._rooms)
        except OSError as error:
            if error.errno in _ENDED:
                return False
            if error.errno not in _NO_REQUEST:
                raise
        else:
            self._take(length)
        return True

    def answer_until(self, done: int, seconds: float) -> None:
        """Answer further requests while one is held up, until `done` can be read, for `seconds` at most.

        Return early if one of them has to wait, or the mount is gone.
        """
        poll = select.poll()
        for descriptor in (done, self.descriptor):
            poll.register(descriptor, select.POLLIN)
        end = time.monotonic() + seconds
        while not self._waiting and (left := end - time.monotonic()) > 0:
            ready = [descriptor for descriptor, _ in poll.poll(1000 * left)]
            if done in ready or not ready or not self.answer_next():
                return

    def last_request(self) -> int | None:
        """Return the number of the last request, None while any waits for its answer."""
        if self._waiting or (self.tasks and self.tasks.any_waits()):
            return None
        return self._newest & ~RESENT

    def answer_of_root(self, opcode: Opcode) -> bytes:
        """Return the answer to a request about the root whose body is empty, such as STATFS."""
        answer = self._handlers[opcode](Head(opcode, 0, ROOT_INO, 0, 0, 0), memoryview(b""))
        assert isinstance(answer, bytes)
        return answer

    def take_waiting(self) -> Waiting | None:
        """Return the request just read if it has to wait, else None; the caller runs its coroutine."""
        waiting, self._waiting = self._waiting, None
        return waiting

    def _take(self, length: int) -> None:
        """Answer the request that has been read, or note that it has to wait."""
        head = Head._make(HEAD.unpack_from(self._room))
        handler = self._handlers.get(head.opcode)
        if handler is None:
            self._take_own(head, self._room[HEAD_SIZE:length])
            return
        if handler is not _nothing:  # what the kernel forgets by itself, no program has asked for
            self._newest = head.unique
        try:
            answer = handler(head, self._room[HEAD_SIZE:length])
        except Exception as error:  # noqa: BLE001  (the mount lives)
            self.send(head.unique, errno_of(error, head))
            return
        if isinstance(answer, _BODIES):  # first: nearly all are
            self.send(head.unique, 0, answer)
        elif isinstance(answer, int):
            self.send(head.unique, answer)
        elif answer is not None:
            until_killed = self._stands_below or fills_page_cache(head, self._room[HEAD_SIZE:length])
            self._waiting = Waiting(head, until_killed, answer)

    def _take_own(self, head: Head, body: memoryview) -> None:
        """Answer the requests of the protocol itself, and refuse those without a handler."""
        if head.opcode == _INTERRUPT:
            self._interrupt(head, INTERRUPT_IN.unpack_from(body)[0])
        elif head.opcode == _INIT:
            self._greet(head, body)
        else:
            self._newest = head.unique
            self.send(head.unique, errno.ENOSYS)

    def _interrupt(self, head: Head, unique: int) -> None:
        """Cancel a request that its caller no longer waits for, if it has not been answered.

        An interrupt may come before its request: EAGAIN asks the kernel to send it again (linux/fuse.h). One
        thread reads all requests, so that does not happen today; libfuse allows for it, too.
        """
        is_taken_back = self.tasks and self.tasks.take_back(unique)
        if not is_taken_back and unique & ~RESENT > self._newest & ~RESENT:
            self.send(head.unique, errno.EAGAIN)

    def invalidate_attributes(self, ino: int) -> None:
        """Have the kernel ask for a file's attributes when it next needs them; its dirty pages stay.

        Only for a file that the caller of a request under way has open: if its inode is being evicted, the
        kernel waits for that here, and the eviction may wait for our answers.
        """
        self._notify_invalid(ino, _NO_PAGES)

    def invalidate_attributes_soon(self, ino: int) -> None:
        """Do as `invalidate_attributes` for any file, open or not, in another thread."""
        if ino not in self._invalidating:
            self._invalidating.add(ino)
            if not try_thread(partial(self._invalidate, ino), "imgfs-attributes"):
                self._invalidating.discard(ino)

    def _invalidate(self, ino: int) -> None:
        self._invalidating.discard(ino)
        self.invalidate_attributes(ino)

    def forget_pages_soon(self, inos: Iterable[int]) -> None:
        """Have the kernel drop the pages of files, mapped ones too, in another thread."""
        try_thread(partial(self._forget_pages, inos), "imgfs-pages", level=logging.WARNING)

    def _forget_pages(self, inos: Iterable[int]) -> None:
        for ino in inos:
            self.write_back(ino)

    def forget_name_soon(self, parent: int, name: bytes) -> None:
        """Have the kernel look a name up anew, in another thread; an inode that nothing else holds goes."""
        try_thread(partial(self._forget_name, parent, name), "imgfs-names")

    def _forget_name(self, parent: int, name: bytes) -> None:
        body = INVALIDATE_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0"
        self._write(ANSWER_HEAD.pack(ANSWER_HEAD.size + len(body), NotifyCode.INVALIDATE_ENTRY, 0), body)

    def write_back(self, ino: int) -> None:
        """Have the kernel write back a file's dirty pages and drop all its pages. For a thread of its own.

        The kernel waits for pages that are being read: requests must be answered meanwhile.
        """
        self._notify_invalid(ino, 0)

    def store(self, ino: int, body: bytes | memoryview) -> bool:
        """Put the first bytes of a file into the kernel's page cache; False if the kernel has no such inode.

        The kernel waits for pages that are being read. For a thread of its own.
        """
        head = ANSWER_HEAD.pack(ANSWER_HEAD.size + STORE_OUT.size + len(body), NotifyCode.STORE, 0)
        try:
            os.writev(self.descriptor, (head, STORE_OUT.pack(ino, 0, len(body)), body))
        except OSError as error:
            if error.errno not in _NOT_TAKEN:
                raise
            return False
        return True

    def _notify_invalid(self, ino: int, offset: int) -> None:
        body = INVALIDATE_INODE_OUT.pack(ino, offset, 0)
        self._write(ANSWER_HEAD.pack(ANSWER_HEAD.size + len(body), NotifyCode.INVALIDATE_INODE, 0), body)

    def send(self, unique: int, number: int, body: bytes | memoryview = b"") -> None:
        """Answer with a body, or with an errno."""
        self._write(ANSWER_HEAD.pack(ANSWER_HEAD.size + len(body), -number, unique), body)

    def _write(self, head: bytes, body: bytes | memoryview) -> None:
        try:
            if len(body) <= _SMALL:
                os.write(self.descriptor, head + body)
            else:
                os.writev(self.descriptor, (head, body))
        except OSError as error:
            if error.errno not in _NOT_TAKEN:
                log.exception("the kernel does not take an answer of %d bytes", len(body))

    def _greet(self, head: Head, body: memoryview) -> None:
        """Agree with the kernel on what both can do."""
        try:
            offered, answer = agree(body, self.offers)
        except MountError:
            self.send(head.unique, errno.EPROTO)
            raise
        self.send(head.unique, 0, answer)
        self.offered = offered
        self._greeted(offered)


def _nothing(_head: Head, _body: memoryview) -> None:
    """Answer FORGET: no state is kept for an inode."""


def _nothing_else() -> None:
    """Do nothing besides."""
