"""Whatever brings no bytes of a document has an end: a peer that drips holds nothing for longer."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain, repeat
from pathlib import Path

import pytest

from imgfs.errors import ImgfsError, RegistryError, Unavailable
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_INDEX, OCI_MANIFEST
from imgfs.registry.adapter import MAX_HEAD, MAX_INTERIM
from imgfs.registry.client import Client
from imgfs.registry.messages import CheckedBlob
from imgfs.registry.retry import Patience, Timeouts
from imgfs.registry.sockets import Deadline, PlainSocket, bound, dial
from tests.support.authority import Authority, needs_openssl
from tests.support.clients import client_of
from tests.support.raw_server import OK, Connection, RawServer

QUICK = Timeouts(connect=0.5, read=0.5, deadline=1.0, backoff=0.001, tries=2)
LONGEST = 4.0  # seconds: the deadline, a step, and a machine that is busy
PAUSE = 0.1  # between the parts of what drips
BODY = b"0123456789" * 1000
BLOB = Descriptor("", Digest.of(BODY), len(BODY))


def bytes_of(text: bytes) -> Iterator[bytes]:
    return (text[at : at + 1] for at in range(len(text)))


def head_by_bytes(connection: Connection) -> None:
    connection.drip(bytes_of(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10_000), PAUSE)


def headers_for_ever(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\n")
    connection.drip((b"X-%d: y\r\n" % number for number in range(10_000)), PAUSE)


def interim_for_ever(connection: Connection) -> None:
    connection.drip(repeat(b"HTTP/1.1 102 Processing\r\n\r\n"), PAUSE)


def interim_headers_for_ever(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 103 Early Hints\r\n")
    connection.drip(repeat(b"Link: </x>\r\n"), PAUSE)


def length_of_a_chunk(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.drip(repeat(b"0"), PAUSE)


def extension_of_a_chunk(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=")
    connection.drip(repeat(b"b"), PAUSE)


def trailers_for_ever(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n0\r\n")
    connection.drip(repeat(b"X: y\r\n"), PAUSE)


def body_by_bytes(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    connection.drip(bytes_of(BODY), PAUSE)


def chunks_of_a_byte(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.drip(repeat(b"1\r\nx\r\n"), PAUSE)


def error_by_bytes(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 10000\r\n\r\n")
    connection.drip(bytes_of(BODY), PAUSE)


def redirect_by_bytes(connection: Connection) -> None:
    place = b"/v2/%d" % time.monotonic_ns()
    connection.send(b"HTTP/1.1 307 -\r\nLocation: %b\r\nContent-Length: 9000\r\n\r\n" % place)
    connection.drip(bytes_of(BODY), PAUSE)


DRIPS: list[Callable[[Connection], None]] = [
    head_by_bytes,
    headers_for_ever,
    interim_for_ever,
    interim_headers_for_ever,
    length_of_a_chunk,
    extension_of_a_chunk,
    trailers_for_ever,
    body_by_bytes,
    chunks_of_a_byte,
    error_by_bytes,
    redirect_by_bytes,
]


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer() as server:
        yield server


@pytest.fixture
def client(server: RawServer) -> Iterator[Client]:
    with closing(client_of(server.host, "app", timeouts=QUICK)) as client:
        yield client


def ended(act: Callable[[], object], longest: float = LONGEST) -> ImgfsError:
    """The error of what must end in time."""
    began = time.monotonic()
    with pytest.raises(ImgfsError) as raised:
        act()
    assert time.monotonic() - began < longest
    return raised.value


@pytest.mark.parametrize("drip", DRIPS, ids=lambda drip: drip.__name__)
def test_a_document_that_drips_is_given_up(
    server: RawServer, client: Client, drip: Callable[[Connection], None]
) -> None:
    server.answer = drip
    ended(lambda: client.manifest("v1"))
    ended(lambda: client.blob_document(BLOB.digest))


@pytest.mark.parametrize("drip", DRIPS, ids=lambda drip: drip.__name__)
def test_a_blob_that_drips_is_given_up(
    server: RawServer, client: Client, drip: Callable[[Connection], None]
) -> None:
    server.answer = drip
    ended(lambda: b"".join(client.blob(BLOB)))


@pytest.mark.parametrize("drip", DRIPS[:-1], ids=lambda drip: drip.__name__)
def test_a_token_server_that_drips_is_given_up(
    server: RawServer, client: Client, drip: Callable[[Connection], None]
) -> None:
    def answer(connection: Connection) -> None:
        if connection.head.startswith(b"GET /token"):
            drip(connection)
        else:
            challenge = b'WWW-Authenticate: Bearer realm="http://%b/token"' % server.host.encode()
            connection.send(b"HTTP/1.1 401 -\r\n%b\r\nContent-Length: 0\r\n\r\n" % challenge)

    server.answer = answer
    ended(lambda: client.manifest("v1"))


PUSHED = CheckedBlob(BLOB, lambda offset: iter([BODY[offset:]]))
ASKS: dict[str, Callable[[Client], object]] = {
    "HEAD of a manifest": lambda client: client.tagged("v1"),
    "HEAD of a blob": lambda client: client.has_blob(BLOB.digest),
    "POST of an upload": lambda client: client.push_blob(PUSHED),
    "POST of a mount": lambda client: client.push_blob(PUSHED, mount_from="base"),
    "PUT of a manifest": lambda client: client.push_manifest("v1", OCI_MANIFEST, b"{}"),
    "DELETE": lambda client: client.delete_referrer(BLOB.digest, BLOB.digest),
    "referrers": lambda client: client.referrers(BLOB.digest),
    "tags": lambda client: client.tags(9),
}


@pytest.mark.parametrize("drip", [headers_for_ever, interim_for_ever], ids=lambda drip: drip.__name__)
@pytest.mark.parametrize("ask", ASKS)
def test_whatever_is_asked_for_a_head_that_drips_is_given_up(
    server: RawServer, client: Client, ask: str, drip: Callable[[Connection], None]
) -> None:
    server.answer = drip
    ended(lambda: ASKS[ask](client))


@pytest.mark.parametrize("drip", [head_by_bytes, interim_for_ever], ids=lambda drip: drip.__name__)
def test_the_answer_to_an_uploads_bytes_that_drips_is_given_up(
    server: RawServer, client: Client, drip: Callable[[Connection], None]
) -> None:
    def answer(connection: Connection) -> None:
        if connection.head.startswith(b"POST"):
            connection.send(b"HTTP/1.1 202 -\r\nLocation: /v2/app/up\r\nContent-Length: 0\r\n\r\n")
        else:
            drip(connection)

    server.answer = answer
    ended(lambda: client.push_blob(PUSHED), LONGEST + 4 * QUICK.deadline)  # PUT, where is it, PUT, DELETE


@pytest.mark.parametrize("status", [302, 307])
def test_redirects_that_each_take_their_time_are_given_up(
    server: RawServer, client: Client, status: int
) -> None:
    def answer(connection: Connection) -> None:
        place = b"/v2/%d" % len(server.heads)
        head = b"HTTP/1.1 %d -\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % (status, place)
        connection.drip([head], 0.4)

    server.answer = answer
    ended(lambda: client.manifest("v1"))
    ended(lambda: b"".join(client.blob(BLOB)))
    ended(lambda: client.tagged("v1"))


@pytest.mark.parametrize("drip", [head_by_bytes, headers_for_ever, interim_for_ever])
def test_a_proxy_that_drips_is_given_up(
    server: RawServer, monkeypatch: pytest.MonkeyPatch, drip: Callable[[Connection], None]
) -> None:
    server.answer = drip
    monkeypatch.setenv("https_proxy", server.url)
    endpoint_client = client_of("registry.test", "app", timeouts=QUICK)
    with closing(endpoint_client) as client:
        ended(lambda: b"".join(client.blob(BLOB, url="https://registry.test/x")))


@needs_openssl
@pytest.mark.parametrize("drip", [head_by_bytes, headers_for_ever, interim_for_ever])
def test_a_proxy_with_tls_that_drips_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drip: Callable[[Connection], None]
) -> None:
    authority = Authority(tmp_path / "ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("127.0.0.1"))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with (
        RawServer(drip, tls=context) as server,
        closing(client_of("r.test", "app", timeouts=QUICK)) as client,
    ):
        monkeypatch.setenv("https_proxy", server.url.replace("http:", "https:"))
        ended(lambda: b"".join(client.blob(BLOB, url="https://registry.test/x")))
    assert server.lines


@needs_openssl
def test_a_proxy_whose_certificate_is_not_trusted_is_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*Authority(tmp_path / "ca").issue("127.0.0.1"))
    with (
        RawServer(head_by_bytes, tls=context) as server,
        closing(client_of("r.test", "app", timeouts=QUICK)) as client,
    ):
        monkeypatch.setenv("https_proxy", server.url.replace("http:", "https:"))
        with pytest.raises(ImgfsError, match=r"its certificate is not trusted: .*\(through the proxy https:"):
            b"".join(client.blob(BLOB, url="https://registry.test/x"))
    assert server.lines == []


def test_pages_without_end_are_given_up(server: RawServer, client: Client) -> None:
    def answer(connection: Connection) -> None:
        time.sleep(0.3)
        link = b"</v2/app/tags/list?n=9&last=%d>; rel=next" % len(server.heads)
        connection.send(b'HTTP/1.1 200 -\r\nLink: %b\r\nContent-Length: 11\r\n\r\n{"tags":[]}' % link)

    server.answer = answer
    assert "take too long" in str(ended(lambda: client.tags(9)))


def test_referrers_on_pages_without_end_are_given_up(server: RawServer, client: Client) -> None:
    def answer(connection: Connection) -> None:
        time.sleep(0.3)
        body = b'{"schemaVersion":2,"manifests":[]}'
        link = b"</v2/app/referrers/x?last=%d>; rel=next" % len(server.heads)
        head = b"HTTP/1.1 200 -\r\nContent-Type: %b\r\nLink: %b" % (OCI_INDEX.encode(), link)
        connection.send(b"%b\r\nContent-Length: %d\r\n\r\n%b" % (head, len(body), body))

    server.answer = answer
    assert "take too long" in str(ended(lambda: client.referrers(BLOB.digest)))


@pytest.mark.parametrize(
    "parts",
    [
        repeat(b"\x16\x03\x03\x40\x00" + bytes(100)),  # a handshake's record without an end
        repeat(b"\x16\x03\x03\x00\x04\x00\x00\x00\x00"),  # requests to begin anew
        repeat(b"\x15\x03\x03\x00\x02\x01\x5a"),  # warnings
        bytes_of(b"\x16\x03\x03\x40\x00" + bytes(9000)),
    ],
    ids=["record", "hellos", "warnings", "bytes"],
)
def test_a_tls_handshake_that_drips_is_given_up(client: Client, parts: Iterator[bytes]) -> None:
    with RawServer(first=lambda connection: connection.drip(parts, PAUSE)) as server:
        ended(lambda: b"".join(client.blob(BLOB, url=f"https://{server.host}/x")))


def test_a_peer_that_never_greets_in_tls_is_given_up(server: RawServer, client: Client) -> None:
    ended(lambda: b"".join(client.blob(BLOB, url=f"https://{server.host}/x")))


def test_an_answer_after_interim_ones_is_that_answer(server: RawServer, client: Client) -> None:
    def answer(connection: Connection) -> None:
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + BODY)

    server.answer = answer
    for _ in range(2):  # and the next one is the answer to the next request
        assert b"".join(client.blob(BLOB)) == BODY
    assert server.connections == 1


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"HTTP/1.1 102 P\r\n\r\n" * (MAX_INTERIM + 1), f"more than {MAX_INTERIM} interim answers"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "another protocol"),
        (
            b"HTTP/1.1 103 E\r\n%b\r\n" % (b"X: %b\r\n" % (b"y" * 60_000)) * (MAX_HEAD // 60_000 + 1),
            "too long",
        ),
        (b"HTTP/1.1 200 -\r\n%b" % (b"X: %b\r\n" % (b"y" * 60_000) * (MAX_HEAD // 60_000 + 1)), "too long"),
    ],
)
def test_a_head_has_its_bounds(server: RawServer, client: Client, head: bytes, said: str) -> None:
    server.answer = lambda connection: connection.send(head)
    error = ended(lambda: client.manifest("v1"))
    assert isinstance(error, Unavailable)
    assert said in str(error)


def test_what_comes_with_a_head_is_none_of_it() -> None:
    ours, theirs = socket.socketpair()
    with PlainSocket(fileno=ours.detach()) as own, theirs:
        theirs.sendall(BODY[:300])
        deadline = own.deadline = Deadline()
        deadline.begin(LONGEST, 100)
        assert own.recv(4096) == BODY[:100]
        with pytest.raises(OSError, match="too long"):
            own.recv(4096)
        deadline.lift()
        assert own.recv(4096) == BODY[100:300]


def test_a_blob_that_flows_may_take_longer_than_any_deadline(server: RawServer, client: Client) -> None:
    body = b"x" * (80 << 10)
    blob = Descriptor("", Digest.of(body * 6), 6 * len(body))

    def answer(connection: Connection) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % blob.size)
        connection.drip(repeat(body, 6), 0.4)

    server.answer = answer
    began = time.monotonic()
    assert b"".join(client.blob(blob)) == body * 6
    assert time.monotonic() - began > QUICK.deadline


def test_a_large_document_may_take_a_second_more_for_every_64_kib() -> None:
    patience = Patience(Timeouts(deadline=10.0), threading.Event())
    before = patience.left
    for size in chain(range(0, 1 << 20, 1000), range(0, 1 << 20, 1000)):  # and again: that is no news
        patience.grown(size)
    assert before + 14 < patience.left < before + 17


def test_the_end_of_a_body_that_is_not_wanted_is_not_waited_for(server: RawServer, client: Client) -> None:
    def answer(connection: Connection) -> None:
        connection.send(b"HTTP/1.1 404 -\r\nContent-Length: 20000\r\n\r\n")  # more than is read of an error
        connection.drip(bytes_of(BODY), PAUSE)

    server.answer = answer
    error = ended(lambda: client.manifest("v1", brief=True))
    assert isinstance(error, RegistryError)
    assert error.status == 404


def test_a_reader_of_a_long_body_is_woken_once_many_bytes_have_come() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = dial("127.0.0.1", listener.getsockname()[1], 1.0)
        theirs, _ = listener.accept()
    with ours, theirs:
        deadline = Deadline()
        bound(ours, deadline)
        deadline.begin(0.05)
        deadline.least = 100_000
        buffer = bytearray(1 << 20)
        theirs.sendall(bytes(60_000))
        assert ours.recv_into(buffer) == 60_000  # no more came in time: it is taken, and that is no error
        assert deadline.least == 1
        deadline.begin(30.0)
        deadline.least = 100_000
        threading.Timer(0.05, theirs.sendall, [bytes(60_000)]).start()
        theirs.sendall(bytes(60_000))
        assert ours.recv_into(buffer) == 120_000
        deadline.begin(0.05)
        with pytest.raises(TimeoutError):
            ours.recv_into(buffer)


@pytest.mark.parametrize("size", [(1 << 20) + 1, 100_000])
def test_a_document_after_a_long_body_is_not_waited_for(server: RawServer, client: Client, size: int) -> None:
    body = bytes(size)
    blob = Descriptor("", Digest.of(body), size)

    def answer(connection: Connection) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        connection.drip((body[at : at + 50_000] for at in range(0, size, 50_000)), 0.001)

    for _ in range(2):
        server.answer = answer
        assert b"".join(client.blob(blob)) == body
        server.answer = lambda connection: connection.send(OK)
        assert client.blob_document(Digest.of(b"{}")) == b"{}"
    assert server.connections == 1
