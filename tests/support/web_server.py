"""What the web servers of these tests have in common: they run in this process, and end whatever clients do.

class Echo(WebServer):
    def __init__(self) -> None:
        super().__init__(EchoHandler)

class EchoHandler(Handler):
    def answer(self) -> None:
        self.reply(200, f"{self.command} {self.path}".encode(), {"Content-Type": "text/plain"})
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType, TracebackType
from typing import Any, Self


class WebServer:
    """Answers by `handler` on a free port of `address`: a context manager.

    A handler finds it as `self.owner`. `closing` is set when it is about to end: who waits ends then.
    """

    def __init__(self, handler: type[Handler], address: str = "127.0.0.1") -> None:
        self.closing = threading.Event()
        self._web = _Server((address, 0), handler, self)
        self._thread = threading.Thread(target=self._web.serve_forever, args=(0.02,))

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`, as in a reference."""
        return f"{self._web.server_address[0]!s}:{self.port}"

    @property
    def port(self) -> int:
        return int(self._web.server_address[1])

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://{self.host}"

    @property
    def connections(self) -> int:
        """How many connections were accepted so far."""
        return self._web.accepted

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._web.shutdown()
        self._thread.join()
        self._web.hang_up()
        self._web.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for them
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[Handler], owner: WebServer) -> None:
        super().__init__(address, handler)
        self.owner = owner
        self.accepted = 0
        self._sockets: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._sockets.add(request)
        self.accepted += 1
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        """End every connection, so that every handler ends."""
        for connection in list(self._sockets):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of the game."""


class Handler(BaseHTTPRequestHandler):
    """Answers requests of any method over kept connections, and says nothing of it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    @property
    def owner(self) -> Any:
        """The `WebServer` whose requests these are."""
        return self.server.owner

    def answer(self) -> None:
        """Answer a request, whose method is `self.command`."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def do_PATCH(self) -> None:
        self.answer()

    def do_DELETE(self) -> None:
        self.answer()

    def do_CONNECT(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Those who want a log keep their own."""

    def reply(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Answer with a whole body, which a HEAD is only told the length of."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
