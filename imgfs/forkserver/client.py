"""A command handed to the fork server, where one runs. It is in the way of each command: it loads little."""

from __future__ import annotations

import os
import sys

from imgfs.variables import server_socket, variables

TYPE_CHECKING = False  # as that of `typing`, which takes long to load
if TYPE_CHECKING:
    from collections.abc import Sequence
    from socket import socket

_PATIENCE = 5.0  # seconds for the server to accept or refuse: it may be stopped
LOST = -1  # in the place of an exit code
_DESCRIPTORS = "/fd/"  # in the paths of files that only the process has which names them (proc(5))
_INT = 4  # bytes of a descriptor (unix(7), SCM_RIGHTS)
_UCRED = 12  # bytes of struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)


def run_in_server(words: Sequence[str]) -> int | None:
    """Have the fork server carry a command out, and return its exit code, LOST if it was killed.

    None where there is no server, or it refuses: then the caller is to carry it out itself. So it is for a
    command that names files by descriptors of this process, as a shell's `<(…)` does.
    """
    path = server_socket(variables(), os.geteuid())
    if not path or not os.path.exists(path):
        return None
    if any(_DESCRIPTORS in text for text in (*words, *variables().values())):
        return None
    connection = connect(path)
    if connection is None:
        return None
    try:
        pid = _ask(connection, words)
        return None if pid is None else _wait(connection, pid)
    finally:
        connection.close()


def connect(path: str) -> socket | None:
    """Connect to the server, if it is this user's: it is told variables, and so passwords."""
    import _socket  # `socket` takes longer to load than all else here

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.settimeout(_PATIENCE)
    try:
        connection.connect(path)
        owner = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED)
    except OSError:
        owner = b""
    if int.from_bytes(owner[4:8], sys.byteorder) == os.geteuid() and owner:
        return connection  # type: ignore[return-value]  # what is used of it is the same
    connection.close()
    return None


def _ask(connection: socket, words: Sequence[str]) -> int | None:
    """Send the request; return the pid of the process that carries it out, None if that is refused."""
    import _socket

    from imgfs.forkserver.request import ACCEPTED, PROVE, WORD, CommandRequest, streams_of_this_process

    try:
        directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # it has been removed
        return None
    try:
        request = CommandRequest(sys.argv[0], words, variables(), streams_of_this_process())
        body, passed = (
            request.encode(),
            b"".join(fd.to_bytes(_INT, sys.byteorder) for fd in (0, 1, 2, directory)),
        )
        connection.sendmsg([body[:WORD]], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, passed)])
        connection.sendall(body[WORD:])
        answer = connection.recv(1)
        if answer == PROVE and (secret := proof(_read(connection, 2 * WORD))):
            connection.sendall(secret)
            answer = connection.recv(1)
        if answer != ACCEPTED:
            return None
        connection.settimeout(None)
        said = _read(connection, WORD)
        return int.from_bytes(said, "little") if said else None
    except OSError:
        return None
    finally:
        os.close(directory)


def proof(place: bytes) -> bytes:
    """Return the secret in a process of the server's, by its pid and number; nothing if it is none.

    Raises OSError if this process is confined and may not.
    """
    from imgfs.forkserver.request import SECRET, SECRET_NAME, WORD

    pid, number = (int.from_bytes(place[at : at + WORD], "little") for at in (0, WORD))
    path = f"/proc/{pid}/fd/{number}"
    if not os.readlink(path).startswith(f"/memfd:{SECRET_NAME}"):
        return b""
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(opened, SECRET)
    finally:
        os.close(opened)


def _wait(connection: socket, pid: int) -> int:
    """Wait for the exit code of the process group `pid`, passing on signals meanwhile.

    If it was killed, LOST is returned; or by a signal that was passed on, this process ends by that.
    """
    import select
    import signal
    from contextlib import suppress

    from imgfs.forkserver.relaying import WakeUps, relayed_signals
    from imgfs.forkserver.request import WORD

    passed: list[int] = []

    def pass_on(number: int, _: object) -> None:
        passed.append(number)
        with suppress(ProcessLookupError):
            os.killpg(pid, number)

    woken = WakeUps()
    for number in relayed_signals():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    poll.register(woken.fd, select.POLLIN)
    while [woken.fd] == [fd for fd, _ in poll.poll()]:
        woken.clear()
    said = _read(connection, WORD)
    woken.close()
    if said:
        return int.from_bytes(said, "little")
    if passed:
        signal.signal(passed[-1], signal.SIG_DFL)
        os.kill(os.getpid(), passed[-1])
    return LOST


def _read(connection: socket, length: int) -> bytes:
    """Read so many bytes; nothing if the other end closes the connection before."""
    found = b""
    while len(found) < length:
        try:
            more = connection.recv(length - len(found))
        except ConnectionResetError:
            more = b""
        if not more:
            return b""
        found += more
    return found
