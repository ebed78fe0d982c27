"""The holder of a mount outlives what others tell it, and what the system refuses it."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import imgfs
from imgfs.forkserver.command import check_sight
from imgfs.mount import holder
from imgfs.mount.holder import Holder
from imgfs.mount.holder_protocol import NO_POOL, SUCCESSOR
from imgfs.mount.watched_server import Server
from tests.support.children import Child

MALFORMED = [b"x", b"/", b"1", b"1/2/3", b"-1/-1", b"0/0", b"9" * 30 + b"/9", "١/١".encode(), b"\xff/\xfe"]
OWN = b"own"  # stands for the holder itself
NOBODY = 65534


@pytest.fixture
def pipes() -> Iterator[list[int]]:
    made = [*os.pipe(), *os.pipe()]
    yield made
    for number in made:
        os.close(number)


def holder_of(pipes: list[int], pool: Path | str = NO_POOL) -> Holder:
    server = Server(os.getpid(), pipes[0], pipes[3])
    where = str(Path(imgfs.__file__).parents[1])
    given = (pipes[0], pipes[1])  # in the place of /dev/fuse and the state
    words = ["/bin/true", where]
    return Holder(("/mnt", "0:1"), given, beat=9.0, servers=[server], pool=str(pool), words=words)


def answer(listening: socket.socket, said: bytes) -> None:
    """Take a mount as a process of the pool does, and say that."""
    connection, _ = listening.accept()
    with connection:
        _, passed, _, _ = socket.recv_fds(connection, 1024, 16)
        assert len(passed) >= 4
        check_sight(connection)
        connection.sendall(said)


@pytest.mark.parametrize("said", [*MALFORMED, OWN], ids=repr)
def test_a_pool_whose_answer_makes_no_sense_is_done_without(
    tmp_path: Path, pipes: list[int], said: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    said = f"{os.getpid()}/{os.getpid()}".encode() if said == OWN else said
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "pool"))
        listening.listen()
        before = os.listdir("/proc/self/fd")
        with Child(lambda: answer(listening, said)) as pool:
            assert holder_of(pipes, tmp_path / "pool")._start_pooled() is None
            assert pool.join() == 0
        assert len(os.listdir("/proc/self/fd")) <= len(before) + 1  # the pidfd of the server
    assert "the pool's answer names no thread that could serve" in capfd.readouterr().err


@pytest.mark.parametrize("said", [b"i\xff", b"i x", b"i 17:zz", b"i x:00", b"i 987", b"i -1"], ids=repr)
def test_an_idle_process_whose_words_make_no_sense_is_not_heeded(
    pipes: list[int], said: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    made = holder_of(pipes)
    made._note_idle(f"i {pipes[2]} +{pipes[3]} 17:00ff".encode())
    made._note_idle(said)
    made._rest()
    assert made._idle == [str(pipes[2]), f"+{pipes[3]}", "17:00ff"]
    assert made._wakers == [pipes[0], pipes[2]]
    assert "makes no sense" in capfd.readouterr().err


def test_a_process_that_cannot_be_started_is_tried_again_and_in_the_end_given_up(
    pipes: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(holder, "_PAUSE", 0.0)
    made = holder_of(pipes)

    def work() -> None:
        if os.geteuid() == 0:  # whom no limit holds
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        before = os.listdir("/proc/self/fd")
        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
        with pytest.raises(BlockingIOError):
            made._start(["/bin/true"], SUCCESSOR)
        assert len(os.listdir("/proc/self/fd")) == len(before)
        tries = iter([None, None, lambda: resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))])

        def unmounted() -> bool:
            if lift := next(tries):
                lift()
            return False

        made._is_unmounted = unmounted  # type: ignore[method-assign]
        server = made._start(["/bin/true"], SUCCESSOR)
        assert os.waitpid(server.pid, 0)[1] == 0

    with Child(work) as child:
        assert child.join() == 0
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2
    assert all("no process can be started, which is tried again" in line for line in said)


def test_a_log_that_takes_no_more_does_not_end_it(pipes: list[int]) -> None:
    made = holder_of(pipes)

    def work() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
        made._log("a line")

    with Child(work) as child:
        assert child.join() == 0
