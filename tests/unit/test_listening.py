"""Servers for clients that are not trusted: those who only hold connections keep nobody out."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from imgfs.listening import BoundedHead, BoundedServer, ListenAddress
from tests.support.mounted import until
from tests.support.patience import allowed

AT_ONCE = 3


class Permission(threading.Event):
    """Is set when a slow answer may end; `begun` counts those that have begun, `waits` those who may ask."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.waits = threading.Semaphore(0), threading.Semaphore(0)


class Handler(BoundedHead, BaseHTTPRequestHandler):
    """Answers `/slow` when `may` is set, anything else at once."""

    protocol_version = "HTTP/1.1"
    server: BoundedServer

    def __init__(self, may: Permission, *connection: Any) -> None:
        self._may = may
        super().__init__(*connection)

    def handle_one_request(self) -> None:
        self.heads.begin()
        self.server.waits(self.request, 60)
        self._may.waits.release()
        super().handle_one_request()

    def do_GET(self) -> None:
        self.server.answers(self.request)
        if self.path == "/slow":
            self._may.begun.release()
            self._may.wait(allowed(30))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def may() -> Permission:
    return Permission()


@pytest.fixture
def server(may: Permission) -> Iterator[BoundedServer]:
    server = BoundedServer(ListenAddress("127.0.0.1"), partial(Handler, may), at_once=AT_ONCE, deadline=60)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    may.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def address(server: BoundedServer) -> tuple[str, int]:
    return "127.0.0.1", server.address.port


def connected(address: tuple[str, int], stack: ExitStack) -> socket.socket:
    return stack.enter_context(closing(socket.create_connection(address, allowed(20))))


def asked(client: socket.socket, path: str = "/", more: bytes = b"") -> bytes:
    """What a client is answered; nothing if it is hung up on."""
    try:
        client.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (path.encode(), more))
        return client.recv(12)
    except ConnectionError:
        return b""


def test_who_only_holds_connections_gives_way_the_longest_first(
    address: tuple[str, int], server: BoundedServer, may: Permission
) -> None:
    """As strangers do who never ask, those who send a byte now and then, and clients between two requests."""
    with ExitStack() as stack:
        holding = []
        for _ in range(AT_ONCE):  # each waits before the next does
            holding.append(connected(address, stack))
            assert may.waits.acquire(timeout=allowed(20))
        assert asked(holding[0]) == b"HTTP/1.1 204"
        assert may.waits.acquire(timeout=allowed(20))  # from now on it has waited shortest
        holding[1].sendall(b"GET / HT")
        honest = connected(address, stack)
        assert asked(honest) == b"HTTP/1.1 204"
        assert holding[1].recv(1) == b""
        for _ in range(3 * AT_ONCE):
            until(lambda: len(server._leaving) < AT_ONCE, "there is room for another that gives way")
            assert asked(connected(address, stack)) == b"HTTP/1.1 204"


def test_who_is_answered_stays_and_others_are_hung_up_on(address: tuple[str, int], may: Permission) -> None:
    with ExitStack() as stack:
        clients = [connected(address, stack) for _ in range(AT_ONCE)]
        answers: list[bytes] = []
        threads = [
            threading.Thread(target=lambda one=one: answers.append(asked(one, "/slow"))) for one in clients
        ]
        for thread in threads:
            thread.start()
        for _ in clients:
            assert may.begun.acquire(timeout=allowed(20))
        assert asked(connected(address, stack)) == b""
        may.set()
        for thread in threads:
            thread.join()
        assert answers == [b"HTTP/1.1 204"] * AT_ONCE


def test_the_head_of_a_request_is_bounded(address: tuple[str, int]) -> None:
    with ExitStack() as stack:
        kept = connected(address, stack)
        for _ in range(3):
            assert asked(kept, more=b"X-Much: " + b"x" * 15_000 + b"\r\n") == b"HTTP/1.1 204"
            while kept.recv(1) != b"\n" or kept.recv(1, socket.MSG_PEEK) != b"\r":
                pass
            kept.recv(2)
        assert asked(kept, more=b"X-More: " + b"x" * 20_000 + b"\r\n") == b""
        assert asked(connected(address, stack), more=b"X: %s\r\n" % (b"y" * 1000) * 50) == b""
