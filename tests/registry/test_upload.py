"""Pushing blobs and manifests to a registry that cuts, forgets, refuses and lies."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import IntegrityError, NotFound, RegistryError, Unauthorized, Unavailable
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_MANIFEST
from imgfs.registry.auth import join_scopes
from imgfs.registry.client import Client
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.messages import Body, CheckedBlob
from imgfs.registry.session import HttpSession
from imgfs.registry.upload import ChunkSizes, Upload, location_of, received, with_query
from tests.support.clients import FAST, client_of, endpoint_of
from tests.support.fault_server import LAYER, Fault, FaultServer, Reply, Seen
from tests.support.mounted import until

SMALL = ChunkSizes(whole=100_000, chunk=300_000)
BODY = random.Random(1).randbytes(1 << 20)
UPLOADS = "/blobs/uploads/"


@dataclass
class Origin:
    """Where a blob comes from: counts how often it is opened, and where."""

    body: bytes
    chunk: int = 70_000
    opened: list[int] = field(default_factory=list)

    def open_at(self, offset: int) -> Iterator[bytes]:
        self.opened.append(offset)
        for at in range(offset, len(self.body), self.chunk):
            yield self.body[at : at + self.chunk]


def blob_of(body: bytes, claimed: bytes | None = None) -> CheckedBlob:
    claimed = body if claimed is None else claimed
    descriptor = Descriptor(LAYER, Digest.of(claimed), len(claimed))
    return CheckedBlob(descriptor, Origin(body).open_at)


def upload(server: FaultServer, blob: CheckedBlob, pieces: ChunkSizes = SMALL) -> None:
    """Push a blob in small pieces."""
    session = HttpSession(endpoint_of(server.host, "ns/app"), credentials=lambda: None, timeouts=FAST)
    digest = str(blob.descriptor.digest)
    try:
        Upload(
            session,
            f"{server.url}/v2/ns/app{UPLOADS}",
            blob,
            scope="",
            exists=lambda: digest in server.blobs,
            sizes=pieces,
        ).run()
    finally:
        session.close()


def steps(server: FaultServer) -> list[str]:
    """The requests about uploads: their methods, and what a PATCH says it carries."""
    seen = server.seen(UPLOADS)
    return [" ".join(filter(None, [one.method, one.headers.get("content-range")])) for one in seen]


def stored(server: FaultServer, body: bytes) -> bool:
    return server.blobs.get(str(Digest.of(body))) == body


# one request


def test_a_small_blob_goes_in_one_put(server: FaultServer, client: Client) -> None:
    assert client.push_blob(blob_of(BODY))
    assert stored(server, BODY)
    assert steps(server) == ["POST", "PUT"]
    put = server.seen(UPLOADS, "PUT")[0]
    assert put.headers["content-length"] == str(len(BODY))
    assert put.headers["content-type"] == "application/octet-stream"
    assert "transfer-encoding" not in put.headers


def test_the_query_of_the_location_is_kept_beside_the_digest(server: FaultServer, client: Client) -> None:
    client.push_blob(blob_of(BODY))
    query = parse_qs(urlsplit(server.seen(UPLOADS, "PUT")[0].path).query)
    assert query == {"state": ["a/b c"], "digest": [str(Digest.of(BODY))]}


def test_an_empty_blob_is_pushed(server: FaultServer, client: Client) -> None:
    client.push_blob(blob_of(b""))
    assert stored(server, b"")


@pytest.mark.parametrize("cut", [0, 1, 2, 70_000, len(BODY) - 1])
def test_a_put_that_is_cut_goes_on_where_the_registry_stands(
    server: FaultServer, client: Client, cut: int
) -> None:
    server.inject(Fault(take=cut), on=UPLOADS, method="PUT")
    client.push_blob(blob_of(BODY))
    assert stored(server, BODY)
    resumed = f"PATCH {cut}-{len(BODY) - 1}"
    # "0-0" may mean one byte or none: then the upload begins anew
    again = ["GET", resumed, "PUT"] if cut > 1 else ["GET", "DELETE", "POST", "PUT"]
    assert steps(server) == ["POST", "PUT", *again]


def test_an_upload_that_was_forgotten_begins_anew(server: FaultServer, client: Client) -> None:
    server.forgetful = True
    server.inject(Fault(take=70_000), on=UPLOADS, method="PUT")
    client.push_blob(blob_of(BODY))
    assert stored(server, BODY)
    assert steps(server) == ["POST", "PUT", "GET", "POST", "PUT"]


def test_a_blob_that_is_there_although_the_answer_was_lost_is_not_sent_again(
    server: FaultServer, client: Client
) -> None:
    server.inject(Fault(unanswered=True), on=UPLOADS, method="PUT")
    client.push_blob(blob_of(BODY))
    assert steps(server) == ["POST", "PUT", "GET"]
    assert [seen.method for seen in server.seen(f"/blobs/{Digest.of(BODY)}")] == ["HEAD"]


@pytest.mark.parametrize("status", [500, 502, 503, 429])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_busy_registry_is_asked_again(
    server: FaultServer, client: Client, status: int, method: str
) -> None:
    server.inject(Fault(status=status, undone=True), on=UPLOADS, method=method, times=2)
    client.push_blob(blob_of(BODY))
    assert stored(server, BODY)


def test_a_registry_that_stays_busy_is_given_up_and_the_upload_cancelled(
    server: FaultServer, client: Client
) -> None:
    server.inject(Fault(status=503, undone=True), on=UPLOADS, method="PUT", times=50)
    with pytest.raises(Unavailable, match="503"):
        client.push_blob(blob_of(BODY))
    assert len(server.seen(UPLOADS, "PUT")) == 6
    assert server.uploads == {}


def test_a_blob_is_never_whole_in_memory(server: FaultServer, client: Client) -> None:
    origin = Origin(BODY, chunk=100_000)
    blob = CheckedBlob(Descriptor(LAYER, Digest.of(BODY), len(BODY)), origin.open_at)
    assert max(map(len, Body(blob, 0, len(BODY)))) <= 64 << 10


# in chunks


def test_a_large_blob_goes_in_chunks(server: FaultServer) -> None:
    upload(server, blob_of(BODY))
    assert stored(server, BODY)
    ranges = ["PATCH 0-299999", "PATCH 300000-599999", "PATCH 600000-899999", f"PATCH 900000-{len(BODY) - 1}"]
    assert steps(server) == ["POST", *ranges, "PUT"]


def test_more_than_32_mib_go_in_chunks_of_16(server: FaultServer, client: Client) -> None:
    body = bytes((32 << 20) + 1)
    client.push_blob(blob_of(body))
    assert stored(server, body)
    assert steps(server) == [
        "POST",
        "PATCH 0-16777215",
        "PATCH 16777216-33554431",
        "PATCH 33554432-33554432",
        "PUT",
    ]


def test_chunks_are_as_large_as_the_registry_wants_them(server: FaultServer) -> None:
    server.chunk_minimum = 500_000
    upload(server, blob_of(BODY))
    assert steps(server)[1:-1] == ["PATCH 0-499999", "PATCH 500000-999999", f"PATCH 1000000-{len(BODY) - 1}"]


def test_a_chunk_that_is_cut_goes_on_where_the_registry_stands(server: FaultServer) -> None:
    for fault in (Fault(take=12_345), Fault(unanswered=True), Fault(status=500, undone=True)):
        server.inject(Fault(), on=UPLOADS, method="PATCH")
        server.inject(fault, on=UPLOADS, method="PATCH")
    upload(server, blob_of(BODY))
    assert stored(server, BODY)
    assert steps(server)[:4] == ["POST", "PATCH 0-299999", "PATCH 300000-599999", "GET"]
    assert steps(server)[4] == "PATCH 312345-612344"


def test_a_range_not_satisfiable_is_asked_about(server: FaultServer) -> None:
    server.inject(Fault(), on=UPLOADS, method="PATCH")
    server.inject(Fault(status=416, undone=True), on=UPLOADS, method="PATCH")
    upload(server, blob_of(BODY))
    assert stored(server, BODY)
    assert steps(server)[2:5] == ["PATCH 300000-599999", "GET", "PATCH 300000-599999"]


def test_a_range_that_stays_behind_is_not_believed(server: FaultServer) -> None:
    server.stuck_range = "0-299999"  # as Amazon ECR's does
    upload(server, blob_of(BODY))
    assert stored(server, BODY)
    assert steps(server).count("PATCH 300000-599999") == 1


def test_a_chunk_that_was_taken_in_part_is_continued(server: FaultServer) -> None:
    server.inject(Fault(take=100_000), on=UPLOADS, method="PATCH")
    upload(server, blob_of(BODY))
    assert stored(server, BODY)


class Gitea(FaultServer):
    """Answers for uploads as Gitea does (services/packages/container/blob_uploader.go): its GET says one byte
    more than it has, and a chunk that was cut stays in its file uncounted, which makes every further one an
    error."""

    torn = False

    def keep(self, seen: Seen) -> None:  # noqa: ARG002 - the base class's
        self.torn = True

    def upload(self, seen: Seen) -> Reply:
        if seen.method == "POST":
            self.torn = False
        reply = super().upload(seen)
        if seen.method == "GET" and reply.status == 204:
            got = self.uploads[urlsplit(seen.path).path.rpartition("/")[2]].got
            return Reply(204, b"", {"Range": f"0-{len(got)}"})
        return Reply(500) if self.torn and reply.status in (201, 202) else reply


def test_an_upload_that_refuses_the_offset_it_names_begins_anew() -> None:
    with Gitea() as server:
        server.inject(Fault(), on=UPLOADS, method="PATCH")
        server.inject(Fault(take=1000), on=UPLOADS, method="PATCH")
        upload(server, blob_of(BODY))
        assert stored(server, BODY)
        cut = ["POST", "PATCH 0-299999", "PATCH 300000-599999"]
        asked = ["GET", "PATCH 300001-600000", "GET", "DELETE"]
        assert steps(server)[: len(cut + asked) + 1] == [*cut, *asked, "POST"]


def test_a_registry_that_takes_half_of_each_chunk_gets_the_blob(server: FaultServer) -> None:
    server.takes = 150_000
    upload(server, blob_of(BODY))
    assert stored(server, BODY)


def test_a_registry_that_takes_next_to_nothing_of_each_chunk_is_given_up(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would get the whole chunk again for each of its bytes, and each answer is a success."""
    monkeypatch.setattr("imgfs.registry.upload._UNTAKEN", 0)
    server.takes = 2
    with pytest.raises(RegistryError, match="takes only parts of what is sent"):
        upload(server, blob_of(BODY))
    assert [step.split()[0] for step in steps(server)] == ["POST", *["PATCH"] * 4, "DELETE"]


