"""One peer, asked over connections that are kept: what it has of a layer, its bytes, how its blob is cut.

Everything has an end: a question, the head of an answer and a read as a whole. Redirects are not followed,
proxies not used, encodings not accepted. The bytes that come are in no way trusted.
"""

from __future__ import annotations

import http.client
import math
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from imgfs.errors import NotFound, RegistryError, Unavailable, describe
from imgfs.oci.descriptor import Descriptor
from imgfs.peers.address import PeerAddress
from imgfs.peers.arriving import LARGEST_ARRIVING, Arriving
from imgfs.peers.flat_name import ARRIVING, BLOB, FLAT, PRESENCE, SPANS, FlatName, blob_path
from imgfs.peers.layer_spans import LARGEST_SPANS
from imgfs.peers.presence import LARGEST_TEXT, Presence
from imgfs.registry.sockets import Deadline, PlainSocket, TlsSocket, dial, dial_unix
from imgfs.registry.tls import context_of

CONNECT = 0.5  # seconds for a connection: a registry is not much further away
ANSWER = 3.0  # seconds for the head of an answer, of a busy machine, too: readers wait less (`content.race`)
LEAST_RATE = 8e6  # bytes per second of a read that is worth waiting for
_STEP = max(1.0, CONNECT)  # seconds in which anything is sent or comes
STALL = 3.0  # seconds in which anything comes of bytes that the peer is fetching itself
_HEAD = 16 << 10  # bytes of an answer's head
_PIECE = 256 << 10  # bytes that are asked of a socket at once
_BRIEF = 0.001  # seconds that a reader takes for a piece, and which may count as the peer's
_KEPT = 4  # idle connections
_IDLE = 10.0  # seconds for which one is kept: the server's are longer
_USUAL = {"Accept-Encoding": "identity", "User-Agent": "imgfs"}


class Stalled(Unavailable):
    """What is awaited of a peer does not come in time."""


@dataclass(slots=True)
class _Connection:
    """An open connection, and what bounds it."""

    http: http.client.HTTPConnection
    sock: PlainSocket | TlsSocket
    deadline: Deadline
    since: float = 0.0  # when it was last used


