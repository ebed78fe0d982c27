"""What a process that waits to hold mounts (`mount.waiting_holder`) makes of requests without sense."""

from __future__ import annotations

import array
import os
import socket
from contextlib import closing

import pytest

from imgfs.mount.holder_protocol import MOST
from imgfs.mount.holder_start import WaitingHolder
from tests.support.children import Child

REQUESTS = [b"x", b"18", b"18 1\0word", b"18 -1 -1\0word", b"1 2 3 4\0" + b"w" * 20000, b"\0" * 40000]


@pytest.mark.parametrize("said", REQUESTS, ids=lambda said: str(said[:12]))
@pytest.mark.parametrize("count", [0, 1, 3, MOST])
def test_a_request_that_makes_no_sense_has_no_fork_and_ends_nothing(said: bytes, count: int) -> None:
    with closing(WaitingHolder()) as waiting, Child(waiting.run) as process:
        asks = socket.socket(fileno=os.dup(waiting.fileno()))
        own, other = socket.socketpair()
        with asks, own, other, open(os.devnull, "rb") as null:
            fds = array.array("i", [other.fileno(), *[null.fileno()] * count][:count])
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
            asks.sendmsg([said], passed)
            other.close()
            own.settimeout(20)
            assert own.recv(64) == b""
        assert process.is_running()
