"""Who fetches which chunk of a blob that several download: each decides alone, and each chunk has one."""

from __future__ import annotations

import itertools
import random

import pytest

from imgfs.errors import InvalidImage
from imgfs.peers.arriving import Arriving
from imgfs.peers.division import CHUNK, Division, rank
from imgfs.peers.presence import MOST_RANGES, Presence
from imgfs.store.partial import BY_PEER, CLAIMED, FETCHED, MISSING, UNIT

NAMES = [f"{number:032x}" for number in range(5)]
CHUNKS = 24
SIZE = CHUNKS * CHUNK - 100


def chunks(*numbers: int) -> Presence:
    return Presence.of_spans((number * CHUNK, min(SIZE, (number + 1) * CHUNK)) for number in numbers)


def told(name: str, *, present: Presence = Presence(), claimed: Presence = Presence()) -> Arriving:  # noqa: B008
    return Arriving(name, True, present, claimed)


def division(own: str, *others: str) -> Division[str]:
    made: Division[str] = Division(own, SIZE)
    for name in others:
        made.hear(name, told(name))
    return made


def own_chunks(made: Division[str]) -> set[int]:
    return {chunk for chunk in range(CHUNKS) if made.bringer(chunk, chunk * CHUNK) is None}


def test_each_chunk_is_fetched_by_one_of_those_that_know_each_other() -> None:
    shares = [own_chunks(division(name, *(other for other in NAMES if other != name))) for name in NAMES]
    assert sorted(itertools.chain.from_iterable(shares)) == list(range(CHUNKS))
    assert all(shares), "each has something to do"
    assert own_chunks(division(NAMES[0])) == set(range(CHUNKS)), "alone, all is its own"


@pytest.mark.parametrize("seed", range(20))
def test_no_chunk_is_left_to_others_by_all_however_few_each_knows(seed: int) -> None:
    chance = random.Random(seed)
    known = {
        name: chance.sample([other for other in NAMES if other != name], chance.randrange(5))
        for name in NAMES
    }
    fetched = set[int]().union(*(own_chunks(division(name, *known[name])) for name in NAMES))
    assert fetched == set(range(CHUNKS))


def test_what_a_peer_has_is_taken_from_it_whoever_ranks_higher() -> None:
    made = division(NAMES[0], NAMES[1])
    own = min(own_chunks(made))
    made.hear(NAMES[1], told(NAMES[1], present=chunks(own)))
    assert made.bringer(own, own * CHUNK) == NAMES[1]
    made.hear(NAMES[1], Arriving(NAMES[1], False, chunks(own)))
    assert made.bringer(own, own * CHUNK) == NAMES[1], "also when it fetches no more"
    assert own_chunks(made) == set(range(CHUNKS)) - {own}


def test_of_two_that_are_about_to_fetch_a_chunk_one_leaves_it() -> None:
    for chunk in range(CHUNKS):
        first, second = division(NAMES[0]), division(NAMES[1])
        for made, own, other in ((first, 0, 1), (second, 1, 0)):
            made.claimed.add(chunk)
            made.hear(NAMES[other], told(NAMES[other], claimed=chunks(chunk)))
            higher = max(NAMES[:2], key=lambda name: rank(name, chunk))
            expected = None if higher == NAMES[own] else NAMES[other]
            assert made.bringer(chunk, chunk * CHUNK) == expected


def test_who_claims_a_chunk_is_left_it_by_one_that_ranks_higher_and_has_not_begun() -> None:
    made = division(NAMES[0], NAMES[1])
    own = max(own_chunks(made))
    made.hear(NAMES[1], told(NAMES[1], claimed=Presence([(own * CHUNK + 3 * UNIT, (own + 1) * CHUNK)])))
    assert made.bringer(own, own * CHUNK) == NAMES[1]
    assert made.is_waited_for(NAMES[1], own, own * CHUNK)


def test_a_peer_that_is_left_or_does_not_send_a_chunk_gets_no_other_to_wait_for_it() -> None:
    made = division(NAMES[0], NAMES[1])
    other = min(set(range(CHUNKS)) - own_chunks(made))
    made.refuse(NAMES[1], other)
    made.hear(NAMES[1], told(NAMES[1], present=chunks(other), claimed=chunks(other)))
    assert made.bringer(other, other * CHUNK) is None
    made.leave(NAMES[1])
    made.hear(NAMES[1], told(NAMES[1], present=chunks(*range(CHUNKS))))
    assert own_chunks(made) == set(range(CHUNKS))


def test_who_has_nothing_to_do_takes_the_last_of_another_and_never_its_next() -> None:
    made = division(NAMES[0], NAMES[1])
    theirs = [(chunk, chunk * CHUNK) for chunk in range(CHUNKS) if chunk not in own_chunks(made)]
    assert made.spare(theirs) == theirs[-1][0]
    assert made.spare(theirs[:1]) is None
    busy = told(NAMES[1], claimed=chunks(theirs[-1][0]))
    made.hear(NAMES[1], busy)
    assert made.spare(theirs[-2:]) is None, "one of both is under way, the other is its next"
    third = division(NAMES[0], NAMES[1], NAMES[2])
    others = [(chunk, chunk * CHUNK) for chunk in range(CHUNKS) if chunk not in own_chunks(third)]
    found = third.spare(others)
    assert found is not None
    ranked = sorted(NAMES[:3], key=lambda name: rank(name, found), reverse=True)
    assert ranked[1] == NAMES[0], "of two with nothing to do only one takes it"


def test_what_is_told_of_a_download_is_what_this_machine_has_fetched_itself() -> None:
    marks = bytes([FETCHED, FETCHED, BY_PEER, CLAIMED, MISSING, FETCHED])
    size = 6 * UNIT - 5
    made = Arriving.of_marks(NAMES[0], True, marks, size)
    assert made.present.ranges == [(0, 2 * UNIT), (5 * UNIT, size)]
    assert made.claimed.ranges == [(3 * UNIT, 4 * UNIT)]
    again = Arriving.from_json(made.to_json(size), size)
    assert again
    assert (again.name, again.is_growing, again.present.ranges) == (NAMES[0], True, made.present.ranges)
    assert Arriving.from_json(made.to_json(size), size + 1) is None, "another blob"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"growing":true', b'"growing":1'),
        (NAMES[0].encode(), b"x"),
        (f'"{NAMES[0]}"'.encode(), b"7"),
        (b"[[0,", b"[[-1,"),
        (b"[[0,", b"[[true,"),
        (b"[[0,", b"[[0,0,"),
        (b"[[0,", b"[[9999999,"),
        (b'"present":[[', b'"absent":[['),
        (b"{", b"["),
        (b"[[0,", b"[" + b"[0,1]," * (3 * MOST_RANGES) + b"[0,"),
    ],
)
def test_what_a_peer_cannot_mean_is_refused(old: bytes, new: bytes) -> None:
    text = told(NAMES[0], present=chunks(0)).to_json(SIZE)
    assert old in text
    with pytest.raises(InvalidImage):
        Arriving.from_json(text.replace(old, new), SIZE)
