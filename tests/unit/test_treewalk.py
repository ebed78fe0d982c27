"""Readers that take file after file of the tree are fetched ahead of; nobody else is."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from imgfs.content.content import Content
from imgfs.content.requests import requests_for
from imgfs.content.scheduler import Priority
from imgfs.content.stats import Cause
from imgfs.content.treewalk import _EVIDENCE
from imgfs.errors import StoreError
from imgfs.layer.entry import Extent
from imgfs.status import BroughtStatus
from tests.support.content_rig import Rig, tar_of
from tests.support.mounted import until

FILES = 200
EACH = 40_000  # bytes: four spans
BEFORE = 10  # the ino that the first file has


def extent_of(number: int) -> Extent:
    return Extent(0, EACH, 512 + number * EACH)


def order(ino: int) -> Iterator[tuple[int, Sequence[Extent]]]:
    """All files lie side by side in one layer, as the tree has them."""
    yield from ((0, (extent_of(number),)) for number in range(ino - BEFORE + 1, FILES))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    flat = tar_of(FILES * EACH)
    with ExitStack() as stack:
        rig = Rig(tmp_path, stack, flat, flat)
        rig.flat.evict()
        yield rig
        rig.file.stop()


def swept(rig: Rig, inos: Sequence[int]) -> Content:
    content = Content([rig.content], order)
    for ino in inos:
        content.opened(ino)
    return content


def brought(rig: Rig, cause: str = "sweep") -> BroughtStatus:
    return rig.content.snapshot().brought[cause]


def test_what_the_reader_of_a_tree_will_open_next_is_there_before_it(rig: Rig) -> None:
    content = swept(rig, range(BEFORE, BEFORE + _EVIDENCE + 1))
    until(lambda: brought(rig).bytes > 1 << 20, "it has come to that")
    content.stop()
    rig.settle()
    first = rig.content.table.holding(extent_of(_EVIDENCE + 1).flat, 1)[0]
    assert set(range(first + 1, first + 40)) <= set(rig.present())
    assert min(rig.present()) >= first - 4


def test_all_that_follows_comes_while_the_reader_goes_on(rig: Rig) -> None:
    content = swept(rig, range(BEFORE, BEFORE + _EVIDENCE + 1))
    for number in range(_EVIDENCE + 1, FILES):
        content.opened(BEFORE + number)
        extents = (extent_of(number),)
        assert content.read(0, extents, 0, EACH) == rig.bytes[extents[0].flat : extents[0].flat + EACH]
    content.stop()
    assert brought(rig).bytes_used > brought(rig, "miss").bytes


def test_a_reader_that_goes_away_has_cost_no_more_than_the_first_steps(rig: Rig) -> None:
    content = swept(rig, range(BEFORE, BEFORE + _EVIDENCE + 1))
    until(lambda: brought(rig).bytes > 1 << 20, "it has come to that")
    time.sleep(0.2)
    assert brought(rig).bytes < 3 << 20 < FILES * EACH
    content.stop()


def test_programs_that_open_files_here_and_there_pay_nothing(rig: Rig) -> None:
    chance = random.Random(7)
    content = swept(rig, [BEFORE + chance.randrange(FILES) for _ in range(2000)])
    time.sleep(0.1)
    content.stop()
    assert rig.present() == []


def test_of_an_image_that_is_here_the_tree_is_not_even_looked_at(rig: Rig) -> None:
    rig.content.fetch_in_background(
        requests_for(range(len(rig.spans)), rig.content.table), Priority.BACKGROUND, Cause.FILL
    )
    rig.settle()

    def asked(_ino: int) -> Iterator[tuple[int, Sequence[Extent]]]:
        raise AssertionError("it is all here")

    content = Content([rig.content], asked)
    for ino in range(BEFORE, BEFORE + 3 * _EVIDENCE):
        content.opened(ino)
    content.stop()
    assert brought(rig).bytes == 0


def test_the_tree_is_not_looked_through_far_beyond_the_reader(rig: Rig) -> None:
    looked_at = 0

    def endless(_ino: int) -> Iterator[tuple[int, Sequence[Extent]]]:
        nonlocal looked_at
        while True:
            looked_at += 1
            yield 0, ()

    content = Content([rig.content], endless)
    for ino in range(BEFORE, BEFORE + _EVIDENCE + 1):
        content.opened(ino)
    time.sleep(0.2)
    content.stop()
    assert 1000 <= looked_at < 5000


def test_a_damaged_tree_ends_the_sweep_and_nothing_else(rig: Rig) -> None:
    def damaged(_ino: int) -> Iterator[tuple[int, Sequence[Extent]]]:
        yield 0, (extent_of(0),)
        raise StoreError("not a tree")

    content = Content([rig.content], damaged)
    for ino in range(BEFORE, BEFORE + _EVIDENCE + 1):
        content.opened(ino)
    content.stop()
    assert content.read(0, (extent_of(0),), 0, 10) == rig.bytes[512:522]
