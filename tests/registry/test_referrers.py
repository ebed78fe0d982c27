"""Referrers, both ways: registries with and without the API, layouts, and answers that no one should give."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from imgfs.errors import IntegrityError, InvalidImage, NotFound, RegistryError, Unauthorized, Unavailable
from imgfs.oci.artifact import (
    EMPTY,
    Artifact,
    artifact_manifest,
    parse_artifact,
    parse_referrers,
    referrers_tag,
    with_referrer,
)
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_INDEX, OCI_MANIFEST
from imgfs.oci.reference import parse_reference
from imgfs.registry import referrers
from imgfs.registry.client import Client
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.retry import Patience, Timeouts
from imgfs.transport.connect import open_source
from imgfs.transport.destination import Destination
from imgfs.transport.open_destination import open_destination
from imgfs.transport.source import Source
from tests.support.clients import client_of
from tests.support.docker_registry import as_json, docker_registry, needs_docker_registry, push_image
from tests.support.fault_server import Fault, FaultServer
from tests.support.patience import allowed

FAST = Timeouts(connect=5.0, read=5.0, deadline=10.0, backoff=0.001)
KIND, OTHER = "application/vnd.example.index.v1", "application/vnd.example.signature.v1"
IMAGE = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
SUBJECT = Descriptor(OCI_MANIFEST, Digest.of(IMAGE), len(IMAGE))
TAG = referrers_tag(SUBJECT.digest)
LIST = f"/manifests/{TAG}"


def artifact(
    name: str = "one", kind: str = KIND, subject: Descriptor | None = SUBJECT
) -> tuple[Artifact, dict[Digest, Any]]:
    """An artifact with one layer, and where its blobs come from."""
    body = f"content of {name}".encode()
    layer = Descriptor("application/vnd.example.blob", Digest.of(body), len(body))
    made = Artifact(kind, (layer,), subject, annotations={"name": name})
    return made, {layer.digest: lambda offset: iter([body[offset:]])}


def serve(server: FaultServer, name: str, kind: str = KIND) -> Descriptor:
    """An artifact that others have pushed."""
    return server.add_manifest("ns/app", None, artifact_manifest(artifact(name, kind)[0]))


def keep_list(server: FaultServer, *names: str) -> None:
    """The list that others keep, of artifacts that are there."""
    body = None
    for name in names:
        served = serve(server, name)
        entry = Descriptor(OCI_MANIFEST, served.digest, served.size, {"name": name}, artifact_type=KIND)
        body = with_referrer(body, entry)
    assert body is not None
    server.add_manifest("ns/app", TAG, body, OCI_INDEX)


def listed(server: FaultServer) -> list[str]:
    """What the list under the tag says."""
    _, body = server.manifests["ns/app", TAG]
    return [entry.annotations["name"] for entry in parse_referrers(body)]


def names(found: list[Descriptor]) -> list[str]:
    return sorted(entry.annotations["name"] for entry in found)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.add_manifest("ns/app", "v1", IMAGE)
        yield server


@contextmanager
def source_of(place: str) -> Iterator[Source]:
    source = open_source(parse_reference(f"{place}:v1"), timeouts=FAST)
    try:
        yield source
    finally:
        source.close()


@contextmanager
def destination_of(place: str) -> Iterator[Destination]:
    destination = open_destination(parse_reference(f"{place}:v1"), timeouts=FAST)
    try:
        yield destination
    finally:
        destination.close()


# everywhere


@pytest.fixture(params=["layout", "api", "tag", "real"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A layout, a registry with the API, one without it, and a real one, which has none either."""
    if request.param == "layout":
        yield f"oci:{tmp_path / 'layout'}"
    elif request.param == "real":
        if shutil.which("docker-registry") is None:
            pytest.skip("no docker-registry")
        with docker_registry(tmp_path / "registry") as host:
            yield f"{host}/ns/app"
    else:
        with FaultServer() as server:
            server.referrers_api = request.param == "api"
            yield f"{server.host}/ns/app"


