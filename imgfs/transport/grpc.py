"""Calls of gRPC to a server on this machine, over HTTP/2 on its socket.

A call is a POST of one message; its answer has messages, each with five bytes before it (compressed or not,
length), and trailers with its status (grpc, doc/PROTOCOL-HTTP2.md). h2 reads and writes the frames; sockets,
their deadlines and all threads are our own, so nothing is left over for a process that is forked later. A
connection has one call at a time, and is kept for the next one.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from imgfs import __version__
from imgfs.errors import (
    NotFound,
    RegistryError,
    Unauthorized,
    Unavailable,
    UsageError,
    describe,
)
from imgfs.quoting import printable
from imgfs.registry.sockets import PlainSocket

if TYPE_CHECKING:
    from h2.connection import H2Connection
    from h2.events import Event

_PREFIX = struct.Struct(">BI")  # compressed, and the length of the message
_RECEIVED = 256 << 10  # bytes taken of a socket at once
_WINDOW = 1 << 20  # bytes that a server may send before it hears that they were taken
_MAX_TEXT = 300
_CLOSED = "the connection was closed"
# doc/statuscodes.md
_STATUS = {5: NotFound, 7: Unauthorized, 16: Unauthorized, 8: Unavailable, 4: Unavailable, 14: Unavailable}


class _Broken(Exception):
    """A connection that has ended; another one may do better."""


class _NoGrpc(Exception):
    """An answer that is none of gRPC, or too large."""


class GrpcChannel:
    """Calls methods of the server that `connect` connects to; `where` it is, errors say. Safe in threads."""

    def __init__(self, connect: Callable[[], PlainSocket], where: str, seconds: float) -> None:
        self._connect = connect
        self._where = where
        self._seconds = seconds
        self._lock = threading.Lock()
        self._idle: list[_Http2] = []
        self._calls = 0

    @property
    def calls(self) -> int:
        """Return how many calls were made."""
        return self._calls

    def call(self, method: str, request: bytes, metadata: Mapping[str, str], limit: int) -> list[bytes]:
        """Return the messages of the answer, which have `limit` bytes at the most, in so many seconds.

        `method` is `package.Service/Method`. Raises RegistryError, by the server's status or for an
        answer that is too large or none.
        """
        with self._lock:
            self._calls += 1
            kept = self._idle.pop() if self._idle else None
        try:
            if kept:
                return self._called(kept, method, request, metadata, limit)
        except _Broken:  # ended while it was idle: the server was started again
            pass
        try:
            return self._called(_Http2(_begun(), self._connect()), method, request, metadata, limit)
        except _Broken as error:
            raise Unavailable(f"{self._where}: no answer: {error}") from error

    def close(self) -> None:
        """Close the connections that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _called(
        self, connection: _Http2, method: str, request: bytes, metadata: Mapping[str, str], limit: int
    ) -> list[bytes]:
        try:
            answer = connection.call(method, request, metadata, limit, self._seconds)
        except BaseException as error:
            connection.close()
            if isinstance(error, _NoGrpc):
                raise RegistryError(f"{self._where}: {method}: {error}") from error
            raise
        with self._lock:
            self._idle.append(connection)
        if answer.status:
            text = f"{self._where}: {method.rpartition('.')[2]}: {answer.text or f'status {answer.status}'}"
            raise _STATUS.get(answer.status, RegistryError)(text, status=None, code=str(answer.status))
        return answer.messages


class GrpcAnswer(NamedTuple):
    """The messages of an answer, and its status: 0, or a code and a text for a person."""

    messages: list[bytes]
    status: int
    text: str


