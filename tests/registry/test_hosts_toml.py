"""containerd's hosts.toml: what is read out of it, and what is refused (containerd, `docs/hosts.md`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from imgfs.errors import UsageError
from imgfs.registry.config.hosts_toml import (
    HostsFile,
    default_directories,
    find_hosts,
    own_directories,
    parse_hosts,
)
from imgfs.registry.config.reload import Reader
from imgfs.registry.endpoint import ALL, PULL, RESOLVE, Tls
from tests.support.tomlmade import bodies_of

PATH = Path("/certs.d/quay.io/hosts.toml")
KEYS = "server host capabilities ca client skip_verify header override_path https://a.example X-A pull"


def parse(text: str) -> HostsFile:
    return parse_hosts(PATH, text.encode())


def one(text: str) -> Tls:
    return parse(f'[host."https://m.example"]\n{text}').mirrors[0].tls


def test_hosts_come_in_the_order_of_the_file_and_the_server_last() -> None:
    found = parse(
        """
        server = "https://registry-1.docker.io"
        [host."https://z.example"]
        [host."http://a.example:5000"]
        [host."https://m.example".header]
        x = "1"
        """
    )
    assert [(host.scheme, host.host, host.path) for host in found.mirrors] == [
        ("https", "z.example", "/v2"),
        ("http", "a.example:5000", "/v2"),
        ("https", "m.example", "/v2"),
    ]
    assert (found.server.scheme, found.server.host) == ("https", "registry-1.docker.io")


def test_without_a_server_what_stands_at_the_root_is_of_the_registry_itself() -> None:
    server = parse('ca = "own.crt"\ncapabilities = ["pull"]\n[header]\nx = "1"\n').server
    assert (server.scheme, server.host, server.path) == ("", "", "")
    assert server.tls.authorities == (PATH.parent / "own.crt",)
    assert server.capabilities == ALL
    assert server.headers == {"x": "1"}


@pytest.mark.parametrize(
    ("url", "override", "expected"),
    [
        ("https://m.example", False, ("https", "m.example", "/v2")),
        ("https://m.example/", False, ("https", "m.example", "/v2")),
        ("m.example:5000", False, ("https", "m.example:5000", "/v2")),
        ("http://M.Example", False, ("http", "m.example", "/v2")),
        ("https://m.example/v2", False, ("https", "m.example", "/v2")),
        ("https://m.example/proxy//hub/../quay/", False, ("https", "m.example", "/proxy/quay/v2")),
        ("https://m.example/v2/hub", False, ("https", "m.example", "/v2/hub/v2")),
        ("https://m.example/v2/hub", True, ("https", "m.example", "/v2/hub")),
        ("https://m.example", True, ("https", "m.example", "")),
        ("http://[::1]:5000", False, ("http", "[::1]:5000", "/v2")),
    ],
)
def test_the_api_is_below_v2_unless_the_path_is_overridden(
    url: str, override: bool, expected: tuple[str, str, str]
) -> None:
    host = parse(f'[host."{url}"]\noverride_path = {str(override).lower()}').mirrors[0]
    assert (host.scheme, host.host, host.path) == expected


def test_a_host_can_do_everything_unless_its_capabilities_are_listed() -> None:
    found = parse(
        '[host."https://a.example"]\n[host."https://b.example"]\ncapabilities = ["pull", "Resolve"]\n'
        '[host."https://c.example"]\ncapabilities = []'
    )
    assert [host.capabilities for host in found.mirrors] == [ALL, {PULL, RESOLVE}, ALL]


def test_authorities_are_one_file_or_several_relative_to_hosts_toml() -> None:
    assert one('ca = "ca.pem"').authorities == (PATH.parent / "ca.pem",)
    assert one('ca = ["/etc/a.pem", "b.pem"]').authorities == (Path("/etc/a.pem"), PATH.parent / "b.pem")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"both.pem"', [("both.pem", None)]),
        ('["a.pem", "b.pem"]', [("a.pem", None), ("b.pem", None)]),
        ('[["a.cert", "a.key"], ["b.pem", ""]]', [("a.cert", "a.key"), ("b.pem", None)]),
    ],
)
def test_clients_are_files_or_pairs_of_certificate_and_key(
    text: str, expected: list[tuple[str, str | None]]
) -> None:
    here = PATH.parent
    assert list(one(f"client = {text}").clients) == [
        (here / certificate, here / key if key else None) for certificate, key in expected
    ]


def test_verification_can_be_skipped() -> None:
    assert one("").verify
    assert not one("skip_verify = true").verify


def test_several_values_of_a_header_are_one_with_commas() -> None:
    headers = parse('[host."https://m.example".header]\nX-A = ["1", "2"]\nx-b = "3"').mirrors[0].headers
    assert headers == {"X-A": "1, 2", "x-b": "3"}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("server = 1", "server"),
        ('server = "ftp://m.example"', "server"),
        ('server = "https://m.example?x=1"', "server"),
        ('server = "https://user:secret@m.example"', "server"),
        ('server = "https://"', "server"),
        ('server = "https://m.example:port"', "server"),
        ('server = "https://[::1"', "server"),
        ('server = "https://../.."', "server"),
        ("host = 1", "host"),
        ('[host]\n"https://m.example" = 1', "host.https://m.example"),
        ('[host."gopher://m.example"]', "host.gopher://m.example"),
        ('[host."https://m.example"]\nca = 1', "host.https://m.example.ca"),
        ('dial_timeout = "soon"', "dial_timeout"),
        ('dial_timeout = "1s2"', "dial_timeout"),
        ('dial_timeout = "-1s"', "dial_timeout"),
        ("dial_timeout = 5", "dial_timeout"),
        ('capabilities = "pull"', "capabilities"),
        ('skip_verify = "yes"', "skip_verify"),
        ('server = "m.example"\noverride_path = 1', "override_path"),
        ("ca = [1]", "ca"),
        ('ca = ""', "ca"),
        ('client = [["a", "b", "c"]]', "client"),
        ('client = [["", "b"]]', "client"),
        ("header = []", "header"),
        ("[header]\nx = 1", "header.x"),
        ('[header]\nx = "a\\r\\nHost: evil"', "header.x"),
        ('[header]\n"a b" = "1"', "header.a b"),
        ('[header]\n"a\\nb" = "1"', r"'header.a\nb'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_file_and_key(text: str, key: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"{PATH}: {key}: ")
    assert "secret" not in str(caught.value)


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        parse('[host."https://user:secret@m.example"]')
    assert "secret" not in str(caught.value)
    assert "host.m.example" in str(caught.value)


@pytest.mark.parametrize("body", [b"server =", b"\xff", b"a = " + b"[" * 100_000, b"a = 1\na = 2"])
def test_what_is_no_toml_is_refused_with_the_file(body: bytes) -> None:
    with pytest.raises(UsageError, match=rf"^{PATH}: not TOML: "):
        parse_hosts(PATH, body)


@given(bodies_of(KEYS.split()))
def test_hostile_files_are_refused_and_nothing_else(body: bytes) -> None:
    try:
        parse_hosts(PATH, body)
    except UsageError as error:
        said = str(error)
    else:
        said = f"{PATH}: understood"
    assert said.startswith(f"{PATH}: ")
    assert len(said.splitlines()) == 1


def test_a_port_may_be_written_with_underscores() -> None:
    root = Path("/certs.d")
    assert list(own_directories([root], "m.example:5000")) == [
        root / "m.example_5000_",
        root / "m.example:5000",
    ]
    assert list(own_directories([root], "m.example")) == [root / "m.example"]


def test_the_first_directory_with_a_hosts_toml_counts(tmp_path: Path) -> None:
    for name in ("empty", "first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.toml").write_text("" if name == "empty" else f'server = "{name}.example"')
    directories = [tmp_path / name for name in ("missing", "empty", "first", "second")]
    found = find_hosts(Reader(), directories)
    assert found
    assert found.server.host == "first.example"
    assert find_hosts(Reader(), directories[:2]) is None


def test_the_default_is_for_registries_without_a_directory_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a/quay.io").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    roots = [tmp_path / "a", tmp_path / "b"]
    assert list(default_directories(Reader(), roots, "quay.io")) == [tmp_path / "b/_default"]
    assert list(default_directories(Reader(), roots, "ghcr.io")) == [root / "_default" for root in roots]