@pytest.mark.parametrize("status", [400, 405, 411, 413, 416])
def test_a_registry_without_chunks_gets_the_blob_in_one_request(server: FaultServer, status: int) -> None:
    server.inject(Fault(status=status, undone=True), on=UPLOADS, method="PATCH")
    upload(server, blob_of(BODY))
    assert stored(server, BODY)
    assert steps(server) == ["POST", "PATCH 0-299999", "DELETE", "POST", "PUT"]


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(0, 200_000),
    sizes=st.builds(ChunkSizes, whole=st.integers(0, 100_000), chunk=st.integers(20_000, 100_000)),
    cuts=st.lists(st.integers(0, 120_000), max_size=2),  # six tries without progress are given up
)
def test_wherever_it_is_cut_the_blob_arrives_whole(size: int, sizes: ChunkSizes, cuts: list[int]) -> None:
    with FaultServer() as server:
        for cut in cuts:
            server.inject(Fault(take=cut), on=UPLOADS, method="PATCH")
            server.inject(Fault(take=cut), on=UPLOADS, method="PUT")
        upload(server, blob_of(BODY[:size]), sizes)
        assert stored(server, BODY[:size])


# what is wrong is not committed


@pytest.mark.parametrize("pieces", [ChunkSizes(), SMALL])
@pytest.mark.parametrize(
    "lie",
    [BODY[:-1] + b"?", b"?" + BODY[1:], BODY[:-1], BODY + b"?", b""],
    ids=["last", "first", "short", "long", "empty"],
)
def test_a_blob_that_is_not_its_digest_is_never_committed(
    server: FaultServer, pieces: ChunkSizes, lie: bytes
) -> None:
    with pytest.raises(IntegrityError):
        upload(server, blob_of(lie, claimed=BODY), pieces)
    assert server.blobs == {}
    assert server.uploads == {}  # cancelled
    assert not any("digest=" in seen.path for seen in server.seen(UPLOADS) if len(seen.body) == len(BODY))


