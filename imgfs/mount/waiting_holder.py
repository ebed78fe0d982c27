"""A process that waits to hold mounts: each is held by a fork of it (`holder`), and all share its memory.

`imgfs serve` runs it, by the interpreter that a holder has, with the modules that a holder loads: one of its
own takes three megabytes, a fork some tenths of one. It reads nothing that comes from outside, and loads two
modules of this directory, `holder` and this one, and what these load.

    daemon ──── UMASK, then the descriptors' NUMBERs; a holder's words; the descriptors ───► this process
           ◄─── the fork's pid ────────────────────────────────────────────────────────────── its fork
           ──── GO ───────────────────────────────────────────────────────────────────────►

The first descriptor is a socket for the answer, the others get their NUMBERs. Before GO the daemon gives the
fork what a process inherits that it starts itself; a fork that is not told to go on ends. A request that this
process cannot read, or for which the system refuses a fork, goes unanswered: its socket is closed.

Its arguments: the directory that this module is in; the number of a socket (SOCK_SEQPACKET) that requests
come by; and blanks, over which the words are written that ps(1) and `mounts.holders` see.
"""

from __future__ import annotations

import array
import fcntl
import gc
import os
import sys

from imgfs.mount.holder import main as hold
from imgfs.mount.holder_protocol import GO, LONGEST, MOST, ROOM
from imgfs.mount.idle_requests import wants_daemon as wants_daemon  # which `holder` loads late

_signal = __import__("_signal")  # `signal` takes 0.8 MB,
_socket = __import__("_socket")  # and `socket` as much
_INT = array.array("i").itemsize
_SHOWN = b"imgfs: waits to hold mounts"


def main() -> int:
    """Fork a holder for each request, until no process can send another."""
    _, number, _ = sys.argv
    requests = _socket.socket(fileno=int(number))
    os.set_inheritable(requests.fileno(), False)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # the kernel buries the forks
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    show_words([_SHOWN])
    gc.collect()
    gc.freeze()  # a collection in a fork would write to, and so copy, all of this
    while True:
        said, ancillary, _, _ = requests.recvmsg(LONGEST, _socket.CMSG_SPACE(MOST * _INT))
        if not said:
            return 0
        given = array.array("i")
        for _, _, body in ancillary:
            given.frombytes(body[: len(body) - len(body) % _INT])
        if len(said) < LONGEST and _fork() == 0:
            code = 1
            try:
                requests.close()
                code = _hold(said.split(b"\0"), list(given))
            finally:
                os._exit(code)
        for fd in given:
            os.close(fd)


def _fork() -> int:
    try:
        return os.fork()
    except OSError:  # the daemon has another way
        return -1


def _hold(said: list[bytes], given: list[int]) -> int:
    """Become the holder of the mount that a request is about; a request without sense raises an exception."""
    umask, *numbers = map(int, said[0].split())
    words = said[1:]
    script = words.index(next(word for word in words if word.endswith(b"/holder.py")))
    answer, *others = _placed(given, numbers)
    if len(b"\0".join(words)) >= ROOM or others != numbers:
        raise ValueError(said[0])
    os.setsid()
    os.umask(umask)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    show_words(words)
    connection = _socket.socket(fileno=answer)
    connection.sendall(b"%d" % os.getpid())
    if connection.recv(1) != GO:
        return 1
    connection.close()
    sys.argv = [os.fsdecode(word) for word in words[script:]]
    return hold()


def _placed(given: list[int], numbers: list[int]) -> list[int]:
    """Give all but the first of these descriptors these numbers, and the first one above all of them."""
    above = max((*numbers, *given)) + 1
    first, *high = [fcntl.fcntl(fd, fcntl.F_DUPFD, above) for fd in given]
    for fd in given:
        os.close(fd)
    placed = [os.dup2(fd, number) for fd, number in zip(high, numbers, strict=True)]
    for fd in high:
        os.close(fd)
    return [first, *placed]


def show_words(words: list[bytes]) -> None:
    """Show other words than this process's own, as `imgfs.syscalls` does, which takes 0.6 MB here."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end (proc(5))
    memory = os.open("/proc/self/mem", os.O_WRONLY)
    try:
        os.pwrite(memory, b"\0".join(words)[: end - start - 1].ljust(end - start, b"\0"), start)
    finally:
        os.close(memory)
