"""One blob on its way here and to peers: each machine fetches a part, and has the rest from the others.

Threads: those that fetch from the source (`connections` many), and one for each peer, which asks it how far
its download is, and reads from it what it brings (`_PeerFollower`). What each does next is
`peers.division`'s to say; it is decided, noted, and told to peers by the marks of the partial download,
under one lock. No chunk is written by two threads at once.

Nothing is waited for before the first request goes out, so that peers which are down or have nothing cost
nothing: alone, it is one request for the whole blob. It is broken off where another machine turns out to
fetch what comes next. What a peer is about to fetch and does not, in the time that a few units take here,
another machine fetches; after a few such peers all are left.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

from imgfs.errors import ImgfsError, IntegrityError, StoreError
from imgfs.oci.descriptor import Descriptor
from imgfs.peers import client
from imgfs.peers.arriving import Arriving
from imgfs.peers.division import CHUNK, Division
from imgfs.peers.pool import Peer, PeerPool
from imgfs.starting import try_thread
from imgfs.store.partial import BY_PEER, FETCHED, UNIT, PartialBlob
from imgfs.transport.download import REQUEST, Download
from imgfs.transport.missing_chunks import MissingChunks
from imgfs.transport.source import Source

log = logging.getLogger(__name__)

_SOONEST, _LATEST = 0.03, 1.0  # seconds between two questions to a peer: in between,
_PART = 0.2  # of the time that has passed,
_AWAITED = 0.25  # and no more while it is waited for
_LOOK = 0.25  # seconds between two looks for something to fetch: something may have come to nothing
_NEARLY = 4 * UNIT  # bytes of a chunk for which a request is not broken off
_RATE = 1e6  # bytes per second that the source sends on a connection, as long as that is not known
_SLOWER = 4  # times: what a peer may be
_LONGEST = 30.0  # seconds that are waited for a slower one beside that
_STALLED = 3  # peers that have stood still: no others are waited for


class _PeerRange(NamedTuple):
    """A range of a chunk that a peer has, or is about to fetch."""

    chunk: int
    start: int
    end: int
    is_there: bool


class SharedDownload(Download):
    """What is missing of one blob, on its way into `part`, and from there to `peers`.

    `brought` is told which peer has brought a unit.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        source: Source,
        part: PartialBlob,
        turns: threading.BoundedSemaphore,
        connections: int,
        *,
        peers: PeerPool,
        brought: dict[int, Peer],
    ) -> None:
        super().__init__(descriptor, source, part, turns, connections)
        self.name = part.name
        self._peers = peers
        self._brought = brought
        self._division: Division[Peer] = Division(self.name, descriptor.size)
        self._missing = MissingChunks(part)
        self._reading: set[int] = set()  # chunks that come from peers
        self._stalled = 0
        self._is_alone = False  # all is fetched here
        self._is_first = True
        self._began = time.monotonic()
        self._rate = 0.0  # bytes per second that the source sends on a connection, at its best

    def begin(self) -> None:
        """Begin to fetch, and to look for peers."""
        if self._missing:
            self._pool.submit(self._fetch_chunks)
            try_thread(self._look_for_peers, "imgfs-sharing")

    def is_over(self) -> bool:
        """Return True if nothing is missing, or nothing more is fetched."""
        return self._ended or not self._missing

    def _written(self, at: int, unit: int, peer: Peer | None = None) -> int:
        """Mark the units from `unit` on that end before an offset; return the first one that does not."""
        with self._changed:
            following = self._mark(unit, at, BY_PEER if peer else FETCHED)
            if peer:
                self._brought.update(dict.fromkeys(range(unit, following), peer))
            if following > unit:
                self._missing.note(unit * UNIT // CHUNK)
        return following

    # From the source.

    def _fetch_chunks(self) -> None:
        """Fetch what is this machine's, until nothing is missing."""
        try:
            while self._awaits_own():
                with self._turns:
                    if wanted := self._claim_run():
                        self._fetch_run(*wanted)
        except Exception as error:  # noqa: BLE001  (raised to the thread that waits)
            self.fail(error)

    def _awaits_own(self) -> bool:
        """Wait until there is something to be fetched here; return False if there will be no more."""
        with self._changed:
            while not self.is_over():
                if self._next_own() is not None:
                    return True
                self._changed.wait(_LOOK)
            return False

    def _next_own(self) -> int | None:
        """Return the next chunk to be fetched here. Under the lock."""
        free = self._free()
        chunk = next((chunk for chunk, start in free if self._is_own(chunk, start)), None)
        return self._division.spare(free) if chunk is None else chunk

    def _free(self) -> list[tuple[int, int]]:
        """Return the next chunks that are not on their way, and where what is missing of them begins."""
        return self._missing.without(self._division.claimed, self._reading)

    def _is_own(self, chunk: int, start: int) -> bool:
        return self._is_alone or self._division.bringer(chunk, start) is None

    def _claim_run(self) -> tuple[int, int] | None:
        """Claim the next chunk; return the range to ask for: that, and what is likely to be next."""
        with self._changed:
            chunk = self._next_own()
            if chunk is None or self.is_over():
                return None
            self._claim(chunk)
            start, end = self._missing.gap(chunk)
            most = start + REQUEST if self._connections > 1 and not self._is_alone else self._descriptor.size
            free = dict(self._free())
            while end < most and end % CHUNK == 0 and self._missing.is_untouched(end // CHUNK):
                if end // CHUNK not in free or not self._is_own(end // CHUNK, end):
                    break
                end = self._division.bounds(end // CHUNK)[1]
            return start, end

    def _fetch_run(self, start: int, end: int) -> None:
        """Fetch a range whose first chunk is claimed, as long as its chunks are this machine's."""
        held = {start // CHUNK}
        at, unit, began = start, start // UNIT, time.monotonic()
        try:
            pieces = self._source.blob(self._descriptor, start, end)
            with closing(piece for piece in pieces) as closed:
                for body in _cut(closed, start):
                    if not self._goes_on(at, held):
                        return
                    self._part.write(at, body)
                    at += len(body)
                    unit = self._written(at, unit)
                    self._note_source((at - start) / max(1e-3, time.monotonic() - began))
        finally:
            self._disclaim(held)
        if at != end:
            what = f"length of bytes {start} to {end} of blob {self._descriptor.digest.short}"
            raise IntegrityError(what, expected=end - start, actual=at - start)

    def _goes_on(self, at: int, held: set[int]) -> bool:
        """Return True if what is at an offset is fetched here; `held` are the chunks that are claimed."""
        chunk = at // CHUNK
        with self._changed:
            if self._ended:
                return False
            if chunk in held:
                is_nearly = self._division.bounds(chunk)[1] - at <= _NEARLY
                return is_nearly or self._is_own(chunk, at)
            if self._is_alone:
                self._reading.discard(chunk)  # who reads it from a peer writes no more of it
            elif not self._is_next(chunk, at):
                return False
            self._claim(chunk)
            held.add(chunk)
            return True

    def _is_next(self, chunk: int, at: int) -> bool:
        is_free = not (chunk in self._division.claimed or chunk in self._reading)
        return is_free and chunk in self._missing and self._is_own(chunk, at)

    def _claim(self, chunk: int) -> None:
        self._division.claimed.add(chunk)
        self._part.claim(*_units(self._division.bounds(chunk)))

    def _disclaim(self, chunks: set[int]) -> None:
        with self._changed:
            self._division.claimed -= chunks
            if not self._ended:
                for chunk in chunks:
                    self._part.disclaim(*_units(self._division.bounds(chunk)))
            self._changed.notify_all()

    def _note_source(self, rate: float) -> None:
        """Note how fast the source sends, and whether it answers ranges: else all has to come from it."""
        with self._changed:
            self._rate = max(self._rate, rate)
            is_first, self._is_first = self._is_first, False
            if self._source.ignores_ranges(self._descriptor):
                self._is_alone = True
            elif is_first and not self._ended:
                for _ in range(self._connections - 1):
                    self._pool.submit(self._fetch_chunks)

    # From peers: what their threads ask for.

    def _look_for_peers(self) -> None:
        for peer in self._peers.sharers(self._descriptor):
            try_thread(_PeerFollower(self, peer, self._descriptor).run, "imgfs-sharing")

    def patience(self, size: int = UNIT) -> float:
        """Return the seconds that a peer may take for so many bytes that it is about to fetch."""
        return client.STALL + min(_LONGEST, _SLOWER * size / (self._rate or _RATE))

    def hear(self, peer: Peer, told: Arriving | None) -> tuple[float, bool]:
        """Note what a peer tells; return when to ask again, and whether it is waited for."""
        with self._changed:
            self._division.hear(peer, told)
            self._changed.notify_all()
            is_awaited = any(self._division.bringer(*free) is peer for free in self._free())
            now = time.monotonic()
            pause = min(max(_SOONEST, _PART * (now - self._began)), _AWAITED if is_awaited else _LATEST)
            return now + pause, is_awaited

    def take(self, peer: Peer, until: float) -> _PeerRange | None:
        """Wait for something that a peer brings, which is given back; None if there is nothing up to then."""
        with self._changed:
            while not self.is_over() and (left := until - time.monotonic()) > 0:
                if wanted := self._wanted(peer):
                    self._reading.add(wanted.chunk)
                    return wanted
                self._changed.wait(left)
            return None

    def _wanted(self, peer: Peer) -> _PeerRange | None:
        """Return what to read from a peer next: of what it has, before what it is about to fetch."""
        if self._is_alone or peer.is_liar:
            return None
        growing: _PeerRange | None = None
        for chunk, start in self._free():
            if self._division.bringer(chunk, start) is peer:
                end = self._missing.gap(chunk)[1]
                if self._division.has(peer, start, end):
                    return _PeerRange(chunk, start, end, is_there=True)
                if growing is None and self._division.is_waited_for(peer, chunk, start):
                    growing = _PeerRange(chunk, start, end, is_there=False)
        return growing

    def bring(self, peer: Peer, wanted: _PeerRange, at: int, piece: bytes, unit: int) -> int | None:
        """Write what a peer sends, of the units from `unit` on; return the first one that is not whole.

        None if no more is wanted of it.
        """
        with self._changed:
            if self.is_over() or wanted.chunk not in self._reading:
                return None
            self._part.write(at, piece)
            return self._written(at + len(piece), unit, peer)

    def give_back(self, peer: Peer, wanted: _PeerRange, *, is_whole: bool) -> None:
        """Note that a range has come from a peer, or that the rest of it does not."""
        with self._changed:
            self._reading.discard(wanted.chunk)
            if not is_whole:
                self._division.refuse(peer, wanted.chunk)
            self._changed.notify_all()

    def leave(self, peer: Peer, error: ImgfsError, *, was_awaited: bool) -> None:
        """Take nothing of the blob from a peer any more."""
        self._peers.failed(peer, error)
        with self._changed:
            self._division.leave(peer)
            self._stalled += was_awaited
            self._is_alone = self._is_alone or self._stalled >= _STALLED
            self._changed.notify_all()


class _PeerFollower:
    """Asks a peer how far its download of a blob is, and reads from it what it brings."""

    def __init__(self, download: SharedDownload, peer: Peer, blob: Descriptor) -> None:
        self._download = download
        self._peer = peer
        self._blob = blob
        self._had = 0  # bytes that the peer has fetched,
        self._since = time.monotonic()  # and since when they are no more

    def run(self) -> None:
        """Follow it, until all has come or it fails."""
        try:
            self._run()
        except StoreError as error:
            self._download.fail(error)

    def _run(self) -> None:
        while not self._download.is_over():
            try:
                told = self._peer.client.arriving(self._blob)
            except ImgfsError as error:
                self._download.leave(self._peer, error, was_awaited=False)
                return
            if told and told.name == self._download.name:
                return  # it is this machine
            try:
                self._follow(told)
            except StoreError:
                raise
            except ImgfsError as error:
                self._download.leave(self._peer, error, was_awaited=True)
                return

    def _follow(self, told: Arriving | None) -> None:
        """Read what the peer brings, until it has to be asked again. Raises ImgfsError."""
        until, is_awaited = self._download.hear(self._peer, told)
        has, now = told.present.size if told else 0, time.monotonic()
        if has != self._had or not is_awaited:
            self._had, self._since = has, now
        elif now - self._since > self._download.patience():
            raise client.Stalled(f"peer {self._peer.client.name}: does not fetch what it is to")
        while wanted := self._download.take(self._peer, until):
            self._read(wanted)
            if not wanted.is_there:
                return

    def _read(self, wanted: _PeerRange) -> None:
        size = wanted.end - wanted.start
        seconds = client.ANSWER + size / client.LEAST_RATE
        if not wanted.is_there:
            seconds = self._download.patience(size)
        at, unit = wanted.start, wanted.start // UNIT
        pieces = self._peer.client.blob(self._blob, at, wanted.end, seconds, self._download.patience())
        try:
            with closing(piece for piece in pieces) as sent:
                for piece in sent:
                    following = self._download.bring(self._peer, wanted, at, piece, unit)
                    if following is None:
                        break
                    at, unit = at + len(piece), following
        finally:
            self._download.give_back(self._peer, wanted, is_whole=at == wanted.end)


def _cut(pieces: Iterator[bytes], at: int) -> Iterator[bytes]:
    """Yield the bytes from an offset on so that each piece is of one chunk."""
    for piece in pieces:
        taken = 0
        while taken < len(piece):
            count = min(len(piece) - taken, CHUNK - at % CHUNK)
            yield piece if count == len(piece) else piece[taken : taken + count]
            taken += count
            at += count


def _units(bounds: tuple[int, int]) -> tuple[int, int]:
    return bounds[0] // UNIT, -(-bounds[1] // UNIT)
