"""Reads that peers could bring: from a good one, past bad ones, never wrong and never held up for long."""

from __future__ import annotations

import gzip
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.parallel import begun
from imgfs.peers import client as asking
from imgfs.peers import pace
from imgfs.peers import pool as pools
from imgfs.peers.address import PeerAddress, parse_peer
from imgfs.peers.client import PeerClient
from imgfs.peers.flat_name import FlatName
from imgfs.peers.pace import RegistryPace
from imgfs.peers.pool import PeerPool
from imgfs.registry.endpoint_state import BackOff
from imgfs.registry.sockets import DnsAddress
from tests.support.content_rig import Rig, tar_of
from tests.support.mounted import until
from tests.support.patience import allowed
from tests.support.peer import peer
from tests.support.raw_server import Connection, RawServer

TAR = tar_of(95_000)
LONG = 5.0  # seconds that an answer may take where it is not to be late on a busy machine


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer for peers: nothing here is about time."""
    monkeypatch.setattr(asking, "ANSWER", LONG)
    monkeypatch.setattr(pools, "ANSWER", LONG)
    monkeypatch.setattr(RegistryPace, "patience", lambda *_: LONG)


@contextmanager
def reader(directory: Path, *urls: str) -> Iterator[Rig]:
    """A layer none of which is here, that peers may have."""
    with ExitStack() as stack:
        rig = Rig(directory, stack, TAR, TAR)
        rig.source.pool = stack.enter_context(closing(PeerPool([parse_peer(url) for url in urls])))
        yield rig


def read_all(rig: Rig) -> None:
    for number in reversed(range(len(rig.spans))):
        rig.read_span(number)
    rig.settle()


def serving(directory: Path, numbers: range) -> Rig:
    """Another store that has some spans."""
    with ExitStack() as stack:
        rig = Rig(directory, stack, TAR, TAR)
        for number in reversed(numbers):
            rig.read_span(number)
        rig.settle()
        return rig


@pytest.mark.usefixtures("patient")
def test_what_one_peer_lacks_another_has_and_the_rest_is_the_registrys(tmp_path: Path) -> None:
    serving(tmp_path / "a", range(4))
    serving(tmp_path / "b", range(3, 7))
    with (
        peer(tmp_path / "a") as a,
        peer(tmp_path / "b") as b,
        reader(tmp_path / "c", a, b, "http://127.0.0.1:9") as rig,
    ):
        read_all(rig)
        spared = sum(rig.spans[number].end - rig.spans[number].start for number in range(7))
        status = rig.content.snapshot()
        assert (status.from_peers, status.fetched) == (spared, rig.layer.size)
        assert {start for start, _ in rig.source.ranges} == {span.start for span in rig.spans[7:]}
        assert rig.source.pool
        states = sorted(one.state for one in rig.source.pool.report())
        assert states == ["failing", "ok", "ok"]


Answer = Callable[[Connection, int, int], None]
_RANGE = re.compile(rb"Range: bytes=([0-9]+)-([0-9]+)")


def hostile(answer: Answer) -> Callable[[Connection], None]:
    """A peer that says that it has everything, and answers a range by `answer`."""

    def respond(connection: Connection) -> None:
        found = _RANGE.search(connection.head)
        if found:
            answer(connection, int(found[1]), int(found[2]) + 1)
            return
        body = json.dumps({"size": len(TAR), "present": [[0, len(TAR)]]}).encode()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    return respond


def partial(start: int, end: int, body: bytes, length: int | None = None) -> bytes:
    length = end - start if length is None else length
    head = f"HTTP/1.1 206 X\r\nContent-Length: {length}\r\nContent-Range: bytes {start}-{end - 1}/{len(TAR)}"
    return f"{head}\r\n\r\n".encode() + body


def wrong(connection: Connection, start: int, end: int) -> None:
    connection.send(partial(start, end, bytes(end - start)))


def short(connection: Connection, start: int, end: int) -> None:
    connection.send(partial(start, end, TAR[start : end - 1]))
    raise OSError


def of_another_length(connection: Connection, start: int, end: int) -> None:
    connection.send(partial(start, end, TAR[start : end + 50], end - start + 50))


def of_another_range(connection: Connection, start: int, end: int) -> None:
    connection.send(partial(start + 1, end + 1, TAR[start:end]))


def endless(connection: Connection, start: int, end: int) -> None:
    connection.send(f"HTTP/1.1 206 X\r\nContent-Range: bytes {start}-{end - 1}/9\r\n\r\n".encode())
    while True:
        connection.send(bytes(65536))


def chunked(connection: Connection, start: int, end: int) -> None:
    head = f"HTTP/1.1 206 X\r\nTransfer-Encoding: chunked\r\nContent-Range: bytes {start}-{end - 1}/9\r\n\r\n"
    connection.send(head.encode())
    while True:
        connection.send(b"10\r\n0123456789abcdef\r\n")


def endless_head(connection: Connection, _start: int, _end: int) -> None:
    connection.send(b"HTTP/1.1 206 X\r\n")
    while True:
        connection.send(b"X-More: and more\r\n")


def redirect(connection: Connection, _start: int, _end: int) -> None:
    connection.send(b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:9/x\r\nContent-Length: 0\r\n\r\n")


def not_http(connection: Connection, _start: int, _end: int) -> None:
    connection.send(b"\0\xff\n\n")
    raise OSError


def packed(connection: Connection, start: int, end: int) -> None:
    """It has the length, and encodes what was asked for as it is."""
    body = gzip.compress(TAR[start:end], 0)[: end - start]
    head = partial(start, end, b"").replace(b"206 X\r\n", b"206 X\r\nContent-Encoding: gzip\r\n")
    connection.send(head + body)


def gone_for_ever(connection: Connection, _start: int, _end: int) -> None:
    connection.send(b"HTTP/1.1 416 X\r\nContent-Length: 0\r\n\r\n")


def busy_for_ever(connection: Connection, _start: int, _end: int) -> None:
    connection.send(b"HTTP/1.1 429 X\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")


def away_for_ever(connection: Connection, _start: int, _end: int) -> None:
    connection.send(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")


def goes_on(connection: Connection, _start: int, _end: int) -> None:
    while True:
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")


LIARS = [wrong, packed]
FAILING = [
    *(short, of_another_length, of_another_range, endless, chunked, endless_head, redirect, not_http),
    *(gone_for_ever, busy_for_ever, away_for_ever, goes_on),
]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("answer", [*LIARS, *FAILING], ids=lambda answer: answer.__name__)
def test_a_bad_peer_harms_no_read_and_is_not_asked_again(
    tmp_path: Path, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    with RawServer(hostile(answer)) as server, reader(tmp_path, server.url) as rig:
        read_all(rig)
        assert rig.content.snapshot().from_peers == 0
        assert len(rig.source.ranges) == len(rig.spans)
        asked = [line for line in server.lines if b"/flat/" in line]
        assert len(asked) == 1
    warned = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) == (1 if answer in LIARS else 0), warned
    assert all("sends wrong bytes and is not asked again" in line for line in warned)


def test_however_many_peers_are_mute_they_are_waited_for_but_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer's first stream asks who has it, and each read of what no peer is known to have."""
    monkeypatch.setattr(asking, "ANSWER", 0.5)
    monkeypatch.setattr(pools, "ANSWER", 0.5)
    monkeypatch.setattr(pace, "IN_VAIN", 1.0)
    monkeypatch.setattr(pools, "_BACK_OFF", BackOff(0.01, 0.01))  # they are usable again at once
    layer, diff_id = Descriptor("", Digest.of(b"layer"), 1000), Digest.of(b"flat")
    with ExitStack() as stack:
        mute = [stack.enter_context(RawServer(lambda one: one.drip([b""] * 99, 1))) for _ in range(12)]
        addresses = [parse_peer(server.url) for server in mute]
        pool = stack.enter_context(closing(PeerPool(addresses)))
        began = time.monotonic()
        for number in range(20):
            assert pool.spans(layer, diff_id) is None
            assert pool.plan(FlatName(f"sha256:{number:064}"), [(0, 100)]) == []
        assert time.monotonic() - began < allowed(4)  # without a bound 20 s, by the backed-off ones alone
        name = FlatName.of(serving(tmp_path / "a", range(4)).content.index.summary)
        addresses[:] = [parse_peer(stack.enter_context(peer(tmp_path / "a")))]
        monkeypatch.setattr(pools, "_LOOK_UP", 0.0)
        until(lambda: pool.plan(name, [(0, 100)]), "one that answers is heard all the same")


