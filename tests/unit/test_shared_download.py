"""A blob that several machines download at once comes about once from the registry; bad ones hold up none."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import pytest

from imgfs.errors import NotFound
from imgfs.image.image import Image
from imgfs.oci.descriptor import Descriptor
from imgfs.parallel import begun
from imgfs.peers import client as asking
from imgfs.peers.address import parse_peer
from imgfs.peers.division import CHUNK
from imgfs.peers.flat_name import ARRIVING, blob_path
from imgfs.peers.pool import PeerPool
from imgfs.store.layer import StoredLayer
from imgfs.store.partial import BY_PEER, UNIT, PartialBlob
from imgfs.store.store import Store
from imgfs.transport.resumable import ResumableDownloads
from tests.support import tarmake as tar
from tests.support.fake_source import FakeSource, add_image
from tests.support.mounted import until
from tests.support.patience import allowed
from tests.support.peer import peer
from tests.support.raw_server import Connection, RawServer
from tests.unit.test_prepare import prepared

SIZE = 7 * CHUNK + 5
LONG = 60.0  # seconds: of what is not about time


@cache
def body_of_blob() -> bytes:
    """What the machines download."""
    return random.Random(3).randbytes(SIZE)


class PacedSource(FakeSource):
    """It sends a piece each few milliseconds, so that others can join; none while `gate` is clear."""

    def _chunks(self, body: bytes, start: int, end: int) -> Iterator[bytes]:
        for piece in super()._chunks(body, start, end):
            time.sleep(0.01)
            self.gate.wait(LONG)
            yield piece

    @property
    def sent(self) -> int:
        return self._sent


class Machine(NamedTuple):
    """A store, its registry, and the blob's descriptor."""

    store: Store
    source: PacedSource
    blob: Descriptor

    @property
    def layer(self) -> StoredLayer:
        return self.store.layer(self.blob.digest)

    def download(self, connections: int = 1) -> bytes:
        """Download the blob as a mount does, which has its layer locked, and removes it then."""
        with self.layer.lock():
            body = self.fetch(ResumableDownloads(connections))
            self.layer.drop_part()
        return body

    def fetch(self, downloads: ResumableDownloads) -> bytes:
        chunks = downloads.blob(self.blob, self.source, self.layer, lambda _: None)
        return b"".join(chunk if isinstance(chunk, bytes) else chunk.read() for chunk in chunks)


def same(these: bytes, those: bytes) -> bool:
    """Return True if they are equal: pytest would tell at length how they are not."""
    return these == those


def machine(root: Path, stack: ExitStack, *urls: str) -> Machine:
    source = PacedSource()
    blob = source.add(body_of_blob())
    if urls:
        source.pool = stack.enter_context(closing(PeerPool([parse_peer(url) for url in urls])))
    return Machine(Store(root), source, blob)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@contextmanager
