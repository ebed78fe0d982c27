"""Where a repository is asked for: the files together, and which of them counts for more."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.config import RegistriesConf, RegistryFiles
from imgfs.errors import UsageError
from imgfs.oci.descriptor import Digest
from imgfs.registry.config.resolver import Resolver, TlsOptions
from imgfs.registry.endpoint import ALL, PULL, RESOLVE, RegistryEndpoint
from tests.support.authority import Authority, needs_openssl

pytestmark = needs_openssl
DIGEST = Digest.parse(f"sha256:{'0' * 64}")


@dataclass(frozen=True)
class Certificates:
    """A certificate, its key, and the key behind a password."""

    certificate: Path
    key: Path
    locked: Path


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    authority = Authority(tmp_path_factory.mktemp("signed") / "ca")
    certificate, locked = authority.issue("client", password="secret")
    return Certificates(certificate, certificate.with_suffix(".key"), locked)


@dataclass(frozen=True)
class Machine:
    """A machine's configuration below a directory."""

    root: Path

    @property
    def files(self) -> RegistryFiles:
        return RegistryFiles(
            hosts=(self.root / "imgfs", self.root / "user", self.root / "system"),
            registries=(RegistriesConf(self.root / "registries.conf"),),
            certificates=(self.root / "containers", self.root / "docker"),
        )

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def resolver(self, asked: TlsOptions = TlsOptions()) -> Resolver:  # noqa: B008 - frozen
        return Resolver(self.files, asked)

    def of(self, registry: str, repository: str = "app") -> tuple[RegistryEndpoint, ...]:
        return self.resolver().of(registry, repository)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def urls(endpoints: tuple[RegistryEndpoint, ...]) -> list[str]:
    return [endpoint.url for endpoint in endpoints]


@pytest.mark.parametrize(
    ("registry", "plain_http", "url", "host"),
    [
        ("quay.io", None, "https://quay.io/v2", "quay.io"),
        ("docker.io", None, "https://registry-1.docker.io/v2", "docker.io"),
        ("localhost:5000", None, "http://localhost:5000/v2", "localhost:5000"),
        ("127.0.0.1:5000", None, "http://127.0.0.1:5000/v2", "127.0.0.1:5000"),
        ("localhost:5000", False, "https://localhost:5000/v2", "localhost:5000"),
        ("quay.io", True, "http://quay.io/v2", "quay.io"),
    ],
)
def test_without_any_file_it_is_the_registry_itself(
    registry: str, plain_http: bool | None, url: str, host: str
) -> None:
    found = Resolver(options=TlsOptions(plain_http)).of(registry, "ns/app")
    assert found == (RegistryEndpoint(url, host, "ns/app", ALL),)


def test_the_hosts_of_hosts_toml_come_before_the_registry_and_are_told_for_whom(machine: Machine) -> None:
    machine.write(
        "system/docker.io/hosts.toml",
        '[host."https://m.example:5000/hub"]\ncapabilities = ["pull"]\n[host."https://m.example:5000/hub".header]\n'
        'x = "1"\n[host."https://registry-1.docker.io"]\n',
    )
    mirror, itself = machine.of("docker.io", "library/app")
    assert mirror == RegistryEndpoint(
        "https://m.example:5000/hub/v2",
        "m.example:5000",
        "library/app",
        frozenset({PULL}),
        "docker.io",
        {"x": "1"},
        is_mirror=True,
    )
    assert itself == RegistryEndpoint("https://registry-1.docker.io/v2", "docker.io", "library/app")


@pytest.mark.parametrize("server", ["", 'server = "https://quay.io"\n', 'server = "https://quay.io/v2/"\n'])
def test_a_server_whose_table_is_the_last_of_the_hosts_is_asked_once(
    machine: Machine, server: str, signed: Certificates
) -> None:
    """And as the registry that it is: with several tries, and all it can do."""
    authority = machine.write("system/quay.io/quay.crt", signed.certificate.read_bytes())
    table = '[host."https://quay.io"]\ncapabilities = ["pull"]\nca = "quay.crt"\ndial_timeout = "3s"\n'
    machine.write("system/quay.io/hosts.toml", f'{server}[host."https://a.example"]\n{table}')
    mirror, itself = machine.of("quay.io")
    assert (mirror.host, mirror.is_mirror) == ("a.example", True)
    assert (itself.url, itself.is_mirror, itself.capabilities) == ("https://quay.io/v2", False, ALL)
    assert (itself.tls.authorities, itself.dial_timeout, itself.namespace) == ((authority,), 3.0, None)
    assert machine.resolver().for_push("quay.io", "app") == itself
    machine.write("system/quay.io/hosts.toml", f'{server}{table}[host."https://a.example"]\n')
    assert urls(machine.of("quay.io")) == [
        f"https://{name}/v2" for name in ("quay.io", "a.example", "quay.io")
    ]
    machine.write("system/quay.io/hosts.toml", f'{server}[host."http://quay.io"]\n')
    assert urls(machine.of("quay.io")) == (
        ["http://quay.io/v2"] if not server else ["http://quay.io/v2", "https://quay.io/v2"]
    )


