"""All peers of a mount or command: found, asked what they have, read from, left alone when they fail.

A host is looked up again now and then. What a peer has of a layer is asked once, before the first read of the
layer, and then again beside the reads. A peer that fails, or is slow, is left alone for a while, each time
for longer; one that sends wrong bytes for good. None of that holds up a read longer than an answer may take
(`client.ANSWER`), and all reads together not for long in vain, however many peers are down or mute
(`pace.PeerPatience`): what peers do not bring, the registry does.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, as_completed, wait
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from imgfs.errors import ImgfsError, IntegrityError, LimitReached, NotFound
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.parallel import ThreadPool
from imgfs.peers.address import PeerAddress
from imgfs.peers.client import ANSWER, PeerClient
from imgfs.peers.flat_name import FlatName
from imgfs.peers.layer_spans import LayerSpans, parse_spans
from imgfs.peers.pace import PeerPatience, RegistryPace
from imgfs.peers.presence import Presence, shares
from imgfs.registry.endpoint_state import BackOff, EndpointState
from imgfs.registry.sockets import addresses_of

if TYPE_CHECKING:
    from imgfs.status import EndpointStatus

log = logging.getLogger(__name__)

_LOOK_UP = 30.0  # seconds between two look-ups of a host
_ASK = 5.0  # seconds after which what a peer has is asked again
_BACK_OFF = BackOff(5.0, 120.0)  # longer than a registry's: a read can do without
_MOST = 16  # peers that are asked for a layer, of however many
_ASKING = 8  # questions at once


class Peer:
    """A peer, and what is known of it; changed under the pool's lock."""

    def __init__(self, client: PeerClient, clock: Callable[[], float] = time.monotonic) -> None:
        self.client = client
        self.state = EndpointState(f"peer {client.name}", limits=_BACK_OFF, clock=clock)
        self.is_liar = False
        self.known: dict[FlatName, tuple[float, Presence]] = {}  # when it was asked, and what it said
        self.asked: dict[FlatName, Future[None]] = {}  # questions under way

    def is_usable(self) -> bool:
        """Return True if it may be asked."""
        return not self.is_liar and not self.state.is_left_alone()

    def failed(self, error: ImgfsError) -> None:
        """Note a failure: it is left alone for a while."""
        self.state.noted(error)
        self.state.back_off(error)
        self.known.clear()


