"""Serving layers to peers over HTTP/1.1, cached ones and blobs that arrive: read only, by exact names, and no
more than is here.

On TCP beyond loopback a client shows a certificate of the given authority, or is not answered: clients that
are may read every layer that is here and whose digest they know, that of a private image, too. Clients
are bounded (`listening`): connections in number, each request in time. Nothing is listed.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

from imgfs.errors import ImgfsError, StoreError, UsageError, describe
from imgfs.listening import LOOK, BoundedHead, BoundedServer, ListenAddress, MakeHandler, UnixServer
from imgfs.oci.descriptor import Digest
from imgfs.peers.arriving_blobs import ArrivingBlobs, bytes_of, told
from imgfs.peers.cached_layers import CachedLayers, PresentLayer
from imgfs.peers.flat_name import ARRIVING, PRESENCE, SPANS, parse_blob_path, parse_path, parse_range
from imgfs.peers.layer_spans import LARGEST_SPANS
from imgfs.registry.urls import is_loopback_host
from imgfs.store.partial import PartialReader
from imgfs.store.store import Store

log = logging.getLogger(__name__)

AT_ONCE = 64  # connections
IDLE = 20.0  # seconds until a request has to have come whole, the handshake included
_SLOWEST = 256 << 10  # bytes per second at which a body has to be taken
_LARGEST = 64 << 20  # bytes of a range
_STEP = 5.0  # seconds in which a socket takes or gives anything


class ServerCertificates(NamedTuple):
    """PEM files: the authority of the clients' certificates, and this server's own certificate and key."""

    authority: Path
    certificate: Path
    key: Path | None = None


class PeerServer:
    """Serves the layers of `store` at an address, until `shutdown`; made with the address taken.

    Raises UsageError if the address is beyond this machine and there are no `certificates`, or they cannot be
    read; ImgfsError if the address cannot be had.
    """

    def __init__(
        self, store: Store, address: ListenAddress, certificates: ServerCertificates | None = None
    ) -> None:
        if certificates is None and not (address.path or is_loopback_host(address.host)):
            raise UsageError(
                f"peers at {address}: beyond this machine clients must show a certificate: "
                "--peer-ca, --peer-cert and --peer-key"
            )
        self._layers, self._arriving = CachedLayers(store), ArrivingBlobs(store)
        try:
            handler = partial(_PeerHandler, self._layers, self._arriving)
            self._server = _listen(address, handler, certificates)
        except (OSError, UnicodeError) as error:
            raise ImgfsError(f"peers at {address}: {describe(error)}") from error
        self._server.at_look = self._arriving.tidy
        self.address = self._server.address

    def serve(self) -> None:
        """Answer until `shutdown` is called, in another thread."""
        with closing(self._layers), closing(self._arriving):
            try:
                self._server.serve_forever(LOOK)
            finally:
                self._server.server_close()

    def shutdown(self) -> None:
        """Have `serve` return."""
        self._server.shutdown()

    def close(self) -> None:
        """Give the address up, where `serve` was never called."""
        self._server.server_close()


def _listen(
    address: ListenAddress, handler: MakeHandler, certificates: ServerCertificates | None
) -> BoundedServer:
    if address.path:
        return UnixServer(address, handler, at_once=AT_ONCE, deadline=IDLE)
    if certificates is None:
        return BoundedServer(address, handler, at_once=AT_ONCE, deadline=IDLE)
    return _TlsServer(address, handler, certificates)


class _TlsServer(BoundedServer):
    """Connections with TLS whose clients show a certificate. The files are read again when they change."""

    def __init__(
        self, address: ListenAddress, handler: MakeHandler, certificates: ServerCertificates
    ) -> None:
        self._certificates = certificates
        self._stamps = self._stamp()
        self._context = _context(certificates)
        super().__init__(address, handler, at_once=AT_ONCE, deadline=IDLE)

    def get_request(self) -> tuple[socket.socket, object]:
        """Accept a connection; the handshake is its thread's."""
        request, client = super().get_request()
        assert isinstance(request, socket.socket)
        self._renew()
        secured = self._context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        return secured, client

    def _renew(self) -> None:
        stamps = self._stamp()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self._context = _context(self._certificates)
        except UsageError as error:
            log.warning("the certificates before are used on: %s", error)

    def _stamp(self) -> list[tuple[int, int] | None]:
        found: list[tuple[int, int] | None] = []
        for path in filter(None, self._certificates):
            try:
                stat = os.stat(path)
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_ino, stat.st_mtime_ns))
        return found


