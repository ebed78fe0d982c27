"""Serving a text to Prometheus over HTTP: `GET /metrics`, from a thread of the daemon's.

Clients are not trusted: there are never more than a few connections, each has a thread of its own, and
one that takes too long is cut. Nothing here holds up the mount.

An address is `[HOST:]PORT`, on loopback if no host is given, or `unix:PATH`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseServer, TCPServer, ThreadingMixIn
from types import TracebackType
from typing import NamedTuple, TypeAlias

from imgfs.errors import MountError
from imgfs.metrics.exposition import CONTENT_TYPE

_LOOPBACK = "127.0.0.1"
_TCP = re.compile(r"(?:(\[[0-9A-Fa-f:.%\w]+\]|[^:\[\]/]+):)?([0-9]{1,5})")
_LONGEST_PATH = 107  # bytes of a socket's path, without the NUL that ends it (unix(7), sun_path)


class MetricsAddress(NamedTuple):
    """A TCP address, or, with a `path`, a socket in the file system. Port 0 is any that is free."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        """As a client is told it."""
        if self.path:
            return f"unix:{self.path}"
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/metrics"


def parse_address(text: str) -> MetricsAddress:
    """Read what people write; a path is taken from here. Raises ValueError, saying what would do."""
    scheme, colon, path = text.partition(":")
    if scheme == "unix" and colon:
        whole = os.path.abspath(path)
        if not path or len(os.fsencode(whole)) > _LONGEST_PATH:
            raise ValueError(f"{text!r} is no socket: unix:PATH, of at most {_LONGEST_PATH} bytes")
        return MetricsAddress(path=Path(whole))
    found = _TCP.fullmatch(text)
    if found is None or int(found[2]) > 0xFFFF:
        raise ValueError(f"{text!r} is no address: PORT, HOST:PORT or unix:PATH")
    return MetricsAddress((found[1] or _LOOPBACK).strip("[]"), int(found[2]))


log = logging.getLogger(__name__)

PATH = "/metrics"
DEADLINE = 5.0  # seconds from a connection's beginning to its end
AT_ONCE = 8  # connections; another one is hung up on
_LOOK = 0.25  # seconds between looks for connections past their deadline


class MetricsEndpoint:
    """Serves a text at an address, from `start` on: a context manager. Made by `bind`."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self.address = server.address
        self._thread = threading.Thread(
            target=server.serve_forever, args=(_LOOK,), name="imgfs-metrics", daemon=True
        )

    @classmethod
    def bind(cls, address: MetricsAddress, text: Callable[[], str]) -> MetricsEndpoint:
        """Take `address`, to serve what `text` returns, which is called in other threads.

        Raises MountError if the address cannot be had.
        """
        try:
            return cls(_UnixServer(address, text) if address.path else _Server(address, text))
        except (OSError, UnicodeError) as error:
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            raise MountError(f"metrics at {address}: {reason}") from error

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Close all connections and the address."""
        if self._thread.ident:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> MetricsEndpoint:
        return self

    def __exit__(self, *_: BaseException | TracebackType | type | None) -> None:
        self.close()


_Connection: TypeAlias = socket.socket | tuple[bytes, socket.socket]  # socketserver's; TCP's is the former


class _Server(ThreadingMixIn, TCPServer):
    """A thread for each connection, a deadline for all of them."""

    allow_reuse_address = True
    daemon_threads = False  # `server_close` waits for them: what they tell of is taken down next

    def __init__(self, address: MetricsAddress, text: Callable[[], str]) -> None:
        self.text = text
        self._open: dict[socket.socket, float] = {}  # connections, and when they must have ended
        self._lock = threading.Lock()
        self.address_family = _family_of(address)
        super().__init__((address.host, address.port), _Handler)
        self.address = MetricsAddress(address.host, self.server_address[1])

    def verify_request(self, request: _Connection, client_address: object) -> bool:  # noqa: ARG002
        """Return True if there is room for one more connection."""
        assert isinstance(request, socket.socket)
        with self._lock:
            if len(self._open) >= AT_ONCE:
                return False
            self._open[request] = time.monotonic() + DEADLINE
            return True

    def shutdown_request(self, request: _Connection) -> None:
        """A connection has ended."""
        assert isinstance(request, socket.socket)
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut off connections that are past their deadline."""
        now = time.monotonic()
        with self._lock:
            for request, ends in self._open.items():
                if ends < now:
                    _hang_up(request)

    def server_close(self) -> None:
        """Close everything."""
        with self._lock:
            for request in self._open:
                _hang_up(request)
        super().server_close()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """Ignore a client that goes away early or is cut off; log anything else as a bug."""
        if not isinstance(sys.exc_info()[1], OSError):
            log.exception("metrics: a request was not answered")


class _UnixServer(_Server):
    """The same, at a path; only the mount's owner may connect."""

    def __init__(self, address: MetricsAddress, text: Callable[[], str]) -> None:
        assert address.path is not None
        self._path: Path = address.path
        self._bound: tuple[int, int] | None = None
        super().__init__(address, text)
        self.address = address

    def server_bind(self) -> None:
        """Make the socket, in the place of one that no process listens at any more."""
        _remove_stale(self._path)
        before = os.umask(0o177)
        try:
            self.socket.bind(str(self._path))
        finally:
            os.umask(before)
        self.server_address = (str(self._path), 0)
        made = self._path.lstat()
        self._bound = made.st_dev, made.st_ino

    def server_close(self) -> None:
        """Close everything and remove the socket, if it is still the one that was made."""
        super().server_close()
        with contextlib.suppress(OSError):
            found = self._path.lstat()
            if (found.st_dev, found.st_ino) == self._bound:
                self._path.unlink()


class _Handler(BaseHTTPRequestHandler):
    """One connection, one request."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "imgfs", ""
    timeout = DEADLINE

    def __init__(self, request: socket.socket, client_address: object, server: BaseServer) -> None:
        assert isinstance(server, _Server)
        self._text = server.text
        super().__init__(request, client_address, server)

    def do_GET(self) -> None:
        """Send the text."""
        self._answer()

    def do_HEAD(self) -> None:
        """Send what would come before it."""
        self._answer()

    def _answer(self) -> None:
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


def _family_of(address: MetricsAddress) -> int:
    if address.path:
        return socket.AF_UNIX
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return found[0][0]


def _hang_up(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


def _remove_stale(path: Path) -> None:
    """Remove a socket that a mount of this user has left behind; anything else stays, and is in the way."""
    try:
        found = path.lstat()
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.settimeout(1)
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
