"""Mounts of private images, for days: tokens that live for seconds, passwords that change, links that expire.

The parts are real: Debian's docker-registry and nginx; the token server's tokens are signed, and the registry
checks them.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import random
import shutil
import socket
import time
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

import pytest
import requests

from tests.support import tarmake as tar
from tests.support.docker_registry import docker_registry, needs_docker_registry, push_image
from tests.support.mounted import Imgfs, errno_of, gzipped, plain, write_image
from tests.support.nginx import needs_nginx, nginx
from tests.support.patience import allowed
from tests.support.token_server import TokenServer, certificate
from tests.support.web_server import Handler, WebServer

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parts,
    needs_docker_registry,
    pytest.mark.skipif(os.geteuid() != 0, reason="drops the kernel's caches"),
    pytest.mark.timeout(240),
]

HASHES = {  # bcrypt
    "canary-old": "$2y$05$abcdefghijklmnopqrstuus.X1MqjFe9xYC1QzWPB4qZkYsG3oeHG",
    "canary-new": "$2y$05$abcdefghijklmnopqrstuuowm6bBkEOv9JLCXRSjDpE.zaEk/UHeq",
}
OLD, NEW = HASHES
CHANCE = random.Random(7)


@cache
def small_files() -> dict[str, bytes]:
    return {f"f{number}": CHANCE.randbytes(1 << 20) for number in range(6)}


@cache
def large_body() -> bytes:
    return CHANCE.randbytes(12 << 20)


EIO = "ERROR imgfs.fuse.errors: EIO: "


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a registry that has been filled, and can be run in any way."""
    directory = tmp_path_factory.mktemp("filled")
    with docker_registry(directory) as host:
        layers = [gzipped(tar.archive(tar.file(name, body))) for name, body in small_files().items()]
        push_image(host, "app", "v1", [layer.blob for layer in layers])
        push_image(host, "large", "v1", [plain(tar.archive(tar.file("large", large_body()))).blob])
    return directory


@pytest.fixture
def auth_file(imgfs: Imgfs, tmp_path: Path) -> Path:
    path = tmp_path / "auth.json"
    imgfs.environment["REGISTRY_AUTH_FILE"] = str(path)
    return path


def htpasswd(password: str) -> str:
    return f"ann:{HASHES[password]}\n"


def allow(path: Path, host: str, password: str) -> None:
    """Write the file anew, in place, as an administrator's script may."""
    pair = base64.b64encode(f"ann:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": pair}}}))


def assert_whole(at: Path) -> None:
    """Every file of the image app, byte for byte."""
    assert sorted(os.listdir(at)) == sorted(small_files())
    for name, body in small_files().items():
        assert (at / name).read_bytes() == body


def assert_no_secret(imgfs: Imgfs, *at: Path) -> None:
    """Neither in a log nor in a status nor among the processes."""
    said = "\n".join(imgfs.logged() + [json.dumps(imgfs.status(one)) for one in at])
    said += "".join(
        path.read_text(errors="replace") for one in at for path in [Path(f"/proc/{imgfs.pid(one)}/cmdline")]
    )
    pairs = [base64.b64encode(f"ann:{secret}".encode()).decode() for secret in HASHES]
    assert [trace for trace in ("canary", *pairs, "eyJ0eXAi") if trace in said] == []  # the last begins a JWT


# tokens


@needs_nginx
@pytest.mark.parametrize("claimed", [2, None, 3600], ids=["says so", "says nothing", "says otherwise"])
def test_tokens_that_end_in_the_middle_of_a_read_are_renewed(
    imgfs: Imgfs, tmp_path: Path, images: Path, auth_file: Path, claimed: int | None
) -> None:
    """The link is slow enough for a file to take several lifetimes of a token."""
    with (
        TokenServer(tmp_path, {"ann": OLD}, claimed=claimed) as tokens,
        docker_registry(images, token=tokens.configuration) as registry,
        nginx(
            tmp_path / "nginx", f"{slowed(tmp_path)} location / {{ proxy_pass http://{registry}; }}"
        ) as host,
    ):
        allow(auth_file, host, OLD)
        tokens.lifetime = 2  # of the token that the daemon is handed, too
        at = imgfs.mount(f"{host}/large:v1")
        imgfs.evict(f"{host}/large:v1")
        time.sleep(tokens.lifetime)
        tokens.granted = 0
        (tmp_path / "slow").touch()
        began = time.monotonic()
        assert read_with_a_pause(at / "large", tokens.lifetime) == large_body()
        lives = (time.monotonic() - began) / tokens.lifetime
        assert lives > 2, "too fast to show anything"
        assert tokens.granted >= 2
        assert_no_secret(imgfs, at)
        imgfs.umount(at)


