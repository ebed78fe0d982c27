"""Whom TLS believes, what it shows, and the way through proxies: with nginx, openssl and docker-registry."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from imgfs.config import RegistryFiles
from imgfs.errors import NotFound, RegistryError, Unavailable
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.reference import RegistryReference
from imgfs.registry.client import Client
from imgfs.registry.config.resolver import Resolver, TlsOptions
from imgfs.registry.endpoint import RegistryEndpoint, Tls
from imgfs.registry.retry import Timeouts
from imgfs.registry.transport import CONNECTIONS
from imgfs.transport.connect import open_source
from imgfs.transport.source import Source
from tests.support import tarmake as tar
from tests.support.authority import Authority, needs_openssl
from tests.support.clients import client_of
from tests.support.docker_registry import docker_registry, needs_docker_registry, push_image
from tests.support.fault_server import Fault, FaultServer
from tests.support.forward_proxy import ForwardProxy
from tests.support.mounted import Imgfs, errno_of, gzipped, until
from tests.support.nginx import needs_nginx, nginx

FAST = Timeouts(connect=5.0, read=5.0, deadline=10.0, backoff=0.001)
BODY = bytes(range(256)) * 4096  # 1 MiB
HERE = "127.0.0.1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def over_tls(host: str, tls: Tls, **more: object) -> Client:
    endpoint = RegistryEndpoint(f"https://{host}/v2", host, "ns/app", tls=tls)
    return Client(endpoint, **{"timeouts": FAST, **more})  # type: ignore[arg-type]


def read(client: Client | Source, blob: Descriptor, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(client.blob(blob, start, end))


def before(host: str) -> str:
    """nginx's line for a registry behind it."""
    return f"location / {{ proxy_pass http://{host}; }}"


@pytest.fixture
def secured(tmp_path: Path, server: FaultServer, authority: Authority) -> Iterator[str]:
    """The `host:port` of an nginx with TLS before the server."""
    with nginx(tmp_path / "nginx", before(server.host), tls=authority.issue(HERE)) as host:
        yield host


pytestmark = [needs_nginx, needs_openssl]


# authorities


def test_a_private_authority_is_believed_beside_the_usual_ones(
    secured: str, server: FaultServer, authority: Authority, stack: ExitStack
) -> None:
    blob = server.add_blob(BODY)
    client = over_tls(secured, Tls((authority.file,)))
    stack.callback(client.close)
    assert read(client, blob) == BODY
    instead = over_tls(secured, Tls(), ca_bundle=authority.file)
    stack.callback(instead.close)
    assert read(instead, blob) == BODY


UNTRUSTED = {
    "another authority": r"its certificate is not trusted: .* \(of a private authority\? --tls-ca\)$",
    "another host": r"its certificate is not trusted: IP address mismatch.*127\.0\.0\.1'\.?$",
    "yesterday": r"its certificate is not trusted: certificate has expired$",
}


def untrusted(authority: Authority, why: str, tmp_path: Path) -> tuple[Path, Path]:
    """A certificate that is not to be believed by those who trust the authority, for some reason."""
    if why == "another authority":
        authority = Authority(tmp_path / "another")
    return authority.issue("127.0.0.2" if why == "another host" else HERE, days=-(why == "yesterday") or 1)


@pytest.mark.parametrize("why", UNTRUSTED)
def test_nobody_else_is_believed_and_the_error_says_why(
    tmp_path: Path, server: FaultServer, authority: Authority, stack: ExitStack, why: str
) -> None:
    tls = untrusted(authority, why, tmp_path)
    host = stack.enter_context(nginx(tmp_path / "nginx", before(server.host), tls=tls))
    client = over_tls(host, Tls((authority.file,)))
    stack.callback(client.close)
    with pytest.raises(RegistryError, match=UNTRUSTED[why]) as raised:
        client.head_manifest("v1")
    assert not isinstance(raised.value, Unavailable)  # it would be the same tomorrow
    assert server.log == []


