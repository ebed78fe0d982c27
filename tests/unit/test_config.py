"""What the environment says, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgfs.config import (
    Environment,
    RegistriesConf,
    auth_files,
    ca_bundle,
    containerd_place,
    credential_providers,
    docker_sockets,
    peers,
    podman_storage,
    registry_files,
    store_root,
)
from imgfs.variables import account

HOME = {"HOME": "/home/ann"}


def test_the_store_is_where_the_user_says() -> None:
    assert store_root({"IMGFS_STORE": "/fast/store", **HOME}, 1000) == Path("/fast/store")
    assert store_root({"IMGFS_STORE": "/fast/store", **HOME}, 0) == Path("/fast/store")


def test_a_relative_store_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_root({"IMGFS_STORE": "store"}, 1000) == tmp_path / "store"


def test_the_store_is_in_the_users_cache_directory() -> None:
    assert store_root({"XDG_CACHE_HOME": "/cache", **HOME}, 1000) == Path("/cache/imgfs")
    assert store_root(HOME, 1000) == Path("/home/ann/.cache/imgfs")


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_what_is_no_absolute_path_is_no_xdg_directory(value: str) -> None:
    assert store_root({"XDG_CACHE_HOME": value, "IMGFS_STORE": "", **HOME}, 1000).parent == Path(
        "/home/ann/.cache"
    )


def test_roots_store_is_the_systems() -> None:
    assert store_root({"XDG_CACHE_HOME": "/cache", **HOME}, 0) == Path("/var/cache/imgfs")


def test_inside_podman_unshare_or_rootlesskit_root_is_who_began_it(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"HOME": "/home/u", "_CONTAINERS_ROOTLESS_UID": "1000"}
    assert account(environ, 0) == account({"ROOTLESSKIT_PARENT_EUID": "1000"}, 0) == 1000
    assert account(environ, 1001) == 1001  # who is no root keeps their own
    assert account({"_CONTAINERS_ROOTLESS_UID": "x"}, 0) == account({}, 0) == 0
    assert podman_storage(environ, 0)[1] == Path("/home/u/.local/share/containers/storage")
    assert podman_storage({"HOME": "/root"}, 0)[1] == Path("/var/lib/containers/storage")
    for name in ("IMGFS_STORE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert Environment.read().store_root == Path("/home/u/.cache/imgfs")


def test_the_sockets_of_engines_are_those_of_their_own_tools() -> None:
    assert docker_sockets({}) == ("unix:///var/run/docker.sock",)
    both = docker_sockets({"XDG_RUNTIME_DIR": "/run/user/1"})
    assert both == ("unix:///var/run/docker.sock", "unix:///run/user/1/docker.sock")
    assert docker_sockets({"DOCKER_HOST": "tcp://h", "XDG_RUNTIME_DIR": "/r"}) == ("tcp://h",)
    assert containerd_place({}) == (Path("/run/containerd/containerd.sock"), "default")
    named = {"CONTAINERD_ADDRESS": "unix:///s", "CONTAINERD_NAMESPACE": "k8s.io"}
    assert containerd_place(named) == (Path("/s"), "k8s.io")


def test_without_a_home_in_the_environment_the_account_says_where_it_is() -> None:
    assert store_root({}, 1000).is_absolute()


def test_credentials_are_looked_for_where_others_keep_them_in_their_order() -> None:
    environ = {
        "REGISTRY_AUTH_FILE": "/auth.json",
        "XDG_RUNTIME_DIR": "/run/user/1000",
        "XDG_CONFIG_HOME": "/config",
        "DOCKER_CONFIG": "/docker",
        **HOME,
    }
    assert list(map(str, auth_files(environ, 0))) == [
        "/auth.json",
        "/run/user/1000/containers/auth.json",
        "/config/containers/auth.json",
        "/docker/config.json",
    ]
    others = ["/home/ann/.config/containers/auth.json", "/home/ann/.docker/config.json"]
    assert list(map(str, auth_files(HOME, 1000))) == others
    assert list(map(str, auth_files(HOME, 0))) == ["/run/containers/0/auth.json", *others]


def test_the_users_files_about_registries_come_before_the_systems() -> None:
    files = registry_files(HOME)
    assert list(map(str, files.hosts)) == [
        "/home/ann/.config/imgfs/certs.d",
        "/home/ann/.config/containerd/certs.d",
        "/etc/containerd/certs.d",
    ]
    user, system = Path("/home/ann/.config/containers"), Path("/etc/containers")
    added = (system / "registries.conf.d", user / "registries.conf.d")
    assert tuple(one._replace(aliases=()) for one in files.registries) == (
        RegistriesConf(user / "registries.conf", added[1:]),
        RegistriesConf(system / "registries.conf", added),
    )
    assert list(map(str, files.certificates)) == [
        "/home/ann/.config/containers/certs.d",
        "/etc/containers/certs.d",
        "/home/ann/.config/docker/certs.d",
        "/etc/docker/certs.d",
    ]


def test_a_registries_conf_can_be_named_and_the_systems_files_be_elsewhere() -> None:
    files = registry_files(
        {
            "CONTAINERS_REGISTRIES_CONF": "/my.conf",
            "IMGFS_ETC": "/other",
            "XDG_CONFIG_HOME": "/config",
            **HOME,
        }
    )
    added = (
        Path("/other/containers/registries.conf.d"),
        Path("/config/containers/registries.conf.d"),
    )
    assert [one._replace(aliases=()) for one in files.registries] == [
        RegistriesConf(Path("/my.conf"), added, named=True)
    ]
    assert all(path.parts[1] in ("other", "config") for path in (*files.hosts, *files.certificates))


def test_other_certificates_can_be_named() -> None:
    assert ca_bundle({}) is None
    assert ca_bundle({"REQUESTS_CA_BUNDLE": "/b.pem"}) == Path("/b.pem")
    assert ca_bundle({"REQUESTS_CA_BUNDLE": "/b.pem", "SSL_CERT_FILE": "/a.pem"}) == Path("/a.pem")


@pytest.mark.parametrize(
    "name",
    [
        *("CONTAINERD_ADDRESS", "CONTAINERS_REGISTRIES_CONF", "CONTAINERS_STORAGE_CONF", "DOCKER_CONFIG"),
        *("IMGFS_CREDENTIAL_PROVIDER_BIN_DIR", "IMGFS_CREDENTIAL_PROVIDER_CONFIG", "IMGFS_PEER_CA"),
        *("IMGFS_PEER_CERT", "IMGFS_PEER_KEY", "IMGFS_STORE", "REGISTRY_AUTH_FILE", "REQUESTS_CA_BUNDLE"),
        "SSL_CERT_FILE",
    ],
)
def test_a_relative_path_in_a_variable_is_one_from_the_directory_of_the_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {**HOME, "IMGFS_CREDENTIAL_PROVIDER_CONFIG": "/providers", name: "here"}
    found = [
        *(store_root(environ, 1000), ca_bundle(environ), credential_providers(environ), peers(environ)),
        *(auth_files(environ, 1000), registry_files(environ, 1000).registries),
        *(podman_storage(environ, 1000), containerd_place(environ)),
    ]
    assert f"'{tmp_path}/here" in repr(found)  # a daemon's own directory is /


def test_the_process_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGFS_STORE", "/fast/store")
    monkeypatch.setenv("SSL_CERT_FILE", "/a.pem")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "/auth.json")
    environment = Environment.read()
    monkeypatch.setenv("IMGFS_STORE", "/other")
    assert environment.store_root == Path("/fast/store")
    assert environment.ca_bundle == Path("/a.pem")
    assert environment.auth_files[0] == Path("/auth.json")