def read_with_a_pause(path: Path, seconds: float) -> bytes:
    """Read a file; what is read ahead of its first MiB is not all of it, so the rest is asked for later."""
    with path.open("rb") as file:
        begin = file.read(1 << 20)
        time.sleep(seconds)
        return begin + file.read()


def slowed(directory: Path) -> str:
    """nginx's line for connections that are slow while there is a file `slow`."""
    return f"if (-f {directory}/slow) {{ set $limit_rate 800k; }}"


def test_a_token_that_ended_long_ago_is_renewed_for_each_reader(
    imgfs: Imgfs, tmp_path: Path, images: Path, auth_file: Path
) -> None:
    with (
        TokenServer(tmp_path, {"ann": OLD}, lifetime=1, claimed=3600) as tokens,
        docker_registry(images, token=tokens.configuration) as host,
    ):
        allow(auth_file, host, OLD)
        at = imgfs.mount(f"{host}/app:v1")
        for _ in range(2):
            imgfs.evict(f"{host}/app:v1")
            time.sleep(2.1)
            before = tokens.granted
            assert_whole(at)
            assert 1 <= tokens.granted - before <= len(small_files()) + 2
        imgfs.umount(at)


@pytest.mark.parametrize("posting", [True, False], ids=["POST", "GET"])
def test_an_identity_token_is_traded_as_often_as_need_be(
    imgfs: Imgfs, tmp_path: Path, images: Path, auth_file: Path, posting: bool
) -> None:
    with (
        TokenServer(tmp_path, {"ann": OLD}, lifetime=1, claimed=1) as tokens,
        docker_registry(images, token=tokens.configuration) as host,
    ):
        tokens.refresh, tokens.posting = {OLD}, posting
        entry = {"auth": base64.b64encode(b"ann:").decode(), "identitytoken": OLD}
        auth_file.write_text(json.dumps({"auths": {f"{host}/app": entry}}))
        at = imgfs.mount(f"{host}/app:v1")
        imgfs.evict(f"{host}/app:v1")
        time.sleep(1.1)
        assert_whole(at)
        assert set(tokens.asked) == {"" if posting else "ann"}
        assert_no_secret(imgfs, at)
        imgfs.umount(at)


# passwords


def test_a_registry_token_of_dockers_file_is_sent_as_it_is(
    imgfs: Imgfs, tmp_path: Path, images: Path, auth_file: Path
) -> None:
    with (
        TokenServer(tmp_path, {"ann": OLD}) as tokens,
        docker_registry(images, token=tokens.configuration) as host,
    ):
        basic = f"Basic {base64.b64encode(f'ann:{OLD}'.encode()).decode()}"
        _, given = tokens.answer(basic, {"scope": ["repository:app:pull"]}, posted=False)
        tokens.asked.clear()
        auth_file.write_text(json.dumps({"auths": {host: {"registrytoken": given["token"]}}}))
        at = imgfs.mount(f"{host}/app:v1")
        imgfs.evict(f"{host}/app:v1")
        assert_whole(at)
        assert_no_secret(imgfs, at)
        imgfs.umount(at)
        auth_file.write_text(json.dumps({"auths": {host: {"registrytoken": "canary-of-another"}}}))
        said = imgfs.run("ls", f"{host}/app:v1").complaint()
        assert "401" in said
        assert "canary" not in said
        assert tokens.asked == []


def test_a_password_that_changes_under_a_mount_is_read_again(
    imgfs: Imgfs, tmp_path: Path, images: Path, auth_file: Path
) -> None:
    with docker_registry(images, htpasswd=htpasswd(OLD)) as host:
        allow(auth_file, host, OLD)
        at = imgfs.mount(f"{host}/app:v1")
        imgfs.evict(f"{host}/app:v1")
        assert (at / "f0").read_bytes() == small_files()["f0"]
        change_password(images, NEW)
        allow(auth_file, host, NEW)
        imgfs.evict(f"{host}/app:v1")
        assert_whole(at)
        imgfs.umount(at)
        assert_no_secret(imgfs)


