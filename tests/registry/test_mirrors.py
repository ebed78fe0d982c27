"""Reading from mirrors that misbehave, with a registry behind them; what is remembered of each."""

from __future__ import annotations

import gc
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgfs.errors import IntegrityError, InvalidImage, NotFound, RegistryError, Unauthorized, Unavailable
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_INDEX
from imgfs.registry.candidates import short_timeouts
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.endpoint import PULL, RESOLVE, RegistryEndpoint, Tls
from imgfs.registry.endpoint_state import EndpointState
from imgfs.registry.mirrors import Mirrored
from imgfs.registry.retry import Busy, Timeouts
from imgfs.status import EndpointStatus, plain
from tests.support.clients import endpoint_of
from tests.support.fault_server import Fault, FaultServer
from tests.support.patience import allowed

FAST = Timeouts(connect=5.0, read=5.0, deadline=10.0, backoff=0.001)
BODY = bytes(range(256)) * 4096  # 1 MiB
APP = "ns/app"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def mirror() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def registry() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


Opens = Callable[..., Mirrored]


@pytest.fixture
def opens(mirror: FaultServer, registry: FaultServer, clock: Clock) -> Iterator[Opens]:
    """Opens a repository of one mirror and its registry, or of other endpoints."""
    opened: list[Mirrored] = []

    def opens(*endpoints: RegistryEndpoint, **more: Any) -> Mirrored:
        chosen = endpoints or (mirror_of(mirror), endpoint_of(registry.host, APP))
        opened.append(Mirrored(lambda: chosen, **{"timeouts": FAST, "clock": clock, **more}))
        return opened[-1]

    yield opens
    for one in opened:
        one.close()


@pytest.fixture
def mirrored(opens: Opens) -> Mirrored:
    return opens()


def mirror_of(server: FaultServer, *capabilities: str) -> RegistryEndpoint:
    endpoint = endpoint_of(server.host, APP, is_mirror=True)
    return replace(endpoint, capabilities=frozenset(capabilities)) if capabilities else endpoint


def add_blob(body: bytes, *servers: FaultServer) -> Descriptor:
    return [server.add_blob(body) for server in servers][-1]


def add_manifest(tag: str, body: bytes, *servers: FaultServer) -> Descriptor:
    return [server.add_manifest(APP, tag, body) for server in servers][-1]


