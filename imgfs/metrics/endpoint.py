"""Serving a text to Prometheus over HTTP: `GET /metrics`, from a thread of the daemon's.

Clients are not trusted (`listening`). Nothing here holds up the mount.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any

from imgfs import listening
from imgfs.errors import MountError
from imgfs.listening import LOOK, BoundedHead, BoundedServer, ListenAddress, UnixServer
from imgfs.metrics.exposition import CONTENT_TYPE
from imgfs.starting import start_thread

log = logging.getLogger(__name__)

PATH = "/metrics"
DEADLINE = 5.0  # seconds from a connection's beginning to its end
AT_ONCE = 8  # connections; another one is hung up on


class MetricsAddress(ListenAddress):
    """Where the metrics are."""

    __slots__ = ()

    def __str__(self) -> str:
        """Return the URL that Prometheus asks, or unix:PATH."""
        where = super().__str__()
        return where if self.path else f"http://{where}{PATH}"


def parse_address(text: str) -> MetricsAddress:
    """Read what people write; a path is taken from here. Raises ValueError, saying what would do."""
    return MetricsAddress(*listening.parse_address(text))


class MetricsEndpoint:
    """Serves a text at an address, from `start` on: a context manager. Made by `bind`."""

    def __init__(self, server: BoundedServer) -> None:
        self._server = server
        self.address = MetricsAddress(*server.address)
        self._thread: threading.Thread | None = None

    @classmethod
    def bind(cls, address: MetricsAddress, text: Callable[[], str]) -> MetricsEndpoint:
        """Take `address`, to serve what `text` returns, which is called in other threads.

        Raises MountError if the address cannot be had.
        """
        server = UnixServer if address.path else BoundedServer
        try:
            return cls(server(address, partial(_MetricsHandler, text), at_once=AT_ONCE, deadline=DEADLINE))
        except (OSError, UnicodeError) as error:
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            raise MountError(f"metrics at {address}: {reason}") from error

    def start(self) -> None:
        """Begin to answer. Raises LimitReached."""
        self._thread = start_thread(partial(self._server.serve_forever, LOOK), "imgfs-metrics")

    def close(self) -> None:
        """Close all connections and the address."""
        if self._thread:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> MetricsEndpoint:
        return self

    def __exit__(self, *_: BaseException | TracebackType | type | None) -> None:
        self.close()


class _MetricsHandler(BoundedHead, BaseHTTPRequestHandler):
    """One connection, one request."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "imgfs", ""
    timeout = DEADLINE

    def __init__(self, text: Callable[[], str], *connection: Any) -> None:
        self._text = text
        super().__init__(*connection)  # which answers

    def do_GET(self) -> None:
        """Send the text."""
        self._answer()

    def do_HEAD(self) -> None:
        """Send what would come before it."""
        self._answer()

    def _answer(self) -> None:
        assert isinstance(self.server, BoundedServer)
        self.server.answers(self.request)
        if self.path.partition("?")[0] != PATH:
            self._send(HTTPStatus.NOT_FOUND, f"there is only {PATH}\n", "text/plain")
            return
        self._send(HTTPStatus.OK, self._text(), CONTENT_TYPE)

    def _send(self, status: HTTPStatus, text: str, media_type: str, **headers: str) -> None:
        body = text.encode(errors="backslashreplace")
        self.send_response(status)
        for name, value in {
            "Content-Type": media_type,
            "Content-Length": str(len(body)),
            "Connection": "close",
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self) -> None:
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, "GET or HEAD\n", "text/plain", Allow="GET, HEAD")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse  # noqa: N815  (named by http.server)

    def address_string(self) -> str:
        """Client address, '-' for a Unix socket."""
        return str(self.client_address[0]) if self.client_address else "-"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log a request at debug level."""
        log.debug("metrics: %s: %s", self.address_string(), format % args)