def test_bytes_for_an_empty_digest_are_an_error(server: FaultServer) -> None:
    wrong = CheckedBlob(Descriptor(LAYER, Digest.of(b"x"), 0), Origin(b"").open_at)
    with pytest.raises(IntegrityError):
        upload(server, wrong)
    assert server.log == []


def test_a_source_that_fails_is_not_the_registry_s_fault(server: FaultServer) -> None:
    def fails(offset: int) -> Iterator[bytes]:
        yield BODY[:10]
        raise Unavailable("the source is away")

    with pytest.raises(Unavailable, match="the source is away"):
        upload(server, CheckedBlob(Descriptor(LAYER, Digest.of(BODY), len(BODY)), fails))
    # the server notes a request that breaks off when it notices, perhaps after the next one
    until(lambda: sorted(steps(server)) == ["DELETE", "PATCH 0-299999", "POST"], "all have been seen")


def test_another_digest_in_the_answer_is_an_error(server: FaultServer, client: Client) -> None:
    wrong = {"Docker-Content-Digest": str(Digest.of(b"other"))}
    server.inject(Fault(headers=wrong), on=UPLOADS, method="PUT")
    with pytest.raises(IntegrityError):
        client.push_blob(blob_of(BODY))
    server.inject(Fault(headers=wrong), on="/manifests/", method="PUT")
    with pytest.raises(IntegrityError):
        client.push_manifest("v1", OCI_MANIFEST, b"{}")