class PeerClient:
    """Asks the peer at `address`, at its number `number` if that is given. Safe in threads."""

    def __init__(self, address: PeerAddress, number: str | None = None) -> None:
        self.address = address
        self.name = f"{address} ({number})" if number and number != address.host else str(address)
        self._number = number
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._context: ssl.SSLContext | None = None
        self._closed = False

    def presence(self, name: FlatName) -> Presence:
        """Ask what it has of a layer: nothing if it does not know it. Raises ImgfsError."""
        body = self._json(name.path(PRESENCE), LARGEST_TEXT)
        return Presence() if body is None else Presence.from_json(body)

    def spans(self, layer: Descriptor) -> bytes | None:
        """Ask how a layer's blob is cut, for `parse_spans`; None if it has not scanned it.

        Raises ImgfsError.
        """
        return self._json(blob_path(SPANS, layer.digest), LARGEST_SPANS)

    def arriving(self, layer: Descriptor) -> Arriving | None:
        """Ask how far its download of a blob is; None if there is none. Raises ImgfsError."""
        body = self._json(blob_path(ARRIVING, layer.digest), LARGEST_ARRIVING)
        return None if body is None else Arriving.from_json(body, layer.size)

    def blob(
        self, layer: Descriptor, start: int, end: int, seconds: float, step: float = STALL
    ) -> Iterator[bytes]:
        """Yield the bytes `[start, end)` of a blob as the peer has them, in so many seconds or fewer.

        They may end early: the peer does not have the rest, and will not. Raises ImgfsError; Stalled if they
        do not come in time, or none at all for the seconds of a `step`.
        """
        ends = time.monotonic() + seconds
        headers = {"Range": f"bytes={start}-{end - 1}"}
        path = blob_path(BLOB, layer.digest)
        with _PeerRequest(self, path, headers, time.monotonic() + ANSWER, step) as answer:
            if answer.status in (http.client.NOT_FOUND, http.client.REQUESTED_RANGE_NOT_SATISFIABLE):
                return
            self._check_range(answer, start, end)
            answer.extend(ends)
            yield from answer.body(may_end=True)

    def _json(self, path: str, largest: int) -> bytes | None:
        """Ask for a text of at most so many bytes; None if there is none. Raises ImgfsError."""
        ends = time.monotonic() + ANSWER
        with _PeerRequest(self, path, {}, ends) as answer:
            if answer.status == http.client.NOT_FOUND:
                return None
            if answer.status != http.client.OK or answer.length is None or answer.length > largest:
                raise self.refusal(f"answers {answer.status}, or without a length in bounds")
            answer.extend(ends + answer.length / LEAST_RATE)
            return b"".join(answer.body())

    def read(self, name: FlatName, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes `[start, end)` of a flat layer: so many, or it raises ImgfsError.

        NotFound if the peer does not have them any more.
        """
        ends = time.monotonic() + ANSWER
        headers = {"Range": f"bytes={start}-{end - 1}"}
        with _PeerRequest(self, name.path(FLAT), headers, ends) as answer:
            if answer.status in (http.client.NOT_FOUND, http.client.REQUESTED_RANGE_NOT_SATISFIABLE):
                raise NotFound(f"peer {self.name}: has them no more")
            self._check_range(answer, start, end)
            answer.extend(ends + (end - start) / LEAST_RATE)
            for piece in answer.body():
                given = time.monotonic()
                yield piece
                answer.excuse(time.monotonic() - given)

    def _check_range(self, answer: _PeerRequest, start: int, end: int) -> None:
        """Raise Unavailable unless a range is answered."""
        if answer.status != http.client.PARTIAL_CONTENT or answer.length != end - start:
            raise self.refusal(f"answers {answer.status}, or with another length")
        if not answer.content_range.startswith(f"bytes {start}-{end - 1}/"):
            raise self.refusal("answers with another range")

    def refusal(self, why: str) -> RegistryError:
        """Return an error about this peer."""
        return Unavailable(f"peer {self.name}: {why}")

    def connection(self, ends: float, *, is_new: bool = False) -> _Connection:
        """Return a kept connection, or one made before `ends`. Raises OSError, RegistryError."""
        with self._lock:
            while self._idle and not is_new:
                kept = self._idle.pop()
                if time.monotonic() - kept.since < _IDLE:
                    return kept
                kept.http.close()
        return self._connected(min(CONNECT, max(0.001, ends - time.monotonic())))

    def keep(self, connection: _Connection) -> None:
        """Keep a connection that is between two requests."""
        connection.since = time.monotonic()
        with self._lock:
            if not self._closed and len(self._idle) < _KEPT:
                self._idle.append(connection)
                return
        connection.http.close()

    def close(self) -> None:
        """Close the connections that are not in use."""
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for connection in idle:
            connection.http.close()

    def _connected(self, seconds: float) -> _Connection:
        address = self.address
        if address.path:
            sock: PlainSocket | TlsSocket = dial_unix(address.path, seconds)
        else:
            sock = dial(self._number or address.host, address.port, seconds)
        try:
            if address.tls:
                made = self._tls_context().wrap_socket(sock, server_hostname=address.host)
                assert isinstance(made, TlsSocket)
                sock = made
            deadline = sock.deadline = Deadline()
            sock.settimeout(_STEP)
        except BaseException:
            sock.close()
            raise
        connection = http.client.HTTPConnection(address.host or "localhost", address.port or None)
        connection.sock = sock
        connection.auto_open = 0
        return _Connection(connection, sock, deadline)

    def _tls_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                assert self.address.tls
                self._context = context_of(self.address.tls, None, shows=True)
                self._context.sslsocket_class = TlsSocket
            return self._context


class _PeerRequest:
    """One request and its answer: a context manager, within which nothing but ImgfsError is raised."""

    def __init__(
        self, client: PeerClient, path: str, headers: dict[str, str], ends: float, step: float = _STEP
    ) -> None:
        self._client = client
        self._step = step
        self._request = path, {**_USUAL, **headers}
        self._ends = ends
        self._is_read = False

    def __enter__(self) -> _PeerRequest:
        try:
            self._connection = self._client.connection(self._ends)
            try:
                self._answer(self._connection)
            except ConnectionError:
                if not self._connection.since:
                    raise
                self._connection = self._client.connection(self._ends, is_new=True)  # it had closed
                self._answer(self._connection)
        except TimeoutError as error:
            raise Stalled(f"peer {self._client.name}: {describe(error)}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._client.refusal(describe(error)) from error
        return self

    def _answer(self, connection: _Connection) -> None:
        path, headers = self._request
        try:
            connection.sock.settimeout(self._step)
            connection.deadline.begin(max(0.001, self._ends - time.monotonic()), _HEAD)
            connection.http.request("GET", path, headers=headers)
            self._found = connection.http.getresponse()
        except BaseException:
            connection.http.close()
            raise
        self.status = self._found.status
        self.length = self._found.length
        self._is_read = self.length == 0
        self.content_range = self._found.headers.get("Content-Range", "")

    def extend(self, ends: float) -> None:
        """Have the body end by then."""
        self._ends = ends
        self._connection.deadline.begin(max(0.001, ends - time.monotonic()), math.inf)

    def excuse(self, seconds: float) -> None:
        """Have the body end so much later: its reader has taken that time, not the peer."""
        if seconds > _BRIEF:
            self.extend(self._ends + seconds)

    def body(self, *, may_end: bool = False) -> Iterator[bytes]:
        """Yield the body, of the announced length, or less if it `may_end` early. Raises Unavailable."""
        left = self.length or 0
        while left:
            try:
                piece = self._found.read1(min(left, _PIECE))
            except TimeoutError as error:
                raise Stalled(f"peer {self._client.name}: its answer stands still") from error
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise self._client.refusal(f"its answer breaks off: {describe(error)}") from error
            if not piece and may_end:
                return
            if not piece:
                raise self._client.refusal("its answer breaks off")
            left -= len(piece)
            yield piece
        self._is_read = True

    def __exit__(self, *_: object) -> None:
        is_clean = self._is_read and not self._found.will_close
        self._found.close()
        if is_clean:
            self._client.keep(self._connection)
        else:
            self._connection.http.close()