def test_mirrors_are_never_pushed_to_and_those_for_pushing_only_never_asked(machine: Machine) -> None:
    machine.write(
        "system/quay.io/hosts.toml",
        '[host."https://a.example"]\n[host."https://b.example"]\ncapabilities = ["push"]',
    )
    mirror, itself = machine.of("quay.io")
    assert (mirror.host, mirror.capabilities) == ("a.example", frozenset({PULL, RESOLVE}))
    assert (itself.host, itself.capabilities) == ("quay.io", ALL)


def test_a_server_takes_the_registrys_place(machine: Machine) -> None:
    machine.write("system/quay.io/hosts.toml", 'server = "http://cache.example:5000"')
    (server,) = machine.of("quay.io")
    assert (server.url, server.namespace, server.is_mirror) == (
        "http://cache.example:5000/v2",
        "quay.io",
        False,
    )


@pytest.mark.parametrize("server", ["https://docker.io", "https://registry-1.docker.io", "index.docker.io"])
def test_docker_hub_is_where_it_answers_by_whatever_name(machine: Machine, server: str) -> None:
    machine.write("system/docker.io/hosts.toml", f'server = "{server}"')
    (itself,) = machine.of("docker.io")
    assert (itself.url, itself.host, itself.namespace) == (
        "https://registry-1.docker.io/v2",
        "docker.io",
        None,
    )


def test_files_count_in_the_order_of_how_much_they_are_the_users_and_the_registrys(machine: Machine) -> None:
    machine.write("registries.conf", "")
    assert urls(machine.of("quay.io")) == ["https://quay.io/v2"]
    for name, text in [
        ("system/_default/hosts.toml", 'server = "default.example"'),
        ("registries.conf", '[[registry]]\nprefix = "quay.io"\nlocation = "conf.example"'),
        ("system/quay.io/hosts.toml", 'server = "system.example"'),
        ("user/quay.io/hosts.toml", 'server = "user.example"'),
        ("imgfs/quay.io/hosts.toml", 'server = "imgfs.example"'),
    ]:
        machine.write(name, text)
        host = text.rpartition('"')[0].rpartition('"')[2]
        assert urls(machine.of("quay.io")) == [f"https://{host}/v2"]


def test_a_default_is_followed_by_the_registry_that_was_named(machine: Machine) -> None:
    machine.write("system/_default/hosts.toml", '[host."http://127.0.0.1:30020"]')
    mirror, itself = machine.of("ghcr.io")
    assert (mirror.url, mirror.namespace) == ("http://127.0.0.1:30020/v2", "ghcr.io")
    assert (itself.url, itself.namespace) == ("https://ghcr.io/v2", None)


def test_registries_conf_moves_host_and_repository_without_a_namespace(machine: Machine) -> None:
    machine.write(
        "registries.conf",
        '[[registry]]\nprefix = "a.example/foo"\nlocation = "b.example/bar"\n'
        '[[registry.mirror]]\nlocation = "m.example:5000/x"',
    )
    assert machine.of("a.example", "foo/app") == (
        RegistryEndpoint(
            "https://m.example:5000/v2",
            "m.example:5000",
            "x/app",
            frozenset({PULL, RESOLVE}),
            is_mirror=True,
        ),
        RegistryEndpoint("https://b.example/v2", "b.example", "bar/app"),
    )
    assert urls(machine.of("a.example", "other")) == ["https://a.example/v2"]


def test_an_insecure_registry_is_asked_with_tls_of_any_kind_and_then_without(machine: Machine) -> None:
    machine.write("registries.conf", '[[registry]]\nlocation = "a.example"\ninsecure = true')
    found = machine.of("a.example")
    assert urls(found) == ["https://a.example/v2", "http://a.example/v2"]
    assert not any(endpoint.tls.verify for endpoint in found)