def test_the_time_that_a_reader_takes_is_not_the_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where what has come is written to a slow disk, or hashed on a busy machine."""
    monkeypatch.setattr(asking, "_PIECE", 4096)
    rig = serving(tmp_path / "a", range(9))
    name = FlatName.of(rig.content.index.summary)
    with peer(tmp_path / "a") as url, closing(PeerClient(parse_peer(url))) as client:
        end = rig.spans[8].flat_end
        list(client.read(name, 0, end))
        monkeypatch.setattr(asking, "ANSWER", 1.0)
        monkeypatch.setattr(asking, "LEAST_RATE", 1e9)
        pieces = client.read(name, 0, end)
        body = next(pieces)
        time.sleep(1.5)
        assert body + b"".join(pieces) == TAR[:end]


@pytest.mark.parametrize("when", ["asked", "read"])
def test_a_slow_peer_delays_one_read_by_no_more_than_an_answer_may_take(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ANSWER", 0.5)
    monkeypatch.setattr(pools, "ANSWER", 0.5)

    def dripping(connection: Connection) -> None:
        if (when == "asked") or b"/flat/" in connection.head:
            connection.drip((b"H", *[b"T"] * 1000), 0.05)
        hostile(wrong)(connection)

    with RawServer(dripping) as server, reader(tmp_path, server.url) as rig:
        began = time.monotonic()
        rig.read_span(8)
        assert time.monotonic() - began < allowed(2 * asking.ANSWER + 1.0)
        until(lambda: rig.source.pool and rig.source.pool.report()[0].state == "failing", "a note of that")
        before = len(server.heads)
        read_all(rig)
        assert len(server.heads) == before


@pytest.mark.usefixtures("patient")
def test_a_host_stands_for_all_its_addresses_and_is_looked_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a headless service has them; where it has none any more, none is asked."""
    numbers = ["127.0.0.2", "127.0.0.3"]

    def addresses(_host: str, port: int, _seconds: float) -> list[DnsAddress]:
        return [DnsAddress(2, (number, port)) for number in numbers]

    now = 0.0
    monkeypatch.setattr(pools, "addresses_of", addresses)
    with closing(PeerPool([PeerAddress("peers", 9)], lambda: now)) as pool, reader(tmp_path) as rig:
        rig.source.pool = pool
        rig.read_span(8)
        found = sorted(one.endpoint for one in pool.report())  # by chance, which is asked first
        assert found == [f"peer http://peers:9 ({one})" for one in numbers]
        numbers.clear()
        now = pools._LOOK_UP
        rig.read_span(3)
        until(lambda: not pool.report(), "the host to be looked up again")