@dataclass(frozen=True, slots=True)
class PeerRead:
    """One read of a peer: the ranges number `first` to `last` of those that were planned, `[start, end)`."""

    first: int
    last: int
    start: int
    end: int
    _name: FlatName
    _peer: Peer
    _pool: PeerPool = field(repr=False)

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes, so many; raises ImgfsError, and the peer is left alone for a while."""
        try:
            yield from self._peer.client.read(self._name, self.start, self.end)
        except NotFound:
            self._pool.forget(self._peer, self._name)
            raise
        except ImgfsError as error:
            self._pool.failed(self._peer, error)
            raise

    def late(self) -> None:
        """Say that the registry was quicker: the peer is left alone for a while."""
        self._pool.failed(self._peer, self._peer.client.refusal("is slower than the registry"))

    def doubt(self, error: IntegrityError) -> None:
        """Say that what came is wrong: the peer is not asked again."""
        self._pool.expel(self._peer, error)


class PeerPool:
    """The peers at `addresses`. Safe in threads."""

    def __init__(self, addresses: Sequence[PeerAddress], clock: Callable[[], float] = time.monotonic) -> None:
        self._addresses = addresses
        self._clock = clock
        self._lock = threading.Lock()
        self._peers: dict[tuple[PeerAddress, str | None], Peer] = {}
        self._looked_up: float | None = None
        self._looking: Future[None] | None = None
        self._threads = ThreadPool(_ASKING, "imgfs-peers")
        self._closed = False
        self._parsing = threading.Lock()
        self._patience = PeerPatience()
        self.registry = RegistryPace()

    def plan(self, name: FlatName, ranges: Sequence[tuple[int, int]]) -> list[PeerRead]:
        """Return the reads that bring those of `ranges`, which ascend, that any peer has."""
        peers = self._asked(name)
        presences = [presence for _, presence in peers]
        return [
            PeerRead(first, last, ranges[first][0], ranges[last][1], name, peers[number][0], self)
            for number, first, last in shares(ranges, presences)
        ]

    def spans(self, layer: Descriptor, diff_id: Digest) -> tuple[LayerSpans, Peer] | None:
        """Ask how a layer's blob is cut; return the first good answer, and whose it is. None without one."""
        futures = {}
        is_answered = threading.Event()
        with self._patience.waits(2 * ANSWER) as waiting:
            with suppress(RuntimeError, LimitReached):  # closed meanwhile, or no thread to ask in
                for peer in self._usable(FlatName(str(diff_id))):
                    asking = self._threads.submit(self._ask_spans, peer, layer, diff_id, is_answered)
                    futures[asking] = peer
            with suppress(TimeoutError):
                for future in as_completed(futures, waiting.seconds):
                    if told := future.result():
                        waiting.was_worth_it()
                        return told, futures[future]
        return None

    def _ask_spans(
        self, peer: Peer, layer: Descriptor, diff_id: Digest, is_answered: threading.Event
    ) -> LayerSpans | None:
        """Ask a peer, unless the question `is_answered`: one text of 16 MiB takes 110 when it is parsed."""
        if is_answered.is_set():
            return None
        try:
            body = peer.client.spans(layer)
            with self._parsing:
                if body is None or is_answered.is_set():
                    return None
                told = parse_spans(body, layer, diff_id)
                is_answered.set()
                return told
        except ImgfsError as error:
            self.failed(peer, error)
            return None

    def sharers(self, layer: Descriptor) -> list[Peer]:
        """Return the peers that share a download of a blob: the same ones of many, whichever machine asks."""
        self._look_up()
        with self._lock:
            usable = [peer for peer in self._peers.values() if peer.is_usable()]
            return [] if self._closed else sorted(usable, key=lambda peer: _rank(peer, layer))[:_MOST]

    def report(self) -> list[EndpointStatus]:
        """Return the state of each peer."""
        with self._lock:
            return [peer.state.report() for peer in self._peers.values()]

    def forget(self, peer: Peer, name: FlatName) -> None:
        """Note that a peer has no more what it said: it is asked again."""
        with self._lock:
            peer.known[name] = self._clock(), Presence()

    def failed(self, peer: Peer, error: ImgfsError) -> None:
        """Note a failure of a peer."""
        with self._lock:
            if not self._closed:
                peer.failed(error)
        log.info("%s", error)

    def expel(self, peer: Peer, error: IntegrityError) -> None:
        """Ask a peer no more: it has sent wrong bytes."""
        with self._lock:
            is_new, peer.is_liar = not peer.is_liar, True
            peer.failed(error)
        if is_new:
            log.warning("peer %s sends wrong bytes and is not asked again: %s", peer.client.name, error)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._closed = True
            peers = list(self._peers.values())
        for peer in peers:
            peer.client.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _usable(self, name: FlatName) -> list[Peer]:
        """Return the peers that may be asked about a layer; waits for the first look-up."""
        self._look_up()
        with self._lock:
            usable = [peer for peer in self._peers.values() if peer.is_usable()]
            if len(usable) > _MOST:
                knowing = [peer for peer in usable if name in peer.known]
                others = [peer for peer in usable if name not in peer.known]
                usable = (knowing + random.sample(others, len(others)))[:_MOST]
            return [] if self._closed else usable

    def _asked(self, name: FlatName) -> list[tuple[Peer, Presence]]:
        """Return the usable peers that have any of a layer, in any order; waits for those never asked."""
        with self._patience.waits(ANSWER) as waiting:
            usable, now = self._usable(name), self._clock()
            with self._lock:
                if self._closed:
                    return []
                awaited = [self._question(peer, name, now) for peer in usable]
            wait([future for future in awaited if future], waiting.seconds)
            with self._lock:
                known = [(peer, peer.known[name][1]) for peer in usable if name in peer.known]
            found = [(peer, presence) for peer, presence in known if presence]
            if found:
                waiting.was_worth_it()
        random.shuffle(found)
        return found

    def _question(self, peer: Peer, name: FlatName, now: float) -> Future[None] | None:
        """Begin to ask a peer, if due; return what to wait for, if nothing is known. Under the lock."""
        known = peer.known.get(name)
        if (known is None or now - known[0] >= _ASK) and name not in peer.asked:
            peer.asked[name] = self._threads.submit(self._ask, peer, name)
        return peer.asked.get(name) if known is None else None

    def _ask(self, peer: Peer, name: FlatName) -> None:
        try:
            presence = peer.client.presence(name)
        except ImgfsError as error:
            self.failed(peer, error)
        else:
            with self._lock:
                peer.known[name] = self._clock(), presence
                peer.state.worked()
        finally:
            with self._lock:
                del peer.asked[name]

    def _look_up(self) -> None:
        """Find the peers, if that is due: waited for the first time only."""
        with self._lock:
            if self._closed:
                return
            is_due = self._looked_up is None or self._clock() - self._looked_up >= _LOOK_UP
            if is_due and self._looking is None:
                self._looking = self._threads.submit(self._find)
            awaited = self._looking if self._looked_up is None else None
        if awaited:
            wait([awaited], self._patience.left(2 * ANSWER))

    def _find(self) -> None:
        try:
            found = {key: None for address in self._addresses for key in _places(address)}
            with self._lock:
                gone = [self._peers.pop(key) for key in self._peers.keys() - found.keys()]
                for key in found.keys() - self._peers.keys():
                    self._peers[key] = Peer(PeerClient(*key), self._clock)
        finally:
            with self._lock:
                self._looked_up, self._looking = self._clock(), None
        for peer in gone:
            peer.client.close()


def _rank(peer: Peer, layer: Descriptor) -> bytes:
    return sha256(f"{peer.client.name} {layer.digest}".encode()).digest()


def _places(address: PeerAddress) -> Iterable[tuple[PeerAddress, str | None]]:
    """Return an address with each number that its host has; none if it has none now."""
    if address.path:
        return [(address, None)]
    try:
        found = addresses_of(address.host, address.port, 1.0)
    except socket.gaierror as error:
        log.info("peer %s: %s", address, error.strerror)
        return []
    return [(address, place.number) for place in found]
