"""A forward proxy on 127.0.0.1, which alone knows what names mean (RFC 9110, 9.3.6; RFC 9112, 3.2.2).

with ForwardProxy({"registry.test": server.host}) as proxy:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
"""

from __future__ import annotations

import base64
import http.client
import select
import socket
import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit


class ForwardProxy:
    """Passes requests for the names in `places` on to their `host:port`.

    `asked` has the method and target of each. `password`, "user:password", is wanted if there is one.
    """

    def __init__(self, places: Mapping[str, str], *, password: str = "") -> None:
        self.places = places
        self.password = password
        self.asked: list[str] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://{self.host}"

    def connect(self, name: str) -> socket.socket:
        """A connection to what a name means."""
        host, port = self.places[name].split(":")
        return socket.create_connection((host, int(port)), timeout=10)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for them
    proxy: ForwardProxy

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._sockets: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._sockets.add(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        """End every connection, so that every handler ends."""
        for connection in list(self._sockets):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_CONNECT(self) -> None:
        name = self.path.partition(":")[0]
        if not self._admitted(name):
            return
        with self.server.proxy.connect(name) as other:
            self.send_response(200)
            self.end_headers()
            _pass_on(self.connection, other)
        self.close_connection = True

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if not self._admitted(parts.hostname or ""):
            return
        host, port = self.server.proxy.places[parts.hostname or ""].split(":")
        headers = {key: value for key, value in self.headers.items() if not key.startswith("Proxy-")}
        with closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
            connection.request(self.command, f"{parts.path}?{parts.query}", headers=headers)
            with closing(connection.getresponse()) as answer:
                body = answer.read()
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """The proxy keeps its own log."""

    def _admitted(self, name: str) -> bool:
        """Whether the request is one to pass on; if not, it has been answered."""
        proxy = self.server.proxy
        proxy.asked.append(f"{self.command} {self.path.partition('?')[0]}")
        given = self.headers.get("Proxy-Authorization", "")
        wanted = f"Basic {base64.b64encode(proxy.password.encode()).decode()}" if proxy.password else given
        status = 407 if given != wanted else 200 if name in proxy.places else 502
        if status == 200:
            return True
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    """Pass on bytes both ways until one side ends."""
    with suppress(OSError):
        while True:
            readable, _, _ = select.select([one, other], [], [], 30)
            for source in readable:
                body = source.recv(65536)
                if not body:
                    return
                (other if source is one else one).sendall(body)
            if not readable:
                return
