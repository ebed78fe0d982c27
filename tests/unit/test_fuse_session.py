"""The conversation with the kernel, without one: a socket that keeps messages apart stands for /dev/fuse."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import trio

from imgfs.errors import ImgfsError, MountError
from imgfs.fuse.interrupts import is_killed
from imgfs.fuse.opcodes import READ_LOCKOWNER, InitFlag, Opcode
from imgfs.fuse.protocol import ABSENT, Head, attributes, entry, listed, listed_dot
from imgfs.fuse.session import Handler, Session
from imgfs.tree.database import Attributes, Node
from tests.support.mounted import until

ATTR = struct.Struct("<6q10I")  # fuse_attr (linux/fuse.h)
FILE = Node(7, 0o100644, 3, 4, 5000, -1, 2, (8 << 8) | 1, 10, -1, -1)


class Kernel:
    """The other end: asks, and is answered."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def ask(self, unique: int, opcode: int, body: bytes = b"", ino: int = 1, pid: int = 10) -> None:
        """Send a request (fuse_in_header)."""
        self._end.send(struct.pack("<IIQQIIII", 40 + len(body), opcode, unique, ino, 8, 9, pid, 0) + body)

    def answer(self) -> tuple[int, int, bytes]:
        """(request's number, errno, body) of the next answer (fuse_out_header)."""
        message = self._end.recv(1 << 20)
        length, error, unique = struct.unpack_from("<IiQ", message)
        assert length == len(message)
        return unique, -error, message[16:]


@contextmanager
def talking(handlers: Mapping[Opcode, Handler], asking: Callable[[Kernel], None]) -> Iterator[list[int]]:
    """Have a session answer what `asking`, in a thread, asks; gives what the kernel has offered."""
    offered: list[int] = []
    with connection() as (session_end, kernel):
        session = Session(session_end, handlers, offered.append)
        serve_while(session, lambda: asking(kernel))
    yield offered


