"""The command with files that say where registries are: containerd's, containers' and docker's."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.support import tarmake as tar
from tests.support.authority import Authority, needs_openssl
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, gzipped, serve
from tests.support.nginx import needs_nginx, nginx

NOWHERE = "registry.invalid"  # never resolves (RFC 6761, 6.4)
LAYER = gzipped(tar.archive(tar.file("name", b"one")))
OTHER = gzipped(tar.archive(tar.file("name", b"two")))


def write(imgfs: Imgfs, name: str, text: str) -> Path:
    """A file of the system's configuration, as the command sees it."""
    path = Path(imgfs.environment["IMGFS_ETC"]) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_mirror_of_hosts_toml_serves_what_its_registry_does_not(imgfs: Imgfs, server: FaultServer) -> None:
    serve(server, "app", "v1", [LAYER])
    write(imgfs, f"containerd/certs.d/{NOWHERE}/hosts.toml", f'[host."{server.url}"]')
    assert imgfs.ok("cat", f"{NOWHERE}/app:v1", "name") == "one"
    assert server.log
    assert [seen.path for seen in server.log if not seen.path.endswith(f"?ns={NOWHERE}")] == []


def test_the_default_of_a_cluster_is_asked_for_every_registry(imgfs: Imgfs, server: FaultServer) -> None:
    serve(server, "app", "v1", [LAYER])
    write(imgfs, "containerd/certs.d/_default/hosts.toml", f'[host."{server.url}"]')
    assert imgfs.ok("cat", f"{NOWHERE}/app:v1", "name") == "one"


def test_the_users_own_file_counts_for_more_than_the_systems(
    imgfs: Imgfs, server: FaultServer, other: FaultServer
) -> None:
    serve(server, "app", "v1", [LAYER])
    serve(other, "app", "v1", [OTHER])
    write(imgfs, f"containerd/certs.d/{NOWHERE}/hosts.toml", f'[host."{server.url}"]')
    users = Path(imgfs.environment["HOME"]) / f".config/imgfs/certs.d/{NOWHERE}/hosts.toml"
    users.parent.mkdir(parents=True)
    users.write_text(f'[host."{other.url}"]')
    assert imgfs.ok("cat", f"{NOWHERE}/app:v1", "name") == "two"


def test_registries_conf_may_keep_an_image_under_another_name(imgfs: Imgfs, server: FaultServer) -> None:
    serve(server, "mirror/ns/app", "v1", [LAYER])
    write(
        imgfs,
        "containers/registries.conf",
        f'[[registry]]\nprefix = "{NOWHERE}/team"\nlocation = "{server.host}/mirror/ns"\n',
    )
    assert imgfs.ok("cat", f"{NOWHERE}/team/app:v1", "name") == "one"


def test_a_named_registries_conf_takes_the_place_of_the_usual_one(
    imgfs: Imgfs, server: FaultServer, tmp_path: Path
) -> None:
    serve(server, "app", "v1", [LAYER])
    write(imgfs, "containers/registries.conf", f'[[registry]]\nlocation = "{server.host}"\nblocked = true')
    conf = tmp_path / "my.conf"
    imgfs.environment["CONTAINERS_REGISTRIES_CONF"] = str(conf)
    said = imgfs.run("cat", f"{server.host}/app:v1", "name").complaint(2)
    assert str(conf) in said
    conf.touch()
    assert imgfs.ok("cat", f"{server.host}/app:v1", "name") == "one"


def test_what_is_blocked_is_refused_and_nobody_is_asked(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "bad/app", "v1", [LAYER])
    path = write(
        imgfs,
        "containers/registries.conf.d/block.conf",
        f'[[registry]]\nprefix = "{server.host}/bad"\nblocked = true',
    )
    said = imgfs.run("cat", image, "name").complaint(2)
    assert said == f"{path}: registry[0]: {image} is blocked (prefix '{server.host}/bad')"
    assert server.log == []


