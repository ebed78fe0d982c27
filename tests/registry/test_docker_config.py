"""Credentials by docker's rules, and podman's own short names."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from imgfs.config import AuthText, Environment, auth_text, registry_files
from imgfs.errors import UsageError
from imgfs.registry.auth import Authorizer, Challenge
from imgfs.registry.config.credentials import (
    Credentials,
    find_credentials,
    forget_credentials,
    keep_credentials,
)
from imgfs.registry.config.shortnames import candidates

ANN = Credentials("ann", "secret")
PAIR = base64.b64encode(b"ann:secret").decode()


def written(path: Path, auths: Any) -> Path:
    path.write_text(json.dumps({"auths": auths}))
    return path


@pytest.mark.parametrize(
    "key",
    [
        "h.io",
        "h.io/",
        "h.io/v1",
        "h.io/v1/",
        "h.io/v2",
        "h.io/v2/",
        "http://h.io",
        "https://h.io",
        "https://h.io/",
        "https://h.io/v1/",
        "https://h.io/v2/",
        "https://h.io/anything/at/all",
    ],
)
def test_a_key_means_its_host_as_docker_reads_it(tmp_path: Path, key: str) -> None:
    file = written(tmp_path / "config.json", {"other.io": {"auth": "eA=="}, key: {"auth": PAIR}})
    assert find_credentials([file], "h.io", "ns/app") == ANN
    assert find_credentials([file], "h.io:5000", "ns/app") is None
    assert forget_credentials(file, "h.io")
    assert json.loads(file.read_text())["auths"] == {"other.io": {"auth": "eA=="}}


@pytest.mark.parametrize("key", ["h.io:5000/", "http://h.io:5000/v2/"])
def test_a_port_is_part_of_the_host(tmp_path: Path, key: str) -> None:
    file = written(tmp_path / "config.json", {key: {"auth": PAIR}})
    assert find_credentials([file], "h.io:5000", "app") == ANN
    assert find_credentials([file], "h.io", "app") is None


def test_a_namespace_of_podmans_stays_one(tmp_path: Path) -> None:
    file = written(tmp_path / "auth.json", {"h.io/ns": {"auth": PAIR}})
    assert find_credentials([file], "h.io", "ns/app") == ANN
    assert find_credentials([file], "h.io", "other/app") is None


@pytest.mark.parametrize("exact", [{}, {"auth": ""}, {"email": "x"}])
def test_an_empty_entry_is_no_hindrance_to_another_spelling(tmp_path: Path, exact: Any) -> None:
    file = written(tmp_path / "config.json", {"h.io": exact, "https://h.io/v1/": {"auth": PAIR}})
    assert find_credentials([file], "h.io", "app") == ANN


def test_the_exact_key_is_the_first(tmp_path: Path) -> None:
    other = base64.b64encode(b"bob:other").decode()
    file = written(tmp_path / "config.json", {"https://h.io/": {"auth": other}, "h.io": {"auth": PAIR}})
    assert find_credentials([file], "h.io", "app") == ANN


def test_what_is_kept_anew_takes_the_place_of_every_spelling(tmp_path: Path) -> None:
    file = written(tmp_path / "config.json", {"h.io/v2/": {"auth": "x"}, "https://h.io": {"auth": "y"}})
    keep_credentials(file, "h.io", "", ANN)
    assert json.loads(file.read_text())["auths"] == {"h.io": {"auth": PAIR}}


@pytest.mark.parametrize("text", [f"{PAIR[:5]}\n{PAIR[5:]}", f"{PAIR[:4]}\r\n{PAIR[4:]}\r\n", f"\n{PAIR}\n"])
def test_line_breaks_are_no_part_of_base64(tmp_path: Path, text: str) -> None:
    assert find_credentials([written(tmp_path / "a", {"h.io": {"auth": text}})], "h.io", "app") == ANN


@pytest.mark.parametrize("text", ["a b", "ä", "YQ", "====", "!!"])
def test_what_is_no_base64_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"auths\['h\.io'\]: `auth` is not base64"):
        find_credentials([written(tmp_path / "a", {"h.io": {"auth": text}})], "h.io", "app")


@pytest.mark.parametrize("name", ["", None])
def test_a_helper_without_a_name_means_the_file(tmp_path: Path, name: str | None) -> None:
    file = written(tmp_path / "config.json", {"h.io": {"auth": PAIR}})
    fields = {**json.loads(file.read_text()), "credHelpers": {"h.io": name}, "credsStore": "imgfs-nowhere"}
    file.write_text(json.dumps(fields))
    assert find_credentials([file], "h.io", "app") == ANN


def test_a_password_is_bytes(tmp_path: Path) -> None:
    pair = base64.b64encode("ann:pä".encode("latin-1")).decode()
    file = written(tmp_path / "config.json", {"h.io": {"auth": pair}})
    found = find_credentials([file], "h.io", "app")
    assert found is not None
    flow = Authorizer(lambda: found, default_scope="", secure=True).challenged([Challenge("basic", {})], None)
    with pytest.raises(StopIteration) as header:
        next(flow)
    assert header.value.value == f"Basic {pair}"
    keep_credentials(file, "h.io", "", found)
    assert json.loads(file.read_text())["auths"] == {"h.io": {"auth": pair}}


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_file_without_a_word_has_no_credentials(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    other = written(tmp_path / "auth.json", {"h.io": {"auth": PAIR}})
    assert find_credentials([tmp_path / "config.json", other], "h.io", "app") == ANN


@pytest.mark.parametrize("key", ["[::1]:5000", "https://[::1]:5000/v2/", "[::1]:5000/ns"])
def test_an_address_of_ipv6_is_a_host(tmp_path: Path, key: str) -> None:
    file = written(tmp_path / "config.json", {key: {"auth": PAIR}})
    assert find_credentials([file], "[::1]:5000", "ns/app") == ANN
    assert find_credentials([file], "[::1]", "ns/app") is None


# $DOCKER_AUTH_CONFIG

GIVEN = json.dumps({"auths": {"https://h.io/v1/": {"auth": PAIR}}})


def environment(tmp_path: Path, **variables: str) -> Environment:
    files = tuple(tmp_path / name for name in ("auth.json", "config.json"))
    return Environment(tmp_path, files, None, auth_text=auth_text(variables))


def test_the_environment_counts_before_dockers_file_and_after_podmans(tmp_path: Path) -> None:
    bob = base64.b64encode(b"bob:other").decode()
    here = environment(tmp_path, DOCKER_AUTH_CONFIG=GIVEN)
    assert find_credentials(here.auth_sources, "h.io", "app") == ANN
    written(tmp_path / "config.json", {"h.io": {"auth": bob}, "x.io": {"auth": bob}})
    assert find_credentials(here.auth_sources, "h.io", "app") == ANN
    assert find_credentials(here.auth_sources, "x.io", "app") == Credentials("bob", "other")
    job = environment(tmp_path, DOCKER_AUTH_CONFIG=GIVEN, GITLAB_CI="true")
    assert find_credentials(job.auth_sources, "h.io", "app") == Credentials("bob", "other")
    written(tmp_path / "auth.json", {"h.io": {"auth": bob}})
    assert find_credentials(here.auth_sources, "h.io", "app") == Credentials("bob", "other")


@pytest.mark.parametrize(
    "text", ["", " ", "{", "[]", '{"auths": []}', '{"auths": {"h.io": {"auth": "!"}}}', "9"]
)
def test_an_environment_that_makes_no_sense_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    here = environment(tmp_path, DOCKER_AUTH_CONFIG=text)
    written(tmp_path / "config.json", {"h.io": {"auth": PAIR}})
    with caplog.at_level(logging.WARNING):
        assert find_credentials(here.auth_sources, "h.io", "app") == ANN
    said = [record.getMessage() for record in caplog.records]
    assert all("$DOCKER_AUTH_CONFIG" in line and "does not count" in line for line in said)
    assert bool(said) == bool(text.strip() and text != '{"auths": []}')


def test_the_environments_secret_is_in_no_representation() -> None:
    assert PAIR not in repr(AuthText("$DOCKER_AUTH_CONFIG", GIVEN))


# podman's short-name-aliases.conf


def meant(tmp_path: Path, text: str, euid: int = 1000) -> list[str]:
    variables = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "IMGFS_ETC": str(tmp_path)}
    return [str(one) for one in candidates(text, registry_files(variables, euid).registries)]


def chosen(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cache/containers/short-name-aliases.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_podmans_user_has_chosen_decides(tmp_path: Path) -> None:
    chosen(tmp_path, '[aliases]\n"fedora" = "registry.example/fedora"\n')
    assert meant(tmp_path, "fedora:41") == ["registry.example/fedora:41"]
    assert meant(tmp_path, "debian") == ["docker.io/library/debian:latest"]


def test_it_decides_before_what_a_registries_conf_says(tmp_path: Path) -> None:
    conf = tmp_path / "containers/registries.conf"
    conf.parent.mkdir()
    conf.write_text('[aliases]\nfedora = "a.example/fedora"\napp = "a.example/app"\n')
    chosen(tmp_path, '[aliases]\nfedora = "b.example/fedora"\napp = ""\n')
    assert meant(tmp_path, "fedora") == ["b.example/fedora:latest"]
    assert meant(tmp_path, "app") == ["docker.io/library/app:latest"]


def test_roots_is_in_the_systems_cache() -> None:
    (first, *_) = registry_files({"HOME": "/root"}, 0).registries
    assert first.aliases[0] == Path("/var/cache/containers/short-name-aliases.conf")
    (first, *_) = registry_files({"HOME": "/home/ann"}, 1000).registries
    assert first.aliases == (Path("/home/ann/.cache/containers/short-name-aliases.conf"),)


def test_a_file_of_choices_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    chosen(tmp_path, "[aliases]\nfedora = 7\n")
    with pytest.raises(UsageError, match=r"short-name-aliases\.conf: aliases\.fedora: expected a string"):
        meant(tmp_path, "fedora")