def read(mirrored: Mirrored, blob: Descriptor, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(mirrored.blob(blob, start, end))


def ranges(server: FaultServer) -> list[str | None]:
    return [seen.headers.get("range") for seen in server.seen("/blobs/")]


# the order


def test_the_registry_is_not_asked_for_what_a_mirror_has(
    mirror: FaultServer, registry: FaultServer, mirrored: Mirrored
) -> None:
    manifest, blob = add_manifest("v1", b"{}", mirror), add_blob(BODY, mirror)
    assert mirrored.head_manifest("v1") == manifest
    assert mirrored.tagged("v1") == manifest
    assert mirrored.manifest(manifest.digest) == (manifest, b"{}")
    assert mirrored.blob_document(blob.digest) == BODY
    assert read(mirrored, blob, 10, 20) == BODY[10:20]
    assert registry.log == []
    assert mirrored.traffic == (5, 2 + len(BODY) + 10)


def test_connections_made_ahead_are_those_that_requests_take(
    mirror: FaultServer, registry: FaultServer, mirrored: Mirrored
) -> None:
    blobs = [add_blob(bytes([number]), mirror) for number in range(3)]
    read(mirrored, blobs[0])  # the first request goes alone
    mirrored.connect_ahead(3)  # two beside the one that lies idle now
    for thread in [each for each in threading.enumerate() if each.name == "imgfs-connect"]:
        thread.join(allowed(10))
    for _ in range(2):
        all_at_once = threading.Barrier(3)
        mirror.inject(Fault(meanwhile=lambda met=all_at_once: met.wait(allowed(10))), on="/blobs/", times=3)  # type: ignore[misc]
        with ThreadPoolExecutor(3) as readers:
            assert list(readers.map(lambda blob: read(mirrored, blob), blobs)) == [b"\0", b"\1", b"\2"]
        mirrored.connect_ahead(3)  # which lie idle now
    assert (mirror.connections, registry.connections) == (3, 0)


def test_a_request_takes_a_connection_that_is_still_being_made(
    mirror: FaultServer, mirrored: Mirrored
) -> None:
    blobs = [add_blob(bytes([number]), mirror) for number in range(3)]
    mirrored.connect_ahead(3)
    assert read(mirrored, blobs[0]) == b"\0"
    met = threading.Barrier(3)
    mirror.inject(Fault(meanwhile=lambda: met.wait(allowed(10))), on="/blobs/", times=3)
    with ThreadPoolExecutor(3) as readers:
        assert list(readers.map(lambda blob: read(mirrored, blob), blobs)) == [b"\0", b"\1", b"\2"]
    assert mirror.connections == 3


def test_what_is_not_reached_ahead_is_not_reached_by_requests_and_another_endpoint_is(
    registry: FaultServer, opens: Opens
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as unused:
        host = f"127.0.0.1:{unused.getsockname()[1]}"
    mirrored = opens(endpoint_of(host, APP, is_mirror=True), endpoint_of(registry.host, APP))
    manifest = add_manifest("v1", b"{}", registry)
    mirrored.connect_ahead(3)
    assert mirrored.manifest("v1") == (manifest, b"{}")


def test_a_mirror_that_cannot_be_connected_to_ahead_is_passed_over_when_it_is_asked(
    registry: FaultServer, opens: Opens, tmp_path: Path
) -> None:
    broken = replace(endpoint_of("mirror.test", APP, is_mirror=True), url="https://mirror.test/v2")
    mirrored = opens(replace(broken, tls=Tls((tmp_path / "no.pem",))), endpoint_of(registry.host, APP))
    manifest = add_manifest("v1", b"{}", registry)
    mirrored.connect_ahead(3)
    assert mirrored.manifest("v1") == (manifest, b"{}")


@pytest.mark.parametrize("fault", [Fault(cut_after=300_000), Fault(stall_after=300_000), Fault(reset=True)])
def test_a_mirror_that_dies_in_mid_read_is_taken_over_from_at_that_byte(
    mirror: FaultServer, registry: FaultServer, opens: Opens, fault: Fault
) -> None:
    mirrored = opens(timeouts=FAST._replace(read=0.4))
    blob = add_blob(BODY, mirror, registry)
    mirror.inject(replace(fault, cut_after=300_000), on="/blobs/", times=9)
    assert read(mirrored, blob, 1000) == BODY[1000:]
    assert ranges(mirror) == ["bytes=1000-1048575"]
    [went_on] = ranges(registry)
    assert went_on == "bytes=301000-1048575" or fault.reset  # a reset may take with it what was on its way


@pytest.mark.parametrize(
    "fault",
    [
        Fault(drop=True),
        Fault(status=500),
        Fault(status=429, headers={"Retry-After": "3600"}),
        Fault(status=401),
        Fault(status=403),
        Fault(status=404),
        Fault(status=416),
        Fault(status=400),
        Fault(status=302, headers={"Location": "gopher://x/"}),
        Fault(headers={"Content-Range": "bytes 0-9/1048576"}),
        Fault(headers={"Content-Range": "bytes 10-19/99"}),
        Fault(headers={"Content-Range": None}),
        Fault(headers={"Content-Length": "9"}),
        Fault(status=200, body=b"<html>"),
    ],
)
def test_a_range_that_a_mirror_does_not_give_comes_from_the_registry(
    mirror: FaultServer, registry: FaultServer, mirrored: Mirrored, fault: Fault
) -> None:
    blob = add_blob(BODY, mirror, registry)
    mirror.inject(fault, on="/blobs/")
    assert read(mirrored, blob, 10, 20) == BODY[10:20]
    assert (len(mirror.log), ranges(registry)) == (1, ["bytes=10-19"])


@pytest.mark.parametrize(
    "fault",
    [
        Fault(body=b"{"),
        Fault(body=b"<html>"),
        Fault(flip_at=0),
        Fault(status=404),
        Fault(status=500),
        Fault(headers={"Content-Length": str(99 << 20)}),
    ],
)
def test_a_document_that_a_mirror_has_not_or_has_wrong_comes_from_the_registry(
    mirror: FaultServer, registry: FaultServer, opens: Opens, fault: Fault
) -> None:
    manifest = add_manifest("v1", b"{}", mirror, registry)
    config = add_blob(b"{}", mirror, registry)
    mirror.inject(fault, times=9)
    assert opens().manifest(manifest.digest) == (manifest, b"{}")
    assert opens().blob_document(config.digest) == b"{}"
    assert len(mirror.log) == 2


def test_tags_are_asked_of_those_that_resolve_and_digests_of_those_that_pull(
    mirror: FaultServer, registry: FaultServer, opens: Opens
) -> None:
    old = add_manifest("v1", b"{}", mirror)
    new = add_manifest("v1", b"{} ", registry)
    blob = add_blob(BODY, mirror, registry)
    with FaultServer() as names:
        add_manifest("v1", b"{} ", names)
        mirrored = opens(mirror_of(mirror, PULL), mirror_of(names, RESOLVE), endpoint_of(registry.host, APP))
        assert mirrored.head_manifest("v1") == new
        assert mirrored.manifest(old.digest) == (old, b"{}")
        assert read(mirrored, blob, 0, 9) == BODY[:9]
        assert [seen.method for seen in names.log] == ["HEAD"]
        assert registry.log == []


def test_without_an_endpoint_that_resolves_a_tag_is_an_error(registry: FaultServer, opens: Opens) -> None:
    with pytest.raises(RegistryError, match=f"no endpoint of {registry.host} may be asked to resolve"):
        opens(mirror_of(registry, PULL)).head_manifest("v1")


def test_a_missing_tag_is_explained_by_the_registry_alone(
    mirror: FaultServer, registry: FaultServer, mirrored: Mirrored
) -> None:
    add_manifest("v1", b"{}", registry)
    with pytest.raises(NotFound, match=f"{registry.host}/ns/app has no tag 'v2'; there are: v1 .*also tried"):
        mirrored.head_manifest("v2")
    assert [seen.method for seen in mirror.log] == ["HEAD", "GET"]  # no list of tags; HEAD is a hint


def test_referrers_that_a_mirror_does_not_know_are_asked_of_the_registry(
    mirror: FaultServer, registry: FaultServer, mirrored: Mirrored
) -> None:
    subject = Digest.of(b"subject")
    entry = {"mediaType": "a/b", "digest": str(Digest.of(b"x")), "size": 1, "artifactType": "t/x"}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    registry.add_manifest(APP, f"sha256-{subject.hex}", json.dumps(index).encode(), OCI_INDEX)
    assert [one.digest for one in mirrored.referrers(subject)] == [Digest.of(b"x")]
    assert mirror.log != []
    mirror.inject(Fault(drop=True), times=9)
    assert mirrored.referrers(Digest.of(b"other")) == []


def test_what_a_mirror_says_of_referrers_does_not_count(mirror: FaultServer, mirrored: Mirrored) -> None:
    subject = Digest.of(b"subject")
    entry = {"mediaType": "a/b", "digest": str(Digest.of(b"x")), "size": 1, "artifactType": "t/x"}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    mirror.add_manifest(APP, f"sha256-{subject.hex}", json.dumps(index).encode(), OCI_INDEX)
    assert mirrored.referrers(subject) == []


def test_a_mirror_is_told_whose_it_is_and_its_headers_go_nowhere_else(
    mirror: FaultServer, registry: FaultServer, opens: Opens
) -> None:
    manifest = add_manifest("v1", b"{}", mirror)
    blob = add_blob(BODY, registry)
    mirror.blob_host = registry.host
    endpoint = replace(mirror_of(mirror), namespace="docker.io", headers={"X-Secret": "s", "accept": "x"})
    mirrored = opens(endpoint, endpoint_of("127.0.0.1:1", APP))
    assert mirrored.head_manifest("v1") == manifest
    assert read(mirrored, blob, 0, 9) == BODY[:9]
    assert [seen.path.partition("?")[2] for seen in mirror.log] == ["ns=docker.io"] * 2
    assert [seen.headers["x-secret"] for seen in mirror.log] == ["s"] * 2
    assert "oci.image" in mirror.log[0].headers["accept"]
    assert "x-secret" not in registry.log[0].headers


def test_credentials_are_those_of_the_host_that_is_asked(
    mirror: FaultServer, registry: FaultServer, opens: Opens
) -> None:
    mirror.basic, registry.basic = ("m", "secret-m"), ("r", "secret-r")
    known = {mirror.host: Credentials("m", "secret-m"), registry.host: Credentials("r", "secret-r")}
    asked = []

    def find(host: str, repository: str) -> Credentials | None:
        asked.append((host, repository))
        return known[host]

    blob = add_blob(BODY, registry)
    assert read(opens(find_credentials=find), blob, 0, 9) == BODY[:9]
    assert set(asked) == {(mirror.host, APP), (registry.host, APP)}


def test_what_is_no_piece_of_the_blob_is_nobodys_fault(
    mirror: FaultServer, registry: FaultServer, mirrored: Mirrored
) -> None:
    blob = add_blob(b"12345", mirror, registry)
    with pytest.raises(InvalidImage, match="bytes 3-6 of a blob of 5"):
        read(mirrored, blob, 3, 6)
    assert read(mirrored, blob, 2, 2) == b""
    assert (mirror.log, registry.log) == ([], [])


# errors


def test_the_error_is_the_registrys_own_and_says_what_else_was_tried(
    mirror: FaultServer, registry: FaultServer, opens: Opens
) -> None:
    blob = add_blob(BODY, mirror, registry)
    mirror.inject(Fault(status=401), times=9)
    registry.inject(Fault(status=403), times=9)
    with pytest.raises(Unauthorized) as raised:
        read(opens(), blob)
    said = str(raised.value)
    assert said.startswith(f"{registry.url}/v2/ns/app/blobs/{blob.digest}: 403")
    assert f"(also tried: {mirror.url}/v2: 401" in said
    assert raised.value.status == 403


def test_a_registry_in_trouble_is_tried_again_but_a_mirror_is_not(
    mirror: FaultServer, registry: FaultServer, mirrored: Mirrored
) -> None:
    blob = add_blob(BODY, mirror, registry)
    for server in (mirror, registry):
        server.inject(Fault(status=429, headers={"Retry-After": "0"}), times=99)
    with pytest.raises(Unavailable, match=r"429.*also tried"):
        read(mirrored, blob)
    assert (len(mirror.log), len(registry.log)) == (1, 6)


def test_damage_at_the_registry_itself_is_told(registry: FaultServer, opens: Opens) -> None:
    blob = add_blob(b"12345", registry)
    wrong = Descriptor(blob.media_type, blob.digest, 6)
    with pytest.raises(IntegrityError):
        read(opens(endpoint_of(registry.host, APP)), wrong)


# leaving alone


def test_a_mirror_that_fails_is_left_alone_for_a_while(
    mirror: FaultServer, registry: FaultServer, mirrored: Mirrored, clock: Clock
) -> None:
    blob = add_blob(BODY, mirror, registry)
    mirror.inject(Fault(drop=True), times=2)
    for at in range(5):
        assert read(mirrored, blob, at, at + 1) == BODY[at : at + 1]
    assert (len(mirror.log), len(registry.log)) == (1, 5)
    clock.now += 1.1
    read(mirrored, blob, 0, 1)  # fails again: then for twice as long
    clock.now += 1.1
    read(mirrored, blob, 0, 1)
    assert (len(mirror.log), len(registry.log)) == (2, 7)
    clock.now += 1.0
    read(mirrored, blob, 0, 1)
    read(mirrored, blob, 0, 1)
    assert (len(mirror.log), len(registry.log)) == (4, 7)


def test_a_mirror_that_lacks_a_blob_is_not_asked_for_that_again_soon(
    mirror: FaultServer, registry: FaultServer, mirrored: Mirrored, clock: Clock
) -> None:
    absent, there = add_blob(BODY, registry), add_blob(b"there", mirror)
    for _ in range(3):
        read(mirrored, absent, 0, 9)
        read(mirrored, there)
    assert (len(mirror.log), len(registry.log)) == (4, 3)
    clock.now += 61.0
    read(mirrored, absent, 0, 9)
    assert len(mirror.log) == 5


def test_what_came_wrong_of_a_mirror_comes_from_elsewhere_next(
    mirror: FaultServer, registry: FaultServer, mirrored: Mirrored
) -> None:
    blob, other = add_blob(BODY, mirror, registry), add_blob(b"other", mirror, registry)
    mirror.inject(Fault(flip_at=3), on="/blobs/")
    assert read(mirrored, blob, 0, 9) != BODY[:9]  # nobody but the reader knows the digest of a piece
    mirrored.doubt(blob.digest)
    assert read(mirrored, blob, 0, 9) == BODY[:9]
    mirrored.doubt(blob.digest)  # the registry is the last to go to
    assert read(mirrored, blob, 0, 9) == BODY[:9]
    assert (len(mirror.log), len(registry.log)) == (1, 2)
    mirrored.doubt(other.digest)  # of which nothing came
    [record, _] = mirrored.health()
    assert record.state == "failing"
    assert "what came of the blob" in (record.error or "")


def test_mirrors_that_rest_are_better_than_a_registry_that_is_away(
    mirror: FaultServer, registry: FaultServer, mirrored: Mirrored
) -> None:
    blob = add_blob(BODY, mirror)
    mirror.inject(Fault(drop=True))
    registry.inject(Fault(drop=True), times=99)
    with pytest.raises(Unavailable):
        read(mirrored, blob, 0, 9)
    assert read(mirrored, blob, 0, 9) == BODY[:9]
    assert len(registry.log) == 12


@contextmanager
def nobody_accepts() -> Iterator[str]:
    """The `host:port` of a socket whose queue is full: a further connection is never answered."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        time.sleep(0.1)
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        for one in waiting:
            one.close()


def test_a_mirror_that_does_not_connect_holds_up_nobody_but_the_first(
    registry: FaultServer, opens: Opens
) -> None:
    blob = add_blob(BODY, registry)
    with nobody_accepts() as host:
        mirror = endpoint_of(host, APP, is_mirror=True)
        mirrored = opens(
            mirror, endpoint_of(registry.host, APP), timeouts=FAST._replace(connect=0.5), clock=time.monotonic
        )
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            pieces = list(pool.map(lambda at: read(mirrored, blob, at, at + 100), range(0, 6400, 100)))
        assert b"".join(pieces) == BODY[:6400]
        assert time.monotonic() - began < allowed(3.0)  # of 64 reads, each of which would have waited 0.5 s
        [record, _] = mirrored.health()
        assert "timed out" in (record.error or "")


def test_one_that_has_another_behind_it_is_waited_for_less() -> None:
    usual = Timeouts()
    short = short_timeouts(usual)
    assert short.tries == 1
    assert (short.connect, short.read, short.deadline) < (usual.connect, usual.read, usual.deadline)
    assert short_timeouts(Timeouts(1.0, 1.0, 1.0)) == Timeouts(1.0, 1.0, 1.0, tries=1)


# endpoints that change


def test_endpoints_may_change_between_two_reads(
    mirror: FaultServer, registry: FaultServer, clock: Clock
) -> None:
    blob = add_blob(BODY, mirror, registry)
    now: list[tuple[RegistryEndpoint, ...]] = [(endpoint_of(registry.host, APP),)]
    mirrored = Mirrored(lambda: now[0], timeouts=FAST, clock=clock)
    read(mirrored, blob, 0, 9)
    now[0] = (mirror_of(mirror), endpoint_of(registry.host, APP))
    read(mirrored, blob, 0, 9)
    assert (len(mirror.log), len(registry.log)) == (1, 1)
    assert len(mirrored.health()) == 2
    now[0] = (endpoint_of(registry.host, APP),)
    connections = registry.connections
    read(mirrored, blob, 0, 9)
    assert registry.connections == connections  # what was there before is the same
    assert mirrored.traffic == (3, 27)
    mirrored.close()


def test_closing_ends_what_is_being_read(mirror: FaultServer, registry: FaultServer, opens: Opens) -> None:
    blob = add_blob(BODY, registry)
    mirrored = opens(timeouts=FAST._replace(backoff=60.0, deadline=600.0))
    registry.inject(Fault(drop=True), times=9)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, mirrored, blob)
        until = time.monotonic() + 5.0
        while not registry.log and time.monotonic() < until:
            time.sleep(0.01)
        mirrored.close()
        with pytest.raises(Unavailable):
            reading.result(5.0)


# health


def test_health_says_why_since_when_and_what_was_tried(
    mirror: FaultServer, registry: FaultServer, mirrored: Mirrored
) -> None:
    blob = add_blob(BODY, mirror, registry)
    names = [f"{mirror.url}/v2", f"{registry.url}/v2"]
    assert mirrored.health() == [EndpointStatus(endpoint=name, state="ok") for name in names]
    before = time.time()
    mirror.inject(Fault(status=503), times=99)
    registry.inject(Fault(status=503), times=99)
    with pytest.raises(Unavailable):
        read(mirrored, blob)
    first, last = mirrored.health()
    assert first.since is not None
    assert before <= first.since <= time.time()
    assert (first.state, first.tries, last.state, last.tries) == ("failing", 1, "failing", 6)
    assert f"{mirror.url}/v2/ns/app/blobs/{blob.digest}: 503" in (first.error or "")
    assert first.left_alone_until == pytest.approx(first.since + 1.0, abs=1.0)
    assert last.left_alone_until is None
    json.dumps([plain(record) for record in mirrored.health()])


def test_health_is_well_again_when_things_are(registry: FaultServer, opens: Opens) -> None:
    mirrored = opens(endpoint_of(registry.host, APP))
    blob = add_blob(BODY, registry)
    registry.inject(Fault(status=500), times=6)
    with pytest.raises(Unavailable):
        read(mirrored, blob)
    assert mirrored.health()[0].state == "failing"
    read(mirrored, blob)
    [record] = mirrored.health()
    assert (record.state, record.tries, record.since) == ("ok", 0, None)
    assert "500" in (record.error or "")  # what went wrong last is worth knowing


def test_while_it_is_tried_again_health_says_so_already(registry: FaultServer, opens: Opens) -> None:
    mirrored = opens(endpoint_of(registry.host, APP))
    told: list[EndpointStatus] = []
    registry.inject(Fault(status=500), times=2)
    registry.inject(Fault(meanwhile=lambda: told.extend(mirrored.health())))
    read(mirrored, add_blob(BODY, registry))
    assert (told[0].state, told[0].tries) == ("failing", 2)


def test_secrets_are_in_no_health_record(registry: FaultServer, opens: Opens) -> None:
    endpoint = replace(
        endpoint_of(registry.host, APP),
        url=f"http://user:hunter2@{registry.host}/v2",
        headers={"Authorization": "Basic hunter2"},
    )
    mirrored = opens(endpoint)
    registry.inject(Fault(status=307, headers={"Location": "http://127.0.0.1:1/?sig=hunter2"}), times=9)
    with pytest.raises(Unavailable) as raised:
        read(mirrored, add_blob(BODY, registry))
    assert "hunter2" not in f"{mirrored.health()}{raised.value}"
    assert mirrored.health()[0].endpoint == f"{registry.url}/v2"


def test_rests_grow_to_a_minute_and_are_probed_by_one(clock: Clock) -> None:
    health = EndpointState("x", clock=clock, calendar=lambda: 0.0)
    rests: list[int] = []
    for _ in range(9):
        assert health.admit()
        assert not health.admit() or not rests  # one request tells, after a rest
        health.back_off(Unavailable("away"))
        rests.append(round(health.report().left_alone_until or 0))
        health.back_off(Unavailable("away"))  # others that were under way
        assert round(health.report().left_alone_until or 0) == rests[-1]
        clock.now += rests[-1] - 0.1
        assert not health.admit()
        clock.now += 0.2
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert health.admit()
    health.release()  # it came to no end: another may tell
    assert health.admit()
    health.worked()
    assert all(health.admit() for _ in range(3))


@pytest.mark.parametrize(("wished", "granted"), [(0.0, 1.0), (30.0, 30.0), (86400.0, 300.0)])
def test_a_rest_is_as_long_as_the_place_wishes_within_reason(
    clock: Clock, wished: float, granted: float
) -> None:
    health = EndpointState("x", clock=clock, calendar=lambda: 0.0)
    health.back_off(Busy("busy", after=wished, status=429, code=None, url=None))
    assert health.report().left_alone_until == granted


def test_an_error_is_counted_once_and_not_kept_alive() -> None:
    health = EndpointState("x")
    error = Unavailable("away")
    for _ in range(3):
        health.noted(error)
    assert health.report().tries == 1
    health.noted(Unavailable("still away"))
    assert (health.report().tries, health.report().error) == (2, "still away")
    gc.collect()
    kept = [one for one in gc.get_objects() if isinstance(one, Unavailable)]  # those of other tests, too
    assert not [one for one in kept if str(one) == "still away"]


def test_many_threads_read_through_a_mirror_that_comes_and_goes(
    mirror: FaultServer, registry: FaultServer, opens: Opens
) -> None:
    blob = add_blob(BODY, mirror, registry)
    mirrored = opens(clock=time.monotonic)
    for number, fault in enumerate([Fault(drop=True), Fault(cut_after=70), Fault(status=502)] * 5):
        mirror.inject(Fault(), on="/blobs/", times=number % 4)  # nothing wrong with these
        mirror.inject(fault, on="/blobs/")
    with ThreadPoolExecutor(8) as pool:
        pieces = list(pool.map(lambda at: read(mirrored, blob, at, at + 4096), range(0, len(BODY), 4096)))
    assert b"".join(pieces) == BODY