def test_a_digest_of_another_algorithm_in_the_answer_says_nothing(
    server: FaultServer, client: Client
) -> None:
    server.inject(Fault(headers={"Docker-Content-Digest": str(Digest.of(b"", "sha512"))}), method="PUT")
    client.push_blob(blob_of(BODY))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_checked_blob_reads_like_a_slice_from_anywhere(data: st.DataObject) -> None:
    body = BODY[: data.draw(st.integers(0, 300_000))]
    blob = CheckedBlob(
        Descriptor(LAYER, Digest.of(body), len(body)),
        Origin(body, data.draw(st.integers(500, 90_000))).open_at,
    )
    for _ in range(3):
        start = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(start, len(body)))
        assert b"".join(blob.read(start, end)) == body[start:end]


def test_a_blob_taken_up_late_is_read_from_a_mark_and_still_checked() -> None:
    body = bytes(9 << 20)
    origin = Origin(body, chunk=1 << 20)
    blob = CheckedBlob(Descriptor(LAYER, Digest.of(body), len(body)), origin.open_at)
    assert sum(map(len, blob.read(0, 6 << 20))) == 6 << 20
    origin.body = body[:-1] + b"?"
    with pytest.raises(IntegrityError):
        list(blob.read(5 << 20, len(body)))
    assert origin.opened == [0, 4 << 20]


# mounting


def test_a_blob_is_mounted_from_another_repository(server: FaultServer, client: Client) -> None:
    server.mounts = {"ns/base"}
    blob = server.add_blob(BODY)
    assert not client.push_blob(CheckedBlob(blob, Origin(b"").open_at), mount_from="ns/base")
    query = parse_qs(urlsplit(server.seen(UPLOADS)[0].path).query)
    assert query == {"mount": [str(blob.digest)], "from": ["ns/base"]}
    assert steps(server) == ["POST"]


def test_an_upload_begun_in_place_of_a_mount_is_used(server: FaultServer, client: Client) -> None:
    assert client.push_blob(blob_of(BODY), mount_from="ns/base")
    assert stored(server, BODY)
    assert steps(server) == ["POST", "PUT"]


@pytest.mark.parametrize("status", [401, 403, 404, 405, 500])
def test_a_mount_that_is_refused_is_an_upload(server: FaultServer, client: Client, status: int) -> None:
    server.inject(Fault(status=status, undone=True), on="mount=")
    assert client.push_blob(blob_of(BODY), mount_from="ns/base")
    assert steps(server) == ["POST", "POST", "PUT"]


# where it may go, and who may


@pytest.fixture
def alice(server: FaultServer) -> Iterator[Client]:
    server.basic = ("alice", "secret")
    client = client_of(
        server.host, "ns/app", timeouts=FAST, credentials=lambda: Credentials("alice", "secret")
    )
    yield client
    client.close()


def asked_scopes(server: FaultServer) -> list[list[str]]:
    return [parse_qs(urlsplit(seen.path).query)["scope"] for seen in server.seen("/token")]


