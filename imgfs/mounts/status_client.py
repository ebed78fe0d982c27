"""Reads a mount's status from its daemon, within a deadline: it may be dead, stopped, or waiting for a disk.

A process that touches a FUSE mount waits in the kernel until the daemon answers, and cannot always be killed
there (fs/fuse/dev.c, request_wait_answer). So a child process asks, and is abandoned if it gets no answer.
"""

from __future__ import annotations

import errno
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from imgfs.errors import MountError
from imgfs.mounts.holders import holder_of, is_holder
from imgfs.mounts.table import STATUS_SOCKET, Mount, pids
from imgfs.owned.writing import write_all

if TYPE_CHECKING:
    from imgfs.status import MountStatus

STATUS_XATTR = "user.imgfs.status"  # on a mount's root: answered by the daemon, never listed
ANSWER = 10.0  # seconds that a daemon may take to answer,
_LEAST_OF_MANY = 1.0  # seconds that each of several has, whatever others have taken
_LEAST = 0.01  # seconds: with none a socket would not wait at all
_POLL = 0.5  # seconds between checks whether it is stopped: then it is not waited for
_LARGEST_PLAIN = 48 << 10  # bytes: an attribute has 64 KiB at most (xattr(7)), an image over a hundred layers
_LARGEST = 16 << 20  # bytes of a status: an image of 500 layers has 1 MiB
_READ_SIZE = 1 << 16
_OK, _FAILED = b"\0", b"\1"  # first byte of the child's answer
_NUMBER = 4  # bytes of each number in the child's answer about several mounts
_CREDENTIALS = 12  # bytes: pid, uid and gid (unix(7), SO_PEERCRED)


class DaemonSilent(MountError):
    """A mount's daemon does not answer; `why` has its state, and what to do."""

    def __init__(self, mount: Mount) -> None:
        pid = daemon_of(mount)
        daemon = f"its daemon (pid {pid})" if pid else "its daemon"
        is_stopped = pid is not None and is_stopped_process(pid)
        is_killed = pid is not None and is_killed_process(pid)
        state = "is stopped" if is_stopped else "does not answer"
        todo, how = f"kill -CONT {pid}, or " if is_stopped else "", " -l"
        if is_killed:
            state, how = "was killed, and the kernel waits for it", ""
        if holder_of(mount):
            todo = "it is being replaced: wait, or "
        self.why = f"{daemon} {state}: {todo}imgfs umount{how} {mount.mountpoint}"
        super().__init__(f"{mount.mountpoint}: {self.why}")


class DaemonDead(MountError):
    """A mount's daemon has died, and nothing starts it again."""

    def __init__(self, mount: Mount) -> None:
        hint = f"clear it with: imgfs umount {mount.mountpoint}"
        super().__init__(f"{mount.mountpoint}: no status: its daemon has died; {hint}")


def read_status(mount: Mount, patience: float | None = None) -> MountStatus:
    """Return the status that the daemon of `mount` answers. Raises as `read_status_json`."""
    from imgfs.status import MountStatus  # here: daemons, which know this module, only tell it

    return MountStatus.from_json(read_status_json(mount, patience))


def read_status_json(mount: Mount, patience: float | None = None) -> Mapping[str, object]:
    """Return the same as the daemon, which may be of another version, has it in JSON.

    Raises DaemonSilent if it does not answer within so many seconds (by default `ANSWER`), sooner if it is
    stopped; DaemonDead if it has died; MountError if it cannot be asked.
    """
    return _status(mount, time.monotonic() + (ANSWER if patience is None else patience))


def read_statuses(mounts: Sequence[Mount]) -> Iterator[MountStatus | MountError]:
    """Yield the status of each mount, or what `read_status` would raise.

    All have `ANSWER` together, and each has a second still, whatever others have taken. One child asks all
    that are by FUSE; if a daemon keeps it waiting, each of them is asked by another.
    """
    from imgfs.status import MountStatus

    end = time.monotonic() + ANSWER
    served = [mount for mount in mounts if not mount.runtime]
    known: dict[Mount, bytes | OSError] = {}
    with suppress(OSError):
        if served:
            body = ask_in_child(partial(_answers, served), served[0], time.monotonic() + _LEAST_OF_MANY)
            known = dict(zip(served, _parsed(body), strict=True))
    for mount in mounts:
        try:
            found = _status(mount, max(end, time.monotonic() + _LEAST_OF_MANY), known.get(mount))
            yield MountStatus.from_json(found)
        except MountError as error:
            yield error


