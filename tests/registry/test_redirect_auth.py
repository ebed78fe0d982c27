"""Where a registry leads to: another registry with a token of its own, a token server that has moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from urllib.parse import parse_qs, urlsplit

import pytest

from imgfs.errors import RegistryError, Unauthorized
from imgfs.registry.client import Client
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.retry import Timeouts
from tests.support.clients import client_of
from tests.support.fault_server import Fault, FaultServer, Seen
from tests.support.raw_server import Connection, RawServer

FAST = Timeouts(connect=5.0, read=5.0, deadline=10.0, backoff=0.001, tries=2)
ALICE = Credentials("alice", "secret")
BODY = b"a layer" * 100
MANIFEST = b'{"schemaVersion": 2, "layers": []}'


@pytest.fixture
def other() -> Iterator[FaultServer]:
    """A registry that gives its own tokens to anybody."""
    with FaultServer() as other:
        other.token_server = other.url
        yield other


@pytest.fixture
def client(server: FaultServer) -> Iterator[Client]:
    with closing(client_of(server.host, "app", timeouts=FAST, credentials=lambda: ALICE)) as client:
        yield client


def lead(server: FaultServer, other: FaultServer, path: str, times: int = 9) -> None:
    server.inject(Fault(status=307, headers={"Location": f"{other.url}{path}"}), on=path, times=times)


def sent(seen: list[Seen]) -> list[str]:
    return [one.headers.get("authorization", "") for one in seen]


def test_a_registry_that_is_led_to_gives_its_own_token_to_anybody(
    server: FaultServer, other: FaultServer, client: Client
) -> None:
    server.basic = (ALICE.username, ALICE.secret)
    pushed = other.add_manifest("app", "v1", MANIFEST)
    lead(server, other, "/v2/app/manifests/v1")
    assert client.manifest("v1") == (pushed, MANIFEST)
    assert sent(other.seen("/token")) == [""]
    first, second = sent(other.seen("/manifests/"))
    assert first == ""
    assert second.startswith("Bearer token-0-")


def test_its_token_is_kept_for_what_comes_next(
    server: FaultServer, other: FaultServer, client: Client
) -> None:
    blob = other.add_blob(BODY)
    lead(server, other, f"/v2/app/blobs/{blob.digest}")
    for _ in range(3):
        assert b"".join(client.blob(blob)) == BODY
    assert len(other.seen("/token")) == 1
    assert len(other.seen("/blobs/")) == 4  # without one, and then with it
    other.valid_tokens.clear()
    assert b"".join(client.blob(blob)) == BODY
    assert len(other.seen("/token")) == 2


def test_it_is_shown_no_password_whatever_it_wants(
    server: FaultServer, other: FaultServer, client: Client
) -> None:
    other.add_manifest("app", "v1", MANIFEST)
    other.token_server, other.basic = None, (ALICE.username, ALICE.secret)
    lead(server, other, "/v2/app/manifests/v1")
    with pytest.raises(Unauthorized):
        client.manifest("v1")
    other.token_server = other.url
    with pytest.raises(Unauthorized, match="anonymous access"):
        client.manifest("v1")
    assert set(sent(other.log)) == {""}


def test_two_registries_have_two_tokens(server: FaultServer, other: FaultServer, client: Client) -> None:
    server.token_server = server.url
    pushed = other.add_manifest("app", "v1", MANIFEST)
    server.add_manifest("app", "v2", MANIFEST)
    assert client.manifest("v2")
    lead(server, other, "/v2/app/manifests/v1")
    assert client.manifest("v1") == (pushed, MANIFEST)
    assert {token.rpartition("-")[2] for token in sent(server.seen("/manifests/")) if token} == {server.host}
    assert {token.rpartition("-")[2] for token in sent(other.seen("/manifests/")) if token} == {other.host}


# token servers that have moved


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_token_server_that_has_moved_on_its_host_is_followed(
    server: FaultServer, client: Client, status: int
) -> None:
    server.token_server, server.basic = server.url, (ALICE.username, ALICE.secret)
    server.add_manifest("app", "v1", MANIFEST)
    server.inject(Fault(status=status, headers={"Location": "/token?moved=%2b"}), on="/token")
    assert client.manifest("v1")[1] == MANIFEST
    asked = server.seen("/token")
    assert asked[1].path == "/token?moved=%2b"
    assert sent(asked)[0] == sent(asked)[1] != ""


def test_a_token_server_that_leads_elsewhere_is_not_followed(
    server: FaultServer, other: FaultServer, client: Client
) -> None:
    server.token_server, server.basic = server.url, (ALICE.username, ALICE.secret)
    for place in (f"{other.url}/token", f"http://localhost:{server.port}/token", "//127.0.0.1/token"):
        server.inject(Fault(status=307, headers={"Location": place}), on="/token")
        with pytest.raises(RegistryError, match="redirects elsewhere, which is not followed"):
            client.manifest("v1")
    assert other.log == []


def test_a_token_server_that_leads_in_a_circle_is_left(server: FaultServer, client: Client) -> None:
    server.token_server = server.url
    server.inject(Fault(status=307, headers={"Location": "/token"}), on="/token", times=99)
    with pytest.raises(RegistryError, match="more than 5 times"):
        client.manifest("v1")


def test_what_is_posted_to_a_token_server_is_posted_again_or_not_at_all(server: FaultServer) -> None:
    server.token_server, server.identity_token = server.url, "refresh"
    server.add_manifest("app", "v1", MANIFEST)
    identity = Credentials("<token>", "refresh", identity_token=True)
    with closing(client_of(server.host, "app", timeouts=FAST, credentials=lambda: identity)) as client:
        server.inject(Fault(status=302, headers={"Location": "/token"}), on="/token")
        with pytest.raises(RegistryError, match="not followed"):
            client.manifest("v1")
        server.inject(Fault(status=307, headers={"Location": "/token"}), on="/token")
        assert client.manifest("v1")[1] == MANIFEST
    assert [seen.method for seen in server.seen("/token")] == ["POST"] * 3


@pytest.mark.parametrize("scope", [b'scope=""', b'scope=" "', b"scope="])
def test_an_empty_scope_is_none(scope: bytes) -> None:
    def answer(connection: Connection) -> None:
        if connection.head.startswith(b"GET /token"):
            connection.send(b'HTTP/1.1 200 -\r\nContent-Length: 13\r\n\r\n{"token":"t"}')
        elif b"Authorization" in connection.head:
            connection.send(b'HTTP/1.1 200 -\r\nContent-Length: 15\r\n\r\n{"tags":["v1"]}')
        else:
            challenge = b'Bearer realm="%b/token",%b' % (raw.url.encode(), scope)
            connection.send(
                b"HTTP/1.1 401 -\r\nWWW-Authenticate: %b\r\nContent-Length: 0\r\n\r\n" % challenge
            )

    with RawServer(answer) as raw, closing(client_of(raw.host, "app", timeouts=FAST)) as client:
        assert client.tags(3) == ["v1"]
        asked = parse_qs(urlsplit(raw.lines[1].split()[1].decode()).query)
    assert asked["scope"] == ["repository:app:pull"]