@pytest.fixture
def subject(place: str) -> Descriptor:
    """An image that is there, by the tag v1."""
    config = b'{"rootfs": {}}'
    blob = Descriptor("application/vnd.oci.image.config.v1+json", Digest.of(config), len(config))
    fields = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": as_json(blob), "layers": []}
    body = json.dumps(fields).encode()
    image = Descriptor(OCI_MANIFEST, Digest.of(body), len(body))
    with destination_of(place) as destination:
        destination.put_blob(blob, lambda offset: iter([config[offset:]]))
        destination.put_manifest(image, body, named=True)
    return image


def test_nothing_refers_to_a_new_image(place: str, subject: Descriptor) -> None:
    with source_of(place) as source:
        assert source.referrers(subject.digest) == []
        assert source.referrers(Digest.of(b"what nobody has")) == []


def test_an_artifact_that_was_put_is_found_with_all_it_says(place: str, subject: Descriptor) -> None:
    made, blobs = artifact(subject=subject)
    with destination_of(place) as destination:
        put = destination.put_artifact(made, blobs)
    with source_of(place) as source:
        assert source.referrers(subject.digest) == [put]
        assert (put.artifact_type, put.annotations) == (KIND, {"name": "one"})
        read = parse_artifact(source.document(put), put.media_type)
        assert read == made
        assert b"".join(source.blob(read.layers[0])) == b"content of one"
        assert b"".join(source.blob(Descriptor(EMPTY.media_type, EMPTY.digest, 2))) == b"{}"


def test_an_artifact_put_twice_is_there_once(place: str, subject: Descriptor) -> None:
    made, blobs = artifact(subject=subject)
    for _ in range(2):
        with destination_of(place) as destination:
            destination.put_artifact(made, blobs)
    with source_of(place) as source:
        assert names(source.referrers(subject.digest)) == ["one"]


def test_several_are_told_apart_by_their_type(place: str, subject: Descriptor) -> None:
    with destination_of(place) as destination:
        for name, kind in [("one", KIND), ("two", KIND), ("signature", OTHER)]:
            destination.put_artifact(*artifact(name, kind, subject))
    with source_of(place) as source:
        assert names(source.referrers(subject.digest)) == ["one", "signature", "two"]
        assert names(source.referrers(subject.digest, KIND)) == ["one", "two"]
        assert source.referrers(subject.digest, "no/such+type") == []


def test_a_removed_artifact_is_not_found_and_the_others_are(place: str, subject: Descriptor) -> None:
    with destination_of(place) as destination:
        gone = destination.put_artifact(*artifact("gone", KIND, subject))
        destination.put_artifact(*artifact("kept", KIND, subject))
        destination.remove_artifact(gone, subject.digest)
        destination.remove_artifact(gone, subject.digest)  # for nothing, and no harm
    with source_of(place) as source:
        assert names(source.referrers(subject.digest)) == ["kept"]


def test_the_last_one_removed_leaves_nothing_but_the_image(place: str, subject: Descriptor) -> None:
    with destination_of(place) as destination:
        put = destination.put_artifact(*artifact("gone", KIND, subject))
        destination.remove_artifact(put, subject.digest)
    with source_of(place) as source:
        assert source.referrers(subject.digest) == []
        with pytest.raises(NotFound):
            source.tagged(referrers_tag(subject.digest))
        assert source.resolve().digest == subject.digest


def test_another_tag_is_looked_up(place: str, subject: Descriptor) -> None:
    with source_of(place) as source:
        assert source.tagged("v1").digest == subject.digest
        with pytest.raises(NotFound):
            source.tagged("v1-esgztoc")


def test_an_artifact_about_nothing_is_refused(place: str) -> None:
    with destination_of(place) as destination, pytest.raises(InvalidImage, match="refers to nothing"):
        destination.put_artifact(*artifact(subject=None))