def test_a_push_asks_for_one_token_that_may_pull_and_push(server: FaultServer, alice: Client) -> None:
    server.token_server = server.url
    assert not alice.has_blob(Digest.of(BODY))
    alice.push_blob(blob_of(BODY))
    alice.push_manifest("v1", OCI_MANIFEST, b"{}")
    assert asked_scopes(server) == [["repository:ns/app:pull,push"]]


def test_a_read_does_not_ask_to_push(server: FaultServer, alice: Client) -> None:
    server.token_server = server.url
    server.add_manifest("ns/app", "v1", b"{}")
    alice.manifest("v1")
    assert asked_scopes(server) == [["repository:ns/app:pull"]]


def test_a_mount_asks_to_pull_from_the_other_repository_too(server: FaultServer, alice: Client) -> None:
    server.token_server = server.url
    server.mounts = {"ns/base"}
    blob = server.add_blob(BODY)
    assert not alice.push_blob(CheckedBlob(blob, Origin(b"").open_at), mount_from="ns/base")
    assert asked_scopes(server) == [["repository:ns/app:pull,push", "repository:ns/base:pull"]]


def test_a_mount_from_a_repository_we_may_not_read_is_an_upload(server: FaultServer, alice: Client) -> None:
    server.token_server = server.url
    server.grants = {"repository:ns/app": {"pull", "push"}}
    server.mounts = {"ns/base"}
    assert alice.push_blob(blob_of(BODY), mount_from="ns/base")
    assert stored(server, BODY)


def test_a_token_server_that_refuses_the_other_repository_does_not_stop_the_push(
    server: FaultServer, alice: Client
) -> None:
    server.token_server = server.url
    server.inject(Fault(status=403, undone=True), on="ns%2Fbase", times=20)
    assert alice.push_blob(blob_of(BODY), mount_from="ns/base")
    assert stored(server, BODY)


def test_authorization_does_not_follow_the_upload_to_another_host(
    server: FaultServer, other: FaultServer, alice: Client
) -> None:
    server.upload_host = other.url
    other.uploads = server.uploads
    alice.push_blob(blob_of(BODY))
    assert stored(other, BODY)
    assert [seen.method for seen in other.log] == ["PUT"]
    assert "authorization" not in other.log[0].headers
    assert "authorization" in server.seen(UPLOADS)[-1].headers


def test_without_the_right_to_push_the_error_says_so(server: FaultServer, alice: Client) -> None:
    server.token_server = server.url
    server.grants = {"repository:ns/app": {"pull"}}
    with pytest.raises(Unauthorized, match=rf"cannot push to {server.host}/ns/app: .*credentials"):
        alice.push_blob(blob_of(BODY))


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (401, "UNAUTHORIZED", Unauthorized, "wants credentials that may push"),
        (403, "DENIED", Unauthorized, "does not allow it"),
        (404, "NAME_UNKNOWN", NotFound, "no such repository"),
        (405, "UNSUPPORTED", RegistryError, "pull-through cache"),
        (413, "SIZE_INVALID", RegistryError, "larger than the registry"),
    ],
)
@pytest.mark.parametrize("what", ["blob", "manifest"])
def test_a_refusal_says_what_it_means(
    server: FaultServer,
    client: Client,
    what: str,
    status: int,
    code: str,
    kind: type[RegistryError],
    words: str,
) -> None:
    body = b'{"errors":[{"code":"%s","message":"told so"}]}' % code.encode()
    server.inject(Fault(status=status, body=body, undone=True))
    push: dict[str, Callable[[], object]] = {
        "blob": lambda: client.push_blob(blob_of(BODY)),
        "manifest": lambda: client.push_manifest("v1", OCI_MANIFEST, b"{}"),
    }
    with pytest.raises(kind) as raised:
        push[what]()
    assert (raised.value.status, raised.value.code) == (status, code)
    assert words in str(raised.value)
    assert f"{code}: told so" in str(raised.value)
    assert len(server.log) == 1


def test_an_upload_without_a_place_is_an_error(server: FaultServer, client: Client) -> None:
    server.inject(Fault(headers={"Location": None}), on=UPLOADS)
    with pytest.raises(RegistryError, match="no place to upload to"):
        client.push_blob(blob_of(BODY))


# manifests


