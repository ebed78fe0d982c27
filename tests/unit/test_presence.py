"""What peers say that they have, whatever they say; and who is asked for what."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import InvalidImage, UsageError
from imgfs.layer.schema import TAR
from imgfs.peers.address import parse_peer
from imgfs.peers.flat_name import FLAT, PRESENCE, FlatName, parse_path, parse_range
from imgfs.peers.presence import MOST_RANGES, Presence, shares
from imgfs.registry.endpoint import Tls

DIGEST = f"sha256:{'0a' * 32}"
SPANS = [(at * 10, at * 10 + 10) for at in range(30)]
SOME = st.lists(st.integers(0, 29), unique=True).map(sorted)


def having(numbers: list[int]) -> Presence:
    return Presence.of_spans(SPANS[number] for number in numbers)


@given(wanted=SOME, others=st.lists(SOME, max_size=4))
def test_what_any_peer_has_is_asked_for_once_of_one_that_has_it(
    wanted: list[int], others: list[list[int]]
) -> None:
    ranges = [SPANS[number] for number in wanted]
    found = shares(ranges, [having(numbers) for numbers in others])
    asked = [number for share in found for number in wanted[share.first : share.last + 1]]
    assert asked == [number for number in wanted if any(number in has for has in others)]
    for share in found:
        assert set(wanted[share.first : share.last + 1]) <= set(others[share.peer])
        run = ranges[share.first : share.last + 1]
        assert having(others[share.peer]).has(run[0][0], run[-1][1])


@given(numbers=SOME)
def test_a_presence_is_told_as_it_is(numbers: list[int]) -> None:
    told = Presence.from_json(having(numbers).to_json(300))
    assert [number for number in range(30) if told.has(*SPANS[number])] == numbers
    assert not told.has(295, 301)


def test_of_many_ranges_the_longest_are_told() -> None:
    ranges = [(at * 10, at * 10 + 1 + (at % 3)) for at in range(2 * MOST_RANGES)]
    told = Presence.from_json(Presence(ranges).to_json(10**6)).ranges
    assert len(told) == MOST_RANGES
    assert all(end - start > 1 for start, end in told)
    assert all(before[1] <= after[0] for before, after in pairwise(told))


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"present": 7}',
        b'{"present": [[1]]}',
        b'{"present": [[1, 2, 3]]}',
        b'{"present": [[3, 2]]}',
        b'{"present": [[0, 5], [4, 9]]}',
        b'{"present": [[-1, 5]]}',
        b'{"present": [[0.5, 5]]}',
        b'{"present": [[true, 5]]}',
        b'{"present": [["0", "5"]]}',
        json.dumps({"present": [[0, 1 << 62]]}).encode(),
        json.dumps({"present": [[at, at] for at in range(MOST_RANGES + 1)]}).encode(),
    ],
)
def test_a_presence_that_makes_no_sense_is_refused(said: bytes) -> None:
    with pytest.raises(InvalidImage):
        Presence.from_json(said)


@pytest.mark.parametrize("name", [FlatName(DIGEST), FlatName(DIGEST, f"toc:{'1b' * 32}")])
def test_a_path_names_a_layer(name: FlatName) -> None:
    assert parse_path(name.path(FLAT)) == (FLAT, name)
    assert parse_path(name.path(PRESENCE)) == (PRESENCE, name)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/imgfs/v1/flat/",
        "/imgfs/v1/flat/sha256:..",
        "/imgfs/v1/flat/sha256:../../../../etc/passwd",
        f"/imgfs/v1/flat/{DIGEST}/../../x",
        f"/imgfs/v1/flat/{DIGEST}/{TAR}",
        f"/imgfs/v1/flat/{DIGEST.upper()}",
        f"/imgfs/v1/flat/{DIGEST}\n",
        f"/imgfs/v1/index/{DIGEST}",
        f"http://elsewhere/imgfs/v1/flat/{DIGEST}",
    ],
)
def test_no_other_path_names_anything(path: str) -> None:
    assert parse_path(path) is None


@pytest.mark.parametrize(
    ("text", "range_"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=5-99", (5, 100)),
        ("bytes=5-100", None),
        ("bytes=5-4", None),
        ("bytes=5-", None),
        ("bytes=-5", None),
        ("bytes=0-1,3-4", None),
        ("bytes=0-٣", None),
        (None, None),
    ],
)
def test_a_range_is_closed_and_within(text: str | None, range_: tuple[int, int] | None) -> None:
    assert parse_range(text, 100) == range_


def test_a_peer_beyond_this_machine_has_tls() -> None:
    tls = Tls(verify=False)
    assert str(parse_peer("https://node-1:7117/", tls)) == "https://node-1:7117"
    assert parse_peer("https://[fd00::1]:7", tls).tls is tls
    assert parse_peer("http://127.0.0.1:7", tls).tls is None
    assert str(parse_peer("unix:/run/peer")) == "unix:/run/peer"
    for wrong in ("http://node-1:7117", "node-1:7117", "https://node-1/layers", "unix:peer", "https://a@b"):
        with pytest.raises(UsageError, match="peer"):
            parse_peer(wrong)


class Unsliced(list[tuple[int, int]]):
    """Ranges of which none but single ones may be taken: each slice would be a copy of what is left."""

    def __getitem__(self, at: object) -> tuple[int, int]:  # type: ignore[override]
        assert isinstance(at, int)
        return super().__getitem__(at)


def test_of_many_ranges_each_is_looked_at_once_or_twice_whatever_a_peer_says() -> None:
    """It may say that it has every other one of 200,000: copies of them took minutes."""
    ranges = Unsliced((start, start + 4) for start in range(0, 4000, 4))
    presence = Presence([(start, start + 4) for start in range(0, 4000, 8)])
    assert len(shares(ranges, [presence])) == 500