def _answers(mounts: Sequence[Mount]) -> bytes:
    """Return for each mount an errno, 0 for none, the length of what its daemon answers, and that."""
    found = b""
    for mount in mounts:
        number, answer = 0, b""
        try:
            answer = _status_of(mount)()
        except OSError as error:
            number = error.errno or errno.EIO
        found += number.to_bytes(_NUMBER, "big") + len(answer).to_bytes(_NUMBER, "big") + answer
    return found


def _parsed(answers: bytes) -> Iterator[bytes | OSError]:
    """Yield what `_answers` has of each mount."""
    at = 0
    while at < len(answers):
        number = int.from_bytes(answers[at : at + _NUMBER], "big")
        begin = at + 2 * _NUMBER
        at = begin + int.from_bytes(answers[at + _NUMBER : begin], "big")
        yield OSError(number, os.strerror(number)) if number else answers[begin:at]


def _status(mount: Mount, end: float, answer: bytes | OSError | None = None) -> Mapping[str, object]:
    """Read a status until the time `end`, if its `answer` is not known. Raises as `read_status_json`."""
    try:
        if isinstance(answer, OSError):
            raise answer
        if answer is None:
            answer = _ask_socket(mount, end) if mount.runtime else ask_in_child(_status_of(mount), mount, end)
    except TimeoutError as error:
        raise DaemonSilent(mount) from error
    except OSError as error:
        dead = error.errno in (errno.ENOTCONN, errno.ECONNREFUSED)
        dead |= mount.runtime is not None and error.errno == errno.ENOENT  # its directory was swept
        if dead:
            raise DaemonDead(mount) from error
        raise MountError(f"{mount.mountpoint}: no status: {error.strerror}") from error
    try:
        return decode_status(answer)
    except MountError as error:
        raise MountError(f"{mount.mountpoint}: {error}") from error


def daemon_of(mount: Mount) -> int | None:
    """Return the pid of a mount's daemon, without asking it; None if it cannot be determined."""
    if mount.runtime:
        import _socket as socket  # here and below: where there is one; `socket` loads four times as much

        with suppress(OSError), closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as asking:
            asking.settimeout(_POLL)
            asking.connect(str(mount.runtime / STATUS_SOCKET))
            credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS)
            return int.from_bytes(credentials[:4], sys.byteorder) or None  # in this PID namespace
        return None
    minor = mount.device.partition(":")[2]
    serving = (pid for pid in reversed(pids()) if _serves(pid, minor))
    return next((pid for pid in serving if not is_holder(pid)), None)


def is_stopped_process(pid: int) -> bool:
    """Return True if a process is stopped by a signal, or by its tracer."""
    return _state(pid) in (b"T", b"t")


def is_served_by_none(pid: int | None) -> bool:
    """Return True if a daemon is known that cannot answer: it is stopped, or was killed."""
    return pid is not None and (is_stopped_process(pid) or is_killed_process(pid))


def is_killed_process(pid: int) -> bool:
    """Return True if a process was killed, and a thread of it waits in the kernel, with all it has open.

    It stores pages (FUSE_NOTIFY_STORE) and waits for one that a READ is to fill, which only another process
    can answer, or end the connection.
    """
    return _state(pid) == b"Z" and any(_threads(pid))


def _state(pid: int) -> bytes:
    """Return the state of a process's first thread (proc(5), stat); nothing if there is none."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    return b""


def _threads(pid: int) -> Iterator[str]:
    """Yield the directories in /proc of a process's threads but the first."""
    with suppress(OSError):
        yield from (f"/proc/{pid}/task/{one}" for one in os.listdir(f"/proc/{pid}/task") if one != str(pid))


def _serves(pid: int, minor: str) -> bool:
    """Return True if a process has that FUSE connection open (fdinfo has its number since Linux 6.11)."""
    with suppress(OSError):
        place = f"/proc/{pid}"
        descriptors = os.listdir(f"{place}/fd")
        if not descriptors:  # of one that was killed a thread may be left
            place = next(_threads(pid), place)
            descriptors = os.listdir(f"{place}/fd")
        for fd in descriptors:
            if os.readlink(f"{place}/fd/{fd}") == "/dev/fuse":
                lines = Path(f"{place}/fdinfo/{fd}").read_text().split()
                if ["fuse_connection:", minor] in [lines[at : at + 2] for at in range(len(lines))]:
                    return _is_connected(pid, int(fd))
    return False