def test_whoever_answers_is_believed_if_that_is_asked_for_and_the_log_says_so_once(
    secured: str, server: FaultServer, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    blob = server.add_blob(BODY)
    for _ in range(2):
        client = over_tls(secured, Tls(verify=False))
        stack.callback(client.close)
        assert read(client, blob, 0, 9) == BODY[:9]
    [warning] = caplog.records
    assert warning.levelno == logging.WARNING
    assert f"INSECURE: the certificate of {secured} is not verified" in warning.message


@pytest.mark.parametrize("content", [None, "no certificate\n"])
def test_a_file_of_authorities_that_is_none_is_named(
    secured: str, tmp_path: Path, stack: ExitStack, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    client = over_tls(secured, Tls((path,)))
    stack.callback(client.close)
    with pytest.raises(
        RegistryError, match=r"ca\.pem: (cannot be read: No such file|not certificates in PEM)"
    ):
        client.head_manifest("v1")


def test_an_authority_that_is_renewed_is_read_again(
    secured: str, server: FaultServer, authority: Authority, tmp_path: Path, stack: ExitStack
) -> None:
    path = tmp_path / "ca.pem"
    shutil.copy(Authority(tmp_path / "old").file, path)
    client = over_tls(secured, Tls((path,)))
    stack.callback(client.close)
    with pytest.raises(RegistryError, match="not trusted"):
        client.head_manifest("v1")
    shutil.copy(authority.file, path)
    with pytest.raises(NotFound):
        client.head_manifest("v1")


# client certificates


@pytest.fixture
def demanding(tmp_path: Path, server: FaultServer, authority: Authority) -> Iterator[str]:
    """An nginx that wants to see a certificate."""
    lines = f"ssl_client_certificate {authority.file};\nssl_verify_client on;\n{before(server.host)}"
    with nginx(tmp_path / "demanding", lines, tls=authority.issue(HERE)) as host:
        yield host


def test_a_certificate_is_shown_to_one_who_wants_it(
    demanding: str, server: FaultServer, authority: Authority, stack: ExitStack
) -> None:
    blob = server.add_blob(BODY)
    shown = over_tls(demanding, Tls((authority.file,), (authority.issue("client"),)))
    hidden = over_tls(demanding, Tls((authority.file,)))
    for client in (shown, hidden):
        stack.callback(client.close)
    assert read(shown, blob) == BODY
    with pytest.raises(RegistryError, match="400"):
        read(hidden, blob)


def test_a_certificate_is_shown_to_nobody_else(
    tmp_path: Path, server: FaultServer, authority: Authority, stack: ExitStack
) -> None:
    cdn_lines = f"""
ssl_client_certificate {authority.file};
ssl_verify_client optional;
if ($ssl_client_verify != NONE) {{ return 403; }}
{before(server.host)}"""
    cdn = stack.enter_context(nginx(tmp_path / "cdn", cdn_lines, tls=authority.issue(HERE)))
    lines = f"""
ssl_client_certificate {authority.file};
ssl_verify_client on;
location / {{ return 307 https://{cdn}$request_uri; }}"""
    host = stack.enter_context(nginx(tmp_path / "registry", lines, tls=authority.issue(HERE)))
    client = over_tls(host, Tls((authority.file,), (authority.issue("client"),)))
    stack.callback(client.close)
    blob = server.add_blob(BODY)
    assert read(client, blob, 5, 10) == BODY[5:10]
    assert read(client, blob, 10, 15) == BODY[10:15]


def test_a_key_with_a_password_is_named_and_nobody_is_asked_for_it(
    demanding: str, authority: Authority, stack: ExitStack
) -> None:
    pair = authority.issue("client", password="hunter2")
    client = over_tls(demanding, Tls((authority.file,), (pair,)))
    stack.callback(client.close)
    with pytest.raises(
        RegistryError, match=r"\.locked: not a certificate and its key in PEM, without a pass"
    ):
        client.head_manifest("v1")


# redirects


def test_a_redirect_out_of_tls_is_refused_unless_nobody_is_checked(
    tmp_path: Path, server: FaultServer, authority: Authority, stack: ExitStack
) -> None:
    lines = f"location / {{ return 307 http://{server.host}$request_uri; }}"
    host = stack.enter_context(nginx(tmp_path / "nginx", lines, tls=authority.issue(HERE)))
    blob = server.add_blob(BODY)
    client = over_tls(host, Tls((authority.file,)))
    stack.callback(client.close)
    with pytest.raises(RegistryError, match=f"redirected to http://{server.host}.*, which is not TLS"):
        read(client, blob)
    assert server.log == []
    careless = over_tls(host, Tls(verify=False))
    stack.callback(careless.close)
    assert read(careless, blob, 0, 9) == BODY[:9]


def test_a_redirect_to_this_machine_is_refused_to_one_that_is_not_on_it(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    proxy = stack.enter_context(ForwardProxy({"registry.test": server.host}))
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    blob = server.add_blob(BODY)
    client = plain("registry.test")
    stack.callback(client.close)
    for place in (
        f"http://{server.host}/x",
        "http://localhost/x",
        "http://169.254.169.254/latest",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://0.0.0.0/",
        "http://127.1/",
    ):
        server.inject(Fault(status=307, headers={"Location": place}), on="/blobs/")
        with pytest.raises(
            RegistryError, match=r"redirected to http://.*, which is this machine's own affair"
        ):
            read(client, blob)
    assert len(server.log) == 7


# configuration


def configured(directory: Path, registry: str, text: str, **asked: object) -> Resolver:
    """Resolver that a hosts.toml speaks of."""
    path = directory / registry / "hosts.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return Resolver(RegistryFiles(hosts=(directory,)), TlsOptions(**asked))  # type: ignore[arg-type]


@needs_docker_registry
@pytest.mark.parts
def test_a_registry_behind_tls_is_mounted_with_what_certs_d_says_and_not_without(
    tmp_path: Path, imgfs: Imgfs, authority: Authority, stack: ExitStack
) -> None:
    registry = stack.enter_context(docker_registry(tmp_path / "data"))
    push_image(registry, "app", "v1", [])
    lines = f"ssl_client_certificate {authority.file};\nssl_verify_client on;\n{before(registry)}"
    host = stack.enter_context(nginx(tmp_path / "nginx", lines, tls=authority.issue(HERE)))
    certificate, key = authority.issue("client")
    etc = Path(imgfs.environment.get("IMGFS_ETC", imgfs.directory / "etc"))
    bare = f'server = "https://{host}"\n'
    directory = etc / "containerd/certs.d" / host
    configured(directory.parent, host, bare)
    said = imgfs.run("ls", f"{host}/app:v1").complaint()
    assert "its certificate is not trusted" in said
    assert "--tls-ca" in said
    assert "400" in imgfs.run("ls", "--tls-ca", str(authority.file), f"{host}/app:v1").complaint()
    full = f'{bare}ca = "{authority.file}"\nclient = [["{certificate}", "{key}"]]\n'
    configured(directory.parent, host, full)
    assert imgfs.run("ls", f"{host}/app:v1").code == 0
    configured(directory.parent, host, f'{bare}client = [["{certificate}", "{key}"]]\n')
    assert imgfs.run("ls", "--tls-ca", str(authority.file), f"{host}/app:v1").code == 0
    careless = imgfs.run("ls", "--insecure", f"{host}/app:v1")
    assert careless.code == 0
    assert careless.err == f"imgfs: warning: INSECURE: the certificate of {host} is not verified\n"


@needs_docker_registry
@pytest.mark.parts
@pytest.mark.kernel
@pytest.mark.parametrize("why", UNTRUSTED)
def test_a_certificate_that_goes_bad_is_an_error_and_nothing_takes_its_place(
    tmp_path: Path, imgfs: Imgfs, authority: Authority, stack: ExitStack, why: str
) -> None:
    """Neither what was resolved before, nor the same without TLS; a mount says so, and heals."""
    imgfs.expected.append("(ERROR|WARNING) .*certificate is not trusted")
    registry = stack.enter_context(docker_registry(tmp_path / "data"))
    push_image(registry, "app", "v1", [gzipped(tar.archive(tar.file("file", BODY))).blob])
    asked = tmp_path / "asked"
    lines = f"access_log {asked};\n{before(registry)}"
    good = authority.issue(HERE)
    with nginx(tmp_path / "before", lines, tls=good) as host:
        port = int(host.rpartition(":")[2])
        image = f"{host}/app:v1"
        at = imgfs.mount(image, "--tls-ca", str(authority.file), "--read-timeout", "5")
        imgfs.evict(image)
    asked.write_text("")
    with nginx(tmp_path / "bad", lines, tls=untrusted(authority, why, tmp_path), port=port):
        words = ("mount", "--tls-ca", authority.file, image, imgfs.mountpoint("other"))
        assert "certificate is not trusted" in imgfs.run(*words).complaint()
        assert errno_of(lambda: (at / "file").read_bytes()) == errno.EIO
        shown = " ".join(imgfs.ok("status", at).split())
        assert "certificate is not trusted" in shown
    assert asked.read_text() == ""  # nor was it asked for anything in plain text
    with nginx(tmp_path / "after", lines, tls=good, port=port):
        until(lambda: errno_of(lambda: (at / "file").read_bytes()) is None, "the mount has healed")
        assert (at / "file").read_bytes() == BODY
        imgfs.umount(at)


# mirrors


@needs_docker_registry
@pytest.mark.parts
def test_a_mirror_that_ends_in_the_middle_of_a_layer_costs_no_byte(tmp_path: Path, stack: ExitStack) -> None:
    """nginx as the mirror, slow enough to be ended in between."""
    registry = stack.enter_context(docker_registry(tmp_path / "data"))
    layer = os.urandom(8 << 20)
    pushed = push_image(registry, "app", "v1", [layer])
    ended = ExitStack()
    lines = f"location / {{ limit_rate 1m; proxy_pass http://{registry}; }}"
    mirror = ended.enter_context(nginx(tmp_path / "nginx", lines))
    stack.push(ended)
    resolver = configured(
        tmp_path / "certs.d", registry, f'server = "http://{registry}"\n[host."http://{mirror}"]\n'
    )
    source = open_source(RegistryReference(registry, "app", "v1"), resolver=resolver, timeouts=FAST)
    stack.callback(source.close)
    assert source.resolve() == pushed.manifest
    chunks = source.blob(pushed.layers[0])
    got = next(chunks)
    threading.Timer(0.3, ended.close).start()
    assert got + b"".join(chunks) == layer
    first, last = source.health()
    assert (first.endpoint, first.state, last.state) == (f"http://{mirror}/v2", "failing", "ok")
    assert read(source, pushed.layers[0], 5, 500) == layer[5:500]


@needs_docker_registry
@pytest.mark.parts
def test_a_pull_through_cache_is_a_mirror_that_outlives_its_registry(
    tmp_path: Path, stack: ExitStack
) -> None:
    ended = ExitStack()
    stack.push(ended)
    registry = ended.enter_context(docker_registry(tmp_path / "data"))
    layer = os.urandom(3 << 20)
    pushed = push_image(registry, "app", "v1", [layer])
    cache = stack.enter_context(docker_registry(tmp_path / "cache", mirrors=registry))
    resolver = configured(
        tmp_path / "certs.d", registry, f'server = "http://{registry}"\n[host."http://{cache}"]\n'
    )
    source = open_source(RegistryReference(registry, "app", "v1"), resolver=resolver, timeouts=FAST)
    stack.callback(source.close)
    for _ in range(2):
        assert source.document(source.resolve())
        assert source.document(pushed.config)
        assert read(source, pushed.layers[0], 1 << 20, 2 << 20) == layer[1 << 20 : 2 << 20]
        assert read(source, pushed.layers[0]) == layer
    ended.close()
    assert read(source, pushed.layers[0]) == layer


@needs_docker_registry
@pytest.mark.parts
def test_a_registry_that_is_restarted_under_load_costs_no_reader_anything(
    tmp_path: Path, stack: ExitStack
) -> None:
    running = ExitStack()
    stack.callback(lambda: running.close())
    host = running.enter_context(docker_registry(tmp_path / "data"))
    layer = os.urandom(4 << 20)
    blob = push_image(host, "app", "v1", [layer]).layers[0]
    source = open_source(RegistryReference(host, "app", "v1"))
    stack.callback(source.close)
    until = time.monotonic() + 4.0
    reads = 0

    def keep_reading(number: int) -> None:
        nonlocal reads
        at = number
        while time.monotonic() < until:
            at = (at + 300_007) % (len(layer) - 70_000)
            assert read(source, blob, at, at + 70_000) == layer[at : at + 70_000]
            reads += 1

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(keep_reading, number) for number in range(6)]
        time.sleep(1.0)
        running.close()
        time.sleep(0.7)
        again = docker_registry(tmp_path / "data", port=int(host.rpartition(":")[2]))
        assert running.enter_context(again) == host
        for reader in readers:
            reader.result(30)
    assert reads > 20
    assert source.health()[0].state == "ok"
    assert source.health()[0].error


# economy


def test_no_more_requests_than_agreed_are_under_way_at_once(server: FaultServer, stack: ExitStack) -> None:
    client = client_of(server.host, "ns/app", timeouts=FAST)
    stack.callback(client.close)
    blob = server.add_blob(BODY)
    lock, inside, most = threading.Lock(), 0, 0

    def meanwhile() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.03)
        with lock:
            inside -= 1

    server.inject(Fault(meanwhile=meanwhile), on="/blobs/", times=80)
    with ThreadPoolExecutor(40) as pool:
        pieces = list(pool.map(lambda at: read(client, blob, at, at + 10), range(0, 800, 10)))
    assert b"".join(pieces) == BODY[:800]
    assert CONNECTIONS // 2 < most <= CONNECTIONS


def test_a_token_is_fetched_even_if_everybody_waits_for_it(server: FaultServer, stack: ExitStack) -> None:
    """Those who wait for the token hold all the turns there are."""
    server.token_server = server.url
    client = client_of(server.host, "ns/app", timeouts=FAST._replace(deadline=5.0))
    stack.callback(client.close)
    blob = server.add_blob(BODY)
    server.inject(Fault(pause=0.2), on="/blobs/", times=CONNECTIONS)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        pieces = list(pool.map(lambda at: read(client, blob, at, at + 10), range(0, 10 * CONNECTIONS, 10)))
    assert b"".join(pieces) == BODY[: 10 * CONNECTIONS]


def test_a_turn_that_does_not_come_is_unavailable(server: FaultServer, stack: ExitStack) -> None:
    client = client_of(server.host, "ns/app", timeouts=FAST._replace(deadline=0.3, tries=1))
    stack.callback(client.close)
    blob = server.add_blob(BODY)
    held = [client.blob(blob) for _ in range(CONNECTIONS)]
    assert all(next(chunks) for chunks in held)
    with pytest.raises(Unavailable, match=f"not asked: {CONNECTIONS} other requests take too long"):
        read(client, blob)
    for chunks in held:
        chunks.close()  # type: ignore[attr-defined]
    assert read(client, blob, 0, 9) == BODY[:9]


# proxies


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without what this machine says of proxies."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    return monkeypatch


def plain(name: str, **more: object) -> Client:
    endpoint = RegistryEndpoint(f"http://{name}/v2", name, "ns/app")
    return Client(endpoint, **{"timeouts": FAST, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_registry_that_only_the_proxy_knows_is_read_through_it(
    server: FaultServer, proxied: pytest.MonkeyPatch, stack: ExitStack, variable: str
) -> None:
    proxy = stack.enter_context(ForwardProxy({"registry.test": server.host}))
    proxied.setenv(variable, proxy.url)
    client = plain("registry.test")
    stack.callback(client.close)
    blob = server.add_blob(BODY)
    assert read(client, blob, 5, 10) == BODY[5:10]
    assert proxy.asked == [f"GET http://registry.test/v2/ns/app/blobs/{blob.digest}"]


def test_tls_goes_through_a_proxy_with_a_private_authority_and_our_certificate(
    tmp_path: Path, server: FaultServer, authority: Authority, proxied: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    lines = f"ssl_client_certificate {authority.file};\nssl_verify_client on;\n{before(server.host)}"
    host = stack.enter_context(nginx(tmp_path / "nginx", lines, tls=authority.issue("registry.test")))
    proxy = stack.enter_context(ForwardProxy({"registry.test": host}, password="user:hunter2"))
    proxied.setenv("HTTPS_PROXY", f"http://user:hunter2@{proxy.host}")
    client = over_tls("registry.test", Tls((authority.file,), (authority.issue("client"),)))
    stack.callback(client.close)
    blob = server.add_blob(BODY)
    assert read(client, blob, 5, 10) == BODY[5:10]
    assert read(client, blob) == BODY
    assert proxy.asked == ["CONNECT registry.test:443"]  # kept, as any other connection is


@pytest.mark.parametrize(("variable", "scheme"), [("HTTP_PROXY", "http"), ("HTTPS_PROXY", "https")])
def test_a_proxy_that_refuses_is_named_without_its_password(
    proxied: pytest.MonkeyPatch, stack: ExitStack, variable: str, scheme: str
) -> None:
    proxy = stack.enter_context(ForwardProxy({}, password="user:right"))
    proxied.setenv(variable, f"http://user:hunter2@{proxy.host}")
    endpoint = RegistryEndpoint(f"{scheme}://registry.test/v2", "registry.test", "ns/app")
    client = Client(endpoint, timeouts=FAST._replace(tries=1))
    stack.callback(client.close)
    with pytest.raises(RegistryError, match="407") as raised:
        client.head_manifest("v1")
    assert "hunter2" not in str(raised.value)
    if scheme == "https":
        assert f"(through the proxy {proxy.url})" in str(raised.value)


def test_a_proxy_that_is_away_is_named(proxied: pytest.MonkeyPatch, stack: ExitStack) -> None:
    with ForwardProxy({}) as gone:
        url = gone.url
    proxied.setenv("HTTP_PROXY", url)
    client = plain("registry.test", timeouts=FAST._replace(tries=1))
    stack.callback(client.close)
    with pytest.raises(Unavailable, match=rf"Connection refused \(through the proxy {url}\)"):
        client.head_manifest("v1")


@pytest.mark.parametrize("proxy", ["socks4://ann:secret@127.0.0.1:1", "ftp://127.0.0.1:1", "http://"])
def test_a_proxy_that_is_none_of_the_web_is_named_without_its_password(
    proxied: pytest.MonkeyPatch, stack: ExitStack, proxy: str
) -> None:
    proxied.setenv("HTTP_PROXY", proxy)
    client = plain("registry.test")
    stack.callback(client.close)
    shown = proxy.replace("ann:secret@", "")
    with pytest.raises(
        RegistryError, match=rf"cannot be asked for \(through the proxy {shown}.*only those at http:"
    ):
        client.head_manifest("v1")


def test_no_proxy_is_asked_for_what_needs_none(
    server: FaultServer, proxied: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    proxy = stack.enter_context(ForwardProxy({}))
    proxied.setenv("HTTP_PROXY", proxy.url)
    here = client_of(server.host, "ns/app", timeouts=FAST)  # this machine needs no proxy to reach itself
    proxied.setenv("NO_PROXY", "registry.invalid")
    there = plain("registry.invalid", timeouts=FAST._replace(tries=1))
    for client in (here, there):
        stack.callback(client.close)
    with pytest.raises(NotFound):
        here.head_manifest("v1")
    with pytest.raises(Unavailable, match=r"(not known|resolution)"):
        there.head_manifest("v1")
    assert proxy.asked == []
