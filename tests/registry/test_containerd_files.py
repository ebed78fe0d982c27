"""What containerd writes and imgfs does not know is passed over; times to connect; SOCKS proxies."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from imgfs.config import RegistriesConf, RegistryFiles
from imgfs.errors import RegistryError, Unavailable
from imgfs.registry.client import Client
from imgfs.registry.config.hosts_toml import parse_hosts
from imgfs.registry.config.resolver import Resolver
from imgfs.registry.endpoint import PULL, RESOLVE, RegistryEndpoint, Tls
from imgfs.registry.proxies import proxy_for
from imgfs.registry.retry import Timeouts
from imgfs.registry.session import HttpSession
from imgfs.registry.urls import parse_url
from tests.support.authority import Authority, needs_openssl
from tests.support.clients import client_of
from tests.support.fault_server import FaultServer
from tests.support.raw_server import RawServer
from tests.support.socks_server import SocksServer

FAST = Timeouts(connect=2.0, read=2.0, deadline=5.0, backoff=0.001, tries=1)
MANIFEST = b'{"schemaVersion": 2, "layers": []}'


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.add_manifest("app", "v1", MANIFEST)
        yield server


# hosts.toml


def test_capabilities_that_are_not_known_are_passed_over_and_said(
    tmp_path: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "registry.test"
    directory.mkdir()
    (directory / "hosts.toml").write_text(
        f'server = "http://127.0.0.1:1"\n[host."{server.url}"]\n'
        'capabilities = ["pull", "resolve", "referrers"]\n'
        '[host."http://127.0.0.1:2"]\ncapabilities = ["fly"]\n'
    )
    with caplog.at_level(logging.WARNING):
        endpoints = Resolver(RegistryFiles(hosts=(tmp_path,))).of("registry.test", "app")
    assert [endpoint.capabilities for endpoint in endpoints[:-1]] == [{PULL, RESOLVE}]
    assert "hosts.toml: host." in caplog.text
    assert "capabilities: referrers: not known here, passed over" in caplog.text
    with closing(Client(endpoints[0], timeouts=FAST)) as client:
        assert client.manifest("v1")[1] == MANIFEST


def test_what_is_passed_over_is_said_once_however_often_the_files_are_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "registry.test"
    directory.mkdir()
    (directory / "hosts.toml").write_text('[host."https://a.example"]\ncapabilities = ["pull", "dance"]\n')
    (tmp_path / "registries.conf").write_text('short-name-mode = "whimsical"\n')
    files = RegistryFiles(hosts=(tmp_path,), registries=(RegistriesConf(tmp_path / "registries.conf"),))
    with caplog.at_level(logging.WARNING):
        resolver = Resolver(files)
        for name in ("app", "base"):
            resolver.of("registry.test", name, "v1")
            resolver.peers("registry.test")
    assert sorted(record.message.rpartition(": not known")[0] for record in caplog.records) == [
        f"{tmp_path}/registries.conf: short-name-mode: 'whimsical'",
        f"{directory}/hosts.toml: host.https://a.example.capabilities: dance",
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("1m30s", 90.0), ("500ms", 0.5), ("1.5s", 1.5), ("2h", 7200.0), ("0s", None), ("", None)],
)
def test_a_dial_timeout_is_gos(text: str, seconds: float | None) -> None:
    body = f'dial_timeout = "{text}"\n[host."https://a.example"]\ndial_timeout = "{text}"\n'.encode()
    found = parse_hosts(Path("hosts.toml"), body)
    assert found.server.dial_timeout == found.mirrors[0].dial_timeout == seconds


def test_a_dial_timeout_bounds_connections_to_that_host_alone() -> None:
    endpoint = RegistryEndpoint("http://127.0.0.1:1/v2", "h.io", "app", dial_timeout=0.25)
    with closing(HttpSession(endpoint, credentials=lambda: None, timeouts=FAST)) as session:
        assert session.timeouts.connect == 0.25
        assert session.timeouts.read == FAST.read


# SOCKS


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_is_gone_through_and_looks_names_up(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str
) -> None:
    with SocksServer({"registry.test": server.host, "203.0.113.7": server.host}) as proxy:
        monkeypatch.setenv(variable, proxy.url.replace("socks5h", scheme))
        for host in ("registry.test", "203.0.113.7"):
            with closing(client_of(host, "app", timeouts=FAST)) as client:
                assert client.manifest("v1")[1] == MANIFEST
        assert proxy.asked == ["registry.test", "203.0.113.7"]
    assert server.seen("/manifests/")[0].path == "/v2/app/manifests/v1"


def test_a_socks_proxy_is_told_user_and_password(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SocksServer({"registry.test": server.host}, password="ann:s e") as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.url.replace("s e", "s%20e"))
        with closing(client_of("registry.test", "app", timeouts=FAST)) as client:
            assert client.manifest("v1")[1] == MANIFEST
        for url, why in (
            (proxy.url.replace("s e", "x"), "refuses user and password"),
            (None, "wants a user"),
        ):
            monkeypatch.setenv("ALL_PROXY", url or proxy.url.replace("ann:s e@", ""))
            with (
                closing(client_of("registry.test", "app", timeouts=FAST)) as client,
                pytest.raises(Unavailable, match=rf"{why}.*\(through the proxy socks5h://127") as raised,
            ):
                client.manifest("v1")
            assert "ann" not in str(raised.value)


def test_what_a_socks_proxy_cannot_reach_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with SocksServer({}) as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        with (
            closing(client_of("registry.test", "app", timeouts=FAST)) as client,
            pytest.raises(Unavailable, match="the SOCKS proxy cannot reach the host"),
        ):
            client.manifest("v1")


@needs_openssl
def test_tls_goes_through_a_socks_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path / "ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("registry.test"))
    server = FaultServer()
    server._web.socket = context.wrap_socket(server._web.socket, server_side=True)
    with server, SocksServer({"registry.test": server.host}) as proxy:
        server.add_manifest("app", "v1", MANIFEST)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        tls = Tls((authority.file,))
        endpoint = RegistryEndpoint("https://registry.test/v2", "registry.test", "app", tls=tls)
        with closing(Client(endpoint, timeouts=FAST)) as client:
            assert client.manifest("v1")[1] == MANIFEST


@pytest.mark.parametrize(
    "sent", [b"", b"\x05", b"\x04\x00", b"\x05\x00\x05\x00\x00\x09", b"HTTP/1.1 400 -\r\n\r\n"]
)
def test_what_is_no_socks_proxy_is_an_error_in_time(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    quick = Timeouts(connect=0.5, read=0.5, deadline=1.0, backoff=0.001, tries=1)
    with RawServer(greeting=sent) as raw:
        monkeypatch.setenv("ALL_PROXY", raw.url.replace("http", "socks5"))
        with (
            closing(client_of("registry.test", "app", timeouts=quick)) as client,
            pytest.raises(RegistryError, match=r"through the proxy socks5:"),
        ):
            client.manifest("v1")


@pytest.mark.parametrize(
    ("excepted", "url", "is_asked"),
    [
        ("", "http://registry.test/", True),
        ("registry.test", "http://registry.test/", False),
        ("other.test, .registry.test", "http://registry.test:5000/", False),
        ("registry.test", "http://a.b.registry.test/", False),
        ("*.registry.test", "http://a.registry.test/", False),
        ("REGISTRY.test:80", "http://registry.test/", False),
        ("registry.test:81", "http://registry.test/", True),
        ("istry.test", "http://registry.test/", True),
        ("*", "http://registry.test/", False),
        ("203.0.113.0/24", "http://203.0.113.7/", False),
        ("203.0.113.0/24", "http://203.0.114.7/", True),
        ("2001:db8::7", "http://[2001:db8::7]/", False),
        ("10.0.0.0/8", "http://registry.test/", True),
        (",,", "http://registry.test/", True),
        ("", "http://127.0.0.1:5000/", False),
        ("", "http://localhost/", False),
    ],
)
def test_what_needs_no_proxy(
    monkeypatch: pytest.MonkeyPatch, excepted: str, url: str, is_asked: bool
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", excepted)
    assert proxy_for(parse_url(url)) == ("http://proxy.test:3128" if is_asked else "")


def test_a_scheme_has_its_own_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5h://all.test")
    monkeypatch.setenv("https_proxy", "http://secure.test")
    assert proxy_for(parse_url("https://a.test/")) == "http://secure.test"
    assert proxy_for(parse_url("http://a.test/")) == "socks5h://all.test"
