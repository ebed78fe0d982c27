"""The forked process: it makes sure who asks, becomes what was asked for, and runs it."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from imgfs import syscalls
from imgfs.forkserver.caller import Differs, check_likeness, check_rights, take_over
from imgfs.forkserver.request import (
    ACCEPTED,
    LARGEST,
    PASSED,
    PROVE,
    REFUSED,
    SECRET,
    SECRET_NAME,
    WORD,
    CommandRequest,
)
from imgfs.quoting import printable
from imgfs.variables import set_variables

log = logging.getLogger(__name__)


class Commands(NamedTuple):
    """What a server does: it has `run` carry out a command's words, and return its exit code.

    `is_bound` says of which commands the processes have to be in the cgroups of their callers.
    """

    run: Callable[[Sequence[str]], int]
    is_bound: Callable[[Sequence[str]], bool]


_PATIENCE = 10.0  # seconds for the client to send its request
_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid
_SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5


def carry_out(connection: socket.socket, commands: Commands, is_current: Callable[[], bool]) -> bool:
    """Carry out what a client asks for, and tell it the exit code; False if imgfs is not what it was."""
    connection.settimeout(_PATIENCE)
    pid, is_outdated = 0, False
    try:
        with peer_of(connection) as pid:
            request, passed = _receive(connection)
            if is_outdated := not is_current():
                raise Differs("another imgfs has been installed")  # noqa: TRY301  (as what is called does)
            check_likeness(pid)
            check_sight(connection)
            take_over(pid, whole_cgroup=commands.is_bound(request.words))
    except (Differs, OSError, ValueError) as error:
        _refuse(connection, pid, str(error))
        return not is_outdated
    # no more of its words: a container's variables may be passwords
    log.info("for pid %d: imgfs %s", pid, " ".join(map(printable, request.words[:1])))
    _become(request, passed)
    _die_with(connection)
    connection.sendall(ACCEPTED + os.getpid().to_bytes(WORD, "little"))
    os.register_at_fork(after_in_child=connection.close)
    code = commands.run(request.words)
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall((code & 0xFF).to_bytes(WORD, "little"))
    return True


def is_worth_a_fork(connection: socket.socket) -> bool:
    """Return False for a client that would be refused by its rights, and refuse it."""
    pid = 0
    try:
        with peer_of(connection) as pid:
            check_rights(pid)
    except (Differs, OSError) as error:
        connection.setblocking(False)
        _refuse(connection, pid, str(error))
        return False
    return True


@contextmanager
def peer_of(connection: socket.socket) -> Iterator[int]:
    """Yield the client's pid, to look it up in /proc. Raises Differs if it is another user's.

    At the end of the block too, if the client has ended: what /proc said may have been of another process,
    which has got its pid.
    """
    pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid != os.geteuid():
        raise Differs(f"user {uid}, not {os.geteuid()}")
    try:
        alive = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        alive = os.pidfd_open(pid)
    try:
        yield pid
        poll = select.poll()  # select(2) has no descriptors over 1,023
        poll.register(alive, select.POLLIN)
        if poll.poll(0):
            raise Differs("it has ended")
    finally:
        os.close(alive)


def _receive(connection: socket.socket) -> tuple[CommandRequest, list[int]]:
    """Read a request, and the descriptors with it. Raises OSError; ValueError if another imgfs asks."""
    head, passed, _, _ = socket.recv_fds(connection, WORD, PASSED)
    length = int.from_bytes(head, "little")
    if len(head) != WORD or len(passed) != PASSED or length > LARGEST:
        raise ValueError("no request")
    body = bytearray()
    while len(body) < length:
        more = connection.recv(min(length - len(body), 1 << 16))
        if not more:
            raise ValueError("it is cut off")
        body += more
    return CommandRequest.decode(bytes(body)), passed


def check_sight(connection: socket.socket) -> None:
    """Have the client read what only a process that this one is open to can; raises Differs if it does not.

    Of Landlock /proc says nothing, and root needs no `no_new_privs` for it. But a process may look into no
    other that is not confined as it is (landlock(7), "Ptrace restrictions").
    """
    secret = os.urandom(SECRET)
    number = os.memfd_create(SECRET_NAME)
    try:
        os.write(number, secret)
        connection.sendall(PROVE + b"".join(each.to_bytes(WORD, "little") for each in (os.getpid(), number)))
        if connection.recv(SECRET, socket.MSG_WAITALL) != secret:
            raise Differs("it may not look into this process: confined, as by landlock(7)")
    finally:
        os.close(number)


def _refuse(connection: socket.socket, pid: int, reason: str) -> None:
    log.info("pid %d is not served: %s", pid, reason)
    with connection, suppress(OSError):  # it may be gone
        connection.sendall(REFUSED)


def _become(request: CommandRequest, passed: Sequence[int]) -> None:
    """Make this process one that was started by the client's words, in its directory, with its files."""
    os.setsid()
    os.fchdir(passed[3])
    for number, fd in enumerate(passed[:3]):
        os.dup2(fd, number, inheritable=True)
    for fd in passed:
        os.close(fd)
    set_variables(request.variables)
    time.tzset()
    sys.argv = [request.name, *request.words]
    sys.stdin, sys.stdout, sys.stderr = map(_opened, range(3), request.streams[::2], request.streams[1::2])
    logging.basicConfig(handlers=[], level=logging.WARNING, force=True)
    syscalls.show_words([sys.executable, *sys.argv])
    syscalls.show_variables(request.variables)


def _die_with(connection: socket.socket) -> None:
    """Have the kernel kill this process when the client closes the connection, as it does when it ends."""
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([connection], [], [], 0)[0]:  # it is gone already
        os._exit(1)


def _opened(number: int, encoding: str, errors: str) -> io.TextIOWrapper:
    """Open a standard file for text, as Python does."""
    file = open(number, "wb" if number else "rb", closefd=False)  # noqa: SIM115 (as long as the process)
    return io.TextIOWrapper(
        file, encoding or None, errors or None, line_buffering=number == 2 or file.isatty()
    )
