"""kubelet's credential providers: which are asked, what they are told, and what of their answers counts."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.config import CredentialProviders, Environment, credential_providers
from imgfs.errors import ImgfsError, Unauthorized, UsageError
from imgfs.registry.config.credential_providers import ask_providers, is_match
from imgfs.registry.config.credentials import Credentials, find_credentials

API = "credentialprovider.kubelet.k8s.io/v1"
ROBOT = {"username": "robot", "password": "pass"}


def answer(auth: Any, **more: object) -> str:
    fields = {"apiVersion": API, "kind": "CredentialProviderResponse", "cacheKeyType": "Registry"}
    return json.dumps({**fields, "auth": auth, **more})


class Node:
    """A node's configuration, and its programs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.source = CredentialProviders(directory / "config.yaml", directory / "bin")
        (directory / "bin").mkdir()
        self.providers: list[dict[str, Any]] = []

    def provide(self, name: str, script: str, *images: str, **more: object) -> None:
        program = self.directory / "bin" / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        self.providers.append(
            {
                "name": name,
                "matchImages": list(images) or ["*.io"],
                "apiVersion": API,
                "defaultCacheDuration": "12h",
                **more,
            }
        )
        self.configure({"providers": self.providers})

    def says(self, name: str, said: str, *images: str, **more: object) -> None:
        here = self.directory / name
        here.with_suffix(".json").write_text(said)
        script = f'cat > {here}.asked; echo "$1 $WHO" > {here}.given; cat {here}.json'
        self.provide(name, script, *images, **more)

    def configure(self, fields: Mapping[str, object]) -> None:
        document = {"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", **fields}
        self.source.config.write_text(json.dumps(document))

    def asked(self, name: str) -> Any:
        return json.loads((self.directory / f"{name}.asked").read_text())

    def find(self, registry: str = "h.io", repository: str = "team/app") -> Credentials | None:
        return find_credentials([self.source], registry, repository, seconds=5)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "image", "matches"),
    [
        ("gcr.io", "gcr.io/a", True),
        ("gcr.io", "eu.gcr.io/a", False),
        ("*.gcr.io", "eu.gcr.io/a", True),
        ("*.io", "eu.gcr.io/a", False),
        ("*.*.registry.io", "a.b.registry.io/x", True),
        ("app*.k8s.io", "apple.k8s.io/x", True),
        ("k8s.*", "k8s.io/x", True),
        ("123456789.dkr.ecr.*.amazonaws.com", "123456789.dkr.ecr.eu-west-1.amazonaws.com/x/y", True),
        ("registry.io:8080/path", "registry.io:8080/path/app", True),
        ("registry.io:8080/path", "registry.io:8080/other", False),
        ("registry.io:8080/path", "registry.io/path/app", False),
        ("registry.io", "registry.io:8080/app", False),
        ("*.registry.io:5000", "a.registry.io:5000/app", True),
        ("https://gcr.io/team", "gcr.io/team/app", True),
        ("docker.io", "docker.io/library/busybox", True),
        ("https://index.docker.io/v1/", "docker.io/library/busybox", True),
        ("https://gcr.io/v1/", "gcr.io/library/busybox", False),
        ("", "gcr.io/a", False),
    ],
)
def test_patterns_match_as_kubelet_has_them(pattern: str, image: str, matches: bool) -> None:
    registry, _, repository = image.partition("/")
    assert is_match(pattern, registry, repository) is matches


def test_a_program_is_asked_for_its_images_alone(node: Node) -> None:
    node.says("other", answer({"*.com": ROBOT}), "*.com")
    more = {"args": ["--now"], "env": [{"name": "WHO", "value": "robot"}]}
    node.says("mine", answer({"h.io": ROBOT}), "h.io/team", **more)
    assert node.find() == Credentials("robot", "pass")
    request = {"apiVersion": API, "kind": "CredentialProviderRequest", "image": "h.io/team/app"}
    assert node.asked("mine") == request
    assert (node.directory / "mine.given").read_text() == "--now robot\n"
    assert not (node.directory / "other.asked").exists()
    assert node.find("h.io", "others/app") is None


def test_the_key_that_says_most_counts(node: Node) -> None:
    keys = {"*.io": "a", "h.io": "b", "h.io/team": "c", "h.io/team/application": "d", "x.io": "e"}
    node.says("p", answer({key: {"username": "u", "password": word} for key, word in keys.items()}))
    assert node.find() == Credentials("u", "c")
    assert node.find("h.io", "app") == Credentials("u", "b")
    assert node.find("y.io", "app") == Credentials("u", "a")