def _context(certificates: ServerCertificates) -> ssl.SSLContext:
    """Return a context that asks clients for a certificate of the authority. Raises UsageError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(certificates.authority)
    except ssl.SSLError as error:
        raise UsageError(f"{certificates.authority}: not certificates in PEM") from error
    except OSError as error:
        raise UsageError(f"{certificates.authority}: cannot be read: {describe(error)}") from error
    try:
        context.load_cert_chain(certificates.certificate, certificates.key, password="none")
    except ssl.SSLError as error:
        raise UsageError(f"{certificates.certificate}: not a certificate and its key in PEM") from error
    except OSError as error:
        raise UsageError(f"{certificates.certificate}: cannot be read: {describe(error)}") from error
    return context


class _PeerHandler(BoundedHead, BaseHTTPRequestHandler):
    """One connection; requests follow each other on it."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "imgfs", ""
    timeout = _STEP

    def __init__(self, layers: CachedLayers, arriving: ArrivingBlobs, *connection: Any) -> None:
        self._layers = layers
        self._arriving = arriving
        super().__init__(*connection)  # which answers

    def setup(self) -> None:
        """Shake hands first."""
        request = self.request
        if request.family != socket.AF_UNIX:
            request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if isinstance(request, ssl.SSLSocket):
            request.settimeout(_STEP)
            request.do_handshake()
        super().setup()

    def handle_one_request(self) -> None:
        """Answer a request, which has a deadline of its own."""
        self.heads.begin()
        self._server.waits(self.request, IDLE)
        super().handle_one_request()

    def do_GET(self) -> None:
        """Send a presence, a range of a flat layer, or what there is of a blob."""
        self._server.answers(self.request, IDLE)
        of_blob, of_flat = parse_blob_path(self.path), parse_path(self.path)
        try:
            if of_blob and of_blob[0] == SPANS:
                self._send_spans(of_blob[1])
            elif of_blob and (part := self._arriving.find(of_blob[1])):
                with part as reader:
                    self._send_arriving(of_blob[0], reader)
            elif of_flat and (layer := self._layers.find(of_flat[1])):
                with layer as present:
                    self._send_flat(of_flat[0], present)
            else:
                self._refuse(HTTPStatus.NOT_FOUND)
        except StoreError as error:
            log.warning("%s", error)
            self.close_connection = True

    do_HEAD = do_GET  # noqa: N815  (named by http.server)

    def _send_spans(self, blob: Digest) -> None:
        body = self._layers.spans(blob)
        if body is None or len(body) > LARGEST_SPANS:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        self._server.answers(self.request, IDLE + len(body) / _SLOWEST)
        self._send_json(body)

    def _send_arriving(self, what: str, part: PartialReader) -> None:
        if what == ARRIVING:
            self._send_json(told(part).to_json(part.size))
        else:
            self._send_range(part.size, lambda start, end: bytes_of(part, start, end))

    def _send_flat(self, what: str, layer: PresentLayer) -> None:
        if what == PRESENCE:
            self._send_json(layer.presence().to_json(layer.size))
        else:
            self._send_range(layer.size, lambda *wanted: layer.read(*wanted) if layer.has(*wanted) else None)

    def _send_json(self, body: bytes) -> None:
        self._send_head(HTTPStatus.OK, len(body), {"Content-Type": "application/json"})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_range(self, size: int, read: Callable[[int, int], Iterator[bytes] | None]) -> None:
        """Send the range of so many bytes that is asked for, if `read` has it."""
        wanted = parse_range(self.headers.get("Range"), size)
        pieces = read(*wanted) if wanted and wanted[1] - wanted[0] <= _LARGEST else None
        if wanted is None or pieces is None:
            refused = {"Content-Range": f"bytes */{size}"}
            self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, refused)
            return
        start, end = wanted
        self._server.answers(self.request, IDLE + (end - start) / _SLOWEST)
        headers = {
            "Content-Range": f"bytes {start}-{end - 1}/{size}",
            "Content-Type": "application/octet-stream",
        }
        self._send_head(HTTPStatus.PARTIAL_CONTENT, end - start, headers)
        if self.command != "HEAD":
            self._send_body(pieces, end - start)

    def _send_body(self, pieces: Iterator[bytes], length: int) -> None:
        """Send a body; what has been evicted meanwhile ends the connection, before its length is reached."""
        for piece in pieces:
            self.wfile.write(piece)
            length -= len(piece)
        if length:
            self.close_connection = True

    def _refuse(self, status: HTTPStatus, headers: dict[str, str] | None = None) -> None:
        self._send_head(status, 0, headers or {})

    def _send_head(self, status: HTTPStatus, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    @property
    def _server(self) -> BoundedServer:
        assert isinstance(self.server, BoundedServer)
        return self.server

    def _refuse_method(self) -> None:
        self.close_connection = True  # its body is not read
        self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse_method  # noqa: N815

    def address_string(self) -> str:
        """Client address, '-' for a Unix socket."""
        return str(self.client_address[0]) if self.client_address else "-"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log a request at debug level."""
        log.debug("peer %s: %s", self.address_string(), format % args)