def test_a_password_that_changes_under_a_mount_is_read_again_for_tokens(
    imgfs: Imgfs, tmp_path: Path, images: Path, auth_file: Path
) -> None:
    with (
        TokenServer(tmp_path, {"ann": OLD}, lifetime=1, claimed=3600) as tokens,
        docker_registry(images, token=tokens.configuration) as host,
    ):
        allow(auth_file, host, OLD)
        at = imgfs.mount(f"{host}/app:v1")
        tokens.users["ann"] = NEW
        allow(auth_file, host, NEW)
        imgfs.evict(f"{host}/app:v1")
        time.sleep(2.1)
        assert_whole(at)
        imgfs.umount(at)


def test_a_credential_provider_of_the_node_is_asked_anew(
    imgfs: Imgfs, tmp_path: Path, images: Path, auth_file: Path
) -> None:
    """What kubelet has to keep for twelve hours is asked for again once the registry refuses it."""
    response = {
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "kind": "CredentialProviderResponse",
        "cacheKeyType": "Registry",
        "cacheDuration": "12h0m0s",
    }
    program, config = tmp_path / "ecr", tmp_path / "providers.json"
    imgfs.environment["IMGFS_CREDENTIAL_PROVIDER_CONFIG"] = str(config)
    auth_file.write_text("{}")

    def hand_out(password: str, host: str) -> None:
        answer = {**response, "auth": {host: {"username": "ann", "password": password}}}
        (tmp_path / "answer").write_text(json.dumps(answer))

    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/asked\ncat {tmp_path}/answer\n")
    program.chmod(0o755)
    provider = {"name": "ecr", "apiVersion": response["apiVersion"], "defaultCacheDuration": "12h"}
    with docker_registry(images, htpasswd=htpasswd(OLD)) as host:
        document = {"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig"}
        config.write_text(json.dumps({**document, "providers": [{**provider, "matchImages": [host]}]}))
        hand_out(OLD, host)
        at = imgfs.mount(f"{host}/app:v1")
        assert json.loads((tmp_path / "asked").read_text())["image"] == f"{host}/app"
        change_password(images, NEW)
        hand_out(NEW, host)
        imgfs.evict(f"{host}/app:v1")
        assert_whole(at)
        imgfs.umount(at)
        assert_no_secret(imgfs)


def test_a_password_that_is_withdrawn_fails_reads_and_a_new_one_heals_the_mount(
    imgfs: Imgfs, tmp_path: Path, images: Path, auth_file: Path
) -> None:
    imgfs.expected.append(f"{EIO}.*(refused user ann|user ann was refused)")
    with docker_registry(images, htpasswd=htpasswd(OLD)) as host:
        allow(auth_file, host, OLD)
        at = imgfs.mount(f"{host}/app:v1")
        change_password(images, NEW)
        imgfs.evict(f"{host}/app:v1")
        assert errno_of(lambda: (at / "f1").read_bytes()) == errno.EIO
        assert_no_secret(imgfs, at)
        allow(auth_file, host, NEW)
        assert_whole(at)
        imgfs.umount(at)


def change_password(directory: Path, password: str) -> None:
    """Have the registry see another htpasswd: it looks whether the file has another time."""
    path = directory / "htpasswd"
    path.write_text(htpasswd(password))
    later = time.time() + 10
    os.utime(path, (later, later))


@pytest.mark.parametrize("script", ["sleep 99", "exit 3", "echo rubbish"], ids=["hangs", "fails", "rubbish"])
def test_a_helper_that_breaks_under_a_mount_is_named_in_its_log_and_heals(
    imgfs: Imgfs, tmp_path: Path, images: Path, auth_file: Path, script: str
) -> None:
    imgfs.expected.append(f"{EIO}.*docker-credential-test")
    program = tmp_path / "bin/docker-credential-test"
    program.parent.mkdir()
    imgfs.environment["PATH"] = f"{program.parent}:{imgfs.environment['PATH']}"

    def say(script: str) -> None:
        new = program.with_name("new")
        new.write_text(f"#!/bin/sh\n{script}\n")
        new.chmod(0o755)
        new.rename(program)

    right = f'echo \'{{"Username": "ann", "Secret": "{OLD}"}}\''
    say(right)
    auth_file.write_text('{"credsStore": "test"}')
    with (
        TokenServer(tmp_path, {"ann": OLD}, lifetime=1, claimed=1) as tokens,
        docker_registry(images, token=tokens.configuration) as host,
    ):
        at = imgfs.mount(f"{host}/app:v1", "--read-timeout", "3")
        imgfs.evict(f"{host}/app:v1")
        say(script)
        time.sleep(1.1)
        began = time.monotonic()
        assert errno_of(lambda: (at / "f2").read_bytes()) == errno.EIO
        assert time.monotonic() - began < allowed(10)  # a helper has no longer than the read that waits
        say(right)
        time.sleep(2.1 if script.startswith("sleep") else 0)  # one that hung is not asked again for so long
        assert_whole(at)
        assert_no_secret(imgfs, at)
        imgfs.umount(at)
        assert any("docker-credential-test" in line for line in imgfs.logged())