def test_mirrors_for_digests_serve_the_blobs_of_tags_too_but_resolve_none(machine: Machine) -> None:
    machine.write(
        "registries.conf",
        '[[registry]]\nlocation = "a.example"\n'
        '[[registry.mirror]]\nlocation = "d.example"\npull-from-mirror = "digest-only"\n'
        '[[registry.mirror]]\nlocation = "t.example"\npull-from-mirror = "tag-only"',
    )
    resolver = machine.resolver()
    digests, tags, _ = resolver.of("a.example", "app", "v1")
    assert (digests.host, digests.capabilities) == ("d.example", frozenset({PULL}))
    assert (tags.host, tags.capabilities) == ("t.example", frozenset({PULL, RESOLVE}))
    assert [one.host for one in resolver.of("a.example", "app", "v1", DIGEST)] == ["d.example", "a.example"]


def test_what_is_blocked_is_an_error_that_says_where(machine: Machine) -> None:
    path = machine.write("registries.conf", '[[registry]]\nprefix = "a.example/bad"\nblocked = true')
    machine.write("imgfs/a.example/hosts.toml", 'server = "b.example"')
    with pytest.raises(UsageError) as caught:
        machine.resolver().of("a.example", "bad/app", "v1")
    expected = f"{path}: registry[0]: a.example/bad/app:v1 is blocked (prefix 'a.example/bad')"
    assert str(caught.value) == expected
    assert machine.of("a.example", "good")


def test_plain_http_is_of_the_registry_that_was_named_not_of_its_mirrors(machine: Machine) -> None:
    machine.write("system/quay.io/hosts.toml", '[host."https://m.example"]')
    machine.write(
        "registries.conf", '[[registry]]\nlocation = "a.example"\n[[registry.mirror]]\nlocation = "m.example"'
    )
    resolver = machine.resolver(TlsOptions(plain_http=True))
    assert urls(resolver.of("quay.io", "app")) == ["https://m.example/v2", "http://quay.io/v2"]
    assert urls(resolver.of("a.example", "app")) == ["https://m.example/v2", "http://a.example/v2"]


def test_pushes_go_to_the_registry_itself_or_its_server(machine: Machine) -> None:
    machine.write(
        "registries.conf",
        '[[registry]]\nprefix = "a.example"\nlocation = "b.example"\n'
        '[[registry.mirror]]\nlocation = "m.example"',
    )
    machine.write("system/quay.io/hosts.toml", 'server = "https://c.example"\n[host."https://m.example"]')
    machine.write("system/ghcr.io/hosts.toml", 'server = "https://c.example"\ncapabilities = ["pull"]')
    resolver = machine.resolver()
    assert resolver.for_push("a.example", "app").url == "https://a.example/v2"
    assert resolver.for_push("quay.io", "app").url == "https://c.example/v2"
    assert resolver.for_push("ghcr.io", "app").url == "https://ghcr.io/v2"
    assert resolver.for_push("docker.io", "").host == "docker.io"


def test_insecure_verifies_nobody_and_changes_no_scheme(machine: Machine) -> None:
    machine.write("system/quay.io/hosts.toml", '[host."http://m.example"]')
    found = machine.resolver(TlsOptions(insecure=True)).of("quay.io", "app")
    assert urls(found) == ["http://m.example/v2", "https://quay.io/v2"]
    assert [endpoint.tls.verify for endpoint in found] == [False, False]


def test_certificates_of_all_places_are_taken_together(machine: Machine, signed: Certificates) -> None:
    certificate, key = signed.certificate.read_bytes(), signed.key.read_bytes()
    for name, body in [
        ("containers/m.example:5000/a.crt", certificate),
        ("docker/m.example:5000/b.crt", certificate),
        ("docker/m.example:5000/client.cert", certificate),
        ("docker/m.example:5000/client.key", key),
        ("user/m.example_5000_/c.crt", certificate),
        ("system/quay.io/own.crt", certificate),
        ("system/quay.io/beside.crt", certificate),
        ("system/quay.io/both.pem", certificate + key),
    ]:
        machine.write(name, body)
    machine.write(
        "system/quay.io/hosts.toml", '[host."https://m.example:5000"]\nca = "own.crt"\nclient = "both.pem"'
    )
    mirror, itself = machine.resolver(TlsOptions(ca_file=signed.certificate)).of("quay.io", "app")
    root = machine.root
    assert set(mirror.tls.authorities) == {
        signed.certificate,
        root / "system/quay.io/own.crt",
        root / "containers/m.example:5000/a.crt",
        root / "docker/m.example:5000/b.crt",
        root / "user/m.example_5000_/c.crt",
    }
    docker = root / "docker/m.example:5000"
    assert set(mirror.tls.clients) == {
        (root / "system/quay.io/both.pem", None),
        (docker / "client.cert", docker / "client.key"),
    }
    assert itself.tls.authorities == (signed.certificate,)