def test_a_blob_that_is_another_is_refused(place: str, subject: Descriptor) -> None:
    made, _ = artifact(subject=subject)
    with destination_of(place) as destination, pytest.raises(IntegrityError):
        destination.put_artifact(made, {made.layers[0].digest: lambda offset: iter([b"wrong"[offset:]])})
    with source_of(place) as source:
        assert source.referrers(subject.digest) == []


# reading from a registry


@pytest.mark.parametrize("has_api", [True, False])
def test_api_and_tag_are_asked_at_once_the_first_time(
    server: FaultServer, client: Client, has_api: bool
) -> None:
    client.manifest("v1")
    server.log.clear()
    server.referrers_api = has_api
    keep_list(server, "one")
    both = threading.Barrier(2)
    for path in ("/referrers/", LIST):
        server.inject(Fault(meanwhile=lambda: both.wait(allowed(20))), on=path)
    api = f"/v2/ns/app/referrers/{SUBJECT.digest}?artifactType={KIND}"
    assert names(client.referrers(SUBJECT.digest, KIND)) == ["one"]
    assert sorted(seen.path for seen in server.log) == [f"/v2/ns/app{LIST}", api]
    assert {seen.headers["accept"] for seen in server.seen("/referrers/")} == {OCI_INDEX}
    server.log.clear()
    assert names(client.referrers(SUBJECT.digest, KIND)) == ["one"]
    assert [seen.path for seen in server.log] == [api if has_api else f"/v2/ns/app{LIST}"]


@pytest.mark.parametrize("filters", [True, False])
def test_what_the_registry_does_not_filter_we_do(server: FaultServer, client: Client, filters: bool) -> None:
    server.referrers_api, server.referrers_filter = True, filters
    serve(server, "one")
    serve(server, "two", OTHER)
    assert names(client.referrers(SUBJECT.digest, OTHER)) == ["two"]


def test_a_type_with_signs_of_its_own_is_asked_for_whole(server: FaultServer, client: Client) -> None:
    server.referrers_api = True
    kind = "application/vnd.example+json; v=1&x=ü"
    serve(server, "one", kind)
    assert names(client.referrers(SUBJECT.digest, kind)) == ["one"]


def test_pages_are_followed(server: FaultServer, client: Client) -> None:
    server.referrers_api, server.referrers_page = True, 2
    for number in range(5):
        serve(server, str(number))
    assert names(client.referrers(SUBJECT.digest)) == ["0", "1", "2", "3", "4"]
    assert len(server.seen("/referrers/")) == 3


def test_that_the_api_is_missing_is_asked_once(server: FaultServer, client: Client) -> None:
    keep_list(server, "one")
    for _ in range(3):
        assert names(client.referrers(SUBJECT.digest)) == ["one"]
    assert len(server.seen("/referrers/")) == 1
    assert len(server.seen(LIST)) == 3
    assert len(server.log) == 4


HTML = Fault(status=200, body=b"<html>hello</html>", headers={"Content-Type": "text/html"})
HUGE = b" " * (5 << 20)
NO_API = {
    "404": Fault(),
    "400": Fault(status=400),
    "405": Fault(status=405),
    "501": Fault(status=501),
    "403": Fault(status=403),
    "a website": HTML,
    "another type": Fault(
        status=200, body=b'{"manifests": []}', headers={"Content-Type": "application/json"}
    ),
    "no type": Fault(status=200, body=b'{"manifests": []}', headers={"Content-Type": None}),
    "not JSON": Fault(status=200, body=b"hello", headers={"Content-Type": OCI_INDEX}),
    "no index": Fault(status=200, body=b"{}", headers={"Content-Type": OCI_INDEX}),
    "a list": Fault(status=200, body=b"[]", headers={"Content-Type": OCI_INDEX}),
    "deep": Fault(status=200, body=b"[" * 100_000, headers={"Content-Type": OCI_INDEX}),
    "huge": Fault(status=200, body=HUGE, headers={"Content-Type": OCI_INDEX}),
    "huge in chunks": Fault(status=200, body=HUGE, headers={"Content-Type": OCI_INDEX}, chunked=True),
    "redirected away": Fault(status=302, headers={"Location": "ftp://nowhere/"}),
}


