"""Who fetches which part of a blob that several machines download at once: decided on what each tells.

A blob is divided into chunks of 4 MiB. Each is fetched from the registry by one of the machines that download
the blob, and by the others from that one. There is no agreement: each decides by what it has heard last
(`arriving`), so that

1. what any has fetched is taken from it;
2. what one is about to fetch is left to it; if several are, to the one of them with the highest rank;
3. what none is, is fetched by the one with the highest rank of all.

A rank is a hash of a chunk's number and of a download's name (rendezvous hashing): each download has the
highest for its part of the chunks. The highest of all is so among the few that it knows, too: a chunk that
all others leave to it is fetched, also while not all know of all. Two that are about to fetch the same one
find out, and the lower one leaves it. A download that has nothing to do fetches what is the last, or nearly,
of another's, if it ranks second there: so a machine with a slow link gets less to do.

Peers may lie in all that. Then what they are waited for does not come, or is wrong: they are left, and the
chunk is another's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from imgfs.peers.arriving import Arriving
from imgfs.store.partial import UNIT

CHUNK = 16 * UNIT

P = TypeVar("P", bound=Hashable)


class Division(Generic[P]):
    """The chunks of a blob of `size` bytes, one of whose downloads, called `name`, is this machine's.

    Peers are of any type. Not safe in threads.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._heard: dict[P, Arriving] = {}
        self._left: set[P] = set()
        self._refused: set[tuple[P, int]] = set()
        self._ranked: dict[int, list[P | None]] = {}  # by chunk: all that download, the highest first
        self.claimed: set[int] = set()  # chunks that this machine is about to fetch

    @property
    def chunks(self) -> int:
        """Return how many chunks the blob has."""
        return -(-self._size // CHUNK)

    def bounds(self, chunk: int) -> tuple[int, int]:
        """Return the range of the blob that a chunk is."""
        return chunk * CHUNK, min(self._size, (chunk + 1) * CHUNK)

    def hear(self, peer: P, told: Arriving | None) -> None:
        """Note what a peer tells; None if it does not download the blob."""
        if peer in self._left:
            return
        before = self._heard.pop(peer, None)
        if told:
            self._heard[peer] = told
        if _rank(before) != _rank(told):
            self._ranked.clear()

    def leave(self, peer: P) -> None:
        """Take nothing of this blob from a peer any more."""
        self.hear(peer, None)
        self._left.add(peer)

    def refuse(self, peer: P, chunk: int) -> None:
        """Note that a peer has not sent a chunk that it was to fetch: it is not waited for again."""
        self._refused.add((peer, chunk))
        self._ranked.pop(chunk, None)

    def has(self, peer: P, start: int, end: int) -> bool:
        """Return True if a peer has all of a range."""
        return peer in self._heard and self._heard[peer].present.has(start, end)

    def is_waited_for(self, peer: P, chunk: int, start: int) -> bool:
        """Return True if a peer is about to fetch a chunk: it comes if it is asked for."""
        return peer in self._heard and self._claims(peer, start, self.bounds(chunk)[1], chunk)

    def bringer(self, chunk: int, start: int) -> P | None:
        """Return the peer that brings a chunk from the offset `start` on; None if this machine fetches it."""
        end = self.bounds(chunk)[1]
        ranked = self._ranking(chunk)
        having = [
            peer for peer in self._heard if self.has(peer, start, end) and (peer, chunk) not in self._refused
        ]
        if having:
            return max(having, key=lambda peer: rank(self._heard[peer].name, chunk))
        return next((one for one in ranked if self._claims(one, start, end, chunk)), ranked[0])

    def spare(self, missing: Iterable[tuple[int, int]]) -> int | None:
        """Return a chunk that is better fetched here than waited for, None if there is none.

        `missing` are the numbers of chunks, and the offsets where what is missing of them begins.
        """
        waiting: dict[P, list[int]] = {}
        for chunk, start in missing:
            peer = self.bringer(chunk, start)
            if peer is not None and self._is_untouched(chunk, start):
                waiting.setdefault(peer, []).append(chunk)
        for chunks in sorted(waiting.values(), key=len, reverse=True):
            for chunk in chunks[:0:-1]:  # not the first: it is the next one there
                if self._ranking(chunk)[1] is None:
                    return chunk
        return None

    def _is_untouched(self, chunk: int, start: int) -> bool:
        """Return True if no peer has a chunk, or is about to fetch it."""
        end = self.bounds(chunk)[1]
        return not any(
            self.has(peer, start, end) or self._claims(peer, start, end, chunk) for peer in self._heard
        )

    def _claims(self, one: P | None, start: int, end: int, chunk: int) -> bool:
        if one is None:
            return chunk in self.claimed
        told = self._heard[one]
        return told.is_growing and told.claimed.overlaps(start, end)

    def _ranking(self, chunk: int) -> list[P | None]:
        """Return who may fetch a chunk, the highest first; None is this machine."""
        if chunk not in self._ranked:
            names: dict[P | None, str] = {
                peer: told.name
                for peer, told in self._heard.items()
                if told.is_growing and (peer, chunk) not in self._refused
            }
            names[None] = self._name
            self._ranked[chunk] = sorted(names, key=lambda one: rank(names[one], chunk), reverse=True)
        return self._ranked[chunk]


def rank(name: str, chunk: int) -> bytes:
    """Return how high a download ranks for a chunk."""
    return hashlib.sha256(f"{name} {chunk}".encode()).digest()


def _rank(told: Arriving | None) -> str | None:
    """Return what ranks depend on of what a peer tells."""
    return told.name if told and told.is_growing else None
