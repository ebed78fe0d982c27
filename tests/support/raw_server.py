"""A server of bytes on 127.0.0.1: it keeps what requests say, to the byte, and answers as a test writes it.

def answer(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

with RawServer(answer) as server:
    client_of(server.host, "app").tags(9)
assert server.lines == [b"GET /v2/app/tags/list?n=9 HTTP/1.1"]
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Connection:
    """A request that has come in, its head in `head`, and how it is answered."""

    def __init__(self, sock: socket.socket, head: bytes, closing: threading.Event) -> None:
        self.head = head
        self._sock = sock
        self._closing = closing

    def send(self, body: bytes) -> None:
        """Send bytes; raises OSError when the client is gone."""
        self._sock.sendall(body)

    def drip(self, parts: Iterable[bytes], seconds: float) -> None:
        """Send one part after the other with a pause before each, until the client or the server is gone."""
        for part in parts:
            if self._closing.wait(seconds):
                return
            self.send(part)


class RawServer:
    """Answers each request by `answer`; a connection is kept unless that raises. A context manager.

    `greeting` is sent when a client comes, before it has said anything; `first` is called then.
    """

    def __init__(
        self,
        answer: Callable[[Connection], None] | None = None,
        *,
        greeting: bytes = b"",
        first: Callable[[Connection], None] = lambda connection: None,  # noqa: ARG005
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answer = answer or (lambda connection: connection.send(OK))
        self.greeting = greeting
        self._first = first
        self._tls = tls
        self.heads: list[bytes] = []
        self.connections = 0
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://{self.host}"

    @property
    def lines(self) -> list[bytes]:
        """The first line of each request so far."""
        return [head.partition(b"\r\n")[0] for head in self.heads]

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        for sock in (self._listener, *self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(sock)
            self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError), self._secured(sock) as talking:
            talking.sendall(self.greeting)
            self._first(Connection(talking, b"", self._closing))
            while head := _head(talking):
                self.heads.append(head)
                self.answer(Connection(talking, head, self._closing))

    def _secured(self, sock: socket.socket) -> socket.socket:
        if self._tls is None:
            return sock
        secured = self._tls.wrap_socket(sock, server_side=True)
        self._sockets.append(secured)
        return secured


def _head(sock: socket.socket) -> bytes:
    """Return the head of the next request with the empty line that ends it; nothing if there is none."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            return b""
        head += byte
    return head