class _Http2:
    """A connection of HTTP/2."""

    def __init__(self, http2: H2Connection, sock: PlainSocket) -> None:
        self._h2 = http2
        self._sock = sock

    def close(self) -> None:
        """Close it."""
        self._sock.close()

    def call(
        self, method: str, request: bytes, metadata: Mapping[str, str], limit: int, seconds: float
    ) -> GrpcAnswer:
        """Send a request and take its answer; raises _Broken, _NoGrpc, and is of no use then."""
        from h2.exceptions import H2Error

        assert self._sock.deadline
        self._sock.deadline.begin(seconds)
        try:
            stream = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream, _headers(method, metadata, seconds))
            self._h2.send_data(stream, _PREFIX.pack(0, len(request)) + request, end_stream=True)
            self._sock.sendall(self._h2.data_to_send())
            taken = _Taken(stream, limit)
            while not taken.ended:
                self._take(taken)
        except H2Error as error:
            raise _Broken("not in HTTP/2") from error
        except OSError as error:
            raise _Broken(_reason(error)) from error
        return taken.answer()

    def _take(self, taken: _Taken) -> None:
        body = self._sock.recv(_RECEIVED)
        if not body:
            raise _Broken(_CLOSED)
        count = 0
        for event in self._h2.receive_data(body):
            count += taken.take(event)
        if count:
            self._h2.increment_flow_control_window(count)
            if not taken.ended:
                self._h2.increment_flow_control_window(count, taken.stream)
        if answer := self._h2.data_to_send():
            self._sock.sendall(answer)


class _Taken:
    """What has come of an answer so far."""

    def __init__(self, stream: int, limit: int) -> None:
        self.stream = stream
        self.ended = False
        self._limit = limit
        self._body = bytearray()
        self._status: int | None = None
        self._text = ""

    def take(self, event: Event) -> int:
        """Take an event of the connection; returns how many bytes of its window it took."""
        from h2 import events

        if isinstance(event, events.DataReceived) and event.stream_id == self.stream:
            self._body += event.data or b""
            if len(self._body) > self._limit:
                raise _NoGrpc(f"an answer of more than {self._limit} bytes")
            return event.flow_controlled_length or 0
        if isinstance(event, events.ResponseReceived | events.TrailersReceived):
            self._read_headers(event.headers or ())
        elif isinstance(event, events.StreamEnded):
            self.ended = True
        elif isinstance(event, events.StreamReset | events.ConnectionTerminated) and not self.ended:
            raise _Broken(f"ended by the server ({int(event.error_code or 0)})")
        return 0

    def answer(self) -> GrpcAnswer:
        """Return the messages; raises _NoGrpc if they are none."""
        if self._status is None:
            raise _NoGrpc("an answer without a status: not gRPC, or cut short")
        return GrpcAnswer(list(self._messages()) if not self._status else [], self._status, self._text)

    def _messages(self) -> Iterable[bytes]:
        body = bytes(self._body)
        at = 0
        while at < len(body):
            if len(body) - at < _PREFIX.size:
                raise _NoGrpc("cut within the head of a message")
            packed, length = _PREFIX.unpack_from(body, at)
            at += _PREFIX.size
            if packed or length > len(body) - at:
                raise _NoGrpc("a message that is packed, or longer than the answer")
            yield body[at : at + length]
            at += length

    def _read_headers(self, headers: Iterable[tuple[str | bytes, str | bytes]]) -> None:
        for raw_name, raw_value in headers:
            name, value = _text(raw_name), _text(raw_value)
            if name == ":status" and value != "200":
                raise _NoGrpc(f"HTTP status {printable(value)[:10]}: not gRPC")
            if name == "grpc-status":
                self._status = int(value) if value.isascii() and value.isdecimal() and len(value) < 4 else 2
            elif name == "grpc-message":
                self._text = printable(unquote(value[: 3 * _MAX_TEXT])[:_MAX_TEXT])


def _reason(error: OSError) -> str:
    if isinstance(error, ConnectionError):
        return _CLOSED
    return "timed out" if isinstance(error, TimeoutError) else describe(error)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _begun() -> H2Connection:
    """Return a connection whose preface and settings are to be sent; raises UsageError without h2."""
    try:
        from h2.config import H2Configuration
        from h2.connection import H2Connection
        from h2.settings import SettingCodes
    except ImportError as error:
        raise UsageError(
            "containerd: is asked by way of the Python package h2, which is not installed: "
            "pip install 'imgfs[engines]'"
        ) from error
    made = H2Connection(H2Configuration(header_encoding=None))
    made.initiate_connection()
    made.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW, SettingCodes.ENABLE_PUSH: 0})
    made.increment_flow_control_window(_WINDOW)
    return made


def _headers(method: str, metadata: Mapping[str, str], seconds: float) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/{method}"),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", f"imgfs/{__version__}"),
        ("grpc-timeout", f"{max(1, int(seconds))}S"),
        *metadata.items(),
    ]