@pytest.mark.parametrize("kind", NO_API)
def test_an_answer_that_is_no_list_means_that_there_is_no_api(
    server: FaultServer, client: Client, kind: str
) -> None:
    keep_list(server, "one")
    server.inject(NO_API[kind], on="/referrers/")
    assert names(client.referrers(SUBJECT.digest)) == ["one"]
    assert len(server.log) == 2


@pytest.mark.parametrize("fault", [HTML, Fault(status=200, body=b"[]"), Fault(body=IMAGE)])
def test_a_tag_that_is_no_list_has_no_referrers(server: FaultServer, client: Client, fault: Fault) -> None:
    keep_list(server, "one")
    server.with_digest_header = False
    server.inject(fault, on=LIST)
    assert client.referrers(SUBJECT.digest) == []


def test_a_list_that_is_not_its_digest_is_an_error(server: FaultServer, client: Client) -> None:
    keep_list(server, "one")
    server.inject(Fault(headers={"Docker-Content-Digest": str(SUBJECT.digest)}), on=LIST, times=9)
    with pytest.raises(IntegrityError):
        client.referrers(SUBJECT.digest)


def test_a_registry_that_is_away_is_no_registry_without_the_api(server: FaultServer, client: Client) -> None:
    server.referrers_api = True
    serve(server, "one")
    server.inject(Fault(status=503), on="/referrers/", times=3)
    with pytest.raises(Unavailable):
        client.referrers(SUBJECT.digest)
    assert len(server.seen("/referrers/")) == 3
    assert names(client.referrers(SUBJECT.digest)) == ["one"]


def test_answers_alone_end_the_tries_early() -> None:
    """What does not answer is worth as many tries as ever: it may come back."""
    patience = Patience(Timeouts(backoff=0.001, tries=9), threading.Event(), refusals=2)
    for _ in range(4):
        patience.pause(Unavailable("no answer"))
    patience.pause(Unavailable("busy", status=503))
    with pytest.raises(Unavailable, match="busy"):
        patience.pause(Unavailable("busy", status=503))


def test_a_cut_list_is_asked_for_again(server: FaultServer, client: Client) -> None:
    server.referrers_api = True
    serve(server, "one")
    server.inject(Fault(cut_after=10), on="/referrers/")
    assert names(client.referrers(SUBJECT.digest)) == ["one"]


def test_a_page_that_leads_to_itself_is_read_once(server: FaultServer, client: Client) -> None:
    server.referrers_api = True
    serve(server, "one")
    link = f'<{server.url}/v2/ns/app/referrers/{SUBJECT.digest}>; rel="next"'
    server.inject(Fault(headers={"Link": link}), on="/referrers/", times=5)
    assert names(client.referrers(SUBJECT.digest)) == ["one"]
    assert len(server.seen("/referrers/")) == 1


def test_pages_without_end_are_given_up(server: FaultServer, client: Client) -> None:
    server.referrers_api = True
    serve(server, "one")
    for number in range(100):
        link = f'</v2/ns/app/referrers/{SUBJECT.digest}?page={number}>; rel="next"'
        server.inject(Fault(headers={"Link": link}), on="/referrers/")
    assert names(client.referrers(SUBJECT.digest)) == ["one"]
    assert len(server.seen("/referrers/")) == 20


@pytest.mark.parametrize("link", ["http://127.0.0.1:1/evil", "ftp://x/", "//elsewhere.example/", "http://["])
def test_pages_on_another_host_are_not_read(server: FaultServer, client: Client, link: str) -> None:
    server.referrers_api = True
    serve(server, "one")
    server.inject(Fault(headers={"Link": f'<{link}>; rel="next"'}), on="/referrers/")
    assert names(client.referrers(SUBJECT.digest)) == ["one"]
    assert len(server.log) - len(server.seen(LIST)) == 1


