"""Which token servers are believed, and what is asked again of where credentials come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import RegistryError, Unauthorized, Unavailable
from imgfs.registry.auth import Authorizer, Challenge, TokenReply, TokenRequest
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.ssrf import check_address, check_realm

CANARY = "canary-5e1f"
ANN = Credentials("ann", CANARY)
HUB = "registry-1.docker.io"


def authorizer(credentials: Callable[[], Credentials | None], **more: Any) -> Authorizer:
    return Authorizer(credentials, default_scope="repository:a:pull", secure=True, **more)


def bearer(realm: str = "https://auth.io/t") -> list[Challenge]:
    return [Challenge("bearer", {"realm": realm, "service": "s", "scope": "repository:a:pull"})]


def granted(token: str, seconds: float = 100) -> TokenReply:
    return TokenReply(200, f'{{"token": "{token}", "expires_in": {seconds}}}'.encode())


def drive(flow: Any, *replies: TokenReply) -> str | None:
    """The header that comes of a dance in which the token server says `replies`, all of them."""
    pending = list(replies)
    try:
        next(flow)
        while True:
            flow.send(pending.pop(0))
    except StopIteration as stop:
        assert pending == []
        header: str | None = stop.value
        return header


# realms


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        (HUB, "https://auth.docker.io/token"),
        ("h.io", "https://h.io:8443/a/b?x=1"),
        ("10.0.0.5", "https://10.0.0.5/t"),
        ("10.0.0.5", "https://10.0.0.9/t"),
        ("192.168.1.1", "https://192.168.1.1/t"),
        ("169.254.1.1", "https://169.254.1.1/t"),
        ("127.0.0.1", "https://127.0.0.1:5001/t"),
        ("localhost", "https://[::1]:5001/t"),
        ("h.io", "https://8.8.8.8/t"),
        ("fd00::1", "https://[fd00::2]/t"),
    ],
)
def test_a_token_server_of_the_same_neighbourhood_is_believed(registry: str, realm: str) -> None:
    assert check_realm(realm, registry=registry, secure=True) == realm


@pytest.mark.parametrize(
    ("realm", "why"),
    [
        ("https://127.0.0.1/t", "this machine"),
        ("https://127.1/t", "this machine"),
        ("https://0x7f000001/t", "this machine"),
        ("https://2130706433/t", "this machine"),
        ("https://localhost/t", "this machine"),
        ("https://LOCALHOST./t", "this machine"),
        ("https://db.localhost:5432/t", "this machine"),
        ("https://[::1]/t", "this machine"),
        ("https://[::ffff:127.0.0.1]/t", "this machine"),
        ("https://[::127.0.0.1]/t", "this machine"),
        ("https://[64:ff9b::127.0.0.1]/t", "this machine"),
        ("https://[::ffff:0:127.0.0.1]/t", "this machine"),
        ("https://[2002:7f00:1::]/t", "this machine"),
        ("https://[64:ff9b::10.1.2.3]/t", "a private address"),
        ("https://[fec0::1]/t", "a private address"),
        ("https://[64:ff9b::169.254.169.254]/t", "without a global meaning"),
        ("https://224.0.0.1/t", "without a global meaning"),
        ("https://[ff02::1]/t", "without a global meaning"),
        ("https://10.1.2.3/t", "a private address"),
        ("https://172.16.0.1/t", "a private address"),
        ("https://[fd00:ec2::254]/t", "a private address"),
        ("https://100.100.100.200/t", "a private address"),
        ("https://169.254.169.254/latest/meta-data", "without a global meaning"),
        ("https://[fe80::1]/t", "without a global meaning"),
        ("https://0.0.0.0/t", "without a global meaning"),
    ],
)
def test_a_public_registry_cannot_send_us_to_servers_that_only_we_can_reach(realm: str, why: str) -> None:
    with pytest.raises(Unauthorized, match=rf"^the registry {HUB} names a token server at .*{why}"):
        check_realm(realm, registry=HUB, secure=True)


def test_a_private_registry_cannot_send_us_to_this_machine_or_its_link() -> None:
    for realm in ("https://127.0.0.1/t", "https://169.254.169.254/t"):
        with pytest.raises(Unauthorized, match="no credentials are sent there"):
            check_realm(realm, registry="10.0.0.5", secure=True)
    with pytest.raises(Unauthorized, match="without a global meaning"):
        check_realm("http://169.254.169.254/t", registry="127.0.0.1", secure=False)


def test_without_tls_a_registry_by_name_may_have_its_token_server_at_a_private_address() -> None:
    realm = "http://10.0.0.5:5001/auth"
    assert check_realm(realm, registry="registry.lan", secure=False) == realm


@pytest.mark.parametrize(
    ("registry", "number", "host", "address"),
    [
        ("registry.corp.example", "10.0.0.5", "auth.other.example", "10.9.9.9"),  # a network of its own
        ("h.io", "93.184.215.14", "auth.example", "64:ff9b::5db8:d70e"),  # a public one, by NAT64
        (
            "registry.corp.example",
            "93.184.215.14",
            "auth.corp.example",
            "10.0.0.6",
        ),  # a name seen from inside
        ("registry.git.example.com", "93.184.215.14", "git.example.com", "10.0.0.6"),
        ("h.io", "127.0.0.1", "auth.io", "127.0.0.1"),  # all of it on this machine
        ("h.io", "93.184.215.14", "h.io", "127.0.0.1"),  # the registry's own host
        ("h.io", None, "auth.io", "93.184.215.14"),  # found by a proxy
    ],
)
def test_a_token_server_is_believed_where_its_registry_is_a_neighbour(
    registry: str, number: str | None, host: str, address: str
) -> None:
    check_address(host, address, registry=registry, secure=True, number=number)


@pytest.mark.parametrize(
    ("number", "host", "address", "why"),
    [
        ("93.184.215.14", "auth.example", "10.0.0.6", "10.0.0.6, which is a private address"),
        ("93.184.215.14", "auth.example", "127.0.0.1", "this machine"),
        ("93.184.215.14", "auth.h.io", "127.0.0.1", "this machine"),  # of the same domain
        ("93.184.215.14", "auth.example", "::ffff:10.0.0.6", "a private address"),
        ("93.184.215.14", "auth.example", "fe80::1", "without a global meaning"),
        (None, "auth.example", "10.0.0.6", "a private address"),
        ("10.0.0.5", "auth.example", "127.0.0.1", "this machine"),
        ("10.0.0.5", "auth.example", "169.254.169.254", "without a global meaning"),
        ("127.0.0.1", "auth.example", "169.254.169.254", "without a global meaning"),
    ],
)
def test_a_name_that_means_a_server_which_only_we_can_reach_is_refused(
    number: str | None, host: str, address: str, why: str
) -> None:
    with pytest.raises(Unauthorized, match=f"^the registry h.io names a token server at {host}, .*{why}"):
        check_address(host, address, registry="h.io", secure=True, number=number)


def test_a_registry_that_is_found_to_be_a_neighbour_may_name_one_by_its_number() -> None:
    realm = "https://10.0.0.6/t"
    assert check_realm(realm, registry="registry.corp.example", secure=True, number="10.0.0.5") == realm


@pytest.mark.parametrize(
    "realm",
    [
        "",
        "auth",
        "/token",
        "ftp://auth.io/t",
        "file:///etc/passwd",
        "https:///t",
        "https://[",
        "https://auth.io:99999/t",
        "https://auth.io:0/t",
        "https://user:pass@auth.io/t",
        "https://h.io\\@evil.io/t",
        "https://auth.io/t#",
        "https://auth.io/t#fragment",
        "https://auth.io /t",
        "https://auth.io/t\r\nX: y",
        "https://¹²⁷.0.0.1/t",
        "https://auth.io%2eevil.io/t",
    ],
)
def test_what_is_no_plain_address_of_a_token_server_is_refused(realm: str) -> None:
    with pytest.raises(Unauthorized, match=r"^the registry names no token server"):
        check_realm(realm, registry="h.io", secure=True)


def test_a_token_server_without_tls_is_none_for_a_registry_with_it() -> None:
    with pytest.raises(Unauthorized, match="does not use TLS"):
        check_realm("http://auth.io/t", registry="h.io", secure=True)


@given(st.text(max_size=60) | st.text("https://[]@:\\%#?.0127x", max_size=40).map("https://{}".format))
def test_any_realm_is_believed_as_it_is_or_refused(realm: str) -> None:
    try:
        believed = check_realm(realm, registry="h.io", secure=True)
    except Unauthorized as error:
        believed, said = realm, str(error)
    else:
        said = ""
    assert (believed, "\n" in said) == (realm, False)


def test_a_challenge_with_a_refused_realm_sends_nothing() -> None:
    asked = []
    auth = authorizer(lambda: asked.append(1) or ANN, registry=HUB)  # type: ignore[func-returns-value]
    with pytest.raises(Unauthorized, match="names a token server at 10"):
        next(auth.challenged(bearer("https://10.0.0.1/t"), None))
    assert asked == []


# credentials are asked for again


def test_credentials_are_read_anew_for_each_token() -> None:
    now, secrets = [0.0], iter(["old", "new"])
    auth = authorizer(lambda: Credentials("ann", next(secrets)), clock=lambda: now[0])
    drive(auth.challenged(bearer(), None), granted("1"))
    now[0] = 90.0
    flow = auth.authorize()
    request = next(flow)
    assert request.headers["Authorization"] == "Basic YW5uOm5ldw=="  # ann:new


def test_a_registry_token_is_sent_as_it_is_and_read_again_in_a_minute_or_when_refused() -> None:
    now, kept = [0.0], ["one"]
    auth = authorizer(lambda: Credentials("", kept[0], registry_token=True), clock=lambda: now[0])
    assert drive(auth.challenged(bearer(), None)) == "Bearer one"
    assert drive(auth.challenged(bearer(), "Bearer one")) is None  # there is no other
    kept[0] = "two"
    assert drive(auth.authorize()) == "Bearer one"
    now[0] = 61.0
    assert drive(auth.authorize()) == "Bearer two"
    kept[0] = "three"
    assert drive(auth.challenged(bearer(), "Bearer two")) == "Bearer three"


def test_a_registry_token_is_no_password() -> None:
    auth = authorizer(lambda: Credentials("ann", CANARY, registry_token=True))
    assert drive(auth.challenged([Challenge("basic", {})], None)) is None


def test_a_registry_token_that_no_header_can_have_is_refused_without_showing_it() -> None:
    auth = authorizer(lambda: Credentials("", f"{CANARY}\r\nX: y", registry_token=True))
    with pytest.raises(Unauthorized, match="no header has") as caught:
        drive(auth.challenged(bearer(), None))
    assert CANARY not in str(caught.value)


def test_rotated_basic_credentials_are_read_again_when_refused() -> None:
    secret = ["old"]
    auth = authorizer(lambda: Credentials("ann", secret[0]))
    first = drive(auth.challenged([Challenge("basic", {})], None))
    secret[0] = "new"
    second = drive(auth.challenged([Challenge("basic", {})], first))
    assert second not in (None, first)
    assert drive(auth.authorize()) == second


def test_a_source_of_credentials_that_hangs_does_so_once_for_all_that_wait() -> None:
    now, calls = [0.0], []

    def hang() -> Credentials | None:
        calls.append(now[0])
        now[0] += 30.0
        raise Unauthorized("helper: no answer")

    auth = authorizer(hang, clock=lambda: now[0])
    for _ in range(5):
        with pytest.raises(Unauthorized, match="helper: no answer"):
            next(auth.challenged(bearer(), None))
    assert calls == [0.0]
    now[0] += 6.0
    with pytest.raises(Unauthorized):
        next(auth.challenged(bearer(), None))
    assert len(calls) == 2


def test_a_token_server_that_hangs_does_so_once_for_all_that_wait() -> None:
    now = [0.0]
    auth = authorizer(lambda: None, clock=lambda: now[0])
    flow = auth.challenged(bearer(), None)
    next(flow)
    now[0] = 15.0
    with pytest.raises(Unavailable, match="timed out"):
        flow.throw(Unavailable("timed out"))
    for _ in range(3):
        with pytest.raises(Unavailable, match="timed out"):
            next(auth.challenged(bearer(), None))
    now[0] = 21.0
    assert drive(auth.challenged(bearer(), None), granted("1")) == "Bearer 1"


def test_a_source_of_credentials_that_fails_at_once_is_asked_each_time() -> None:
    broken = [True]

    def read() -> Credentials | None:
        if broken[0]:
            raise Unauthorized("broken")
        return ANN

    auth = authorizer(read)
    with pytest.raises(Unauthorized):
        next(auth.challenged(bearer(), None))
    broken[0] = False
    assert drive(auth.challenged(bearer(), None), granted("1")) == "Bearer 1"


def test_who_is_refused_late_gets_a_new_token_not_the_one_that_another_had_meanwhile() -> None:
    """What came while a slow request was under way may have ended by the time that it is refused."""
    now = [0.0]
    auth = authorizer(lambda: None, clock=lambda: now[0])
    drive(auth.challenged(bearer(), None), granted("1"))
    drive(auth.challenged(bearer(), "Bearer 1"), granted("2"))
    assert drive(auth.challenged(bearer(), "Bearer 1")) == "Bearer 2"
    now[0] = 5.0
    assert drive(auth.challenged(bearer(), "Bearer 1"), granted("3")) == "Bearer 3"


def test_expired_tokens_are_not_kept() -> None:
    now = [0.0]
    auth = authorizer(lambda: None, clock=lambda: now[0])
    for number in range(20):
        drive(auth.challenged(bearer(f"https://auth.io/{number}"), None), granted(str(number), 10))
        now[0] += 5
    assert len(auth._tokens) <= 3


# secrets


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize(
    "reply",
    [
        TokenReply(401, CANARY.encode()),
        TokenReply(307, b""),
        TokenReply(418, CANARY.encode()),
        TokenReply(500, CANARY.encode()),
        TokenReply(200, CANARY.encode()),
        TokenReply(200, f'"{CANARY}"'.encode()),
        TokenReply(200, f'{{"token": "{CANARY} "}}'.encode()),
    ],
)
def test_no_error_of_the_dance_has_the_secret(reply: TokenReply, identity: bool) -> None:
    found = Credentials("ann", CANARY, identity_token=identity)
    replies = [reply, reply] if identity and reply.status == 401 else [reply]
    with pytest.raises(RegistryError) as raised:
        drive(authorizer(lambda: found).challenged(bearer(), None), *replies)
    error: BaseException | None = raised.value
    while error is not None:
        assert CANARY not in f"{error} {error!r}"
        error = error.__cause__


def test_nothing_of_the_dance_shows_its_secret() -> None:
    posted = authorizer(lambda: Credentials("ann", CANARY, identity_token=True))
    request = next(posted.challenged(bearer(), None))
    assert isinstance(request, TokenRequest)
    assert CANARY in (request.form or "")
    shown = [request, TokenReply(200, CANARY.encode()), ANN]
    assert CANARY not in repr(shown)
