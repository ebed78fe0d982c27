"""What is served to peers: what is present, by its exact name, to clients that may have it, within bounds."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from imgfs.errors import ImgfsError, Unavailable, UsageError
from imgfs.listening import ListenAddress
from imgfs.peers import server as serving
from imgfs.peers.address import parse_peer
from imgfs.peers.client import PeerClient
from imgfs.peers.flat_name import FLAT, FlatName
from imgfs.peers.server import PeerServer, ServerCertificates
from imgfs.registry.endpoint import Tls
from imgfs.store.store import Store
from tests.support.authority import Authority, needs_openssl
from tests.support.content_rig import Rig, tar_of
from tests.support.mounted import until
from tests.support.patience import allowed
from tests.support.peer import peer


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A layer of which the spans 0, 1 and 3 are present."""
    with ExitStack() as stack:
        made = Rig(tmp_path / "store", stack, tar_of(60_000), tar_of(60_000))
        for number in (3, 1, 0):  # not in sequence: nothing is read ahead
            made.read_span(number)
        yield made


@pytest.fixture
def url(rig: Rig, tmp_path: Path) -> Iterator[str]:
    with peer(tmp_path / "store") as running:
        yield running


def name_of(rig: Rig) -> FlatName:
    return FlatName.of(rig.content.index.summary)


def ask(
    url: str, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=allowed(10))) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def test_what_is_present_is_told_and_sent_and_nothing_else(rig: Rig, url: str) -> None:
    name = name_of(rig)
    ends = [span.flat_end for span in rig.spans]
    with closing(PeerClient(parse_peer(url))) as client:
        assert client.presence(name).ranges == [(0, ends[1]), (ends[2], ends[3])]
        assert b"".join(client.read(name, 0, ends[1])) == rig.bytes[: ends[1]]
        assert b"".join(client.read(name, 1, 2)) == rig.bytes[1:2]
        for start, end in ((0, ends[1] + 1), (ends[1], ends[1] + 1), (ends[2] - 1, ends[3])):
            with pytest.raises(ImgfsError, match="has them no more"):
                list(client.read(name, start, end))
        assert client.presence(FlatName(f"sha256:{'0' * 64}")).ranges == []
        rig.flat.evict()
        with pytest.raises(ImgfsError, match="has them no more"):
            list(client.read(name, 0, 10))
        assert client.presence(name).ranges == []


def test_other_requests_are_refused(rig: Rig, url: str) -> None:
    path = name_of(rig).path(FLAT)
    assert ask(url, path)[0] == 416
    status, headers, _ = ask(url, path, Range="bytes=0-999999999")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(rig.bytes)}")
    assert ask(url, path, "HEAD", Range="bytes=0-9")[::2] == (206, b"")
    assert ask(url, "/")[0] == ask(url, f"{path}/../x")[0] == 404
    assert ask(url, path, "POST")[0] == ask(url, path, "DELETE")[0] == 405


def test_bytes_that_another_index_has_verified_are_not_served(rig: Rig, url: str) -> None:
    rig.flat.rebind(bytes(24))
    path = name_of(rig).path("presence")
    assert ask(url, path)[0] == 404
    rig.flat.rebind(rig.content.index.binding())  # type: ignore[attr-defined]
    assert json.loads(ask(url, path)[2])["size"] == len(rig.bytes)


def is_cut(drip: socket.socket) -> bool:
    """Send one more byte; return True if the server has hung up."""
    try:
        drip.sendall(b"G")
    except OSError:
        return True
    return False


def test_a_client_that_drips_is_cut_off(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "IDLE", 0.5)
    with (
        peer(tmp_path / "store") as url,
        socket.create_connection(("127.0.0.1", parse_peer(url).port)) as drip,
    ):
        drip.settimeout(allowed(10))
        until(lambda: is_cut(drip), "the client to be cut off", pause=0.05)


def test_without_certificates_only_this_machine_is_served(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "10.1.2.3", "node-1", "::ffff:10.1.2.3", "::ffff:0.0.0.0"):
        with pytest.raises(UsageError, match="must show a certificate"):
            PeerServer(Store(tmp_path), ListenAddress(host, 0))
    with peer(tmp_path, ListenAddress("::ffff:127.0.0.1", 0)) as url:
        port = parse_peer(url).port
        socket.create_connection(("127.0.0.1", port), allowed(5)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), allowed(5))
    socket_file = tmp_path / "peer"
    with peer(tmp_path, ListenAddress(path=socket_file)) as url:
        assert stat.S_IMODE(socket_file.stat().st_mode) == 0o600
        with closing(PeerClient(parse_peer(url))) as client:
            assert client.presence(FlatName(f"sha256:{'0' * 64}")).ranges == []


@needs_openssl
def test_a_client_without_a_certificate_of_the_authority_is_not_answered(rig: Rig, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    own, theirs = authority.issue("127.0.0.1"), stranger.issue("127.0.0.1")
    certificates = ServerCertificates(authority.file, *own)
    with peer(tmp_path / "store", ListenAddress("0.0.0.0", 0), certificates) as url:
        there = url.replace("0.0.0.0", "127.0.0.1")
        for tls in (
            Tls((authority.file,)),
            Tls((authority.file,), (theirs,)),
            Tls((stranger.file,), (own,)),
        ):
            with closing(PeerClient(parse_peer(there, tls))) as client, pytest.raises(Unavailable):
                client.presence(name_of(rig))
        with closing(PeerClient(parse_peer(there, Tls((authority.file,), (own,))))) as client:
            assert b"".join(client.read(name_of(rig), 0, 500)) == rig.bytes[:500]


@needs_openssl
def test_certificates_are_read_again_when_they_change(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    first, second = authority.issue("first"), authority.issue("second")
    used = [tmp_path / "used.crt", tmp_path / "used.key"]

    def use(pair: tuple[Path, Path]) -> None:
        for target, source in zip(used, pair, strict=True):
            target.write_bytes(source.read_bytes())

    use(first)
    with peer(
        tmp_path / "store", ListenAddress("127.0.0.1", 0), ServerCertificates(authority.file, *used)
    ) as url:
        place = ("127.0.0.1", parse_peer(url).port)
        context = ssl.create_default_context(cafile=str(authority.file))
        context.load_cert_chain(*first)
        for name, pair in (("first", None), ("second", second)):
            if pair:
                use(pair)
            with (
                socket.create_connection(place, timeout=allowed(10)) as plain,
                context.wrap_socket(plain, server_hostname=name) as secured,
            ):
                assert secured.getpeercert()