def test_a_later_page_that_is_broken_is_an_error(server: FaultServer, client: Client) -> None:
    server.referrers_api, server.referrers_page = True, 1
    serve(server, "one")
    serve(server, "two")
    server.inject(Fault(body=b"nonsense"), on="after=1")
    with pytest.raises(InvalidImage, match="JSON"):
        client.referrers(SUBJECT.digest)


def test_a_missing_tag_costs_two_requests(server: FaultServer, client: Client) -> None:
    with pytest.raises(NotFound):
        client.tagged("v1-esgztoc")
    path = "/v2/ns/app/manifests/v1-esgztoc"  # what HEAD denies is asked for by GET: it is a hint
    assert [(seen.method, seen.path) for seen in server.log] == [("HEAD", path), ("GET", path)]


# pushing to a registry


def put(server: FaultServer, name: str = "one") -> Descriptor:
    with destination_of(f"{server.host}/ns/app") as destination:
        return destination.put_artifact(*artifact(name))


def test_a_registry_that_lists_by_itself_gets_no_list(server: FaultServer) -> None:
    server.referrers_api = True
    put(server)
    assert server.seen(LIST) == []
    assert [seen.path for seen in server.seen("/manifests/", "PUT")] == [
        f"/v2/ns/app/manifests/{Digest.of(artifact_manifest(artifact()[0]))}"
    ]


@pytest.mark.parametrize("said", [None, "", str(Digest.of(b"another"))])
def test_a_registry_that_does_not_say_so_gets_a_list(server: FaultServer, said: str | None) -> None:
    server.referrers_api = True
    server.inject(Fault(headers={"OCI-Subject": said}), on="/manifests/", method="PUT")
    put(server)
    assert listed(server) == ["one"]


def test_a_list_has_the_annotations_and_what_others_wrote(server: FaultServer) -> None:
    keep_list(server, "other")
    entry = put(server)
    body = json.loads(server.manifests["ns/app", TAG][1])
    assert listed(server) == ["other", "one"]
    assert body["manifests"][1] == {
        **as_json(entry),
        "artifactType": KIND,
        "annotations": {"name": "one"},
    }


@pytest.mark.parametrize("conditional", [True, False])
def test_a_list_that_another_overwrote_is_written_again(server: FaultServer, conditional: bool) -> None:
    """Another has read the list before us, and writes it after us."""
    server.conditional = conditional
    keep_list(server, "other")
    server.inject(Fault(meanwhile=lambda: keep_list(server, "other", "third")), on=LIST, method="PUT")
    put(server)
    assert listed(server) == ["other", "third", "one"]


def test_a_list_that_changed_since_it_was_read_is_read_again(server: FaultServer) -> None:
    """Another writes between our reading and our writing, and the registry tells."""
    server.conditional = True
    keep_list(server, "other")
    server.inject(Fault(meanwhile=lambda: keep_list(server, "other", "third")), on=LIST, method="GET")
    put(server)
    assert listed(server) == ["other", "third", "one"]


def test_a_list_that_was_begun_since_is_not_overwritten(server: FaultServer) -> None:
    server.conditional = True
    server.inject(Fault(meanwhile=lambda: keep_list(server, "other")), on=LIST, method="GET")
    put(server)
    assert listed(server) == ["other", "one"]


def test_conditions_that_never_hold_are_left_out_at_last(server: FaultServer) -> None:
    server.inject(Fault(status=412, undone=True), on=LIST, method="PUT", times=2)
    put(server)
    assert listed(server) == ["one"]
    sent = [seen.headers.get("if-none-match") for seen in server.seen(LIST, "PUT")]
    assert sent == ["*", "*", None]


