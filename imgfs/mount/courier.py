"""An idle mount handed to a process that serves many (`pool`), by a fork of its holder: it takes memory."""

from __future__ import annotations

import array
from collections.abc import Sequence

from imgfs.forkserver.client import connect, proof
from imgfs.forkserver.request import PROVE, WORD


def deliver(place: str, protocol: str, restarts: int, numbers: Sequence[int]) -> bytes:
    """Hand over these descriptors, and their numbers; return `PID/THREAD` of what takes them, or nothing."""
    import _socket  # `socket` takes longer to load than all else here

    connection = connect(place)
    if connection is None:
        return b""
    try:
        words = " ".join(map(str, (protocol, restarts, *numbers)))
        passed = array.array("i", numbers)
        connection.sendmsg([words.encode()], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, passed)])
        asked = connection.recv(1 + 2 * WORD)
        if asked[:1] != PROVE:
            return b""
        connection.sendall(proof(asked[1:]))
        return connection.recv(64)
    except OSError:
        return b""
    finally:
        connection.close()
