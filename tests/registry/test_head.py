"""HEAD is a hint: what it denies is asked for by GET, and its length is nobody's promise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from imgfs.errors import NotFound, Unauthorized, Unavailable
from imgfs.image.resolve import resolve
from imgfs.oci.descriptor import Platform
from imgfs.oci.image import OCI_INDEX
from imgfs.oci.reference import RegistryReference
from imgfs.registry.mirrors import Mirrored
from imgfs.registry.retry import Timeouts
from imgfs.store.store import Store
from imgfs.transport.registry import RegistrySource
from tests.support.clients import endpoint_of
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import documents, gzipped
from tests.support.tarmake import archive, file

FAST = Timeouts(connect=5.0, read=5.0, deadline=10.0, backoff=0.001, tries=2)
MANIFEST = b'{"schemaVersion": 2, "layers": []}'


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.add_manifest("app", "v1", MANIFEST)
        yield server


@pytest.fixture
def source(server: FaultServer) -> Iterator[RegistrySource]:
    endpoints = (endpoint_of(server.host, "app"),)
    client = Mirrored(lambda: endpoints, timeouts=FAST)
    with closing(RegistrySource(RegistryReference(server.host, "app", "v1"), client)) as source:
        yield source


WRONG = [
    Fault(status=404),
    Fault(status=401),
    Fault(status=403),
    Fault(status=405),
    Fault(status=400),
    Fault(status=500),
    Fault(status=501),
    Fault(headers={"Content-Length": "0"}),
    Fault(headers={"Content-Length": "7"}),
    Fault(headers={"Content-Length": "99999"}),
    Fault(headers={"Content-Length": str(1 << 40)}),
    Fault(headers={"Content-Length": None}),
    Fault(headers={"Content-Length": "many"}),
    Fault(headers={"Docker-Content-Digest": None}),
    Fault(headers={"Docker-Content-Digest": "sha256:none"}),
    Fault(headers={"Content-Type": "text/html"}),
    Fault(headers={"Content-Type": None}),
]


@pytest.mark.parametrize("fault", WRONG)
def test_every_use_of_a_tag_is_answered_as_get_is(
    server: FaultServer, source: RegistrySource, fault: Fault
) -> None:
    server.inject(fault, method="HEAD", times=99)
    first = source.resolve(whole=True)
    for _ in range(3):
        named = source.resolve()
        assert (named.digest, named.media_type) == (first.digest, first.media_type)
        assert source.document(named) == MANIFEST


@pytest.mark.parametrize("fault", WRONG)
def test_another_tag_is_answered_as_get_is(server: FaultServer, source: RegistrySource, fault: Fault) -> None:
    server.add_manifest("app", "v1-other", b"{}", OCI_INDEX)
    server.inject(fault, method="HEAD", times=99)
    assert source.document(source.tagged("v1-other")) == b"{}"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_digest_that_only_head_knows_is_not_the_tags(
    server: FaultServer, source: RegistrySource, tmp_path: Path, algorithm: str
) -> None:
    made = documents([gzipped(archive(file("x")))], {"os": "linux", "architecture": "amd64"})
    for body in made.blobs.values():
        server.add_blob(body)
    server.add_manifest("app", "v1", made.manifest)
    store, wanted = Store(tmp_path / "store"), Platform.from_text("linux/amd64")
    first = resolve("app:v1", source, store, wanted)
    stale = f"{algorithm}:{'0' * (64 if algorithm == 'sha256' else 128)}"
    server.inject(Fault(headers={"Docker-Content-Digest": stale}), method="HEAD", times=99)
    again = resolve("app:v1", source, store, wanted)
    assert (again.named, again.digest) == (first.named, first.digest)
    assert store.resolved("app:v1")[0].digest == first.named


def test_a_good_head_is_all_that_is_asked(server: FaultServer, source: RegistrySource) -> None:
    assert source.resolve().size_is_hint
    assert [seen.method for seen in server.log] == ["HEAD"]


def test_what_get_denies_too_is_denied(server: FaultServer, source: RegistrySource) -> None:
    with pytest.raises(NotFound):
        source.tagged("v2")
    assert [seen.method for seen in server.log] == ["HEAD", "GET"]
    server.inject(Fault(status=403), times=2)
    with pytest.raises(Unauthorized):
        source.resolve()


@pytest.mark.parametrize("fault", [Fault(status=429), Fault(status=503), Fault(drop=True)])
def test_a_registry_that_is_busy_or_away_is_not_asked_twice_as_often(
    server: FaultServer, source: RegistrySource, fault: Fault
) -> None:
    server.inject(fault, method="HEAD", times=99)
    with pytest.raises(Unavailable):
        source.resolve()
    assert not server.seen("/manifests/", "GET")
