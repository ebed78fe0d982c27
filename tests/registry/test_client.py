"""The registry client against a registry that misbehaves; the auth dance and credentials without one."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs import config
from imgfs.errors import (
    IntegrityError,
    InvalidImage,
    NotFound,
    RegistryError,
    Unauthorized,
    Unavailable,
    UsageError,
)
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_MANIFEST
from imgfs.registry.auth import Authorizer, Challenge, TokenReply, TokenRequest, parse_challenges
from imgfs.registry.blobs import BodySlice, cut_out, gather
from imgfs.registry.client import Client
from imgfs.registry.config.credentials import Credentials, find_credentials
from imgfs.registry.endpoint import MAX_MANIFEST, RegistryEndpoint
from imgfs.registry.errors import refusal
from imgfs.registry.retry import Busy, Patience, Timeouts, retry_after
from imgfs.registry.urls import is_loopback, redact
from tests.support.clients import FAST, client_of
from tests.support.docker_registry import docker_registry, needs_docker_registry, push_image
from tests.support.fault_server import Fault, FaultServer
from tests.support.patience import allowed

BODY = bytes(range(256)) * 4096  # 1 MiB
ALICE = Credentials("alice", "secret:with:colons")


def read(client: Client, blob: Descriptor, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(client.blob(blob, start, end))


def ranges(server: FaultServer) -> list[str | None]:
    return [seen.headers.get("range") for seen in server.seen("/blobs/")]


# manifests


def test_a_tag_is_resolved_by_head_alone(server: FaultServer, client: Client) -> None:
    pushed = server.add_manifest("ns/app", "v1", b"{}")
    assert client.head_manifest("v1") == pushed
    assert [seen.method for seen in server.log] == ["HEAD"]
    assert OCI_MANIFEST in server.log[0].headers["accept"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(headers={"Docker-Content-Digest": None}),
        Fault(headers={"Docker-Content-Digest": "sha256:nonsense"}),
        Fault(headers={"Content-Length": None}),
        Fault(status=405),
    ],
)
def test_a_head_that_says_too_little_is_followed_by_get(
    server: FaultServer, client: Client, fault: Fault
) -> None:
    pushed = server.add_manifest("ns/app", "v1", b"{}")
    server.inject(fault, method="HEAD")
    assert client.head_manifest("v1") == pushed


def test_without_any_digest_header_the_digest_is_computed(server: FaultServer, client: Client) -> None:
    server.with_digest_header = False
    pushed = server.add_manifest("ns/app", "v1", b"{}")
    assert client.head_manifest("v1") == pushed


def test_a_manifest_comes_by_tag_and_by_digest(server: FaultServer, client: Client) -> None:
    pushed = server.add_manifest("ns/app", "v1", b"{}")
    assert client.manifest("v1") == (pushed, b"{}")
    assert client.manifest(pushed.digest) == (pushed, b"{}")


@pytest.mark.parametrize("by_tag", [True, False])
def test_a_manifest_that_does_not_match_its_digest_is_an_error(
    server: FaultServer, client: Client, by_tag: bool
) -> None:
    pushed = server.add_manifest("ns/app", "v1", b"{}")
    server.inject(Fault(body=b"[]"), on="/manifests/", times=9)
    with pytest.raises(IntegrityError) as raised:
        client.manifest("v1" if by_tag else pushed.digest)
    assert raised.value.expected == pushed.digest
    assert len(server.log) == 3


def test_a_schema_1_manifest_is_named_whatever_its_digest_is_of(server: FaultServer, client: Client) -> None:
    schema_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    signed = {"Content-Type": schema_1, "Docker-Content-Digest": str(Digest.of(b"without signatures"))}
    server.add_manifest("ns/app", "v1", b"{}", schema_1)
    server.inject(Fault(headers=signed), on="/manifests/", times=9)
    with pytest.raises(InvalidImage, match="Docker schema 1"):
        client.manifest("v1")
    assert len(server.log) == 1


def test_a_document_that_was_damaged_on_its_way_is_asked_for_again(
    server: FaultServer, client: Client
) -> None:
    pushed = server.add_manifest("ns/app", "v1", b"{}")
    config = server.add_blob(b"{}")
    server.inject(Fault(flip_at=1), on="/manifests/", times=2)
    assert client.manifest("v1") == (pushed, b"{}")
    server.inject(Fault(body=b"{"), on="/blobs/")
    assert client.blob_document(config.digest) == b"{}"


def test_a_manifest_that_is_known_by_digest_is_not_asked_for_again(
    server: FaultServer, client: Client
) -> None:
    server.with_digest_header = False  # what a tag names is found by GET, then
    pushed = server.add_manifest("ns/app", "v1", b"{}")
    assert client.head_manifest("v1") == pushed
    asked = len(server.log)
    assert client.manifest(pushed.digest) == (pushed, b"{}")
    assert len(server.log) == asked
    assert client.manifest("v1") == (pushed, b"{}")  # a tag may have moved
    assert len(server.log) == asked + 1


def test_a_huge_manifest_is_refused_unread(server: FaultServer, client: Client) -> None:
    server.add_manifest("ns/app", "v1", b"{}")
    server.inject(Fault(headers={"Content-Length": str(100 << 20)}, stall_after=2), method="GET")
    with pytest.raises(InvalidImage, match="104857600 bytes"):
        client.manifest("v1")
    assert client.traffic.bytes == 0


def test_a_huge_manifest_of_unknown_length_is_cut_off(server: FaultServer, client: Client) -> None:
    server.add_manifest("ns/app", "v1", b"x" * (MAX_MANIFEST * 2))
    server.inject(Fault(chunked=True), method="GET")
    with pytest.raises(InvalidImage, match="more than"):
        client.manifest("v1")
    assert client.traffic.bytes <= MAX_MANIFEST + (1 << 20)


def test_a_cut_document_is_asked_for_again(server: FaultServer, client: Client) -> None:
    pushed = server.add_manifest("ns/app", "v1", b"{}" * 100)
    server.inject(Fault(cut_after=50), on="/manifests/", times=2)
    assert client.manifest("v1") == (pushed, b"{}" * 100)


def test_a_missing_tag_names_the_tags_there_are(server: FaultServer, client: Client) -> None:
    for tag in ("v1", "v2"):
        server.add_manifest("ns/app", tag, b"{}")
    with pytest.raises(NotFound) as raised:
        client.head_manifest("v3")
    assert "ns/app has no tag 'v3'; there are: v1, v2" in str(raised.value)
    assert raised.value.status == 404
    with pytest.raises(NotFound, match="there are: v1, v2"):
        client.manifest("v3")


def test_of_many_tags_some_are_named(server: FaultServer, client: Client) -> None:
    server.tags["ns/app"] = [f"t{number:03}" for number in range(250)]
    with pytest.raises(NotFound, match=r"there are 250, such as t000, .*t009$"):
        client.manifest("v3")


def test_a_missing_repository_is_said_to_be_missing(client: Client) -> None:
    with pytest.raises(NotFound, match="no such repository"):
        client.manifest("v3")


def test_tags_are_listed_over_pages_up_to_the_limit(server: FaultServer, client: Client) -> None:
    server.tags["ns/app"] = [f"t{number:03}" for number in range(250)]
    assert client.tags(1000) == server.tags["ns/app"]
    assert client.tags(7) == server.tags["ns/app"][:7]
    assert client.tags(120) == server.tags["ns/app"][:120]


# blobs


def test_a_whole_blob_is_asked_for_without_a_range(server: FaultServer, client: Client) -> None:
    blob = server.add_blob(BODY)
    assert read(client, blob) == BODY
    assert ranges(server) == [None]


def test_a_piece_is_asked_for_as_one_closed_range(server: FaultServer, client: Client) -> None:
    blob = server.add_blob(BODY)
    assert read(client, blob, 1000, 5000) == BODY[1000:5000]
    assert read(client, blob, len(BODY) - 5) == BODY[-5:]
    assert read(client, blob, 7, 7) == b""
    assert ranges(server) == ["bytes=1000-4999", f"bytes={len(BODY) - 5}-{len(BODY) - 1}"]


def test_requests_and_bytes_are_counted(server: FaultServer, client: Client) -> None:
    blob = server.add_blob(BODY)
    read(client, blob, 0, 1000)
    read(client, blob, 500, 1000)
    assert client.traffic == (2, 1500)


def test_an_empty_blob_needs_no_request(server: FaultServer, client: Client) -> None:
    assert read(client, server.add_blob(b"")) == b""
    assert server.log == []


def test_a_piece_outside_the_blob_is_refused(server: FaultServer, client: Client) -> None:
    blob = server.add_blob(b"12345")
    with pytest.raises(InvalidImage, match="bytes 3-6 of a blob of 5"):
        read(client, blob, 3, 6)


@pytest.mark.parametrize("kind", ["cut", "stall", "chunked", "length unsaid"])
def test_a_body_that_breaks_off_is_resumed_where_it_stopped(server: FaultServer, kind: str) -> None:
    client = client_of(server.host, "ns/app", timeouts=Timeouts(5.0, 0.4, 10.0, 0.001))
    blob = server.add_blob(BODY)
    fault = {
        "cut": Fault(cut_after=900),
        "stall": Fault(stall_after=900),
        "chunked": Fault(cut_after=900, chunked=True),
        "length unsaid": Fault(cut_after=900, headers={"Content-Length": None}),
    }[kind]
    server.inject(fault, on="/blobs/", times=2)
    assert read(client, blob) == BODY
    assert ranges(server) == [None, "bytes=900-1048575", "bytes=1800-1048575"]
    client.close()


def test_a_blob_in_chunked_encoding_is_read(server: FaultServer, client: Client) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(chunked=True), on="/blobs/", times=2)
    assert read(client, blob) == BODY
    assert read(client, blob, 9, 400_000) == BODY[9:400_000]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "\u00b2"},
        {"Content-Length": "5, 6"},
        {"Content-Length": "-1"},
        {"X": "y" * 70_000},
        {"Docker-Content-Digest": "sha256:\u00e9"},
        {"WWW-Authenticate": 'Bearer realm="'},
    ],
)
@pytest.mark.parametrize("status", [200, 401])
def test_hostile_headers_are_answered_or_an_error(
    server: FaultServer, client: Client, headers: dict[str, str], status: int
) -> None:
    pushed = server.add_manifest("ns/app", "v1", b"{}")
    server.inject(Fault(status=status, headers=headers, cut_after=2), times=20)
    for ask in (client.head_manifest, client.manifest):
        with contextlib.suppress(RegistryError, IntegrityError):
            assert ask("v1") in (pushed, (pushed, b"{}"))


def test_a_resumed_range_keeps_its_end(server: FaultServer, client: Client) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(cut_after=900), on="/blobs/")
    assert read(client, blob, 100, 5000) == BODY[100:5000]
    assert ranges(server) == ["bytes=100-4999", "bytes=1000-4999"]


def test_a_200_to_a_range_is_cut_to_what_was_asked(server: FaultServer, client: Client) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(ignore_range=True), on="/blobs/")
    assert read(client, blob, 300_000, 300_010) == BODY[300_000:300_010]
    assert client.ignores_ranges(blob.digest)
    read(client, blob, 10, 20)
    assert not client.ignores_ranges(blob.digest)


@pytest.mark.parametrize("status", [400, 405, 416, 501])
def test_where_a_range_is_refused_the_blob_is_asked_for_whole(
    server: FaultServer, client: Client, status: int
) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(status=status), on="/blobs/")
    assert read(client, blob, 300_000, 300_010) == BODY[300_000:300_010]
    assert ranges(server) == ["bytes=300000-300009", None]
    assert client.ignores_ranges(blob.digest)
    read(client, blob, 10, 20)
    assert not client.ignores_ranges(blob.digest)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_is_no_refusal_of_a_range_is_not_asked_for_whole(
    server: FaultServer, client: Client, status: int
) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(status=status), on="/blobs/", times=9)
    with pytest.raises(RegistryError):
        read(client, blob, 10, 20)
    assert None not in ranges(server)


def test_a_shorter_range_than_asked_is_completed(server: FaultServer, client: Client) -> None:
    blob = server.add_blob(BODY)
    short = {"Content-Range": f"bytes 10-19/{len(BODY)}", "Content-Length": "10"}
    server.inject(Fault(body=BODY[10:20], headers=short), on="/blobs/")
    assert read(client, blob, 10, 100) == BODY[10:100]
    assert ranges(server) == ["bytes=10-99", "bytes=20-99"]


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"Content-Range": "bytes 0-9/1048576"}, "Content-Range: expected 10-19, got 0-9"),
        ({"Content-Range": "bytes 10-99/1048576"}, "Content-Range: expected 10-19"),
        ({"Content-Range": "bytes 10-19/999"}, "size in Content-Range: expected 1048576, got 999"),
        ({"Content-Length": "9"}, "Content-Length: expected 10, got 9"),
    ],
)
def test_a_range_that_contradicts_the_request_is_an_integrity_error(
    server: FaultServer, client: Client, headers: dict[str, str], says: str
) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(headers=headers), on="/blobs/", times=9)
    with pytest.raises(IntegrityError) as raised:
        read(client, blob, 10, 20)
    assert says in str(raised.value)
    assert len(server.log) == 3


def test_a_range_that_is_answered_wrongly_is_asked_for_again(server: FaultServer, client: Client) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(headers={"Content-Range": f"bytes 0-9/{len(BODY)}"}), on="/blobs/")
    server.inject(Fault(status=416), on="/blobs/")
    assert read(client, blob, 10, 20) == BODY[10:20]
    assert ranges(server) == ["bytes=10-19", "bytes=10-19", None]


def test_a_whole_blob_that_is_refused_as_a_range_is_asked_for_again(
    server: FaultServer, client: Client
) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(status=416), on="/blobs/")
    assert read(client, blob) == BODY
    server.inject(Fault(status=416), on="/blobs/", times=9)
    with pytest.raises(IntegrityError, match="length: expected 1048576, got less"):
        read(client, blob)
    assert ranges(server) == [None] * 5  # three tries


@pytest.mark.parametrize("given", [None, "bytes x-y/z", "items 10-19/20"])
def test_a_206_without_a_usable_range_is_an_error(
    server: FaultServer, client: Client, given: str | None
) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(headers={"Content-Range": given}), on="/blobs/", times=9)
    with pytest.raises(IntegrityError, match="answer to a Range request: expected 206, got 206"):
        read(client, blob, 10, 20)


@pytest.mark.parametrize("claimed", [10, 20])
def test_a_blob_of_another_length_is_an_integrity_error(
    server: FaultServer, client: Client, claimed: int
) -> None:
    blob = server.add_blob(b"x" * 15)
    wrong = Descriptor(blob.media_type, blob.digest, claimed)
    with pytest.raises(IntegrityError):
        read(client, wrong)
    with pytest.raises(IntegrityError):
        read(client, wrong, claimed - 2, claimed)


def test_a_length_that_promises_more_than_comes_ends_in_unavailable(
    server: FaultServer, client: Client
) -> None:
    blob = server.add_blob(b"x" * 15)
    wrong = Descriptor(blob.media_type, blob.digest, 20)
    server.inject(Fault(headers={"Content-Length": "20"}, cut_after=15), on="/blobs/", times=9)
    with pytest.raises((Unavailable, IntegrityError)):
        read(client, wrong)


def test_what_came_before_an_error_is_handed_out(server: FaultServer, client: Client) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(cut_after=900), on="/blobs/")
    server.inject(Fault(status=404), on="/blobs/")
    chunks = client.blob(blob)
    assert next(chunks) == BODY[:900]
    with pytest.raises(NotFound):
        next(chunks)


def test_content_encoding_is_never_decoded(server: FaultServer, client: Client) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(headers={"Content-Encoding": "gzip"}), on="/blobs/")
    assert read(client, blob, 10, 20) == BODY[10:20]
    assert server.log[0].headers["accept-encoding"] == "identity"


def test_a_slow_consumer_does_not_use_up_the_deadline(server: FaultServer) -> None:
    blob = server.add_blob(BODY)
    client = client_of(server.host, "ns/app", timeouts=Timeouts(2.0, 2.0, 0.2, 0.001))
    chunks = client.blob(blob)
    first = next(chunks)
    threading.Event().wait(0.3)  # longer than the deadline
    assert first + b"".join(chunks) == BODY
    client.close()


def test_a_registry_that_stalls_for_ever_is_given_up(server: FaultServer) -> None:
    blob = server.add_blob(BODY)
    client = client_of(server.host, "ns/app", timeouts=Timeouts(1.0, 0.05, 0.3, 0.001))
    server.inject(Fault(stall_after=0), on="/blobs/", times=50)
    with pytest.raises(Unavailable, match="cut short: timed out"):
        read(client, blob)
    client.close()


def test_connections_are_reused(server: FaultServer, client: Client) -> None:
    blob = server.add_blob(BODY)
    server.add_manifest("ns/app", "v1", b"{}")
    accepted = server.connections
    for _ in range(3):
        read(client, blob, 10, 20)
        read(client, blob)
        client.head_manifest("v1")
        client.manifest("v1")
        with pytest.raises(NotFound):
            client.manifest("nope")
    assert server.connections == accepted + 1


def test_sixteen_threads_read_their_own_pieces(server: FaultServer, client: Client) -> None:
    blob = server.add_blob(BODY)
    step = len(BODY) // 64
    with ThreadPoolExecutor(16) as pool:
        pieces = list(pool.map(lambda at: read(client, blob, at, at + step), range(0, len(BODY), step)))
    assert b"".join(pieces) == BODY
    assert client.traffic == (64, len(BODY))


# trying again


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=503), Fault(status=429), Fault(drop=True)])
def test_what_may_pass_is_tried_again(server: FaultServer, client: Client, fault: Fault) -> None:
    pushed = server.add_manifest("ns/app", "v1", b"{}")
    server.inject(fault, times=3)
    assert client.head_manifest("v1") == pushed


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_tries_are_bounded(server: FaultServer, client: Client, status: int) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(status=status), times=100)
    with pytest.raises(Unavailable) as raised:
        read(client, blob)
    assert raised.value.status == status
    assert len(server.log) == 6


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410])
def test_a_refusal_is_not_tried_again(server: FaultServer, client: Client, status: int) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(status=status), times=100)
    with pytest.raises(RegistryError) as raised:
        read(client, blob)
    assert raised.value.status == status
    assert len(server.log) == 1


LATE = Timeouts(connect=20.0, read=20.0, deadline=1.0, backoff=0.01, tries=99)


@pytest.mark.parametrize(
    "fault",
    [Fault(pause=20.0), Fault(stall_after=10), Fault(rate=1000.0), Fault(drop=True), Fault(status=500)],
    ids=["no answer", "a stall", "a trickle", "no luck", "a refusal"],
)
@pytest.mark.parametrize("victim", ["/blobs/", "/token"])
def test_the_deadline_is_kept_whatever_a_single_step_may_take(
    server: FaultServer, victim: str, fault: Fault
) -> None:
    blob = server.add_blob(BODY)
    server.token_server = server.url
    server.token_reply = {"padding": "x" * 10_000}
    server.inject(fault, on=victim, times=999)
    began = time.monotonic()
    client = client_of(server.host, "ns/app", timeouts=LATE)
    with pytest.raises(Unavailable):
        read(client, blob)
    assert time.monotonic() - began < allowed(LATE.deadline + 2.0)
    client.close()


def test_retry_after_beyond_the_deadline_fails_at_once(server: FaultServer, client: Client) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(status=429, headers={"Retry-After": "3600"}), times=100)
    with pytest.raises(Unavailable):
        read(client, blob)
    assert len(server.log) == 1


def test_nobody_listening_is_unavailable() -> None:
    with FaultServer() as gone:
        host = gone.host
    client = client_of(host, "ns/app", timeouts=FAST)
    with pytest.raises(Unavailable, match="Connection refused"):
        client.head_manifest("v1")
    client.close()


def test_plain_http_where_tls_is_expected_is_said_so(server: FaultServer) -> None:
    client = Client(RegistryEndpoint(f"https://{server.host}/v2", server.host, "ns/app"), timeouts=FAST)
    with pytest.raises(RegistryError, match="--plain-http"):
        client.head_manifest("v1")
    client.close()


def test_closing_ends_the_pauses(server: FaultServer) -> None:
    closed = threading.Event()
    patience = Patience(Timeouts(backoff=60.0, deadline=600.0), closed)
    closed.set()
    with pytest.raises(Unavailable, match="x"):
        patience.pause(Unavailable("x"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5.0), ("", 0.0), ("soon", 0.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0)]
)
def test_retry_after_is_read(text: str, seconds: float) -> None:
    assert retry_after({"Retry-After": text}) == seconds


def test_an_error_carries_the_registrys_own_words(server: FaultServer, client: Client) -> None:
    with pytest.raises(NotFound) as raised:
        read(client, Descriptor("x", Digest.of(b"missing"), 7))
    assert raised.value.code == "BLOB_UNKNOWN"
    assert "about BLOB_UNKNOWN" in str(raised.value)
    assert raised.value.url is not None
    assert raised.value.url.startswith(server.url)


def test_an_error_is_one_line_without_secrets() -> None:
    body = json.dumps({"errors": [{"code": "X", "message": "two\nlines\x1b[0m" + "!" * 999}]}).encode()
    error = refusal(503, {"Retry-After": "7"}, body, "https://user:pw@h/v2/?sig=secret#f")
    assert isinstance(error, Busy)
    assert error.after == 7.0
    assert "\n" not in str(error)
    assert "\x1b" not in str(error)
    assert "secret" not in str(error)
    assert "pw" not in str(error)
    assert len(str(error)) < 300


@settings(max_examples=60)
@given(st.binary(max_size=60), st.integers(400, 599))
def test_any_error_body_is_an_error(body: bytes, status: int) -> None:
    assert refusal(status, {}, body, "https://h/").status == status


def test_urls_are_redacted() -> None:
    assert redact("https://u:p@[::1]:5000/a/b?c#d") == "https://[::1]:5000/a/b"


# redirects


def test_a_redirected_blob_is_read_elsewhere_without_authorization(
    server: FaultServer, other: FaultServer
) -> None:
    server.token_server = server.url
    server.blob_host = other.host
    blob = other.add_blob(BODY)
    client = client_of(server.host, "ns/app", timeouts=FAST, credentials=lambda: ALICE)
    assert read(client, blob, 5, 10) == BODY[5:10]
    assert read(client, blob, 10, 15) == BODY[10:15]
    assert any("authorization" in seen.headers for seen in server.seen("/blobs/"))
    assert [seen.headers.get("authorization") for seen in other.log] == [None, None]
    assert len(server.seen("/blobs/")) == 2  # refused, redirected; then the target was known
    client.close()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416])
def test_an_expired_redirect_is_resolved_again(
    server: FaultServer, other: FaultServer, client: Client, status: int
) -> None:
    """Object stores refuse it in their ways: 403 by S3, 400 by S3 and GCS where the token in it has ended."""
    server.blob_host = other.host
    blob = other.add_blob(BODY)
    assert read(client, blob, 0, 10) == BODY[:10]
    other.inject(Fault(status=status, body=b"<Error>expired</Error>"), on="sig=1", times=9)
    server.signature = "2"
    assert read(client, blob, 10, 20) == BODY[10:20]
    assert [seen.path.partition("?")[2] for seen in other.log] == ["sig=1", "sig=1", "sig=2"]


def test_a_fresh_redirect_that_is_refused_is_an_error_without_its_signature(
    server: FaultServer, other: FaultServer, client: Client
) -> None:
    server.blob_host = other.host
    other.signatures = set()
    with pytest.raises(Unauthorized) as raised:
        read(client, other.add_blob(BODY))
    assert "sig" not in str(raised.value)
    assert len(other.log) == 1


def test_redirects_in_a_circle_end(server: FaultServer, client: Client) -> None:
    server.blob_host = server.host
    with pytest.raises(RegistryError, match="redirected more than 5 times"):
        read(client, server.add_blob(BODY))


@pytest.mark.parametrize("location", ["file:///etc/passwd", "http://[", "http://h:x/", "gopher://x/"])
def test_redirects_to_nowhere_are_refused(server: FaultServer, client: Client, location: str) -> None:
    blob = server.add_blob(BODY)
    server.inject(Fault(status=307, headers={"Location": location}))
    with pytest.raises(RegistryError, match="redirected to"):
        read(client, blob)


def test_the_long_body_of_a_redirect_is_not_read(
    server: FaultServer, other: FaultServer, client: Client
) -> None:
    server.blob_host = other.host
    blob = other.add_blob(b"x" * 10)
    server.inject(Fault(body=b"y" * (8 << 20)))
    assert read(client, blob) == b"x" * 10
    assert client.traffic.bytes == 10


# the auth dance over the wire


def test_a_bearer_token_is_fetched_once_and_used_again(server: FaultServer) -> None:
    server.token_server, server.basic = server.url, (ALICE.username, ALICE.secret)
    pushed = server.add_manifest("ns/app", "v1", b"{}")
    client = client_of(server.host, "ns/app", timeouts=FAST, credentials=lambda: ALICE)
    for _ in range(3):
        assert client.head_manifest("v1") == pushed
    [asked] = server.seen("/token")
    assert asked.path == "/token?service=test%2C+quoted&scope=repository%3Ans%2Fapp%3Apull"
    assert len(server.seen("/manifests/")) == 4
    client.close()


def test_anonymous_tokens_need_no_credentials(server: FaultServer, client: Client) -> None:
    server.token_server = server.url
    assert client.head_manifest("v1") if server.add_manifest("ns/app", "v1", b"{}") else None
    assert "authorization" not in server.seen("/token")[0].headers


def test_a_revoked_token_is_renewed(server: FaultServer, client: Client) -> None:
    server.token_server = server.url
    blob = server.add_blob(BODY)
    read(client, blob, 0, 10)
    server.valid_tokens = {"another"}
    assert read(client, blob, 10, 20) == BODY[10:20]
    assert len(server.seen("/token")) == 2


def test_a_403_for_a_known_token_renews_it_once(server: FaultServer, client: Client) -> None:
    server.token_server = server.url
    blob = server.add_blob(BODY)
    read(client, blob, 0, 10)
    server.inject(Fault(status=403), on="/blobs/")
    assert read(client, blob, 10, 20) == BODY[10:20]
    assert len(server.seen("/token")) == 2
    server.inject(Fault(status=403), on="/blobs/", times=2)
    with pytest.raises(Unauthorized):
        read(client, blob, 10, 20)


def test_many_threads_fetch_one_token(server: FaultServer, client: Client) -> None:
    server.token_server = server.url
    blob = server.add_blob(BODY)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda at: read(client, blob, at, at + 9), range(0, 720, 9)))
    assert b"".join(found) == BODY[:720]
    assert len(server.seen("/token")) == 1


def test_basic_authentication_is_answered(server: FaultServer) -> None:
    server.basic = (ALICE.username, ALICE.secret)
    blob = server.add_blob(BODY)
    client = client_of(server.host, "ns/app", timeouts=FAST, credentials=lambda: ALICE)
    assert read(client, blob, 0, 10) + read(client, blob, 10, 20) == BODY[:20]
    assert len(server.log) == 3
    client.close()


def test_without_credentials_the_error_says_so(server: FaultServer, client: Client) -> None:
    server.basic = (ALICE.username, ALICE.secret)
    with pytest.raises(Unauthorized, match=r"UNAUTHORIZED.*no credentials for 127\.0\.0\.1:"):
        client.manifest("v1")


def test_refused_credentials_are_named_by_user_but_not_by_secret(server: FaultServer) -> None:
    server.token_server, server.basic = server.url, ("bob", "x")
    client = client_of(server.host, "ns/app", timeouts=FAST, credentials=lambda: ALICE)
    with pytest.raises(Unauthorized, match=r"refused user alice$") as raised:
        client.manifest("v1")
    assert "secret" not in str(raised.value)
    client.close()


@pytest.mark.parametrize("credentials", [None, ALICE, Credentials("\x1b[2J\nann", "x" * 9)])
@pytest.mark.parametrize("by", ["basic", "token"])
def test_a_refusal_says_whose_it_is(server: FaultServer, by: str, credentials: Credentials | None) -> None:
    server.basic, server.token_server = ("bob", "x"), server.url if by == "token" else None
    client = client_of(server.host, "ns/app", timeouts=FAST, credentials=lambda: credentials)
    with pytest.raises(Unauthorized) as raised:
        client.manifest("v1")
    said = str(raised.value)
    if credentials is None:
        assert said.endswith(f"; no credentials for {server.host} (see: imgfs login)")
    else:
        user = "alice" if credentials is ALICE else "\\x1b[2J\\nann"
        assert said.endswith(f"refused user {user}" if by == "token" else f"; user {user} was refused")
        assert credentials.secret not in said
    client.close()


def test_an_identity_token_is_posted(server: FaultServer) -> None:
    server.token_server, server.identity_token = server.url, "idt"
    server.add_manifest("ns/app", "v1", b"{}")
    found = Credentials("<token>", "idt", identity_token=True)
    client = client_of(server.host, "ns/app", timeouts=FAST, credentials=lambda: found)
    assert client.head_manifest("v1")
    [asked] = server.seen("/token")
    assert asked.form["grant_type"] == "refresh_token"
    assert asked.form["scope"] == "repository:ns/app:pull"
    client.close()


# the auth dance without a wire


def authorizer(found: Credentials | None = None, **more: Any) -> Authorizer:
    clock = more.pop("clock", lambda: 0.0)
    return Authorizer(lambda: found, default_scope="repository:a:pull", secure=True, clock=clock, **more)


BEARER = [Challenge("bearer", {"realm": "https://auth/t", "service": "s", "scope": "repository:a:pull"})]
GRANTED = TokenReply(200, b'{"token": "abc", "expires_in": 100}')


def dance(flow: Any, *replies: TokenReply) -> tuple[list[TokenRequest], str | None]:
    """Drive `flow` with `replies`: what it asked for and its value."""
    asked: list[TokenRequest] = []
    pending = iter(replies)
    try:
        request = next(flow)
        while True:
            asked.append(request)
            request = flow.send(next(pending))
    except StopIteration as stop:
        return asked, stop.value


def test_a_token_is_asked_for_with_basic_credentials() -> None:
    asked, header = dance(authorizer(ALICE).challenged(BEARER, None), GRANTED)
    assert header == "Bearer abc"
    assert asked[0].url == "https://auth/t?service=s&scope=repository%3Aa%3Apull"
    expected = base64.b64encode(b"alice:secret:with:colons").decode()
    assert asked[0].headers == {"Authorization": f"Basic {expected}"}


@pytest.mark.parametrize("body", [b'{"access_token": "abc"}', b'{"token": "", "access_token": "abc"}'])
def test_an_access_token_is_a_token(body: bytes) -> None:
    assert dance(authorizer().challenged(BEARER, None), TokenReply(200, body))[1] == "Bearer abc"


@pytest.mark.parametrize("status", [201, 202, 299])
def test_any_success_of_a_token_server_is_one(status: int) -> None:
    reply = TokenReply(status, GRANTED.body)
    assert dance(authorizer().challenged(BEARER, None), reply)[1] == "Bearer abc"


@pytest.mark.parametrize("status", [401, 404, 405])
def test_an_identity_token_that_cannot_be_posted_is_sent_by_get(status: int) -> None:
    found = Credentials("u", "idt", identity_token=True)
    asked, header = dance(authorizer(found).challenged(BEARER, None), TokenReply(status, b""), GRANTED)
    assert [request.method for request in asked] == ["POST", "GET"]
    assert header == "Bearer abc"


def test_a_token_is_renewed_before_it_expires() -> None:
    now = [0.0]
    auth = authorizer(clock=lambda: now[0])
    dance(auth.challenged(BEARER, None), GRANTED)
    now[0] = 79.0
    assert dance(auth.authorize()) == ([], "Bearer abc")
    now[0] = 81.0
    assert len(dance(auth.authorize(), GRANTED)[0]) == 1


@pytest.mark.parametrize("lifetime", ["null", "0", "-1", '"60"', "1e99"])
def test_a_token_without_a_usable_lifetime_lives_a_minute(lifetime: str) -> None:
    now = [0.0]
    auth = authorizer(clock=lambda: now[0])
    reply = TokenReply(200, f'{{"token": "abc", "expires_in": {lifetime}}}'.encode())
    dance(auth.challenged(BEARER, None), reply)
    now[0] = 47.0
    assert dance(auth.authorize()) == ([], "Bearer abc")
    now[0] = 49.0
    assert len(dance(auth.authorize(), GRANTED)[0]) == 1


def test_the_token_that_another_thread_renewed_is_used() -> None:
    auth = authorizer()
    dance(auth.challenged(BEARER, None), GRANTED)
    dance(auth.challenged(BEARER, "Bearer abc"), TokenReply(200, b'{"token": "new"}'))
    assert dance(auth.challenged(BEARER, "Bearer abc")) == ([], "Bearer new")


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (TokenReply(401, b""), Unauthorized),
        (TokenReply(403, b""), Unauthorized),
        (TokenReply(503, b""), Unavailable),
        (TokenReply(302, b""), RegistryError),
        (TokenReply(200, b"nonsense"), Unavailable),
        (TokenReply(200, b"[]"), Unavailable),
        (TokenReply(200, b'{"token": "two\\nlines"}'), Unavailable),
        (TokenReply(200, b'{"token": 7}'), Unavailable),
    ],
)
def test_a_token_server_that_gives_no_token_is_an_error(
    reply: TokenReply, error: type[RegistryError]
) -> None:
    with pytest.raises(error, match="token server auth"):
        dance(authorizer().challenged(BEARER, None), reply)


@pytest.mark.parametrize("realm", ["http://auth/t", "", "ftp://auth/", "https:///t", "https://["])
def test_secrets_go_only_to_a_token_server_with_tls(realm: str) -> None:
    with pytest.raises(Unauthorized, match="token server"):
        dance(authorizer(ALICE).challenged([Challenge("bearer", {"realm": realm})], None))


def test_bearer_is_preferred_to_basic() -> None:
    challenges = [Challenge("basic", {"realm": "r"}), *BEARER]
    assert dance(authorizer(ALICE).challenged(challenges, None), GRANTED)[1] == "Bearer abc"


def test_refused_basic_credentials_are_not_sent_again() -> None:
    auth = authorizer(ALICE)
    header = dance(auth.challenged([Challenge("basic", {})], None))[1]
    assert header
    assert dance(auth.challenged([Challenge("basic", {})], header)) == ([], None)


def test_an_unknown_scheme_has_no_answer() -> None:
    assert dance(authorizer(ALICE).challenged([Challenge("negotiate", {})], None)) == ([], None)


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ("", []),
        ("Basic", [("basic", {})]),
        ('Bearer realm="https://a/t",service="s, t",scope="x:y:pull,push"',
         [("bearer", {"realm": "https://a/t", "service": "s, t", "scope": "x:y:pull,push"})]),
        ('Basic realm="a \\"b\\"", Bearer realm=c , scope = "d"',
         [("basic", {"realm": 'a "b"'}), ("bearer", {"realm": "c", "scope": "d"})]),
        ("Negotiate, BASIC Realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ('realm="lonely"', []),
    ],
)  # fmt: skip
def test_challenges_are_read(header: str, challenges: list[tuple[str, dict[str, str]]]) -> None:
    found = [tuple(challenge) for challenge in parse_challenges(header)]
    if header.startswith("realm"):
        assert all(scheme != "bearer" for scheme, _ in found)
    else:
        assert found == challenges


@settings(max_examples=100)
@given(st.text(max_size=80) | st.text('Basic realm="\\, =', max_size=80))
def test_any_challenge_header_is_read(header: str) -> None:
    assert all(scheme == scheme.lower() for scheme, _ in parse_challenges(header))


# credentials


def write_auths(path: Path, **fields: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))
    return path


def encoded(pair: str) -> dict[str, str]:
    return {"auth": base64.b64encode(pair.encode()).decode()}


@pytest.mark.parametrize(
    ("registry", "repository", "user"),
    [
        ("quay.io", "ns/app", "app"),
        ("quay.io", "ns/app/deep", "app"),
        ("quay.io", "ns/other", "ns"),
        ("quay.io", "nsx/app", "host"),
        ("docker.io", "library/alpine", "hub"),
        ("old.io", "x", "old"),
        ("h:5000", "x", "port"),
    ],
)
def test_the_most_specific_key_wins(tmp_path: Path, registry: str, repository: str, user: str) -> None:
    auths = {
        "quay.io": encoded("host:p"),
        "quay.io/ns": encoded("ns:p"),
        "quay.io/ns/app": encoded("app:p"),
        "https://index.docker.io/v1/": encoded("hub:p:q"),
        "https://old.io/v1/": encoded("old:p\0\0"),
        "h:5000": {"username": "port", "password": "p"},
    }
    found = find_credentials([write_auths(tmp_path / "a", auths=auths)], registry, repository)
    assert found is not None
    assert found.username == user
    assert found.secret == ("p:q" if user == "hub" else "p")


def test_the_first_file_that_knows_wins(tmp_path: Path) -> None:
    files = [
        tmp_path / "missing",
        write_auths(tmp_path / "empty", auths={"h.io": {}}),
        write_auths(tmp_path / "first", auths={"h.io": encoded("first:p")}),
        write_auths(tmp_path / "second", auths={"h.io/x": encoded("second:p")}),
    ]
    found = find_credentials(files, "h.io", "x")
    assert found is not None
    assert found.username == "first"
    assert find_credentials(files, "other.io", "x") is None


def test_an_identity_token_is_recognised(tmp_path: Path) -> None:
    entry = {**encoded("u:"), "identitytoken": "idt"}
    path = write_auths(tmp_path / "a", auths={"h.io": entry})
    assert find_credentials([path], "h.io", "x") == Credentials("u", "idt", identity_token=True)


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"auths": 1}', '{"auths": {"h.io": {"auth": "?"}}}'])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "auth.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"auth\.json"):
        find_credentials([path], "h.io", "x")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
def test_a_file_that_this_user_may_not_even_see_is_as_good_as_none(open_path: Path) -> None:
    """As `/run/containers/0` is to the root of a user namespace. One that may be seen must be readable."""
    path = write_auths(open_path / "theirs/auth.json", auths={"h.io": encoded("x:y")})
    path.chmod(0)
    path.parent.chmod(0o700)
    os.seteuid(65534)
    try:
        assert find_credentials([path], "h.io", "x") is None
        os.seteuid(0)
        path.parent.chmod(0o711)
        os.seteuid(65534)
        with pytest.raises(UsageError, match=r"auth\.json: cannot read credentials: Permission denied"):
            find_credentials([path], "h.io", "x")
    finally:
        os.seteuid(0)


def test_a_registry_token_comes_before_what_could_be_traded_for_one(tmp_path: Path) -> None:
    entry = {**encoded("u:p"), "identitytoken": "idt", "registrytoken": "rt"}
    path = write_auths(tmp_path / "a", auths={"h.io": entry})
    assert find_credentials([path], "h.io", "x") == Credentials("u", "rt", registry_token=True)


def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = tmp_path / "docker-credential-test"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


ECHO = 'read server; printf \'{"ServerURL":"%s","Username":"u","Secret":"for %s"}\' "$server" "$server"'


@pytest.mark.parametrize(
    ("registry", "asked"), [("h.io", "h.io"), ("docker.io", "https://index.docker.io/v1/")]
)
def test_the_store_of_all_credentials_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: str, asked: str
) -> None:
    helper(tmp_path, monkeypatch, ECHO)
    path = write_auths(tmp_path / "a", credsStore="test", auths={registry: encoded("x:y")})
    assert find_credentials([path], registry, "x") == Credentials("u", f"for {asked}")


def test_a_helper_for_one_registry_precedes_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, 'echo \'{"Username":"<token>","Secret":"idt"}\'')
    path = write_auths(tmp_path / "a", credHelpers={"h.io": "test"}, credsStore="absent")
    assert find_credentials([path], "h.io", "x") == Credentials("<token>", "idt", identity_token=True)
    with pytest.raises(Unauthorized, match="docker-credential-absent: cannot be run"):
        find_credentials([path], "other.io", "x")


def test_a_helper_that_has_nothing_leaves_the_file_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, "echo credentials not found in native keychain; exit 1")
    path = write_auths(tmp_path / "a", credsStore="test", auths={"h.io": encoded("x:y")})
    assert find_credentials([path], "h.io", "x") == Credentials("x", "y")


@pytest.mark.parametrize("script", ["echo broken >&2; exit 3", "echo nonsense", "echo []"])
def test_a_failing_helper_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    helper(tmp_path, monkeypatch, script)
    path = write_auths(tmp_path / "a", credsStore="test")
    with pytest.raises(Unauthorized, match="docker-credential-test"):
        find_credentials([path], "h.io", "x")


def test_a_helper_is_a_name_not_a_path(tmp_path: Path) -> None:
    path = write_auths(tmp_path / "a", credsStore="../evil")
    with pytest.raises(UsageError, match="not the name of a credential helper"):
        find_credentials([path], "h.io", "x")


def test_a_secret_is_not_in_the_representation() -> None:
    assert "secret" not in repr(ALICE)


# what the environment says


def test_auth_files_come_in_order_of_precedence() -> None:
    environ = {"HOME": "/h", "XDG_RUNTIME_DIR": "/run/u", "REGISTRY_AUTH_FILE": "/explicit"}
    assert [str(path) for path in config.auth_files(environ, 0)] == [
        "/explicit",
        "/run/u/containers/auth.json",
        "/h/.config/containers/auth.json",
        "/h/.docker/config.json",
    ]
    moved = {"HOME": "/h", "XDG_CONFIG_HOME": "/c", "DOCKER_CONFIG": "/d", "XDG_RUNTIME_DIR": "relative"}
    assert [str(path) for path in config.auth_files(moved, 1000)] == [
        "/c/containers/auth.json",
        "/d/config.json",
    ]


@pytest.mark.parametrize(
    ("environ", "euid", "root"),
    [
        ({"IMGFS_STORE": "/s", "HOME": "/h"}, 0, "/s"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/c"}, 0, "/var/cache/imgfs"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/c"}, 1000, "/c/imgfs"),
        ({"HOME": "/h", "XDG_CACHE_HOME": ""}, 1000, "/h/.cache/imgfs"),
    ],
)
def test_the_store_is_where_the_environment_says(environ: dict[str, str], euid: int, root: str) -> None:
    assert str(config.store_root(environ, euid)) == root


# pure pieces


@settings(max_examples=60)
@given(st.binary(max_size=50), st.lists(st.integers(1, 9), max_size=9), st.data())
def test_a_window_cut_out_is_a_slice_however_the_body_is_chunked(
    body: bytes, lengths: list[int], data: st.DataObject
) -> None:
    skip = data.draw(st.integers(0, len(body)))
    length = data.draw(st.integers(0, len(body) - skip))
    cuts = [sum(lengths[:at]) for at in range(len(lengths) + 1)]
    chunks = [body[a:b] for a, b in zip(cuts, [*cuts[1:], len(body)], strict=True)]
    assert b"".join(cut_out(chunks, BodySlice(skip, length), "x")) == body[skip : skip + length]
    assert b"".join(gather(chunks, 7)) == b"".join(chunks)
    with pytest.raises(Unavailable, match="bytes early"):
        list(cut_out(chunks, BodySlice(0, len(b"".join(chunks)) + 1), "x"))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost:5000", True),
        ("127.8.9.1", True),
        ("[::1]:80", True),
        ("[::ffff:127.0.0.1]:80", True),
        ("[::ffff:10.0.0.1]:80", False),
        ("localhost.evil.io", False),
        ("10.0.0.1", False),
    ],
)
def test_this_machine_is_recognised(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_requests_is_not_imported_before_it_is_needed() -> None:
    script = "import sys, imgfs.transport.connect; sys.exit('requests' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# a real registry


@needs_docker_registry
@pytest.mark.parts
def test_a_real_registry_is_read(tmp_path: Path) -> None:
    with docker_registry(tmp_path) as host:
        pushed = push_image(host, "ns/app", "v1", [BODY])
        client = client_of(host, "ns/app")
        assert client.head_manifest("v1") == pushed.manifest
        descriptor, body = client.manifest(pushed.manifest.digest)
        assert descriptor == pushed.manifest
        assert json.loads(body)["layers"][0]["digest"] == str(pushed.layers[0].digest)
        assert client.blob_document(pushed.config.digest)
        assert read(client, pushed.layers[0], 1000, 70_000) == BODY[1000:70_000]
        assert client.tags(10) == ["v1"]
        with pytest.raises(NotFound, match="there are: v1"):
            client.head_manifest("v2")
        client.close()
