"""Reads that peers could bring: from a good one, past bad ones, never wrong and never held up for long."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from imgfs.parallel import begun
from imgfs.peers import client as asking
from imgfs.peers import pool as pools
from imgfs.peers.address import PeerAddress, parse_peer
from imgfs.peers.pace import RegistryPace
from imgfs.peers.pool import PeerPool
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


LIARS = [wrong]
FAILING = [short, of_another_length, of_another_range, endless, chunked, endless_head, redirect, not_http]


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