@pytest.mark.parametrize("by_tag", [True, False])
def test_a_manifest_is_put_with_its_media_type(server: FaultServer, client: Client, by_tag: bool) -> None:
    client.push_manifest("v1" if by_tag else Digest.of(b"{}"), OCI_MANIFEST, b"{}")
    put = server.log[0]
    assert (put.method, put.headers["content-type"], put.body) == ("PUT", OCI_MANIFEST, b"{}")
    assert client.manifest("v1" if by_tag else Digest.of(b"{}"))[1] == b"{}"


@pytest.mark.parametrize(
    "fault", [Fault(status=429, undone=True), Fault(status=502, undone=True), Fault(unanswered=True)]
)
def test_a_manifest_is_put_again_by_a_busy_registry(
    server: FaultServer, client: Client, fault: Fault
) -> None:
    server.inject(fault, on="/manifests/", times=2)
    client.push_manifest("v1", OCI_MANIFEST, b"{}")
    assert len(server.seen("/manifests/", "PUT")) == 3


# pieces of the protocol


def test_a_blob_is_asked_for_by_head(server: FaultServer, client: Client) -> None:
    there = server.add_blob(BODY)
    assert client.has_blob(there.digest)
    assert not client.has_blob(Digest.of(b"no"))
    assert {seen.method for seen in server.log} == {"HEAD"}


@pytest.mark.parametrize(
    ("text", "count"),
    [("0-9", 10), ("bytes=0-9", 10), ("0-0", None), ("", None), ("5-9", None), ("0--1", None), ("0-x", None)],
)
def test_a_range_says_how_many_bytes_an_upload_has(text: str, count: int | None) -> None:
    assert received({"Range": text}) == count


@given(st.text())
def test_no_range_is_more_than_refused(text: str) -> None:
    assert (received({"Range": text}) or 2) > 1


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("/v2/a/up/1?s=%2F", "http://r/v2/a/up/1?s=%2F"),
        ("up/1", "http://r/v2/a/blobs/uploads/up/1"),
        ("http://s:1/x?y", "http://s:1/x?y"),
        ("//s/x", "http://s/x"),
    ],
)
def test_a_location_may_be_relative(location: str, place: str) -> None:
    assert location_of("http://r/v2/a/blobs/uploads/", {"Location": location}, 202).url == place


@pytest.mark.parametrize(
    ("url", "location", "place"),
    [
        ("https://r/v2/up/", "http://r/v2/a/up/1?s=%2F", "https://r/v2/a/up/1?s=%2F"),
        ("https://r:8443/v2/up/", "http://r:8443/up/1", "https://r:8443/up/1"),
        ("https://r:8443/v2/up/", "http://r/up/1", "https://r:8443/up/1"),
        ("https://r/v2/up/", "http://R/up/1", "https://r/up/1"),
    ],
)
def test_an_upload_at_the_same_host_stays_in_tls(url: str, location: str, place: str) -> None:
    assert location_of(url, {"Location": location}, 202).url == place


@pytest.mark.parametrize("location", ["http://s/up/1", "http://r:81/up/1", "http://s.r/up/1"])
def test_an_upload_elsewhere_does_not_leave_tls(location: str) -> None:
    with pytest.raises(RegistryError, match="which is not TLS"):
        location_of("https://r/v2/up/", {"Location": location}, 202)
    assert location_of("https://r/v2/up/", {"Location": location}, 202, verify=False).url == location


@pytest.mark.parametrize("minimum", ["", "x", "-1", "²", "9" * 30])
def test_a_senseless_minimum_is_bounded(minimum: str) -> None:
    place = location_of("http://r/", {"Location": "/x", "OCI-Chunk-Min-Length": minimum}, 202)
    assert 0 <= place.minimum <= 1 << 30


def test_a_query_is_added_to() -> None:
    assert with_query("http://r/x", digest="sha256:a") == "http://r/x?digest=sha256:a"
    assert with_query("http://r/x?s=%3D%3D", digest="sha256:a") == "http://r/x?s=%3D%3D&digest=sha256:a"


@pytest.mark.parametrize(
    ("scopes", "joined"),
    [
        (["repository:a:pull", "repository:a:pull,push"], "repository:a:pull,push"),
        (
            ["repository:h:1/a:pull repository:b:pull", "repository:b:push"],
            "repository:h:1/a:pull repository:b:pull,push",
        ),
        (["", "repository:a:pull"], "repository:a:pull"),
        (["odd", "odd"], "odd"),
    ],
)
def test_scopes_are_joined_by_resource(scopes: list[str], joined: str) -> None:
    assert join_scopes(*scopes) == joined
