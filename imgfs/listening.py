"""Listening for clients that are not trusted: an address, and a server of few connections with deadlines.

There are never more than so many connections, and as many that are being hung up on. Each has a thread of its
own, and one that takes too long is cut. One that is answered stays; one that has not asked yet, or not again,
gives way to the next when there is no more room: so those who only hold connections do not keep others out.

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
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from socketserver import BaseRequestHandler, StreamRequestHandler, TCPServer, ThreadingMixIn
from typing import NamedTuple, TypeAlias

from imgfs.errors import LimitReached
from imgfs.starting import start_thread

LOOPBACK = "127.0.0.1"
_TCP = re.compile(r"(?:(\[[0-9A-Fa-f:.%\w]+\]|[^:\[\]/]+):)?([0-9]{1,5})")
_LONGEST_PATH = 107  # bytes of a socket's path, without the NUL that ends it (unix(7), sun_path)
_HEAD = 16 << 10  # bytes of a request's head
LOOK = 0.25  # seconds between looks for connections past their deadline
log = logging.getLogger(__name__)


class ListenAddress(NamedTuple):
    """A TCP address, or, with a `path`, a socket in the file system. Port 0 is any that is free."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        """Return what a client connects to: HOST:PORT, or unix:PATH."""
        if self.path:
            return f"unix:{self.path}"
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_address(text: str) -> ListenAddress:
    """Read what people write; a path is taken from here. Raises ValueError, saying what would do."""
    scheme, colon, path = text.partition(":")
    if scheme == "unix" and colon:
        whole = os.path.abspath(path)
        if not path or len(os.fsencode(whole)) > _LONGEST_PATH:
            raise ValueError(f"{text!r} is not a socket: unix:PATH, of at most {_LONGEST_PATH} bytes")
        return ListenAddress(path=Path(whole))
    found = _TCP.fullmatch(text)
    if found is None or int(found[2]) > 0xFFFF:
        raise ValueError(f"{text!r} is not an address: PORT, HOST:PORT or unix:PATH")
    return ListenAddress((found[1] or LOOPBACK).strip("[]"), int(found[2]))


MakeHandler = Callable[..., BaseRequestHandler]  # answers a connection while it is made
_Connection: TypeAlias = socket.socket | tuple[bytes, socket.socket]  # socketserver's; TCP's is the former


class _Held(NamedTuple):
    """When a connection must have ended, and whether it is answered."""

    ends: float
    is_answered: bool = False


class BoundedServer(ThreadingMixIn, TCPServer):
    """A thread for each of at most `at_once` connections, which end after `deadline` seconds.

    Another one takes the place of that which has waited longest for a request; while all are answered it is
    hung up on. A handler says by `answers` and `waits` which of both it does, and for how long it may.
    """

    allow_reuse_address = True
    at_look: Callable[[], None] = staticmethod(lambda: None)  # called now and then, between two connections

    def __init__(
        self, address: ListenAddress, handler: MakeHandler, *, at_once: int, deadline: float
    ) -> None:
        self._at_once = at_once
        self._deadline = deadline
        self._open: dict[socket.socket, _Held] = {}  # those that have waited longest first
        self._leaving: set[socket.socket] = set()  # those that have given way, until their threads end
        self._answering: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.address_family = _family_of(address)
        super().__init__((address.host, address.port), handler)
        self.address = address._replace(port=self.server_address[1])

    def verify_request(self, request: _Connection, client_address: object) -> bool:  # noqa: ARG002
        """Return True if there is room for one more connection, or another gives way to it."""
        assert isinstance(request, socket.socket)
        with self._lock:
            if len(self._open) >= self._at_once:
                waiting = next((one for one, held in self._open.items() if not held.is_answered), None)
                if waiting is None or len(self._leaving) >= self._at_once:
                    return False
                del self._open[waiting]
                self._leaving.add(waiting)
                _hang_up(waiting)
            self._open[request] = _Held(time.monotonic() + self._deadline)
            return True

    def process_request(self, request: _Connection, client_address: object) -> None:
        """Have a thread answer a connection. Raises LimitReached."""
        answer = partial(self.process_request_thread, request, client_address)
        self._answering = [thread for thread in self._answering if thread.is_alive()]
        self._answering.append(start_thread(answer, "imgfs-client"))

    def answers(self, request: socket.socket, seconds: float | None = None) -> None:
        """Note that a connection is answered, so many seconds from now at most; None if its end stays."""
        with self._lock:
            if held := self._open.get(request):
                ends = held.ends if seconds is None else time.monotonic() + seconds
                self._open[request] = _Held(ends, is_answered=True)

    def waits(self, request: socket.socket, seconds: float) -> None:
        """Note that a connection waits for a request, so many seconds from now at most."""
        with self._lock:
            if self._open.pop(request, None):  # the last to have begun to wait goes to the end
                self._open[request] = _Held(time.monotonic() + seconds)

    def shutdown_request(self, request: _Connection) -> None:
        """Note that a connection has ended."""
        assert isinstance(request, socket.socket)
        with self._lock:
            self._open.pop(request, None)
            self._leaving.discard(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut off connections that are past their deadline."""
        now = time.monotonic()
        with self._lock:
            for request, held in self._open.items():
                if held.ends < now:
                    _hang_up(request)
        self.at_look()

    def server_close(self) -> None:
        """Close everything, and wait for the threads: what they tell of is taken down next."""
        with self._lock:
            for request in self._open:
                _hang_up(request)
        super().server_close()
        for thread in self._answering:
            thread.join()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """Ignore a client that goes away early or is cut off; log anything else as a bug."""
        error = sys.exc_info()[1]
        if isinstance(error, LimitReached):
            log.warning("%s: a request was not answered: %s", self.address, error)
        elif not isinstance(error, OSError):
            log.exception("%s: a request was not answered", self.address)


class UnixServer(BoundedServer):
    """A `BoundedServer` at a socket in the file system, to which only this process's user may connect."""

    def __init__(
        self, address: ListenAddress, handler: MakeHandler, *, at_once: int, deadline: float
    ) -> None:
        assert address.path is not None
        self._path: Path = address.path
        self._bound: tuple[int, int] | None = None
        super().__init__(address, handler, at_once=at_once, deadline=deadline)
        self.address = address

    def server_bind(self) -> None:
        """Make the socket, in the place of one that no process listens at any more."""
        remove_stale(self._path)
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


class BoundedHead(StreamRequestHandler):
    """To be put before http.server's handler, which takes a hundred lines of 64 KiB as the head of a request.

    They are read by `rfile`, which raises ConnectionError at one that is too long.
    """

    def setup(self) -> None:
        """Open the connection for reading and writing."""
        super().setup()
        self.rfile = self.heads = _Heads(self.rfile)


class _Heads(BufferedIOBase):
    """Reads lines of heads from `file`."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self._left = _HEAD

    def begin(self) -> None:
        """Begin with the next head."""
        self._left = _HEAD

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read a line. Raises ConnectionError if the head is too long."""
        most = self._left + 1 if size is None or size < 0 else min(size, self._left + 1)
        line = self._file.readline(most)
        self._left -= len(line)
        if self._left < 0:
            raise ConnectionError("the head of a request is too long")
        return line

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _family_of(address: ListenAddress) -> int:
    if address.path:
        return socket.AF_UNIX
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return found[0][0]


def _hang_up(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(request, socket.SHUT_RDWR)  # not TLS's, which another thread may be using


def remove_stale(path: Path) -> None:
    """Remove a socket that a process of this user has left behind; anything else stays, and is in the way."""
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