def test_a_weak_tag_is_no_condition(server: FaultServer) -> None:
    keep_list(server, "other")
    server.inject(Fault(headers={"ETag": 'W/"1"'}), on=LIST, method="GET")
    put(server)
    assert "if-match" not in server.seen(LIST, "PUT")[0].headers


def test_a_tag_of_something_else_is_left_alone(server: FaultServer) -> None:
    server.add_manifest("ns/app", TAG, IMAGE)
    with pytest.raises(InvalidImage, match=f"{TAG} is not a list of referrers"):
        put(server)
    assert server.manifests["ns/app", TAG] == (OCI_MANIFEST, IMAGE)


def test_an_entry_that_outlived_its_manifest_is_dropped(server: FaultServer) -> None:
    server.strict = True
    keep_list(server, "dead", "other")
    dead = Digest.of(artifact_manifest(artifact("dead")[0]))
    del server.manifests["ns/app", str(dead)]
    put(server)
    assert listed(server) == ["other", "one"]


def test_a_refused_push_says_so(server: FaultServer) -> None:
    server.inject(Fault(status=405), on="/manifests/", method="PUT")
    with pytest.raises(RegistryError, match=r"cannot push to .*/ns/app"):
        put(server)


# deleting from a registry


def remove(server: FaultServer, entry: Descriptor, credentials: Credentials | None = None) -> None:
    client = client_of(server.host, "ns/app", timeouts=FAST, credentials=lambda: credentials)
    try:
        client.delete_referrer(SUBJECT.digest, entry.digest)
    finally:
        client.close()


def test_a_list_that_becomes_empty_goes(server: FaultServer) -> None:
    entry = put(server)
    remove(server, entry)
    assert ("ns/app", TAG) not in server.manifests
    assert ("ns/app", str(entry.digest)) not in server.manifests


def test_a_list_that_stays_under_its_tag_becomes_empty(server: FaultServer) -> None:
    server.keeps_tags = True
    entry = put(server)
    remove(server, entry)
    assert listed(server) == []
    assert ("ns/app", str(entry.digest)) not in server.manifests


@pytest.mark.parametrize("status", [400, 401, 403, 405])
def test_a_registry_without_deletion_is_said_to_be_one(server: FaultServer, status: int) -> None:
    entry = put(server)
    server.inject(Fault(status=status, undone=True), method="DELETE", times=4)
    with pytest.raises(RegistryError, match=r"cannot delete from .*/ns/app: the registry (does not|wants)"):
        remove(server, entry)
    assert listed(server) == []


def test_the_list_is_changed_before_its_manifest_goes(server: FaultServer) -> None:
    server.strict = True
    keep_list(server, "other")
    entry = put(server)
    remove(server, entry)
    assert listed(server) == ["other"]
    changes = [(seen.method, seen.path) for seen in server.log if seen.method in ("PUT", "DELETE")][-2:]
    assert changes == [
        ("PUT", f"/v2/ns/app{LIST}"),
        ("DELETE", f"/v2/ns/app/manifests/{entry.digest}"),
    ]


def test_a_tag_of_something_else_does_not_hinder_a_deletion(server: FaultServer) -> None:
    server.referrers_api = True
    entry = put(server)
    server.add_manifest("ns/app", TAG, IMAGE)
    remove(server, entry)
    assert ("ns/app", str(entry.digest)) not in server.manifests
    assert server.manifests["ns/app", TAG] == (OCI_MANIFEST, IMAGE)


def test_tokens_are_asked_for_with_what_they_are_for(server: FaultServer) -> None:
    server.token_server = server.url
    server.grants = {"repository:ns/app": {"pull", "push", "delete"}}
    entry = put(server)
    remove(server, entry)
    assert ("ns/app", str(entry.digest)) not in server.manifests
    assert any("delete" in seen.path for seen in server.seen("/token"))


