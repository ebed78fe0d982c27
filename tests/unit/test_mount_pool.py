"""Who may hand a mount to a process that serves many, and what it takes when it may not."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.forkserver.caller import Differs
from imgfs.forkserver.command import peer_of
from imgfs.mount import pool
from imgfs.mount.pool import MountPool
from tests.support.children import Child

# connects, and goes on to say what stands behind it
CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(tmp_path / "socket"))
        found.listen()
        yield found


def client(listening: socket.socket, says: str, *before: str) -> subprocess.Popen[bytes]:
    words = [*before, sys.executable, "-Ic", CONNECT + says, listening.getsockname()]
    return subprocess.Popen(words, stdin=subprocess.PIPE)


def test_what_proc_says_of_a_process_that_has_ended_does_not_count(listening: socket.socket) -> None:
    with client(listening, "sys.stdin.read()") as other:
        connection, _ = listening.accept()
        with connection, pytest.raises(Differs, match="it has ended"), peer_of(connection):
            other.communicate()


def test_a_confined_process_that_says_nothing_is_not_waited_for(listening: socket.socket) -> None:
    with client(listening, "sys.stdin.read()", "setpriv", "--no-new-privs") as other:
        connection, _ = listening.accept()
        with connection, pytest.raises(Differs, match="NoNewPrivs"):  # not TimeoutError
            pool._taken(connection, lambda: False)
        other.communicate()


def test_a_process_without_room_for_another_file_goes_on_with_what_it_serves(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_PAUSE", 0.0)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        MountPool(listening)._accept()

    with client(listening, "sys.stdin.read()") as other, Child(work) as child:
        assert child.join() == 0
        other.communicate()