def cluster(tmp_path: Path, count: int) -> Iterator[list[Machine]]:
    """Machines that are each other's peers, and their own, as where one name has all their addresses."""
    with ExitStack() as stack:
        urls = [stack.enter_context(peer(tmp_path / str(number))) for number in range(count)]
        yield [machine(tmp_path / str(number), stack, *urls) for number in range(count)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("connections", [1, 4])
def test_three_machines_at_once_fetch_a_blob_about_once(tmp_path: Path, connections: int) -> None:
    with cluster(tmp_path, 3) as machines:
        running = [begun(partial(one.download, connections), "download") for one in machines]
        assert all(same(one.result(LONG), body_of_blob()) for one in running)
        sent = [one.source.sent for one in machines]
    assert sum(sent) < 1.6 * SIZE, "3.0 if none knew of another"
    assert max(sent) < SIZE


@contextmanager
def leader(root: Path, *, is_growing: bool = True) -> Iterator[tuple[str, PartialBlob]]:
    """A machine that downloads the blob: where its peers ask, and how far it is."""
    store = Store(root)
    layer = store.layer(Machine(store, PacedSource(), PacedSource().add(body_of_blob())).blob.digest)
    with peer(root) as url, closing(layer.part(SIZE)) as part, ExitStack() as stack:
        if is_growing:
            stack.enter_context(layer.lock())
        yield url, part


def has(part: PartialBlob, body: bytes, *chunks: int) -> None:
    """Have chunks of a body, as if fetched."""
    for chunk in chunks:
        for unit in range(chunk * CHUNK // UNIT, min(part.units, (chunk + 1) * CHUNK // UNIT)):
            start, end = part.bounds(unit)
            part.write(start, body[start:end])
            part.mark(unit)


def test_what_a_leader_has_is_not_fetched_again_and_what_it_fetches_comes_as_it_grows(
    tmp_path: Path, stack: ExitStack
) -> None:
    with leader(tmp_path / "first") as (url, part):
        has(part, body_of_blob(), 0, 1, 2, 3)
        part.claim(4 * CHUNK // UNIT, part.units)
        second = machine(tmp_path / "second", stack, url)
        second.source.gate.clear()  # its registry says nothing at first
        running = begun(second.download, "download")
        until(lambda: has_units(second, 3 * CHUNK // UNIT), "what the leader had to be here")
        second.source.gate.set()
        for chunk in (4, 5, 6, 7):
            has(part, body_of_blob(), chunk)
        assert same(running.result(LONG), body_of_blob())
    assert second.source.sent <= CHUNK + (1 << 20), "what was asked for before the leader was known"


def has_units(one: Machine, count: int) -> bool:
    path = one.layer.directory / "part.map"
    return path.exists() and path.read_bytes()[40:].count(BY_PEER) >= count


def test_a_leader_that_was_killed_leaves_what_it_had(tmp_path: Path, stack: ExitStack) -> None:
    """As `kill -9` leaves it: what it was about to fetch is claimed, and its layer not locked."""
    with leader(tmp_path / "first", is_growing=False) as (url, part):
        has(part, body_of_blob(), 2, 3, 4, 5)
        part.claim(0, part.units)
        second = machine(tmp_path / "second", stack, url)
        assert same(second.download(), body_of_blob())
    assert second.source.sent < 0.7 * SIZE


def test_a_leader_whose_machine_goes_away_is_followed_by_the_registry(
    tmp_path: Path, stack: ExitStack
) -> None:
    with ExitStack() as gone:
        url, part = gone.enter_context(leader(tmp_path / "first"))
        has(part, body_of_blob(), 1, 2)
        part.claim(3 * CHUNK // UNIT, part.units)
        second = machine(tmp_path / "second", stack, url)
        second.source.gate.clear()
        running = begun(second.download, "download")
        until(lambda: has_units(second, 2 * CHUNK // UNIT), "the leader's to be here")
        gone.close()
        second.source.gate.set()
        assert same(running.result(LONG), body_of_blob())
    assert 0 < second.source.sent < 0.9 * SIZE


def test_a_leader_that_stands_still_is_left_and_nothing_is_lost(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "STALL", 0.3)
    with leader(tmp_path / "first") as (url, part):
        has(part, body_of_blob(), 1, 2)
        part.claim(3 * CHUNK // UNIT, part.units)
        second = machine(tmp_path / "second", stack, url)
        assert same(second.download(), body_of_blob())
        assert second.source.pool
        assert [one.state for one in second.source.pool.report()] == ["failing"]
    assert second.source.sent < 0.9 * SIZE


def test_a_leader_that_does_nothing_is_not_waited_for_either(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it downloads the blob, and so half of the chunks are its own; but it claims none."""
    monkeypatch.setattr(asking, "STALL", 0.3)
    with leader(tmp_path / "first") as (url, _part):
        second = machine(tmp_path / "second", stack, url)
        assert same(second.download(), body_of_blob())
    assert second.source.sent < 1.1 * SIZE


def test_wrong_bytes_are_fetched_again_and_name_their_sender(
    tmp_path: Path, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that the registry has sent is fetched twice."""
    wrong = body_of_blob()[: 3 * CHUNK + 9] + b"?" + body_of_blob()[3 * CHUNK + 10 :]
    with leader(tmp_path / "bad") as (bad, part), leader(tmp_path / "good") as (good, honest):
        has(part, wrong, 2, 3)
        has(honest, body_of_blob(), 4, 5)
        second = machine(tmp_path / "second", stack, bad, good)
        second.source.gate.clear()
        downloads = ResumableDownloads()
        running = begun(partial(second.fetch, downloads), "download")
        until(lambda: has_units(second, 4 * CHUNK // UNIT), "what the leaders have to be here")
        second.source.gate.set()
        assert same(running.result(LONG), wrong)
        sent = second.source.sent
        assert downloads.doubt_peers(second.blob, second.layer)
        assert same(second.fetch(downloads), body_of_blob())
        downloads.judge_peers(second.blob, second.source, second.layer)
        assert second.source.sent - sent == 4 * CHUNK
    assert [one.message.split(" sends")[0] for one in caplog.records if one.levelname == "WARNING"] == [
        f"peer {bad}"
    ]
    assert not downloads.doubt_peers(second.blob, second.layer), "there is nothing of peers any more"


def test_what_peers_have_brought_is_not_sent_on(tmp_path: Path, stack: ExitStack) -> None:
    """So the one that has sent wrong bytes has them from the registry, or has made them up."""
    with leader(tmp_path / "first") as (url, part), peer(tmp_path / "second") as own:
        has(part, body_of_blob(), 2, 3)
        second = machine(tmp_path / "second", stack, url)
        second.source.gate.clear()
        with second.layer.lock():
            running = begun(partial(second.fetch, ResumableDownloads()), "download")
            until(lambda: has_units(second, 2 * CHUNK // UNIT), "what the leader has to be here")
            second.source.gate.set()
            running.result(LONG)
            with closing(asking.PeerClient(parse_peer(own))) as asked:
                told = asked.arriving(second.blob)
                assert told
                assert told.present.ranges == [(0, 2 * CHUNK), (4 * CHUNK, SIZE)]
                assert list(asked.blob(second.blob, 2 * CHUNK, 3 * CHUNK, LONG)) == []
                assert same(
                    b"".join(asked.blob(second.blob, 0, 3 * CHUNK, LONG)), body_of_blob()[: 2 * CHUNK]
                )


def test_a_download_that_is_over_is_sent_on_to_one_that_is_behind(tmp_path: Path, stack: ExitStack) -> None:
    with leader(tmp_path / "first", is_growing=False) as (url, part):
        has(part, body_of_blob(), *range(8))
        with closing(asking.PeerClient(parse_peer(url))) as asked:
            blob = machine(tmp_path / "second", stack).blob
            assert asked.arriving(blob)
            Store(tmp_path / "first").layer(blob.digest).drop_part()
            told = asked.arriving(blob)
            assert told
            assert not told.is_growing
            assert same(b"".join(asked.blob(blob, 0, SIZE, LONG)), body_of_blob())


def test_a_question_for_what_is_not_here_leaves_nothing_in_the_store(
    tmp_path: Path, stack: ExitStack
) -> None:
    with peer(tmp_path / "first") as url, closing(asking.PeerClient(parse_peer(url))) as asked:
        blob = machine(tmp_path / "second", stack).blob
        assert asked.arriving(blob) is None
        assert list(asked.blob(blob, 0, 9, LONG)) == []
        assert asked.spans(blob) is None
    assert not list((tmp_path / "first").glob("layers/*/*"))


def old(connection: Connection) -> None:
    """A peer of a version that does not know these questions."""
    connection.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


def odd(connection: Connection) -> None:
    body = b'{"name": 7}'
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def everything(connection: Connection) -> None:
    """It says that it has all, and sends other ranges than were asked for."""
    if ARRIVING.encode() in connection.head:
        body = b'{"name": "%s", "growing": true, "size": %d, "present": [[0, %d]], "claimed": []}' % (
            b"a" * 32,
            SIZE,
            SIZE,
        )
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    else:
        connection.send(b"HTTP/1.1 206 X\r\nContent-Length: 9\r\nContent-Range: bytes 0-8/9\r\n\r\n123456789")


@pytest.mark.parametrize("answer", [old, odd, everything])
def test_with_a_peer_of_no_use_the_blob_comes_as_without(
    tmp_path: Path, stack: ExitStack, answer: object
) -> None:
    with RawServer(answer) as server:  # type: ignore[arg-type]
        one = machine(tmp_path / "one", stack, server.url)
        assert same(one.download(), body_of_blob())
        assert any(blob_path(ARRIVING, one.blob.digest).encode() in line for line in server.lines)
    assert one.source.sent <= SIZE + (1 << 20)


def test_peers_that_are_not_there_cost_no_request(tmp_path: Path, stack: ExitStack) -> None:
    """The registry is asked at once, for all."""
    one = machine(tmp_path / "one", stack, "http://127.0.0.1:9", f"unix:{tmp_path}/none")
    assert same(one.download(), body_of_blob())
    assert one.source.ranges == [(0, SIZE)]


def test_where_ranges_are_not_answered_the_blob_is_asked_for_whole(tmp_path: Path, stack: ExitStack) -> None:
    with leader(tmp_path / "first") as (url, part):
        part.claim(CHUNK // UNIT, part.units)
        one = machine(tmp_path / "one", stack, url)
        one.source.rangeless = True
        assert same(one.download(), body_of_blob())
    assert one.source.ranges == [(0, SIZE)]


def test_what_keeps_a_part_away_is_raised_and_the_rest_is_kept(tmp_path: Path) -> None:
    with cluster(tmp_path, 2) as (first, second):
        first.source.broken.add(first.blob.digest)
        with pytest.raises(NotFound, match="no blob"):
            first.download()
        assert same(second.download(), body_of_blob())


def test_a_machine_with_a_slow_link_fetches_less(tmp_path: Path) -> None:
    with cluster(tmp_path, 2) as (slow, fast):
        stops = threading.Event()
        slow.source.gate.clear()

        def drip() -> None:
            while not stops.wait(0.1):
                slow.source.gate.set()
                slow.source.gate.clear()

        dripping = begun(drip, "drip")
        running = [begun(one.download, "download") for one in (slow, fast)]
        try:
            assert all(same(one.result(allowed(LONG)), body_of_blob()) for one in running)
        finally:
            stops.set()
            slow.source.gate.set()
            dripping.result(LONG)
    assert slow.source.sent < fast.source.sent


def test_a_download_goes_on_with_what_an_earlier_one_has_left(tmp_path: Path, stack: ExitStack) -> None:
    with leader(tmp_path / "first") as (url, part):
        has(part, body_of_blob(), 5)
        second = machine(tmp_path / "second", stack, url)
        with closing(second.layer.part(SIZE)) as kept:
            has(kept, body_of_blob(), 0, 1)
            kept.forget(3)
            kept.claim(2 * CHUNK // UNIT, kept.units)
        assert same(second.download(), body_of_blob())
    assert second.source.sent == SIZE - 3 * CHUNK + UNIT
    shutil.rmtree(tmp_path / "first")


def test_an_image_with_a_layer_of_wrong_bytes_is_right_in_the_end(
    tmp_path: Path, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """The layer's digest decides; then the registry has sent what the peer had, and the peer is named."""
    source = PacedSource()
    add_image(source, [tar.archive(tar.file("noise", body_of_blob()))], pack=lambda flat: flat)
    digest, body = max(source.bodies.items(), key=lambda item: len(item[1]))
    layer = Store(tmp_path / "bad").layer(digest)
    wrong = body[: 4 * CHUNK] + bytes([body[4 * CHUNK] ^ 1]) + body[4 * CHUNK + 1 :]
    with peer(tmp_path / "bad") as url, closing(layer.part(len(body))) as part, layer.lock():
        has(part, wrong, 4, 5, 6)
        source.pool = stack.enter_context(closing(PeerPool([parse_peer(url)])))
        store = Store(tmp_path / "second")
        resolved, journal = prepared(source, store)
        assert source.pool
        assert [one.state for one in source.pool.report()] == ["failing"]
    with Image(resolved, source, store) as image:
        assert same(b"".join(image.read(image.tree.resolve(b"/noise").ino)), body_of_blob())
    assert any(
        "what peers have sent of a layer is fetched from the registry" in text for text in journal.told
    )
    warned = [one.message for one in caplog.records if one.levelname == "WARNING"]
    assert len(warned) == 1
    assert f"peer {url} sends wrong bytes" in warned[0]
    assert source.sent < 1.2 * len(body)
