"""A registry of this machine with TLS: plain HTTP is a guess, and where TLS answers, TLS is spoken."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imgfs.errors import RegistryError, Unavailable
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.registry.client import Client, check_login
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.config.resolver import Resolver, TlsOptions
from imgfs.registry.messages import CheckedBlob
from imgfs.registry.retry import Timeouts
from tests.support.authority import Authority, needs_openssl
from tests.support.docker_registry import docker_registry, needs_docker_registry
from tests.support.fault_server import Fault, FaultServer
from tests.support.nginx import needs_nginx, nginx
from tests.support.raw_server import RawServer

FAST = Timeouts(connect=5.0, read=5.0, deadline=10.0, backoff=0.001, tries=2)
HERE = "127.0.0.1"
MANIFEST = b'{"schemaVersion": 2, "layers": []}'
pytestmark = needs_openssl


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture
def opens() -> Iterator[Callable[[str, TlsOptions], Client]]:
    """What gives a client of a registry as the command line asks for it."""
    with ExitStack() as stack:

        def client_for(host: str, asked: TlsOptions) -> Client:
            client = Client(Resolver(options=asked).of(host, "app")[0], timeouts=FAST)
            stack.callback(client.close)
            return client

        yield client_for


class TlsOnly(FaultServer):
    """A registry that hangs up on whoever does not speak TLS, as Python's servers do."""

    def __init__(self, certificate: Path, key: Path) -> None:
        super().__init__()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._web.socket = context.wrap_socket(self._web.socket, server_side=True)


@needs_docker_registry
@pytest.mark.parts
def test_a_real_registry_with_tls_is_found_and_believed_as_asked(
    tmp_path: Path, authority: Authority, opens: Callable[[str, TlsOptions], Client]
) -> None:
    blob = CheckedBlob(Descriptor("", Digest.of(b"x" * 9), 9), lambda at: iter([b"x" * (9 - at)]))
    with docker_registry(tmp_path / "registry", tls=authority.issue(HERE)) as host:
        careless = opens(host, TlsOptions(insecure=True))
        assert careless.push_blob(blob)
        assert b"".join(careless.blob(blob.descriptor)) == b"x" * 9
        strict = opens(host, TlsOptions())
        with pytest.raises(RegistryError) as raised:
            strict.manifest("v1")
        with pytest.raises(RegistryError, match="not trusted"):
            check_login(Resolver().for_push(host, "app"), Credentials("a", "b"), timeouts=FAST)
        with pytest.raises(RegistryError, match="400"):
            opens(host, TlsOptions(plain_http=True)).manifest("v1")  # said, not guessed
    text = str(raised.value)
    assert text.startswith(f"https://{host}/v2/app/manifests/v1: no answer: its certificate is not trusted")
    assert text.endswith(f"(tried before: http://{host}/v2/app/manifests/v1: 400)")


@needs_nginx
@pytest.mark.parts
def test_nginx_with_tls_is_found(
    tmp_path: Path, authority: Authority, opens: Callable[[str, TlsOptions], Client]
) -> None:
    with FaultServer() as server:
        pushed = server.add_manifest("app", "v1", MANIFEST)
        lines = f"location / {{ proxy_pass http://{server.host}; }}"
        with nginx(tmp_path / "nginx", lines, tls=authority.issue(HERE)) as host:
            client = opens(host, TlsOptions(insecure=True))
            assert client.head_manifest("v1") == pushed
            assert client.manifest(pushed.digest) == (pushed, MANIFEST)


def test_a_registry_that_hangs_up_on_plain_http_is_found(
    authority: Authority, opens: Callable[[str, TlsOptions], Client]
) -> None:
    with TlsOnly(*authority.issue(HERE)) as server:
        pushed = server.add_manifest("app", "v1", MANIFEST)
        client = opens(server.host, TlsOptions(insecure=True))
        assert client.manifest("v1") == (pushed, MANIFEST)
        with pytest.raises(RegistryError, match=r"not trusted.*tried before: http:.*: hung up"):
            opens(server.host, TlsOptions()).manifest("v1")


@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_a_plain_registry_that_refuses_stays_plain(
    kind: str, opens: Callable[[str, TlsOptions], Client]
) -> None:
    with FaultServer() as server:
        pushed = server.add_manifest("app", "v1", MANIFEST)
        server.inject(Fault(status=400, headers={"Content-Type": kind}))
        client = opens(server.host, TlsOptions())
        with pytest.raises(RegistryError, match=rf"^{server.url}/.*: 400") as raised:
            client.tags(1)
        assert "tried before" not in str(raised.value)
        server.inject(Fault(drop=True))
        assert client.manifest("v1") == (pushed, MANIFEST)


def test_what_answers_nothing_is_not_waited_for_twice(opens: Callable[[str, TlsOptions], Client]) -> None:
    def hang_up(connection: object) -> None:
        raise OSError

    with RawServer(hang_up) as raw, pytest.raises(Unavailable, match=rf"^{raw.url}/"):
        opens(raw.host, TlsOptions()).manifest("v1")