# TLS


@pytest.fixture
def name() -> str:
    """A name of this machine that does not say so: without TLS only `localhost` and its numbers go."""
    name = socket.gethostname()
    try:
        if socket.gethostbyname(name).startswith("127."):
            return name
    except OSError:
        pass
    pytest.skip("this machine's name is not its own address")


def test_a_private_registry_with_tls_is_mounted_if_its_authority_is_trusted(
    imgfs: Imgfs, tmp_path: Path, images: Path, auth_file: Path, name: str
) -> None:
    tls = certificate(tmp_path / "tls", name)
    with docker_registry(images, htpasswd=htpasswd(OLD), tls=tls) as address:
        host = f"{name}:{address.partition(':')[2]}"
        allow(auth_file, host, OLD)
        said = imgfs.run("mount", f"{host}/app:v1", imgfs.mountpoint()).complaint()
        assert "certificate" in said
        for wrong, why in ((__file__, "not certificates in PEM"), ("/no", "cannot be read: No such file")):
            imgfs.environment["SSL_CERT_FILE"] = wrong
            said = imgfs.run("ls", f"{host}/app:v1").complaint()
            assert f"{wrong}: {why}" in said
            assert "$SSL_CERT_FILE" in said
        imgfs.environment["SSL_CERT_FILE"] = os.path.relpath(tls[0])  # a daemon has another directory
        (tmp_path / "secret").write_text(OLD)
        with (tmp_path / "secret").open() as given:
            assert imgfs.ok("login", "-u", "ann", "--password-stdin", host, stdin=given)
        at = imgfs.mount(f"{host}/app:v1")
        imgfs.evict(f"{host}/app:v1")
        assert_whole(at)
        imgfs.umount(at)


def test_a_registry_with_tls_cannot_name_a_token_server_without(
    imgfs: Imgfs, tmp_path: Path, images: Path, auth_file: Path, name: str
) -> None:
    tls = certificate(tmp_path / "tls", name)
    imgfs.environment["SSL_CERT_FILE"] = str(tls[0])
    with (
        TokenServer(tmp_path, {"ann": OLD}) as tokens,
        docker_registry(images, token=tokens.configuration, tls=tls) as address,
    ):
        host = f"{name}:{address.partition(':')[2]}"
        allow(auth_file, host, OLD)
        said = imgfs.run("mount", f"{host}/app:v1", imgfs.mountpoint()).complaint()
        assert "does not use TLS" in said
        assert tokens.asked == []


@needs_nginx
def test_a_registry_that_wants_a_certificate_of_its_clients_is_shown_that_of_certs_d(
    imgfs: Imgfs, tmp_path: Path, images: Path, name: str
) -> None:
    tls, client = certificate(tmp_path / "tls", name), certificate(tmp_path / "client", "ann")
    wanting = f"ssl_verify_client on; ssl_client_certificate {client[0]};"
    with (
        docker_registry(images) as registry,
        nginx(
            tmp_path / "nginx", f"{wanting} location / {{ proxy_pass http://{registry}; }}", tls=tls
        ) as address,
    ):
        host = f"{name}:{address.partition(':')[2]}"
        known = imgfs.directory / "home/.config/containers/certs.d" / host
        known.mkdir(parents=True)
        shutil.copy(tls[0], known / "ca.crt")
        said = imgfs.run("mount", f"{host}/app:v1", imgfs.mountpoint()).complaint()
        assert "400" in said  # nginx: "No required SSL certificate was sent"
        shutil.copy(client[0], known / "client.cert")
        shutil.copy(client[1], known / "client.key")
        at = imgfs.mount(f"{host}/app:v1")
        imgfs.evict(f"{host}/app:v1")
        assert_whole(at)
        imgfs.umount(at)


# signed links