def test_the_first_that_has_some_counts_and_a_failure_if_none_has(node: Node, tmp_path: Path) -> None:
    node.provide("fails", "echo secret; exit 3")
    with pytest.raises(Unauthorized, match=r"bin/fails failed for h\.io/team/app \(exit code 3\)") as failed:
        node.find()
    assert "secret" not in str(failed.value)
    auth = tmp_path / "auth.json"
    auth.write_text(json.dumps({"auths": {"h.io": {"auth": "YW5uOnNlY3JldA=="}}}))
    assert find_credentials([node.source, auth], "h.io", "app") == Credentials("ann", "secret")
    node.says("none", answer(None))
    node.says("some", answer({"h.io": ROBOT}))
    assert node.find() == Credentials("robot", "pass")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("rubbish", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no CredentialProviderResponse"),
        ("{}", "no CredentialProviderResponse"),
        (answer({}, apiVersion=f"{API}beta1"), f"not of {API}"),
        (answer({}, cacheKeyType="Planet"), "none of Image, Registry, Global"),
        (answer([]), "not an object"),
        (answer({"h.io": []}), "no username and password for 'h.io'"),
        (answer({"h.io": {"username": "u"}}), "no username and password"),
        ("x" * 2_000_000, "more than 1048576 bytes"),
    ],
)
def test_an_answer_that_is_none_is_a_failure(node: Node, said: str, why: str) -> None:
    node.says("p", said)
    with pytest.raises(Unauthorized, match=why):
        node.find()


def test_a_program_that_hangs_or_is_not_there_is_a_failure(node: Node) -> None:
    node.provide("p", "sleep 60 & wait")
    began = time.monotonic()
    with pytest.raises(Unauthorized, match=r"no answer within 0\.3 s"):
        ask_providers(node.source, "h.io", "app", 0.3)
    assert time.monotonic() - began < 20
    (node.directory / "bin/p").unlink()
    with pytest.raises(Unauthorized, match="cannot be run: No such file"):
        node.find()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "../p"}, r"providers\[0\]\.name: '\.\./p' is not the name of a program"),
        ({"name": "a b"}, "is not the name"),
        ({"name": ".."}, "is not the name"),
        ({"apiVersion": "v2"}, "apiVersion: 'v2' is not"),
        ({"matchImages": []}, r"matchImages: expected a list"),
        ({"matchImages": "*.io"}, r"matchImages: expected a list"),
        ({"args": [1]}, "args: expected texts"),
        ({"env": [{"value": "x"}]}, "env: expected texts"),
        ({"tokenAttributes": {"serviceAccountTokenAudience": "a"}}, "only kubelet has tokens"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_an_error(
    node: Node, change: Mapping[str, object], why: str
) -> None:
    node.says("p", answer({"h.io": ROBOT}))
    node.configure({"providers": [{**node.providers[0], **change}]})
    with pytest.raises(UsageError, match=why):
        node.find()


def test_a_directory_of_configurations_is_read_in_order(node: Node) -> None:
    node.says("first", answer({"h.io": ROBOT}))
    node.says("second", answer({"h.io": {"username": "other", "password": "x"}}))
    document = json.loads(node.source.config.read_text())
    parts = node.directory / "parts"
    parts.mkdir()
    for name, provider in zip(("b.json", "a.yml"), node.providers, strict=True):
        (parts / name).write_text(json.dumps({**document, "providers": [provider]}))
    (parts / "readme").write_text("not one")
    source = CredentialProviders(parts, node.source.directory)
    assert find_credentials([source], "h.io", "app") == Credentials("other", "x")
    (parts / "c.json").write_text((parts / "b.json").read_text())
    with pytest.raises(UsageError, match="two providers are called 'first'"):
        find_credentials([source], "h.io", "app")


def test_yaml_is_read_and_what_is_none_is_named(node: Node) -> None:
    node.says("ecr", answer({"h.io": ROBOT}))
    node.source.config.write_text(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n"
        f"- name: ecr\n  matchImages: ['*.io']\n  defaultCacheDuration: 12h\n  apiVersion: {API}\n"
    )
    assert node.find() == Credentials("robot", "pass")
    for text, why in (
        ("a: [", "no YAML, line"),
        ("kind: Pod", "not a CredentialProviderConfig"),
        ("[]", "an object"),
    ):
        node.source.config.write_text(text)
        with pytest.raises(UsageError, match=why):
            node.find()
    node.source.config.unlink()
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        node.find()


@given(st.binary(max_size=200))
def test_no_bytes_are_worse_than_an_error(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.yaml"
    path.write_bytes(body)
    with pytest.raises(ImgfsError):
        ask_providers(CredentialProviders(path, path.parent), "h.io", "app", 1)


def test_beside_a_directory_of_configurations_means_in_it(tmp_path: Path) -> None:
    found = credential_providers({"IMGFS_CREDENTIAL_PROVIDER_CONFIG": str(tmp_path)})
    assert found == CredentialProviders(tmp_path, tmp_path)


def test_variables_name_them_and_they_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert credential_providers({}) is None
    given_ = {"IMGFS_CREDENTIAL_PROVIDER_CONFIG": "/etc/k/config.yaml"}
    assert credential_providers(given_) == CredentialProviders(Path("/etc/k/config.yaml"), Path("/etc/k"))
    for name, value in {**given_, "IMGFS_CREDENTIAL_PROVIDER_BIN_DIR": "/opt/bin"}.items():
        monkeypatch.setenv(name, value)
    source, *files = Environment.read().auth_sources
    assert source == CredentialProviders(Path("/etc/k/config.yaml"), Path("/opt/bin"))
    assert files
