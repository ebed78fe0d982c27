"""A SOCKS5 proxy on 127.0.0.1, which alone knows what names mean (RFC 1928, RFC 1929).

with SocksServer({"registry.test": server.host}) as proxy:
    monkeypatch.setenv("ALL_PROXY", proxy.url)
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tests.support.forward_proxy import pass_on


class SocksServer(socketserver.ThreadingTCPServer):
    """Connects to the names in `places`, each a `host:port`; `asked` are the hosts that came in.

    `password` is "user:password" if one is wanted.
    """

    daemon_threads = True

    def __init__(self, places: Mapping[str, str], *, password: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Client)
        self.places = places
        self.password = password
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        user = f"{self.password}@" if self.password else ""
        return f"socks5h://{user}127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Client(socketserver.BaseRequestHandler):
    server: SocksServer
    request: socket.socket

    def handle(self) -> None:
        with suppress(OSError):
            if self._admitted():
                self._connect()

    def _admitted(self) -> bool:
        methods = self._take(self._take(2)[1])
        if not self.server.password:
            self.request.sendall(b"\x05\x00")
            return True
        if 2 not in methods:
            self.request.sendall(b"\x05\xff")
            return False
        self.request.sendall(b"\x05\x02")
        user = self._take(self._take(2)[1])
        password = self._take(self._take(1)[0])
        fits = f"{user.decode()}:{password.decode()}" == self.server.password
        self.request.sendall(b"\x01\x00" if fits else b"\x01\x01")
        return fits

    def _connect(self) -> None:
        kind = self._take(4)[3]
        if kind == 1:  # the others are written out
            host = socket.inet_ntoa(self._take(4))
        else:
            (length,) = self._take(1)
            host = self._take(length).decode()
        self._take(2)
        self.server.asked.append(host)
        if host not in self.server.places:
            self.request.sendall(b"\x05\x04\x00\x01" + bytes(6))
            return
        name, port = self.server.places[host].split(":")
        with socket.create_connection((name, int(port)), timeout=10) as other:
            self.request.sendall(b"\x05\x00\x00\x03\x02ab\x00\x07")
            pass_on(self.request, other)

    def _take(self, count: int) -> bytes:
        body = b""
        while len(body) < count:
            chunk: Any = self.request.recv(count - len(body))
            if not chunk:
                raise ConnectionResetError
            body += chunk
        return body