@pytest.mark.usefixtures("patient")
def test_without_a_digest_of_its_flat_bytes_a_span_comes_from_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving(tmp_path / "a", range(10))
    with peer(tmp_path / "a") as url, reader(tmp_path / "b", url) as rig:
        monkeypatch.setattr(rig.content.index, "flat_span", lambda number: None)  # noqa: ARG005
        read_all(rig)
        assert rig.content.snapshot().from_peers == 0


def stalling(connection: Connection) -> None:
    """A peer that says that it has everything, and sends half of what it is asked for."""

    def half(connection: Connection, start: int, end: int) -> None:
        connection.send(partial(start, end, TAR[start : (start + end) // 2]))
        connection.drip([b""] * 1000, 0.05)

    hostile(half)(connection)


@pytest.mark.usefixtures("patient")
def test_the_registry_joins_a_peer_that_is_slower_than_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The read ends though the peer's does not; then that peer is left alone."""
    monkeypatch.setattr(RegistryPace, "patience", lambda *_: 0.1)
    caplog.set_level(logging.INFO)
    with RawServer(stalling) as server, reader(tmp_path, server.url) as rig:
        read_all(rig)
        assert rig.content.snapshot().from_peers == 0
        assert len(rig.source.ranges) == len(rig.spans)
        assert len([line for line in server.lines if b"/flat/" in line]) == 1
    assert any("is slower than the registry" in record.message for record in caplog.records)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("may_ask", [True, False])
def test_a_peer_may_be_slow_where_the_registry_is_slower_or_is_asked_no_more(
    tmp_path: Path, may_ask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the allowance, the first of both wins; beyond it the registry alone is asked, later."""
    monkeypatch.setattr(RegistryPace, "patience", lambda *_: 0.1)
    held = threading.Event()

    def late(connection: Connection, start: int, end: int) -> None:
        held.wait(allowed(20))
        connection.send(partial(start, end, TAR[start:end]))

    with RawServer(hostile(late)) as server, reader(tmp_path, server.url) as rig:
        assert rig.source.pool
        monkeypatch.setattr(rig.source.pool.registry, "allow", lambda _: may_ask)
        if may_ask:
            rig.source.gate.clear()
            begun(lambda: held.set() if rig.source.waiting.wait(20) else None, "held")
        rig.read_span(8)
        assert (rig.content.snapshot().from_peers > 0) is may_ask
        assert len(rig.source.ranges) == 1
        held.set()
        rig.source.gate.set()


def test_what_the_registry_sends_for_nothing_is_bounded() -> None:
    pace = RegistryPace()
    assert 1.0 < pace.patience(1 << 20) < 1.1
    for _ in range(64):
        pace.note(1 << 20, 0.3, 0.8)
    assert pace.patience(1 << 20) == pytest.approx(0.8)
    for _ in range(3):
        pace.note(1 << 20, 5.0, 9.0)
    assert pace.patience(1 << 20) < 1, "few are slow"
    asked = sum(1 for _ in range(100) if pace.allow(1 << 20))
    assert asked == 8
    pace.brought(20 << 20)
    assert pace.allow(1 << 20)
    assert not pace.allow(1 << 20)
