"""gRPC on a socket: what a server that misbehaves costs, and what is said of it."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event, RequestReceived, StreamEnded

from imgfs.errors import ImgfsError, NotFound, RegistryError, Unauthorized, Unavailable, UsageError
from imgfs.registry.sockets import Deadline, PlainSocket, dial_unix
from imgfs.transport.grpc import GrpcChannel

HEAD = [(":status", "200"), ("content-type", "application/grpc")]
DONE = [("grpc-status", "0")]


class Call:
    """A call that has come in, and how it is answered."""

    def __init__(self, sock: socket.socket, http: H2Connection, stream: int) -> None:
        self.sock, self.http, self.stream = sock, http, stream

    def flush(self) -> None:
        self.sock.sendall(self.http.data_to_send())

    def answer(self, *bodies: bytes, trailers: list[tuple[str, str]] = DONE) -> None:
        self.http.send_headers(self.stream, HEAD)
        for body in bodies:
            self.http.send_data(self.stream, body)
        self.http.send_headers(self.stream, trailers, end_stream=True)
        self.flush()


Answer = Callable[[Call], None]


class Server:
    """Answers calls on a socket by `answer`; a connection ends when that raises OSError."""

    def __init__(self, path: Path) -> None:
        self.answer: Answer = lambda call: call.answer(message(b"hello"))
        self.path = path
        self.connections = 0
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def channel(self, seconds: float = 20.0) -> GrpcChannel:
        def connect() -> PlainSocket:
            made = dial_unix(self.path, seconds)
            made.deadline = Deadline()
            return made

        return GrpcChannel(connect, "server", seconds)

    def close(self) -> None:
        self._sock.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._sock.accept()
                self.connections += 1
                threading.Thread(target=self._talk, args=(sock,), daemon=True).start()

    def _talk(self, sock: socket.socket) -> None:
        http = H2Connection(H2Configuration(client_side=False))
        http.initiate_connection()
        with closing(sock), suppress(OSError):
            sock.sendall(http.data_to_send())
            while body := sock.recv(65536):
                for event in http.receive_data(body):
                    self._handle(event, sock, http)
                sock.sendall(http.data_to_send())

    def _handle(self, event: Event, sock: socket.socket, http: H2Connection) -> None:
        if isinstance(event, RequestReceived):
            names = {name.decode(): value.decode() for name, value in event.headers or ()}
            assert (names[":path"], names["te"], names["a-name"]) == ("/a.B/Get", "trailers", "value")
        if isinstance(event, StreamEnded):
            self.answer(Call(sock, http, event.stream_id or 0))


def message(body: bytes, *, packed: int = 0) -> bytes:
    return struct.pack(">BI", packed, len(body)) + body


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)  # the path of a socket has 107 bytes at the most
    with closing(Server(Path("s"))) as made:
        yield made


def call(channel: GrpcChannel, limit: int = 1 << 20) -> list[bytes]:
    with closing(channel):
        return channel.call("a.B/Get", b"request", {"a-name": "value"}, limit)


def test_messages_of_any_cut_are_read(server: Server) -> None:
    messages = [b"one", b"", b"x" * 20_000]
    body = b"".join(map(message, messages))
    for size in (1000, 9999):
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        server.answer = lambda one, parts=parts: one.answer(*parts)  # type: ignore[misc]
        assert call(server.channel()) == messages


def test_a_connection_is_kept_and_one_that_has_ended_is_replaced(server: Server) -> None:
    with closing(server.channel()) as channel:
        for _ in range(3):
            assert channel.call("a.B/Get", b"", {"a-name": "value"}, 99) == [b"hello"]
        assert (server.connections, channel.calls) == (1, 3)
        ended = iter([True])

        def answer(one: Call) -> None:
            if next(ended, False):
                raise ConnectionResetError
            one.answer(message(b"again"))

        server.answer = answer
        assert channel.call("a.B/Get", b"", {"a-name": "value"}, 99) == [b"again"]
        assert server.connections == 2


def test_an_answer_of_many_windows_comes_whole(server: Server) -> None:
    whole = bytes(range(256)) * 20_000  # 5 MB, with windows of 1 MiB

    def answer(one: Call) -> None:
        body = memoryview(message(whole))
        one.http.send_headers(one.stream, HEAD)
        while body:
            room = min(one.http.local_flow_control_window(one.stream), 16384, len(body))
            if room:
                one.http.send_data(one.stream, bytes(body[:room]))
                body = body[room:]
            one.flush()
            if not room:
                one.http.receive_data(one.sock.recv(65536))
        one.http.send_headers(one.stream, DONE, end_stream=True)
        one.flush()

    server.answer = answer
    assert call(server.channel(), 6 << 20) == [whole]
    with pytest.raises(RegistryError, match=r"a\.B/Get: an answer of more than 1000 bytes"):
        call(server.channel(), 1000)


@pytest.mark.parametrize(
    ("status", "kind"),
    [("5", NotFound), ("7", Unauthorized), ("14", Unavailable), ("12", RegistryError), ("x", RegistryError)],
)
def test_a_status_is_an_error_of_its_kind(server: Server, status: str, kind: type[ImgfsError]) -> None:
    server.answer = lambda one: one.answer(
        trailers=[("grpc-status", status), ("grpc-message", "no such%0Athing")]
    )
    with pytest.raises(kind, match=r"server: B/Get: no such\\nthing$") as raised:
        call(server.channel())
    assert type(raised.value) is kind


def trailers_only(one: Call) -> None:
    one.http.send_headers(one.stream, [*HEAD, ("grpc-status", "5")], end_stream=True)
    one.flush()


def drips(one: Call) -> None:
    one.http.send_headers(one.stream, HEAD)
    while True:
        one.http.send_data(one.stream, b"\0")
        one.flush()
        threading.Event().wait(0.05)


def refuses(one: Call) -> None:
    one.http.send_headers(one.stream, [(":status", "404")], end_stream=True)
    one.flush()


def resets(one: Call) -> None:
    one.http.reset_stream(one.stream, 8)
    one.flush()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (trailers_only, "server: B/Get: status 5"),
        (drips, "no answer: timed out"),
        (refuses, "HTTP status 404: not gRPC"),
        (resets, r"ended by the server \(8\)"),
        (lambda one: one.sock.sendall(bytes(9)), "not in HTTP/2"),  # data of no stream
        (lambda one: one.sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "timed out"),
        (lambda one: one.sock.shutdown(socket.SHUT_RDWR), "the connection was closed"),
        (lambda one: one.answer(message(b"x", packed=1)), "packed"),
        (lambda one: one.answer(b"\0\0"), "cut within the head"),
        (lambda one: one.answer(b"\0\xff\xff\xff\xff"), "longer than the answer"),
        (lambda one: one.answer(trailers=[("a", "b")]), "without a status"),
    ],
)
def test_what_a_server_does_wrong_is_said(server: Server, answer: Answer, says: str) -> None:
    server.answer = answer
    with pytest.raises(RegistryError, match=says) as raised:
        call(server.channel(1.0))
    assert "\n" not in str(raised.value)


def test_what_is_missing_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h2.config", None)
    with pytest.raises(
        UsageError, match=r"Python package h2, which is not installed: pip install 'imgfs\[engines\]'"
    ):
        call(server.channel())
