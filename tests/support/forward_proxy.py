"""A forward proxy on 127.0.0.1, which alone knows what names mean (RFC 9110, 9.3.6; RFC 9112, 3.2.2).

with ForwardProxy({"registry.test": server.host}) as proxy:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
"""

from __future__ import annotations

import base64
import http.client
import select
import socket
from collections.abc import Mapping
from contextlib import closing, suppress
from urllib.parse import urlsplit

from tests.support.web_server import Handler, WebServer


class ForwardProxy(WebServer):
    """Passes requests for the names in `places` on to their `host:port`.

    `asked` has the method and target of each. `password`, "user:password", is wanted if there is one.
    """

    def __init__(self, places: Mapping[str, str], *, password: str = "") -> None:
        super().__init__(_Handler)
        self.places = places
        self.password = password
        self.asked: list[str] = []

    def connect(self, name: str) -> socket.socket:
        """Return a connection to what a name means."""
        host, port = self.places[name].split(":")
        return socket.create_connection((host, int(port)), timeout=10)


class _Handler(Handler):
    def answer(self) -> None:
        if self.command == "CONNECT":
            self._connect()
        else:
            self._ask()

    def _connect(self) -> None:
        name = self.path.partition(":")[0]
        if not self._admitted(name):
            return
        with self.owner.connect(name) as other:
            self.send_response(200)
            self.end_headers()
            pass_on(self.connection, other)
        self.close_connection = True

    def _ask(self) -> None:
        parts = urlsplit(self.path)
        if not self._admitted(parts.hostname or ""):
            return
        host, port = self.owner.places[parts.hostname or ""].split(":")
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

    def _admitted(self, name: str) -> bool:
        """Return whether the request is one to pass on; if not, it has been answered."""
        proxy: ForwardProxy = self.owner
        proxy.asked.append(f"{self.command} {self.path.partition('?')[0]}")
        given = self.headers.get("Proxy-Authorization", "")
        wanted = f"Basic {base64.b64encode(proxy.password.encode()).decode()}" if proxy.password else given
        status = 407 if given != wanted else 200 if name in proxy.places else 502
        if status == 200:
            return True
        self.reply(status)
        return False


def pass_on(one: socket.socket, other: socket.socket) -> None:
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
