"""A layer's first stream from peers: nothing from the registry, nothing believed, none lost by bad ones."""

from __future__ import annotations

import copy
import json
import logging
import random
import re
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from imgfs.errors import InvalidImage
from imgfs.image.image import Image
from imgfs.layer.index import LayerIndex
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.peers import client as asking
from imgfs.peers import pace
from imgfs.peers import pool as pools
from imgfs.peers.address import parse_peer
from imgfs.peers.flat_name import SPANS, blob_path
from imgfs.peers.layer_spans import parse_spans
from imgfs.peers.pool import PeerPool
from imgfs.peers.presence import Presence
from imgfs.store.store import Store
from tests.support import tarmake as tar
from tests.support.blobs import gzip_members, prose, zstd_frames
from tests.support.fake_source import FakeSource, add_image, gzipped
from tests.support.peer import peer
from tests.support.raw_server import Connection, RawServer
from tests.unit.test_prepare import Journal, prepared


@cache
def noise_body() -> bytes:
    return random.Random(5).randbytes(1_500_000)


@cache
def prose_body() -> bytes:
    return prose(2_500_000, 3)


@cache
def image_tar() -> bytes:
    return tar.archive(
        tar.file("noise", noise_body()),
        tar.file("prose", prose_body()),
        tar.symlink("link", "noise"),
        tar.whiteout("gone"),
    )


@cache
def image_files() -> dict[bytes, bytes]:
    return {b"/noise": noise_body(), b"/prose": prose_body()}


LONG = 120.0  # seconds that an answer may take: nothing here is about time
PACKS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzipped,
    "gzip members": lambda flat: gzip_members(flat, 600_000),
    "zstd frames": lambda flat: zstd_frames(flat[at : at + 700_000] for at in range(0, len(flat), 700_000)),
    "tar": lambda flat: flat,
}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ANSWER", LONG)
    monkeypatch.setattr(asking, "CONNECT", LONG)
    monkeypatch.setattr(pools, "ANSWER", LONG)
    monkeypatch.setattr(pace, "IN_VAIN", LONG)
    monkeypatch.setattr(pace.RegistryPace, "patience", lambda *_: LONG)


def registry(pack: Callable[[bytes], bytes] = gzipped) -> FakeSource:
    source = FakeSource()
    add_image(source, [image_tar()], pack=pack)
    return source


def layer_of(source: FakeSource) -> Descriptor:
    return next(
        Descriptor("", digest, len(body)) for digest, body in source.bodies.items() if len(body) > 100_000
    )


@contextmanager
def asking_peers(source: FakeSource, *urls: str) -> Iterator[None]:
    with closing(PeerPool([parse_peer(url) for url in urls])) as pool:
        source.pool = pool
        yield
    source.pool = None


def check(source: FakeSource, store: Store) -> Journal:
    """Prepare the image, and read all its files; then once more by what the store has an index for."""
    resolved, journal = prepared(source, store)
    with Image(resolved, source, store) as image:
        for name, body in image_files().items():
            assert b"".join(image.read(image.tree.resolve(name).ino)) == body
    return journal


def evict(source: FakeSource, store: Store) -> None:
    assert store.layer(layer_of(source).digest).evict() > 0