@pytest.mark.parametrize(
    "name", ["containers/registries.conf", f"containerd/certs.d/{NOWHERE}/hosts.toml", "docker/certs.d"]
)
def test_a_broken_file_is_named_in_one_line(imgfs: Imgfs, name: str) -> None:
    if name.endswith("certs.d"):
        name = f"{name}/{NOWHERE}/ca.crt"
    path = write(imgfs, name, "registry = ")
    assert str(path) in imgfs.run("cat", f"{NOWHERE}/app:v1", "name").complaint(2)


def test_an_alias_stands_for_an_image_of_a_registry(imgfs: Imgfs, server: FaultServer) -> None:
    serve(server, "team/app", "v1", [LAYER])
    write(imgfs, "containers/registries.conf", f'[aliases]\nshort = "{server.host}/team/app"')
    assert imgfs.ok("cat", "short:v1", "name") == "one"
    assert f'"{server.host}/team/app:v1"' in imgfs.ok("inspect", "--json", "short:v1")


def test_searched_registries_are_tried_in_order_until_one_has_it(
    imgfs: Imgfs, server: FaultServer, other: FaultServer
) -> None:
    image = serve(other, "app", "v1", [OTHER])
    hosts = f'unqualified-search-registries = ["{server.host}", "{other.host}"]\n'
    conf = write(imgfs, "containers/registries.conf", f'{hosts}short-name-mode = "permissive"')
    assert imgfs.ok("cat", "app:v1", "name") == "two"
    serve(server, "app", "v1", [LAYER])
    assert imgfs.ok("cat", "app:v1", "name") == "one"
    assert imgfs.ok("cat", f"app@{image_digest(other)}", "name") == "two"
    said = imgfs.run("cat", "gone:v1", "name").complaint()
    assert f"{server.host}/gone:v1, {other.host}/gone:v1" in said
    conf.write_text(hosts)
    assert f"{server.host}/app:v1, {image}" in imgfs.run("cat", "app:v1", "name").complaint(2)


def image_digest(server: FaultServer) -> str:
    return next(name for _, name in server.manifests if name.startswith("sha256:"))


@needs_nginx
@needs_openssl
@pytest.mark.parametrize("where", ["docker/certs.d", "containers/certs.d"])
def test_a_registry_that_wants_a_client_certificate_is_shown_the_one_in_certs_d(
    imgfs: Imgfs, server: FaultServer, tmp_path: Path, where: str
) -> None:
    serve(server, "app", "v1", [LAYER])
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("client")
    lines = f"ssl_client_certificate {authority.file}; ssl_verify_client on;"
    lines += f" location / {{ proxy_pass {server.url}; }}"
    with nginx(tmp_path / "nginx", lines, tls=authority.issue("127.0.0.1")) as host:
        write(imgfs, f"{where}/{host}/ca.crt", authority.file.read_text())
        assert "400" in imgfs.run("cat", f"{host}/app:v1", "name").complaint()
        write(imgfs, f"{where}/{host}/client.cert", certificate.read_text())
        write(imgfs, f"{where}/{host}/client.key", key.read_text())
        assert imgfs.ok("cat", f"{host}/app:v1", "name") == "one"


@pytest.mark.kernel
def test_a_mount_goes_on_where_a_file_says_later(imgfs: Imgfs, server: FaultServer) -> None:
    imgfs.expected.append("(WARNING|ERROR) .*(refused|no answer)")
    noise = random.Random(1).randbytes(1 << 20)
    stored = gzipped(tar.archive(tar.file("noise", noise)))
    with FaultServer() as first:
        serve(first, "app", "v1", [stored])
        hosts = write(imgfs, f"containerd/certs.d/{NOWHERE}/hosts.toml", f'server = "{first.url}"')
        at = imgfs.mount(f"{NOWHERE}/app:v1")
        imgfs.evict(f"{NOWHERE}/app:v1")
    serve(server, "app", "v1", [stored])
    hosts.write_text(f'server = "{server.url}"  # after another one')
    time.sleep(1.1)  # files are looked at once a second
    assert (at / "noise").read_bytes() == noise
    assert server.seen("/blobs/")
    imgfs.umount(at)
