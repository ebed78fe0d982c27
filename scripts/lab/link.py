"""A link with a bandwidth and a round trip: a TCP proxy that delays, paces and counts.

Every byte towards the client takes its turn on ONE line of the given bandwidth, however many connections
there are; then, as in the other direction, it travels for half a round trip. A new connection costs a round
trip before its first request may leave, as the TCP handshake would. Slow start and loss are not modelled.

Per connection four threads: for each direction a reader (the line) and a writer (the way), a bounded queue
between them. Sleeping threads are precise to about 0.1 ms; an event loop's timers only to 1 ms.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from queue import Queue
from types import TracebackType

REQUEST = re.compile(rb"^(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) \S+ HTTP/1\.[01]$")
IN_FLIGHT = 256  # pieces under way per direction: 4 MiB, over the 0.5 MB that 200 Mbit/s hold in 20 ms
PACED, UNPACED = (
    16 << 10,
    256 << 10,
)  # bytes per piece: small ones share the line fairly, large ones cost little
CONTINUOUS = 0.005  # seconds a line may have been idle and still count as busy: the sleepers' lateness


@dataclass(frozen=True)
class Traffic:
    """What has crossed a link: `fetched` bytes towards the client, `sent` bytes from it."""

    connections: int = 0
    requests: int = 0
    fetched: int = 0
    sent: int = 0

    def __sub__(self, before: Traffic) -> Traffic:
        return Traffic(
            self.connections - before.connections,
            self.requests - before.requests,
            self.fetched - before.fetched,
            self.sent - before.sent,
        )


class Line:
    """The shared medium: `take(n)` blocks until n bytes have been put on it."""

    def __init__(self, bytes_per_second: float | None) -> None:
        self._pace = 1 / bytes_per_second if bytes_per_second else 0.0
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, size: int) -> None:
        if not self._pace:
            return
        with self._lock:
            now = time.monotonic()
            start = self._free_at if self._free_at > now - CONTINUOUS else now
            self._free_at = end = start + size * self._pace
        sleep_until(end)


def sleep_until(moment: float) -> None:
    """Sleep until the monotonic clock says `moment`."""
    if (left := moment - time.monotonic()) > 0:
        time.sleep(left)


class RequestCounter:
    """Counts HTTP/1 requests in a byte stream, by its heads; bodies do not look like request lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> int:
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        if len(self._rest) > 1 << 16:
            self._rest = b""
        return sum(1 for line in lines if REQUEST.match(line))


@dataclass
class Link:
    """A proxy on a free loopback `port` before 127.0.0.1:`target_port`, while its `with` block lasts.

    `mbit` is the bandwidth towards the client in Mbit/s (None: unlimited); `round_trip` is in seconds.
    """

    target_port: int
    mbit: float | None = None
    round_trip: float = 0.0
    port: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._line = Line(self.mbit * 125_000 if self.mbit else None)
        self._piece = PACED if self.mbit else UNPACED
        self._lock = threading.Lock()
        self._traffic = Traffic()
        self._sockets: set[socket.socket] = set()

    def __enter__(self) -> Link:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="link-accept", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # close alone does not wake accept()
        self._listener.close()
        with self._lock:
            open_now = list(self._sockets)
        for each in open_now:
            _shut(each, socket.SHUT_RDWR)

    def traffic(self) -> Traffic:
        """Say what has crossed so far; subtract two of them for what crossed between."""
        with self._lock:
            return self._traffic

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # the link is closed
            self._count(connections=1)
            threading.Thread(target=self._serve, args=(client,), name="link", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        established = time.monotonic() + self.round_trip
        with contextlib.ExitStack() as stack:
            stack.callback(client.close)
            stack.enter_context(
                contextlib.suppress(OSError)
            )  # a server that refuses ends this connection only
            server = stack.enter_context(
                socket.create_connection(("127.0.0.1", self.target_port), timeout=30)
            )
            for each in (client, server):
                each.settimeout(None)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._relay(client, server, established)

    def _relay(self, client: socket.socket, server: socket.socket, established: float) -> None:
        with self._lock:
            self._sockets |= {client, server}
        up, down = _Way(server, self.round_trip / 2), _Way(client, self.round_trip / 2)
        uploader = threading.Thread(target=self._upload, args=(client, up, established), daemon=True)
        uploader.start()
        try:
            self._download(server, down)
        finally:
            _shut(client, socket.SHUT_RDWR)  # a server that has ended has no use for what still comes
            uploader.join()
            with self._lock:
                self._sockets -= {client, server}

    def _upload(self, client: socket.socket, way: _Way, established: float) -> None:
        requests = RequestCounter()
        with way:
            while data := _receive(client, UNPACED):
                self._count(requests=requests.feed(data), sent=len(data))
                sleep_until(established)
                way.send(data)

    def _download(self, server: socket.socket, way: _Way) -> None:
        with way:
            while not way.is_broken and (data := _receive(server, self._piece)):
                self._line.take(len(data))
                self._count(fetched=len(data))
                way.send(data)

    def _count(self, *, connections: int = 0, requests: int = 0, fetched: int = 0, sent: int = 0) -> None:
        with self._lock:
            was = self._traffic
            self._traffic = Traffic(
                was.connections + connections, was.requests + requests, was.fetched + fetched, was.sent + sent
            )


class _Way:
    """One direction of a connection: what is sent arrives `delay` seconds later, in order."""

    def __init__(self, target: socket.socket, delay: float) -> None:
        self._target, self._delay = target, delay
        self.is_broken = False  # its target has hung up: as in TCP, no more is sent
        self._queue: Queue[tuple[float, bytes]] = Queue(IN_FLIGHT)
        self._writer = threading.Thread(target=self._write, name="link-way", daemon=True)

    def __enter__(self) -> _Way:
        if self._delay:
            self._writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._delay:
            self._queue.put((time.monotonic() + self._delay, b""))
            self._writer.join()
        _shut(self._target, socket.SHUT_WR)

    def send(self, data: bytes) -> None:
        if self._delay:
            self._queue.put((time.monotonic() + self._delay, data))
        else:
            self._send(data)

    def _write(self) -> None:
        while True:
            due, data = self._queue.get()
            sleep_until(due)
            if not data:
                return
            self._send(data)

    def _send(self, data: bytes) -> None:
        try:
            self._target.sendall(data)
        except OSError:
            self.is_broken = True


def _receive(source: socket.socket, size: int) -> bytes:
    """Receive up to `size` bytes; b"" at the end of the stream and when the peer has hung up."""
    try:
        return source.recv(size)
    except OSError:
        return b""


def _shut(each: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(how)