@pytest.fixture(scope="module")
def told_once(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a machine that has scanned the layer tells of it."""
    first = tmp_path_factory.mktemp("first")
    prepared(registry(), Store(first))
    path = blob_path(SPANS, layer_of(registry()).digest)
    with peer(first) as url, urllib.request.urlopen(f"{url}{path}") as answer:
        body: bytes = answer.read()
    return body.decode()


@pytest.fixture
def told(told_once: str) -> Any:
    """The same, to be changed."""
    return json.loads(told_once)


@pytest.mark.parametrize("name", PACKS)
def test_a_layer_without_an_index_comes_from_a_peer_alone_and_is_lazy_from_then_on(
    tmp_path: Path, name: str
) -> None:
    """Where the spans are in the blob is a peer's word, but true: the registry brings them, once evicted."""
    source, store = registry(PACKS[name]), Store(tmp_path / "second")
    prepared(registry(PACKS[name]), Store(tmp_path / "first"))
    with peer(tmp_path / "first") as url, asking_peers(source, url):
        journal = check(source, store)
    assert source.ranges == []
    assert journal.arrived == {layer_of(source).digest: layer_of(source).size}
    evict(source, store)
    check(source, store)
    size = layer_of(source).size
    assert sum(end - start for start, end in source.ranges) <= size + 100, "each byte once, or about"
    assert len(source.ranges) > 1 or name == "tar"
    with peer(tmp_path / "second") as url, asking_peers(third := registry(PACKS[name]), url):
        check(third, Store(tmp_path / "third"))
    assert third.ranges == [(0, size)], "who has not scanned it does not say how it is cut"


Answer = Callable[[Connection, int, int], None]
_RANGE = re.compile(rb"Range: bytes=([0-9]+)-([0-9]+)")


def sends(connection: Connection, start: int, end: int, body: bytes) -> None:
    head = (
        f"HTTP/1.1 206 X\r\nContent-Length: {end - start}\r\nContent-Range: bytes {start}-{end - 1}/9\r\n\r\n"
    )
    connection.send(head.encode() + body)


def honest(connection: Connection, start: int, end: int) -> None:
    sends(connection, start, end, image_tar()[start:end])


def wrong(connection: Connection, start: int, end: int) -> None:
    body = bytearray(image_tar()[start:end])
    body[len(body) // 2] ^= 1
    sends(connection, start, end, bytes(body))


def dies(connection: Connection, start: int, end: int) -> None:
    """It sends its first megabytes, and no more."""
    sends(connection, start, end, image_tar()[start : min(end, 2_300_000)])
    raise OSError


def stalls(connection: Connection, start: int, end: int) -> None:
    sends(connection, start, end, image_tar()[start : min(end, 1_200_000)])
    connection.drip([b""] * 1000, 0.05)


def hostile(told: dict[str, Any], answer: Answer) -> Callable[[Connection], None]:
    """A peer that says that it has everything, cut as `told`, and answers a range by `answer`."""

    def respond(connection: Connection) -> None:
        found = _RANGE.search(connection.head)
        if found:
            answer(connection, int(found[1]), int(found[2]) + 1)
            return
        has = {"size": len(image_tar()), "present": [[0, len(image_tar())]]}
        body = json.dumps(told if b"/spans/" in connection.head else has).encode()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    return respond


@pytest.mark.parametrize("answer", [dies, stalls])
def test_what_a_peer_does_not_send_the_registry_brings_from_there_on(
    tmp_path: Path, told: Any, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LEAST_RATE", 20e6)  # it is soon too late
    monkeypatch.setattr(asking, "ANSWER", 1.0)
    source = registry()
    with RawServer(hostile(told, answer)) as server, asking_peers(source, server.url):
        check(source, Store(tmp_path / "second"))
    asked = [end - start for start, end in source.ranges]
    assert 0 < sum(asked) < 0.9 * layer_of(source).size
    assert min(start for start, _ in source.ranges) > 0


@pytest.mark.parametrize("lie", ["bytes", "spans"])
def test_a_peer_that_lies_is_named_and_the_registry_streams_the_layer(
    tmp_path: Path, told: Any, lie: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = registry()
    if lie == "spans":
        told["spans"].pop()
    bad = hostile(told, wrong if lie == "bytes" else honest)
    with RawServer(bad) as server, asking_peers(source, url := server.url):
        journal = check(source, Store(tmp_path / "second"))
        assert source.pool
        assert [one.state for one in source.pool.report()] == ["failing"]
    assert source.ranges == [(0, layer_of(source).size)]
    assert any("not as peers say" in text for text in journal.told)
    warned = [one.message for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(warned) == 1
    assert f"peer {url} sends wrong bytes and is not asked again" in warned[0]


def moved(told: dict[str, Any]) -> None:
    """Spans that are said to be elsewhere in the blob."""
    for number in (1, 3):
        told["spans"][number][1] += 1000


def test_where_spans_are_is_not_believed_once_the_registry_is_asked(
    tmp_path: Path, told: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """All bytes are right, so it is not seen before. The blob is read whole; the next mount indexes it."""
    source, store = registry(), Store(tmp_path / "second")
    moved(told)
    with RawServer(hostile(told, honest)) as server, asking_peers(source, server.url):
        check(source, store)
        assert source.ranges == []
        evict(source, store)
        source.pool, pool = None, source.pool
        check(source, store)
        whole = [(start, end) for start, end in source.ranges if (start, end) == (0, layer_of(source).size)]
        assert len(whole) == 1
        source.forget_requests()
        source.pool = pool
        check(source, store)
        assert source.ranges == [(0, layer_of(source).size)], "peers are not asked how it is cut again"
    assert ["its spans are not where its index says" in one.message for one in caplog.records].count(
        True
    ) == 1
    index = store.layer(layer_of(source).digest).index
    assert index
    with LayerIndex(index) as scanned:
        assert scanned.is_scanned()


ODD: list[Callable[[dict[str, Any]], object]] = [
    lambda told: told.update(diff_id="sha256:" + "0" * 64),
    lambda told: told.update(spans=7),
    lambda told: told["spans"][1].pop(),
    lambda told: told["spans"][1].__setitem__(0, 0),
    lambda told: told["spans"][1].__setitem__(0, True),
    lambda told: told["spans"][1].__setitem__(1, -1),
    lambda told: told["spans"][1].__setitem__(2, 1 << 40),
    lambda told: told["spans"][1].__setitem__(3, 77),
    lambda told: told["spans"][1].__setitem__(4, 8),
    lambda told: told["spans"][1].__setitem__(4, None),
    lambda told: told["spans"][1].__setitem__(5, "no digest"),
    lambda told: told["spans"][1].__setitem__(0, 1 << 50),
    lambda told: told["spans"].reverse(),
]


def test_a_small_text_that_would_be_a_large_object_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MiB of empty lists take 400: of each peer that is asked."""
    layer, diff_id = layer_of(registry()), Digest.of(image_tar())
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("it is parsed"))
    for inner in (b"[],", b"1,", b"{},", b"[[1,1],[1,1]],"):
        body = b'{"diff_id":"%s","spans":[%s0]}' % (str(diff_id).encode(), inner * 200_000)
        with pytest.raises(InvalidImage, match="more than they can say"):
            parse_spans(body, layer, diff_id)
        with pytest.raises(InvalidImage, match="more than 20000 ranges"):
            Presence.from_json(body.replace(b"spans", b"present"))


def test_spans_that_cannot_be_so_are_refused(told: Any) -> None:
    layer, diff_id = layer_of(registry()), Digest.of(image_tar())
    assert len(parse_spans(json.dumps(told).encode(), layer, diff_id).cut) == 4
    for change in ODD:
        odd = copy.deepcopy(told)
        change(odd)
        with pytest.raises(InvalidImage):
            parse_spans(json.dumps(odd).encode(), layer, diff_id)
    for text in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000):
        with pytest.raises(InvalidImage):
            parse_spans(text, layer, diff_id)
