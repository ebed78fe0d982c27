"""Threads that the system does not start: one clear error, or done without; never a wait without end."""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from socketserver import BaseRequestHandler
from unittest.mock import Mock

import pytest

from imgfs.errors import LimitReached
from imgfs.listening import ListenAddress, UnixServer
from imgfs.mount import pool
from imgfs.mount.pool import MountPool
from imgfs.mount.resume import Succession
from imgfs.parallel import ReadAheadThread, ThreadPool, begun, run_parallel
from imgfs.registry.retry import Timeouts
from imgfs.registry.sockets import addresses_of
from imgfs.registry.transport import Transport
from imgfs.registry.urls import parse_url
from imgfs.starting import fork, start_thread, try_thread
from imgfs.store.store import Store
from tests.support.children import Child
from tests.support.mounted import until
from tests.support.no_threads import no_threads
from tests.support.raw_server import RawServer

NOBODY = 65534


def test_one_that_cannot_be_started_is_an_error_of_one_line() -> None:
    starts: list[Callable[[], object]] = [
        lambda: start_thread(bool, "t"),
        lambda: begun(bool, "t"),
        lambda: ReadAheadThread(iter(())),
    ]
    for start in starts:
        with no_threads(), pytest.raises(LimitReached, match="no further thread can be started"):
            start()
    start_thread(bool, "t").join()


def test_one_that_can_be_done_without_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with no_threads():
        assert try_thread(bool, "imgfs-guess") is None
    assert [record.getMessage() for record in caplog.records] == [
        "imgfs-guess is left undone: no further thread can be started: a limit of the system"
    ]
    caplog.clear()
    assert try_thread(bool, "t") is not None


def test_a_process_that_cannot_be_started_is_an_error_of_one_line() -> None:
    def work() -> None:
        if os.geteuid() == 0:  # whom no limit holds
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        with pytest.raises(LimitReached, match="no further process can be started: Resource temporarily"):
            fork()

    with Child(work) as child:
        assert child.join() == 0


def test_a_pool_makes_do_with_the_threads_it_has() -> None:
    with ThreadPool(4) as made:
        assert made.submit(threading.get_ident).result(10) != threading.get_ident()
        with no_threads():
            made.submit(threading.Event().wait, 0.01)
            others = [made.submit(int, number) for number in range(3)]
        assert [future.result(10) for future in others] == [0, 1, 2]


def test_a_pool_without_a_thread_refuses_a_task_for_good() -> None:
    ran: list[str] = []
    with ThreadPool(4) as made:
        with no_threads(), pytest.raises(LimitReached):
            made.submit(ran.append, "refused")
        made.submit(ran.append, "taken").result(10)
    assert ran == ["taken"]


def test_of_works_that_wait_for_each_other_all_begin_or_none_is_waited_for() -> None:
    cancelled = threading.Event()

    def works() -> Iterator[Callable[[], object]]:
        yield lambda: cancelled.wait(20)
        with no_threads():
            yield bool

    with pytest.raises(LimitReached):
        run_parallel(works(), 2, "t", cancelled)
    assert cancelled.is_set()


def test_a_name_is_asked_for_again_once_there_are_threads() -> None:
    with no_threads(), pytest.raises(socket.gaierror, match="no further thread"):
        addresses_of("localhost", 80, 10.0)
    assert addresses_of("localhost", 80, 10.0)


@pytest.mark.parametrize("loaded", [False, True], ids=["first", "further"])
def test_a_request_makes_the_connection_that_no_thread_makes_for_it(loaded: bool) -> None:
    with RawServer() as server, closing(Transport(Timeouts())) as transport:
        if loaded:
            transport.send("GET", server.url, {}).close()
        with no_threads():
            transport.connect_ahead(server.url, 4)
        with ThreadPoolExecutor(4) as readers:
            answers = [readers.submit(transport.send, "GET", server.url, {}) for _ in range(4)]
            assert {found.result(10).status for found in answers} == {200}


def test_a_request_that_waits_for_a_connection_is_left_to_make_it() -> None:
    with RawServer() as server, closing(Transport(Timeouts())) as transport:
        adapter = transport._adapter(parse_url(server.url), with_client_certificate=False, check_address=None)
        [ahead] = adapter.connect_ahead(parse_url(server.url), 1, 5.0)
        with ThreadPoolExecutor(1) as readers:
            waiting = readers.submit(transport.send, "GET", server.url, {})
            until(lambda: any(is_awaited for _, is_awaited in ahead.pool._ahead.values()), "it waits")
            ahead.leave()
            assert waiting.result(10).status == 200


def test_a_client_that_no_thread_answers_is_hung_up_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = ListenAddress(path=tmp_path / "socket")
    with UnixServer(address, BaseRequestHandler, at_once=1, deadline=10) as server:
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(address.path))
                with no_threads():
                    server.handle_request()
                assert client.recv(1) == b""
    assert [record.message for record in caplog.records] == [
        f"{address}: a request was not answered: no further thread can be started: a limit of the system"
    ] * 2
    caplog.clear()


def test_a_limit_that_no_thread_could_keep_is_kept_by_the_next_writer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    limit = Store(tmp_path).limit
    limit.put(1 << 30)
    with no_threads():
        limit.note_written(1 << 40)
    assert "imgfs-limit is left undone" in caplog.text
    caplog.clear()
    limit.note_written(1 << 40)
    assert limit._thread
    limit._thread.join(10)


def test_a_mount_that_no_thread_serves_is_left_to_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = Mock(spec=Succession)
    monkeypatch.setattr(pool, "_taken", lambda *_: left)
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        client.connect(listening.getsockname())
        with no_threads():
            MountPool(listening)._accept()
        assert client.recv(1) == b""
    left.close.assert_called_once()
    assert "a mount is left to a process of its own: no further thread" in caplog.text
    caplog.clear()