def test_who_may_not_delete_is_told_so(server: FaultServer) -> None:
    server.token_server = server.url
    server.grants = {"repository:ns/app": {"pull", "push"}}
    entry = put(server)
    with pytest.raises(Unauthorized, match="wants credentials that may delete"):
        remove(server, entry)


def test_a_deletion_whose_answer_is_lost_is_done(server: FaultServer) -> None:
    server.referrers_api = True
    entry = put(server)
    server.inject(Fault(unanswered=True), method="DELETE")
    remove(server, entry)
    assert ("ns/app", str(entry.digest)) not in server.manifests


# layouts


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    path = tmp_path / "layout"
    with destination_of(f"oci:{path}") as destination:
        destination.put_manifest(SUBJECT, IMAGE, named=True)
    return path


def index_of(layout: Path) -> list[Any]:
    found: list[Any] = json.loads((layout / "index.json").read_text())["manifests"]
    return found


def write_list(layout: Path, *entries: Descriptor) -> None:
    """A list under the tag, as regclient keeps it."""
    body = None
    for entry in entries:
        body = with_referrer(body, entry)
    assert body is not None
    kept = Descriptor(OCI_INDEX, Digest.of(body), len(body))
    with destination_of(f"oci:{layout}") as destination:
        destination.put_manifest(kept, body, named=False)
    named = {**as_json(kept), "annotations": {"org.opencontainers.image.ref.name": TAG}}
    index = {"schemaVersion": 2, "manifests": [*index_of(layout), named]}
    (layout / "index.json").write_text(json.dumps(index))


def refers(layout: Path) -> Callable[[], list[str]]:
    def found() -> list[str]:
        with source_of(f"oci:{layout}") as source:
            return names(source.referrers(SUBJECT.digest))

    return found


def test_a_layouts_entry_is_as_oras_writes_it(layout: Path) -> None:
    with destination_of(f"oci:{layout}") as destination:
        entry = destination.put_artifact(*artifact())
    assert index_of(layout)[1] == {**as_json(entry), "artifactType": KIND, "annotations": {"name": "one"}}


def test_an_artifact_gets_no_name_in_a_layout(layout: Path) -> None:
    made, blobs = artifact()
    named = Artifact(KIND, made.layers, SUBJECT, annotations={"org.opencontainers.image.ref.name": "v1"})
    with destination_of(f"oci:{layout}") as destination:
        destination.put_artifact(named, blobs)
    with source_of(f"oci:{layout}") as source:
        assert source.resolve().digest == SUBJECT.digest


def test_an_entry_that_says_nothing_of_itself_is_found_by_its_subject(layout: Path) -> None:
    body = artifact_manifest(artifact()[0])
    with destination_of(f"oci:{layout}") as destination:
        destination.put_manifest(Descriptor(OCI_MANIFEST, Digest.of(body), len(body)), body, named=False)
    index = {"manifests": [*index_of(layout), as_json(Descriptor(OCI_MANIFEST, Digest.of(body), len(body)))]}
    (layout / "index.json").write_text(json.dumps(index))
    assert refers(layout)() == ["one"]


def test_a_list_under_the_tag_is_read_and_changed(layout: Path) -> None:
    others = [
        Descriptor(OCI_MANIFEST, Digest.of(name.encode()), 1, {"name": name}, artifact_type=KIND)
        for name in ("regclient", "kept")
    ]
    write_list(layout, *others)
    assert refers(layout)() == ["kept", "regclient"]
    with destination_of(f"oci:{layout}") as destination:
        destination.put_artifact(*artifact())
        assert refers(layout)() == ["kept", "one", "regclient"]
        destination.remove_artifact(others[0], SUBJECT.digest)
    assert refers(layout)() == ["kept", "one"]


def test_entries_of_what_is_not_there_are_passed_over(layout: Path) -> None:
    nowhere = Descriptor(OCI_MANIFEST, Digest.of(b"nowhere"), 7)
    lying = Descriptor(OCI_MANIFEST, SUBJECT.digest, 7)
    with destination_of(f"oci:{layout}") as destination:
        destination.put_artifact(*artifact())
    index = {"manifests": [as_json(nowhere), as_json(lying), *index_of(layout)]}
    (layout / "index.json").write_text(json.dumps(index))
    assert refers(layout)() == ["one"]