def _is_connected(pid: int, fd: int) -> bool:
    """Return False if a process's /dev/fuse is that of a mount that is gone: its number may be another's now.

    True if that cannot be seen (pidfd_getfd(2), which takes the right to trace it).
    """
    with suppress(OSError):
        from imgfs.syscalls import copy_descriptor  # here: it takes ctypes

        process = os.pidfd_open(pid)
        try:
            copy = copy_descriptor(process, fd)
        finally:
            os.close(process)
        try:
            asking = select.poll()
            asking.register(copy, 0)
            return not any(events & select.POLLERR for _, events in asking.poll(0))  # fuse_dev_poll
        finally:
            os.close(copy)
    return True


def _status_of(mount: Mount) -> Callable[[], bytes]:
    return lambda: os.getxattr(mount.mountpoint, STATUS_XATTR)


def ask_in_child(ask: Callable[[], bytes], mount: Mount, end: float) -> bytes:
    """Return what `ask` returns in a child process: it may wait for the mount's daemon in the kernel.

    Raises the OSError that it raises; TimeoutError, and leaves the child there, at the time `end`, or sooner
    if the daemon is stopped.
    """
    answer, sink = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(ask, sink)
    os.close(sink)
    try:
        body = b"".join(_chunks(answer, mount, end))
    except TimeoutError:
        import signal

        os.kill(child, signal.SIGKILL)  # not waited for: the kernel may keep it until the daemon goes on
        raise
    finally:
        os.close(answer)
    os.waitpid(child, 0)
    if body[:1] != _OK:
        number = int.from_bytes(body[1:], "big") or errno.EIO
        raise OSError(number, os.strerror(number))
    return body[1:]


def _answer(ask: Callable[[], bytes], sink: int) -> NoReturn:
    """In the child: write _OK and what was asked for, or _FAILED and the errno.

    It closes the standard files: their readers wait for the end of all writers.
    """
    try:
        for fd in {0, 1, 2} - {sink}:
            os.close(fd)
        try:
            answer = _OK + ask()
        except OSError as error:
            answer = _FAILED + (error.errno or 0).to_bytes(4, "big")
        write_all(sink, answer)
    finally:
        os._exit(0)


def _ask_socket(mount: Mount, end: float) -> bytes:
    """Read the status from a mount's socket. Raises OSError."""
    import _socket as socket

    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as asking:
        asking.settimeout(max(_LEAST, end - time.monotonic()))
        asking.connect(str((mount.runtime or Path()) / STATUS_SOCKET))
        body = b"".join(_chunks(asking.fileno(), mount, end))
    if not body:
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    return body


def _chunks(fd: int, mount: Mount, end: float) -> Iterator[bytes]:
    """Yield what arrives, to its end. Raises TimeoutError at the time `end`, or if the daemon is stopped."""
    with closing(select.epoll()) as events:
        events.register(fd, select.EPOLLIN)
        while True:
            if not events.poll(_POLL):
                if time.monotonic() > end or is_served_by_none(daemon_of(mount)):
                    raise TimeoutError
                continue
            chunk = os.read(fd, _READ_SIZE)
            if not chunk:
                return
            yield chunk


def encode_status(status: Mapping[str, object]) -> bytes:
    """Encode a status as the daemon answers it: JSON, compressed if it would not fit into an attribute."""
    body = json.dumps(status).encode()
    if len(body) <= _LARGEST_PLAIN:
        return body
    import bz2  # here and below: it is rare

    return bz2.compress(body)


def decode_status(body: bytes) -> Mapping[str, object]:
    """Decode what `encode_status` has encoded. Raises MountError for anything else.

    Another user's daemon may have sent it: of a few kilobytes bz2 makes gigabytes.
    """
    try:
        if not body.startswith(b"{"):
            import bz2

            unpacked = bz2.BZ2Decompressor()
            body = unpacked.decompress(body, _LARGEST)
            if not unpacked.eof:
                raise MountError("what its daemon answers is not a status")
        status = json.loads(body)
    except (ValueError, OSError, EOFError, RecursionError) as error:
        raise MountError("what its daemon answers is not a status") from error
    if not isinstance(status, dict):
        raise MountError("what its daemon answers is not a status")
    return status