@needs_nginx
def test_links_to_a_cdn_that_expire_in_the_middle_of_a_read_are_asked_for_again(
    imgfs: Imgfs, tmp_path: Path, images: Path, auth_file: Path
) -> None:
    with (
        docker_registry(images, htpasswd=htpasswd(OLD)) as registry,
        nginx(tmp_path / "nginx", f"{slowed(tmp_path)} {signed(images)}") as cdn,
        Signing(registry, cdn, lifetime=2) as signing,
    ):
        allow(auth_file, signing.host, OLD)
        at = imgfs.mount(f"{signing.host}/large:v1")
        imgfs.evict(f"{signing.host}/large:v1")
        signing.issued = 0
        (tmp_path / "slow").touch()
        began = time.monotonic()
        assert read_with_a_pause(at / "large", signing.lifetime) == large_body()
        assert time.monotonic() - began > 4, "too fast to show anything"
        assert signing.issued >= 2
        (tmp_path / "slow").unlink()
        imgfs.evict(f"{signing.host}/large:v1")
        time.sleep(3)
        assert (at / "large").read_bytes() == large_body()
        assert_no_secret(imgfs, at)
        assert not any("md5=" in line for line in imgfs.logged())
        imgfs.umount(at)


def signed(images: Path) -> str:
    """nginx's lines for the registry's blobs: links are signed and expire (ngx_http_secure_link_module)."""
    blobs = images / "data/docker/registry/v2/blobs/sha256"
    return f"""\
location ~ "^/sha256/(..)([0-9a-f]+)$" {{
    secure_link $arg_md5,$arg_expires;
    secure_link_md5 "$secure_link_expires$uri cdn-secret";
    if ($secure_link != "1") {{ return 403; }}
    if ($http_authorization) {{ return 400; }}
    alias {blobs}/$1/$1$2/data;
}}"""


class Signing(WebServer):
    """Stands before a registry: who may have a blob is sent to a CDN, for `lifetime` seconds."""

    def __init__(self, registry: str, cdn: str, lifetime: int) -> None:
        super().__init__(_Handler)
        self.registry = registry
        self.cdn = cdn
        self.lifetime = lifetime
        self.issued = 0

    def link(self, digest: str) -> str:
        """A signed link to a blob, as the module describes it."""
        self.issued += 1
        path, expires = f"/sha256/{digest}", int(time.time()) + self.lifetime
        made = hashlib.md5(f"{expires}{path} cdn-secret".encode(), usedforsecurity=False).digest()
        query = {"md5": base64.urlsafe_b64encode(made).decode().rstrip("="), "expires": expires}
        return f"http://{self.cdn}{path}?{urlencode(query)}"


class _Handler(Handler):
    def answer(self) -> None:
        signing: Signing = self.owner
        is_blob = "/blobs/sha256:" in self.path
        headers = {key: value for key, value in self.headers.items() if key in ("Authorization", "Accept")}
        found = requests.request(
            "HEAD" if is_blob else self.command,
            f"http://{signing.registry}{self.path}",
            headers=headers,
            timeout=allowed(30),
        )
        if is_blob and found.status_code == 200:
            self.reply(307, b"", {"Location": signing.link(self.path.rpartition(":")[2])})
            return
        kept = ("Content-Type", "Content-Length", "Docker-Content-Digest", "WWW-Authenticate")
        said = {key: found.headers[key] for key in kept if key in found.headers}
        self.reply(found.status_code, found.content, said)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process asks goes nowhere but to this machine."""
    monkeypatch.setenv("NO_PROXY", "*")


@needs_nginx
@pytest.mark.parametrize("named", ["$http_host", "$host"], ids=["with its port", "without its port"])
def test_a_registry_that_does_not_know_of_its_tls_proxy_can_be_pushed_to(
    imgfs: Imgfs, tmp_path: Path, named: str
) -> None:
    """Without X-Forwarded-Proto the registry names itself by http:// in the Location of an upload."""
    tls = certificate(tmp_path / "tls", "127.0.0.1")
    image = write_image(tmp_path / "layout", [gzipped(tar.archive(tar.file("a", b"1")))])
    with docker_registry(tmp_path / "registry") as registry:
        lines = f"location / {{ proxy_pass http://{registry}; proxy_set_header Host {named}; }}"
        with nginx(tmp_path / "nginx", lines, tls=tls) as host:
            imgfs.ok("copy", "--tls-ca", tls[0], image, f"{host}/app:v1")
            assert imgfs.ok("ls", "--tls-ca", tls[0], f"{host}/app:v1").split() == ["a"]