def test_without_a_tag_the_image_is_meant_and_not_what_refers_to_it(layout: Path) -> None:
    write_list(layout, Descriptor(OCI_MANIFEST, Digest.of(b"x"), 1, {"name": "x"}))
    with destination_of(f"oci:{layout}") as destination:
        destination.put_artifact(*artifact())
    source = open_source(parse_reference(f"oci:{layout}"))
    assert source.resolve().digest == SUBJECT.digest
    with pytest.raises(NotFound, match=r"there are: v1$"):
        open_source(parse_reference(f"oci:{layout}:v2")).resolve()


# the real registry, and what others see there


@needs_docker_registry
def test_others_see_the_list_in_a_real_registry(tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("no skopeo")
    with docker_registry(tmp_path / "registry") as host:
        image = push_image(host, "ns/app", "v1", [b""], diff_ids=[str(Digest.of(b""))]).manifest
        with destination_of(f"{host}/ns/app") as destination:
            put = destination.put_artifact(*artifact(subject=image))
        seen = [
            json.loads(_skopeo(f"docker://{host}/ns/app{name}"))
            for name in (f":{referrers_tag(image.digest)}", f"@{put.digest}")
        ]
    assert seen[0]["manifests"] == [
        {**as_json(put), "artifactType": KIND, "annotations": {"name": "one"}},
    ]
    assert seen[1]["subject"] == as_json(image)


@needs_docker_registry
def test_a_real_registry_takes_a_list_with_a_dead_entry(tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as host:
        image = push_image(host, "ns/app", "v1", [b""], diff_ids=[str(Digest.of(b""))]).manifest
        with destination_of(f"{host}/ns/app") as destination:
            dead = destination.put_artifact(*artifact("dead", KIND, image))
            url = f"http://{host}/v2/ns/app/manifests/{dead.digest}"
            requests.delete(url, timeout=10).raise_for_status()
            destination.put_artifact(*artifact("one", KIND, image))
        with source_of(f"{host}/ns/app") as source:
            assert names(source.referrers(image.digest)) == ["one"]


@needs_docker_registry
def test_a_real_registry_that_keeps_everything_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_STORAGE_DELETE_ENABLED", "false")
    with docker_registry(tmp_path / "registry") as host:
        image = push_image(host, "ns/app", "v1", [b""], diff_ids=[str(Digest.of(b""))]).manifest
        with destination_of(f"{host}/ns/app") as destination, source_of(f"{host}/ns/app") as source:
            put = destination.put_artifact(*artifact(subject=image))
            with pytest.raises(RegistryError, match="the registry does not allow deletion"):
                destination.remove_artifact(put, image.digest)
            assert source.referrers(image.digest) == []


def _skopeo(name: str) -> bytes:
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", name]
    return subprocess.run(command, check=True, capture_output=True, timeout=allowed(60)).stdout


def test_of_referrers_beyond_number_the_first_are_taken(
    server: FaultServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(referrers, "_MOST", 3)
    server.referrers_api, server.referrers_page = True, 2
    for number in range(9):
        serve(server, f"n{number}")
    assert len(names(client.referrers(SUBJECT.digest))) == 3
    assert len(server.seen("/referrers/")) == 2


def test_malformed_entries_beyond_number_are_not_looked_through() -> None:
    entry = {"mediaType": OCI_MANIFEST, "digest": f"sha256:{'0' * 64}", "size": 1}
    assert len(parse_referrers(json.dumps({"manifests": [{}] * 49_999 + [entry]}).encode())) == 1
    assert parse_referrers(json.dumps({"manifests": [{}] * 50_000 + [entry]}).encode()) == []