def test_this_machine_is_asked_with_tls_where_somebody_says_whom_to_believe(
    machine: Machine, signed: Certificates
) -> None:
    assert urls(machine.of("localhost:5000")) == ["http://localhost:5000/v2"]
    for asked in (TlsOptions(insecure=True), TlsOptions(ca_file=signed.certificate)):
        (itself,) = machine.resolver(asked).of("localhost:5000", "app")
        assert itself.url.startswith("http:" if asked.insecure else "https:")
    machine.write("docker/localhost:5000/ca.crt", signed.certificate.read_bytes())
    assert urls(machine.of("localhost:5000")) == ["https://localhost:5000/v2"]
    assert urls(machine.resolver(TlsOptions(plain_http=True)).of("localhost:5000", "app")) == [
        "http://localhost:5000/v2"
    ]


def test_docker_hubs_certificates_are_found_under_its_names(machine: Machine, signed: Certificates) -> None:
    paths = [
        machine.write(f"docker/{name}/ca.crt", signed.certificate.read_bytes())
        for name in ("docker.io", "registry-1.docker.io")
    ]
    assert set(machine.of("docker.io")[0].tls.authorities) == set(paths)


def test_a_renewed_certificate_makes_other_endpoints(
    machine: Machine, signed: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgfs.registry.config.reload._LOOK_AGAIN", 0.0)
    path = machine.write("docker/quay.io/ca.crt", signed.certificate.read_bytes())
    resolver = machine.resolver()
    before = resolver.of("quay.io", "app")
    assert resolver.of("quay.io", "app") is before
    os.utime(path, (1, 1))
    assert resolver.of("quay.io", "app") != before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("docker/quay.io/ca.crt", "rubbish"),
        ("docker/quay.io/client.cert", "rubbish"),
        ("system/quay.io/ca.crt", ""),
        ("system/quay.io/hosts.toml", 'ca = "missing.pem"'),
        ("system/quay.io/hosts.toml", "server ="),
        ("system/_default/hosts.toml", "server ="),
        ("registries.conf", "registry ="),
    ],
)
def test_a_file_that_is_broken_at_the_start_is_named(machine: Machine, name: str, text: str) -> None:
    path = machine.write(name, text)
    with pytest.raises(UsageError) as caught:
        machine.of("quay.io")
    expected = "system/quay.io/missing.pem" if "missing" in text else str(path)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_encrypted_key_is_refused_without_asking_for_a_password(
    machine: Machine, signed: Certificates
) -> None:
    machine.write("docker/quay.io/client.cert", signed.certificate.read_bytes())
    machine.write("docker/quay.io/client.key", signed.locked.read_bytes())
    with pytest.raises(UsageError, match=r"client\.key: not a client's certificate"):
        machine.of("quay.io")


def test_certificates_that_cannot_be_read_do_not_count(machine: Machine) -> None:
    machine.write("docker/quay.io/note", "")
    (machine.root / "docker/quay.io/ca.crt").symlink_to("/proc/1/nowhere")  # not even root reads it
    assert machine.of("quay.io")[0].tls.authorities == ()


def test_files_that_change_are_noticed_and_broken_ones_change_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("imgfs.registry.config.reload._LOOK_AGAIN", 0.0)
    resolver = machine.resolver()
    assert urls(resolver.of("quay.io", "app")) == ["https://quay.io/v2"]
    hosts = machine.write("user/quay.io/hosts.toml", '[host."https://m.example"]')
    found = resolver.of("quay.io", "app")
    assert urls(found) == ["https://m.example/v2", "https://quay.io/v2"]
    hosts.write_text("server =")
    with caplog.at_level(logging.WARNING):
        assert resolver.of("quay.io", "app") is found
        assert resolver.of("quay.io", "app") is found
    assert [str(hosts) in record.getMessage() for record in caplog.records] == [True]
    hosts.unlink()
    assert urls(resolver.of("quay.io", "app")) == ["https://quay.io/v2"]
