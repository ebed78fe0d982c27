"""URLs of servers: what is judged is connected to, what is ambiguous refused, the rest goes out as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import RegistryError, Unauthorized
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.reference import RegistryReference
from imgfs.registry.client import Client
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.messages import CheckedBlob
from imgfs.registry.mirrors import Mirrored
from imgfs.registry.retry import Timeouts
from imgfs.registry.urls import MAX_URL, UrlError, parse_url, redact, resolve_url, shown
from imgfs.transport.registry import RegistrySource
from tests.support.clients import client_of, endpoint_of
from tests.support.fault_server import Fault, FaultServer
from tests.support.raw_server import Connection, RawServer

FAST = Timeouts(connect=5.0, read=5.0, deadline=10.0, backoff=0.001, tries=1)
BODY = b"a layer" * 1000
ALICE = Credentials("alice", "secret")

# {evil} is where the secrets are to go, {good} the registry
AMBIGUOUS = [
    r"http://{evil}\@{good}/x",
    r"http://{good}\@{evil}/x",
    "http://{good}@{evil}/x",
    "http://u:p@{good}@{evil}/x",
    "http://{good}%40{evil}/x",
    "http://{good}%2f@{evil}/x",
    "http://{good}\t@{evil}/x",
    "http://{evil} {good}/x",
    "http://{evil}\x00.{good}/x",
    "http://{evil}\u2044{good}/x",
    "http://{evil}\xa0/x",
    "http:/{evil}/x",
    "http:{evil}/x",
    r"http:\\{evil}/x",
    r"\\{evil}/x",
    r"/\{evil}/x",
    "http:///{evil}/x",
    "//u@{evil}/x",
    "http://127.0.0.1:/x",
    "http://127.0.0.1:0/x",
    "http://127.0.0.1:080/x",
    "http://127.0.0.1:65536/x",
    "http://127.0.0.1:+80/x",
    "http://127.0.0.1:80:81/x",
    "http://127.0.0.1..:80/x",
    "http://.127.0.0.1/x",
    "http://127..0.0.1/x",
    "http://127.0.0.1%2eevil/x",
    "http://[::1%25lo]:80/x",
    "http://[::1%lo]:80/x",
    "http://[::1/x",
    "http://::1/x",
    "http://[v1.x]/x",
    "http://[127.0.0.1]/x",
    "http://1.2.3.4.5/x",
    "http://256.256.256.256/x",
    "file:///etc/passwd",
    "gopher://{evil}/x",
    "javascript:x",
]
IN_A_HEADER = [text for text in AMBIGUOUS if not {"\0", "\t"} & set(text)]
IN_QUOTES = [text for text in IN_A_HEADER if not text.startswith("\\")]
TARGETS = [
    "/cdn?sig=%2b%7E%3d|x",
    "/a%2fb/%7euser/%41",
    "/b?X-Amz-Signature=ab%2Bcd%2f==&x=~^`{}<>\"'[]!$()*,;:@",
    "/double//slash/./and/../dots",
    "/%",
    "/%zz?%",
    "/?",
    "/x??y=/?",
    "/v2/a@sha256:b/@c?d=e@f",
]


@pytest.fixture
def raw() -> Iterator[RawServer]:
    with RawServer() as raw:
        yield raw


@pytest.fixture
def client(server: FaultServer) -> Iterator[Client]:
    with closing(client_of(server.host, "app", timeouts=FAST, credentials=lambda: ALICE)) as client:
        yield client


def written(text: str, server: FaultServer, raw: RawServer) -> str:
    return text.replace("{evil}", raw.host).replace("{good}", server.host)


def whole(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY))


def read(client: Client, blob: Descriptor, **more: Any) -> bytes:
    return b"".join(client.blob(blob, **more))


# byte for byte


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("absolute", [True, False])
def test_what_a_redirect_names_is_asked_for_to_the_byte(raw: RawServer, target: str, absolute: bool) -> None:
    def answer(connection: Connection) -> None:
        if b"/blobs/" in connection.head.partition(b"\r\n")[0]:
            place = f"{raw.url if absolute else ''}{target}#fragment"
            connection.send(f"HTTP/1.1 307 -\r\nLocation: {place} \r\nContent-Length: 0\r\n\r\n".encode())
        else:
            whole(connection)

    raw.answer = answer
    with closing(client_of(raw.host, "app", timeouts=FAST)) as client:
        assert read(client, Descriptor("", Digest.of(BODY), len(BODY))) == BODY
    assert raw.lines[1] == f"GET {target} HTTP/1.1".encode()


@pytest.mark.parametrize("target", TARGETS)
def test_a_forward_proxy_is_told_it_to_the_byte(
    raw: RawServer, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    raw.answer = whole
    monkeypatch.setenv("http_proxy", raw.url)
    with closing(client_of("registry.test", "app", timeouts=FAST)) as client:
        blob = Descriptor("", Digest.of(BODY), len(BODY))
        assert read(client, blob, url=f"http://cdn.test{target}") == BODY
    assert raw.lines == [f"GET http://cdn.test{target} HTTP/1.1".encode()]


def test_an_upload_goes_to_the_place_that_the_registry_names_to_the_byte(raw: RawServer) -> None:
    def answer(connection: Connection) -> None:
        if connection.head.startswith(b"POST"):
            connection.send(b"HTTP/1.1 202 -\r\nLocation: /up?s=%2b%7E|\r\nContent-Length: 0\r\n\r\n")
        else:
            connection.send(b"HTTP/1.1 201 -\r\nContent-Length: 0\r\n\r\n")
            raise OSError

    raw.answer = answer
    digest = Digest.of(b"x")
    with closing(client_of(raw.host, "app", timeouts=FAST)) as client:
        client.push_blob(CheckedBlob(Descriptor("", digest, 1), lambda at: iter([b"x"[at:]])))
    assert raw.lines[1] == f"PUT /up?s=%2b%7E|&digest={digest} HTTP/1.1".encode()


def test_the_next_page_and_the_realm_are_asked_for_to_the_byte(raw: RawServer) -> None:
    def answer(connection: Connection) -> None:
        line = connection.head.partition(b"\r\n")[0]
        if b"/token" in line:
            connection.send(b'HTTP/1.1 200 -\r\nContent-Length: 13\r\n\r\n{"token":"t"}')
        elif b"Authorization" not in connection.head:
            connection.send(
                b'HTTP/1.1 401 -\r\nWWW-Authenticate: Bearer realm="http://%b/token%%2b%%7E?a=|"\r\n'
                b"Content-Length: 0\r\n\r\n" % raw.host.encode()
            )
        else:
            link = b'Link: </v2/app/tags/list?last=%7E%2b|>; rel="next"\r\n' if b"last=" not in line else b""
            body = b'{"tags":["a"]}'
            connection.send(b"HTTP/1.1 200 -\r\n%bContent-Length: %d\r\n\r\n%b" % (link, len(body), body))

    raw.answer = answer
    with closing(client_of(raw.host, "app", timeouts=FAST)) as client:
        assert client.tags(5) == ["a", "a"]
    assert raw.lines[1].startswith(b"GET /token%2b%7E?a=|&")
    assert raw.lines[-1] == b"GET /v2/app/tags/list?last=%7E%2b| HTTP/1.1"


# what is refused, wherever it is said


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_an_ambiguous_redirect_goes_nowhere(
    server: FaultServer, raw: RawServer, client: Client, text: str
) -> None:
    server.basic = (ALICE.username, ALICE.secret)
    blob = server.add_blob(BODY)
    read(client, blob)
    location = written(text, server, raw).encode().decode("latin-1")  # as it comes over the wire
    if not {"\0", "\t"} & set(text):
        server.inject(Fault(status=307, headers={"Location": location}), on="/blobs/")
        with pytest.raises(RegistryError, match="redirected to"):
            read(client, blob)
    with pytest.raises(UrlError):
        resolve_url(parse_url(f"{server.url}/v2/"), location)
    assert raw.connections == 0


@pytest.mark.parametrize("text", IN_A_HEADER)
def test_an_ambiguous_place_for_an_upload_goes_nowhere(
    server: FaultServer, raw: RawServer, client: Client, text: str
) -> None:
    location = written(text, server, raw).encode().decode("latin-1")
    server.inject(Fault(status=202, headers={"Location": location}), on="/uploads/")
    with pytest.raises(RegistryError, match="redirected to"):
        client.push_blob(CheckedBlob(Descriptor("", Digest.of(b"x"), 1), lambda at: iter([b"x"[at:]])))
    assert raw.connections == 0


@pytest.mark.parametrize("text", IN_QUOTES)
def test_an_ambiguous_realm_is_told_no_password(
    server: FaultServer, raw: RawServer, client: Client, text: str
) -> None:
    realm = written(text, server, raw).encode().decode("latin-1").replace("\\", "\\\\")
    server.inject(Fault(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'}), times=2)
    with pytest.raises(Unauthorized, match="no token server"):
        client.manifest("v1")
    assert raw.connections == 0


@pytest.mark.parametrize("text", IN_A_HEADER)
def test_an_ambiguous_next_page_ends_the_list(
    server: FaultServer, raw: RawServer, client: Client, text: str
) -> None:
    server.tags["app"] = ["a"]
    link = written(text, server, raw).encode().decode("latin-1")
    server.inject(Fault(headers={"Link": f'<{link}>; rel="next"'}), on="/tags/")
    assert client.tags(9) == ["a"]
    assert raw.connections == 0


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_a_foreign_layer_is_taken_from_its_next_url(server: FaultServer, raw: RawServer, text: str) -> None:
    raw.answer = whole
    bad = written(text, server, raw)
    blob = Descriptor("", Digest.of(BODY), len(BODY), urls=(bad, f"{raw.url}/layer?%2b"))
    source = RegistrySource(
        RegistryReference(server.host, "app", "v1"), Mirrored(lambda: ENDPOINTS[server.host], timeouts=FAST)
    )
    ENDPOINTS[server.host] = (endpoint_of(server.host, "app"),)
    with closing(source):
        assert b"".join(source.blob(blob)) == BODY
    assert raw.lines == [b"GET /layer?%2b HTTP/1.1"]


ENDPOINTS: dict[str, Any] = {}


def test_a_refused_url_shows_no_secret() -> None:
    assert shown("http://u:p@h/x?sig=s#f") == "'http://h/x'"
    assert redact("http://u:p@h/x?sig=s") == "http://h/x"
    assert redact("http://[/?x") == "http://[/"  # whatever it is


def test_credentials_stay_with_the_origin_that_was_parsed(server: FaultServer, raw: RawServer) -> None:
    server.basic = (ALICE.username, ALICE.secret)
    raw.answer = whole
    blob = server.add_blob(BODY)
    with closing(client_of(server.host, "app", timeouts=FAST, credentials=lambda: ALICE)) as client:
        read(client, blob)
        server.blob_host = f"{raw.host}"
        assert read(client, blob) == BODY
    assert b"Authorization" not in raw.heads[0]
    assert f"\r\nHost: {raw.host}\r\n".encode() in raw.heads[0]


def test_a_url_of_no_end_is_refused() -> None:
    assert parse_url("http://h/" + "x" * (MAX_URL - 9)).host == "h"
    with pytest.raises(UrlError):
        parse_url("http://h/" + "x" * MAX_URL)


@pytest.mark.parametrize(
    "link",
    [
        '</v2/app/tags/list?last=a>; rel="next"',
        "</v2/app/tags/list?last=a>; rel=next",
        '</v2/app/tags/list?last=a>;title="x";rel="next"',
        '</v2/app/tags/list>; rel="first", </v2/app/tags/list?last=a>; rel="prefetch next"',
        '</v2/app/tags/list?last=a>; REL="next", </nowhere>; rel="last"',
        "<?last=a>; rel=next",
    ],
)
def test_the_next_page_is_found_among_other_links(server: FaultServer, client: Client, link: str) -> None:
    server.tags["app"] = ["a", "b"]
    server.inject(Fault(headers={"Link": link}, body=b'{"tags":["a"]}'), on="/tags/")
    assert client.tags(9) == ["a", "b"]


@pytest.mark.parametrize(
    "link", ['</v2/x?last=next>; rel="prev"', "nonsense; rel=next", "<", '<>; title="next"']
)
def test_what_is_no_next_page_ends_the_list(server: FaultServer, client: Client, link: str) -> None:
    server.tags["app"] = ["a", "b"]
    server.inject(Fault(headers={"Link": link}, body=b'{"tags":["a"]}'), on="/tags/")
    assert client.tags(9) == ["a"]


# references (RFC 3986, 5.4)

BASE = "http://a/b/c/d;p?q"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("g", "http://a/b/c/g"),
        ("./g", "http://a/b/c/g"),
        ("g/", "http://a/b/c/g/"),
        ("/g", "http://a/g"),
        ("//g", "http://g/"),
        ("?y", "http://a/b/c/d;p?y"),
        ("g?y", "http://a/b/c/g?y"),
        ("#s", "http://a/b/c/d;p?q"),
        ("g?y#s", "http://a/b/c/g?y"),
        (";x", "http://a/b/c/;x"),
        ("", "http://a/b/c/d;p?q"),
        (".", "http://a/b/c/"),
        ("..", "http://a/b/"),
        ("../g", "http://a/b/g"),
        ("../..", "http://a/"),
        ("../../../g", "http://a/g"),
        ("g.", "http://a/b/c/g."),
        ("..g", "http://a/b/c/..g"),
        ("g;x=1/../y", "http://a/b/c/y"),
        ("g?y/../x", "http://a/b/c/g?y/../x"),
    ],
)
def test_references_mean_what_the_standard_says(text: str, meant: str) -> None:
    assert str(resolve_url(parse_url(BASE), text)) == meant


@given(
    st.text(st.sampled_from("ab12.:/@\\?#%[]-_ \t\x7f\xe4xX0"), max_size=24),
    st.sampled_from(["http://", "https://", "HTTP://", "//", "http:", ""]),
)
def test_parsers_that_accept_a_url_see_the_same_host(rest: str, scheme: str) -> None:
    try:
        found = parse_url(scheme + rest)
    except UrlError:
        return
    assert parse_url(str(found)) == found
    for parse in (urlsplit, urllib3.util.parse_url):
        other = parse(str(found))
        assert (other.hostname or "").strip("[]") == found.host
        assert (other.port or {"http": 80, "https": 443}[found.scheme]) == found.port
