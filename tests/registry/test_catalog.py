"""A registry's repositories: over pages, of a real registry, and where that is not allowed or has no end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imgfs.cli import main
from tests.support import tarmake as tar
from tests.support.docker_registry import docker_registry, needs_docker_registry, push_image
from tests.support.fault_server import Fault, FaultServer
from tests.support.raw_server import Connection, RawServer

NAMES = sorted(f"team/app{number}" for number in range(2500))


class Catalog:
    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capture = capfd

    def __call__(self, *words: str, code: int = 0) -> str:
        assert main(["catalog", *words]) == code
        out, self.complaint = self._capture.readouterr()
        return out


@pytest.fixture
def catalog(capfd: pytest.CaptureFixture[str]) -> Catalog:
    return Catalog(capfd)


def test_repositories_are_listed_over_pages_up_to_the_limit(catalog: Catalog) -> None:
    with FaultServer() as server:
        server.catalog = NAMES
        assert catalog(server.host).split() == NAMES
        assert len(server.seen("_catalog")) == 3
        assert json.loads(catalog("--json", "--limit", "1200", server.host)) == NAMES[:1200]
        assert "more repositories than these 1200" in catalog.complaint
        server.catalog = []
        assert catalog(server.host) == ""
        assert catalog.complaint == ""


def test_a_token_is_asked_for_with_the_scope_of_the_catalog(catalog: Catalog) -> None:
    with FaultServer() as server:
        server.catalog, server.token_server = ["app"], server.url
        server.grants = {"registry:catalog": {"*"}}
        assert catalog(server.host) == "app\n"
        server.grants = {}
        catalog(server.host, code=1)
        assert f"cannot list the repositories of {server.host}: the registry does not allow it" in (
            catalog.complaint
        )


@pytest.mark.parametrize(
    ("status", "words"), [(403, "does not allow it"), (404, "does not offer it"), (405, "does not offer it")]
)
def test_what_a_registry_does_not_allow_is_told(catalog: Catalog, status: int, words: str) -> None:
    with FaultServer() as server:
        server.catalog = ["app"]
        server.inject(Fault(status=status), on="_catalog")
        catalog(server.host, code=1)
        assert words in catalog.complaint
        assert catalog.complaint.count("\n") == 1


def test_a_registry_that_gives_fewer_at_once_decides_how_many(catalog: Catalog) -> None:
    with FaultServer() as server:
        server.catalog = ["app"]
        server.inject(Fault(status=400), on="n=1000")
        assert catalog(server.host) == "app\n"


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"repositories": 5}', b'{"repositories": {"a": 1}}'])
def test_what_is_no_list_is_told(catalog: Catalog, body: bytes) -> None:
    with FaultServer() as server:
        server.inject(Fault(status=200, body=body), on="_catalog")
        catalog(server.host, code=1)
        assert "list of repositories is" in catalog.complaint


def test_names_that_a_terminal_would_obey_are_left_out(catalog: Catalog) -> None:
    with FaultServer() as server:
        names = ["ok", "\x1b[31mred", "a\nb", "x" * 600, 5]
        body = json.dumps({"repositories": names}).encode()
        server.inject(Fault(status=200, body=body), on="_catalog")
        assert catalog(server.host) == "ok\n"


def test_pages_without_end_do_not_go_on(catalog: Catalog) -> None:
    def answer(connection: Connection) -> None:
        link = b"</v2/_catalog?n=9&last=%d>; rel=next" % len(server.heads)
        connection.send(b'HTTP/1.1 200 -\r\nLink: %b\r\nContent-Length: 19\r\n\r\n{"repositories":[]}' % link)

    with RawServer(answer) as server:
        catalog(server.host, "--plain-http")
        assert "more repositories than these 0" in catalog.complaint
        assert len(server.heads) == 200


def test_what_is_no_registry_is_told(catalog: Catalog) -> None:
    catalog("debian", code=2)
    assert "is not the name of a registry" in catalog.complaint
    catalog("127.0.0.1:9/team:v1", code=2)
    assert catalog.complaint.startswith("imgfs: '127.0.0.1:9/team:v1' is not the name of a registry")
    catalog("127.0.0.1:9/team", code=2)
    assert "is more than a registry" in catalog.complaint


@needs_docker_registry
def test_a_real_registry_lists_what_was_pushed(catalog: Catalog, tmp_path: Path) -> None:
    with docker_registry(tmp_path) as host:
        for name in ("ns/b", "a"):
            push_image(host, name, "v1", [tar.archive(tar.file("x", b"x"))])
        assert catalog(host).split() == ["a", "ns/b"]
        assert catalog("--limit", "1", host) == "a\n"
        assert "more repositories" in catalog.complaint