@contextmanager
def connection() -> Iterator[tuple[int, Kernel]]:
    """The descriptor of a session, and the kernel at the other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.settimeout(10)
    with ours, theirs:
        yield ours.fileno(), Kernel(theirs)


def serve_while(session: Session, act: Callable[[], None]) -> bool:
    """Serve until `act`, in a thread, is done; what that raises is raised here."""
    told, tell = os.pipe()
    session.watch(told, session.end)
    with ThreadPoolExecutor(1) as thread:
        acting = thread.submit(act)
        acting.add_done_callback(lambda _: os.write(tell, b"\0"))
        is_unmounted = session.serve()
        acting.result()
    for end in (told, tell):
        os.close(end)
    return is_unmounted


def test_what_nobody_handles_is_refused_and_a_forget_is_not_answered() -> None:
    def asking(kernel: Kernel) -> None:
        kernel.ask(2, Opcode.FORGET, bytes(8))
        kernel.ask(4, Opcode.BATCH_FORGET, bytes(8))
        kernel.ask(6, 999)
        assert kernel.answer() == (6, errno.ENOSYS, b"")

    with talking({}, asking):
        pass


def test_a_name_that_the_kernel_forgets_is_no_request_by_which_a_mount_is_in_use() -> None:
    def asking() -> None:
        kernel.ask(2, 999)
        kernel.answer()
        asked = session.last_request()
        kernel.ask(4, Opcode.FORGET, bytes(8))
        kernel.ask(6, Opcode.BATCH_FORGET, bytes(8))
        kernel.ask(8, Opcode.INIT, struct.pack("<5I", 7, 45, 131072, 0, 0) + bytes(44))
        kernel.answer()
        assert session.last_request() == asked == 2

    with connection() as (end, kernel):
        session = Session(end, {}, lambda _: None)
        serve_while(session, asking)


def test_the_greeting_agrees_to_what_both_can_and_tells_what_is_offered() -> None:
    more = InitFlag.ALLOW_IDMAP >> 32 | 1 << 7
    offer = InitFlag.CACHE_SYMLINKS | InitFlag.NO_OPENDIR_SUPPORT | InitFlag.INIT_EXT

    def asking(kernel: Kernel) -> None:
        kernel.ask(2, Opcode.INIT, struct.pack("<5I", 7, 45, 131072, offer, more) + bytes(44))
        _, error, body = kernel.answer()
        assert (error, len(body)) == (0, 64)  # fuse_init_out since 7.23
        agreed = InitFlag.CACHE_SYMLINKS | InitFlag.INIT_EXT
        assert struct.unpack_from("<4I", body) == (7, 31, 131072, agreed)
        assert struct.unpack_from("<I", body, 32) == (InitFlag.ALLOW_IDMAP >> 32,)

    with talking({}, asking) as offered:
        assert offered == [offer | more << 32]


def test_an_older_kernel_is_not_asked_for_what_it_does_not_know() -> None:
    def asking(kernel: Kernel) -> None:
        kernel.ask(2, Opcode.INIT, struct.pack("<4I", 7, 31, 131072, InitFlag.CACHE_SYMLINKS))
        _, error, body = kernel.answer()
        assert error == 0
        assert struct.unpack_from("<4I", body)[3] == InitFlag.CACHE_SYMLINKS
        assert struct.unpack_from("<I", body, 32) == (0,)

    with talking({}, asking):
        pass


def test_a_kernel_that_is_too_old_is_refused_in_one_line() -> None:
    with connection() as (end, kernel):
        kernel.ask(2, Opcode.INIT, struct.pack("<4I", 7, 28, 131072, 0))
        with pytest.raises(
            MountError, match=r"^this kernel speaks FUSE 7\.28; imgfs needs 7\.29 .Linux 5\.1.$"
        ):
            Session(end, {}, lambda _: None).serve()
        assert kernel.answer() == (2, errno.EPROTO, b"")


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ECONNABORTED])
def test_a_connection_that_has_ended_ends_the_session(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def ended(descriptor: int, rooms: list[memoryview]) -> int:
        raise OSError(number, os.strerror(number))

    offered: list[int] = []
    with connection() as (end, kernel):
        kernel.ask(2, Opcode.LOOKUP)
        monkeypatch.setattr(os, "readv", ended)
        assert Session(end, {}, offered.append).serve()


def test_a_session_that_goes_on_asks_for_what_was_left_and_answers_it_by_its_new_number() -> None:
    async def slowly() -> bytes:
        await trio.sleep_forever()
        return b""

    offered: list[int] = []

    def asking(kernel: Kernel) -> None:
        assert kernel.answer() == (0, -7, b"")  # FUSE_NOTIFY_RESEND
        kernel.ask(1 << 63 | 40, Opcode.LOOKUP, b"name")
        assert kernel.answer() == (1 << 63 | 40, 0, b"found")
        kernel.ask(42, Opcode.READ)
        kernel.ask(43, Opcode.INTERRUPT, struct.pack("<Q", 42))  # not one that is to come
        assert kernel.answer() == (42, errno.EINTR, b"")
        kernel.ask(45, Opcode.INTERRUPT, struct.pack("<Q", 44))
        assert kernel.answer() == (45, errno.EAGAIN, b"")

    handlers: dict[Opcode, Handler] = {
        Opcode.LOOKUP: lambda *_: b"found",
        Opcode.READ: lambda *_: slowly(),
    }
    with connection() as (end, kernel):
        session = Session(end, handlers, offered.append)
        session.resume(77, resend=True)
        serve_while(session, lambda: asking(kernel))
    assert offered == [77]


def test_a_request_that_waits_holds_nobody_up() -> None:
    begun = trio.Event()

    async def slowly() -> bytes:
        await begun.wait()
        return b"slow"

    def quickly(head: Head, body: memoryview) -> bytes:
        begun.set()
        return bytes(body) + b"%d" % head.ino

    def asking(kernel: Kernel) -> None:
        kernel.ask(2, Opcode.READ)
        kernel.ask(4, Opcode.LOOKUP, b"name", ino=5)
        assert kernel.answer() == (4, 0, b"name5")
        assert kernel.answer() == (2, 0, b"slow")

    with talking({Opcode.READ: lambda *_: slowly(), Opcode.LOOKUP: quickly}, asking):
        pass


def test_what_is_raised_is_an_errno_and_a_bug_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def raising(error: Exception) -> Handler:
        def handler(*_: object) -> bytes:
            raise error

        return handler

    async def later() -> bytes:
        raise ImgfsError("the registry is away")

    handlers: dict[Opcode, Handler] = {
        Opcode.UNLINK: raising(OSError(errno.ENOTEMPTY, "")),
        Opcode.GETATTR: raising(KeyError("bug")),
        Opcode.READ: lambda *_: later(),
    }

    def asking(kernel: Kernel) -> None:
        for unique, opcode in enumerate(handlers):
            kernel.ask(unique, opcode, ino=77)
            assert kernel.answer()[1] == (errno.ENOTEMPTY if opcode is Opcode.UNLINK else errno.EIO)

    with caplog.at_level(logging.ERROR), talking(handlers, asking):
        pass
    bug, away = caplog.records
    assert (bug.getMessage(), bug.exc_info is not None) == ("opcode 3, ino 77", True)
    assert away.getMessage() == "EIO: the registry is away"


def test_what_is_under_way_at_the_end_is_answered_still() -> None:
    stopped, later = [], trio.Event()

    async def slowly() -> bytes:
        await later.wait()
        return b"late"

    def answer_the_rest() -> None:
        stopped.append(True)
        later.set()

    def asking(kernel: Kernel) -> None:
        kernel.ask(2, Opcode.READ)
        kernel.ask(4, Opcode.LOOKUP)
        assert kernel.answer() == (4, 0, b"")

    handlers: dict[Opcode, Handler] = {Opcode.READ: lambda *_: slowly(), Opcode.LOOKUP: lambda *_: b""}
    with connection() as (end, kernel):
        session = Session(end, handlers, print)
        session.at_stop.append(answer_the_rest)
        assert not serve_while(session, lambda: asking(kernel))
        assert kernel.answer() == (2, 0, b"late")
    assert stopped == [True]


def test_a_session_that_is_aborted_leaves_what_is_under_way() -> None:
    def asking(kernel: Kernel) -> None:
        kernel.ask(2, Opcode.READ)
        kernel.ask(4, Opcode.LOOKUP)
        assert kernel.answer() == (4, 0, b"")

    handlers: dict[Opcode, Handler] = {
        Opcode.READ: lambda *_: trio.sleep_forever(),
        Opcode.LOOKUP: lambda *_: b"",
    }
    with connection() as (end, kernel):
        session = Session(end, handlers, print)
        session.end = session.abort  # type: ignore[method-assign]
        assert not serve_while(session, lambda: asking(kernel))


def test_signs_of_life_are_given_and_descriptors_looked_at_whether_a_request_waits_or_not() -> None:
    beats: list[int] = []
    seen: list[bytes] = []
    told, tell = os.pipe()

    def look() -> None:
        seen.append(os.read(told, 1))
        if seen[-1] == b"c":
            session.unwatch(told)

    def beats_on_and_sees(words: list[bytes]) -> None:
        count = len(beats)
        until(lambda: len(beats) > count + 2 and seen == words, "beats, and what is seen", pause=0.005)

    def asking(kernel: Kernel) -> None:
        for number, words in enumerate(([b"a"], [b"a", b"b"], [b"a", b"b", b"c"])):
            os.write(tell, words[-1])
            beats_on_and_sees(words)
            kernel.ask(2 + 4 * number, Opcode.READ)
            kernel.ask(4 + 4 * number, Opcode.LOOKUP)
            assert kernel.answer() == (4 + 4 * number, 0, b"")
        os.write(tell, b"d")
        beats_on_and_sees([b"a", b"b", b"c"])

    handlers: dict[Opcode, Handler] = {
        Opcode.READ: lambda *_: trio.sleep_forever(),
        Opcode.LOOKUP: lambda *_: b"",
    }
    with connection() as (end, kernel):
        session = Session(end, handlers, print)
        session.every(0.01, lambda: beats.append(1))
        session.watch(told, look)
        session.end = session.abort  # type: ignore[method-assign]
        serve_while(session, lambda: asking(kernel))
    assert seen == [b"a", b"b", b"c"]
    for end in (told, tell):
        os.close(end)


def test_a_file_is_told_with_times_before_1970_and_after() -> None:
    ino, generation, entry_good, attributes_good = struct.unpack_from("<4Q", entry(FILE, None))
    assert (ino, generation, entry_good > 1 << 29, attributes_good > 1 << 29) == (7, 0, True, True)
    told = (7, 5000, 10, -1, -1, -1, 999_999_999, 999_999_999, 999_999_999, 0o100644, 2, 3, 4, 2049, 4096, 0)
    assert ATTR.unpack_from(entry(FILE, None), 40) == told
    assert ATTR.unpack_from(attributes(FILE, None), 16) == told
    upper = Attributes(7, 0o100644, 3, 4, 5000, 3 * 10**9, 1, 0, 10, 10**9 + 1, 2 * 10**9 + 2)
    assert ATTR.unpack_from(attributes(upper, (5, 6)), 16)[3:9] == (1, 3, 2, 1, 0, 2)
    assert ATTR.unpack_from(attributes(upper, (5, 6)), 16)[11:13] == (5, 6)


def test_entries_of_a_listing_are_aligned_and_carry_their_file() -> None:
    for length in range(1, 20):
        name = b"n" * length
        for body, wanted in (
            (listed(9, name, FILE, None), (entry(FILE, None), 7, 8)),
            (listed_dot(9, name, 5), (bytes(128), 5, 4)),
        ):
            assert len(body) % 8 == 0
            assert (body[:128], *struct.unpack_from("<2Q2I", body, 128)) == (
                wanted[0], wanted[1], 9, length, wanted[2],
            )  # fmt: skip
            assert body[152:].rstrip(b"\0") == name


def test_a_name_that_is_not_there_is_remembered() -> None:
    assert len(ABSENT) == 128
    assert struct.unpack_from("<4Q", ABSENT) == (0, 0, 1 << 30, 0)


# -- what is taken back


def interrupt(kernel: Kernel, unique: int) -> None:
    """Take a request back (fuse_interrupt_in); the kernel numbers that by one more."""
    kernel.ask(unique | 1, Opcode.INTERRUPT, struct.pack("<Q", unique))


def read_in(flags: int) -> bytes:
    """A fuse_read_in."""
    return struct.pack("<QQIIQII", 0, 0, 4096, flags, 0, 0, 0)


def test_a_request_that_waits_is_answered_with_eintr_when_it_is_taken_back() -> None:
    undone = []

    async def forever() -> bytes:
        try:
            await trio.sleep_forever()
        finally:
            undone.append(True)

    def asking(kernel: Kernel) -> None:
        for body in (b"", read_in(READ_LOCKOWNER)):
            kernel.ask(2, Opcode.READ, body)
            interrupt(kernel, 2)
            assert kernel.answer() == (2, errno.EINTR, b"")

    with talking({Opcode.READ: lambda *_: forever()}, asking):
        pass
    assert undone == [True, True]


def test_only_the_request_that_is_named_is_taken_back() -> None:
    later = trio.Event()

    async def wait() -> bytes:
        await later.wait()
        return b"done"

    def release(*_: object) -> None:
        later.set()

    def asking(kernel: Kernel) -> None:
        for unique in (2, 4, 6):
            kernel.ask(unique, Opcode.OPEN)
        interrupt(kernel, 4)
        assert kernel.answer() == (4, errno.EINTR, b"")
        kernel.ask(8, Opcode.FORGET)
        assert {kernel.answer() for _ in range(2)} == {(2, 0, b"done"), (6, 0, b"done")}

    with talking({Opcode.OPEN: lambda *_: wait(), Opcode.FORGET: release}, asking):
        pass


def test_what_has_been_answered_is_not_taken_back_and_what_has_not_come_is_asked_for_again() -> None:
    def asking(kernel: Kernel) -> None:
        kernel.ask(2, Opcode.LOOKUP)
        assert kernel.answer() == (2, 0, b"found")
        interrupt(kernel, 2)
        interrupt(kernel, 40)
        assert kernel.answer() == (41, errno.EAGAIN, b"")

    with talking({Opcode.LOOKUP: lambda *_: b"found"}, asking):
        pass


def test_what_is_done_although_it_was_taken_back_is_told_as_done() -> None:
    async def shielded() -> bytes:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.05)
        return b"done"

    def asking(kernel: Kernel) -> None:
        kernel.ask(2, Opcode.OPEN)
        interrupt(kernel, 2)
        interrupt(kernel, 2)
        assert kernel.answer() == (2, 0, b"done")
        kernel.ask(4, Opcode.GETATTR)
        assert kernel.answer() == (4, 0, b"")

    with talking({Opcode.OPEN: lambda *_: shielded(), Opcode.GETATTR: lambda *_: b""}, asking):
        pass


def test_a_read_for_the_page_cache_is_taken_back_only_from_who_is_being_killed() -> None:
    """Its caller may be a page fault, which would kill a program that handles its signal."""
    later = trio.Event()

    async def wait() -> bytes:
        await later.wait()
        return b"read"

    def release(*_: object) -> None:
        later.set()

    def asking(kernel: Kernel) -> None:
        kernel.ask(2, Opcode.READ, read_in(0), pid=os.getpid())
        interrupt(kernel, 2)
        kernel.ask(4, Opcode.GETATTR)
        assert kernel.answer() == (4, 0, b"")
        kernel.ask(6, Opcode.FORGET)
        assert kernel.answer() == (2, 0, b"read")

    handlers: dict[Opcode, Handler] = {
        Opcode.READ: lambda *_: wait(),
        Opcode.GETATTR: lambda *_: b"",
        Opcode.FORGET: release,
    }
    with talking(handlers, asking):
        pass


def test_who_is_being_killed_is_known() -> None:
    assert not is_killed(os.getpid())
    assert not is_killed(0)
    assert not is_killed(1 << 30)
