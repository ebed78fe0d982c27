"""What is guessed is fetched ahead of its reader, and no more than comes of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from imgfs.predict.predictor import Predictor
from imgfs.predict.wants import REQUEST
from imgfs.tree.reader import Tree
from tests.support import elfmake
from tests.support.content_rig import Rig
from tests.support.layers import merged
from tests.support.mounted import until
from tests.support.tarmake import archive, file

NOISE = random.Random(3).randbytes(400_000)
PROGRAM = elfmake.program([b"libown.so"], code=NOISE[:50_000]).body


@cache
def large_program() -> elfmake.Made:
    return elfmake.program(code=random.Random(4).randbytes(9 << 20))


class Followed:
    """An image of a program, its library, and what it has no use for; all of it evicted."""

    def __init__(self, tmp_path: Path, stack: ExitStack) -> None:
        flat = archive(
            file("bin/app", PROGRAM, mode=0o755),
            file("other", NOISE),
            file("lib/libown.so", elfmake.program(code=NOISE[::-1]).body),
            file("more", NOISE),
            file("lib/liblarge.so", large_program().body),
        )
        self.rig = Rig(tmp_path, stack, flat, flat, step=50_000)
        self.tree: Tree = stack.enter_context(merged(tmp_path, flat))
        self.rig.flat.evict()
        stack.callback(self.rig.file.stop)
        self.predictor = Predictor([self.rig.content], self.tree)
        self.predictor.start()
        stack.callback(self.predictor.stop)
        self.rig.file.follow(self.predictor)

    def open(self, path: bytes) -> int:
        """Begin to read a file, as the kernel does."""
        ino = self.tree.resolve(path).ino
        self.rig.file.missed(ino)
        return ino

    def read(self, path: bytes, offset: int = 0, length: int = 1000) -> None:
        """Read a file's bytes."""
        layer, extents, _ = self.tree.contents(self.tree.resolve(path).ino)
        self.rig.file.read(layer, extents, offset, length)

    def spans(self, path: bytes, start: int = 0, end: int = 1 << 30) -> set[int]:
        """The spans that are only this file's."""
        _, extents, size = self.tree.contents(self.tree.resolve(path).ino)
        first, last = self.rig.content.table.holding(extents[0].flat + start, min(end, size) - start)
        return set(range(first + 1, last))

    def is_here(self, path: bytes, start: int = 0, end: int = 1 << 30) -> bool:
        return self.spans(path, start, end) <= set(self.rig.present())


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Followed]:
    with ExitStack() as stack:
        yield Followed(tmp_path, stack)


def test_a_program_that_is_opened_has_its_library_here_before_it_is_read(image: Followed) -> None:
    image.open(b"bin/app")
    until(lambda: image.is_here(b"lib/libown.so") and image.is_here(b"bin/app"), "both have come")
    image.rig.settle()
    assert not image.spans(b"other") & set(image.rig.present())
    before = len(image.rig.source.ranges)
    image.read(b"lib/libown.so", length=300_000)
    assert len(image.rig.source.ranges) == before
    brought = image.rig.content.snapshot().brought["library"]
    assert brought.bytes > brought.bytes_used > 300_000


def test_code_of_a_large_library_comes_once_it_is_read_here_and_there(image: Followed) -> None:
    image.open(b"lib/liblarge.so")
    start, end = large_program().code
    until(lambda: image.is_here(b"lib/liblarge.so", len(large_program().body) - 500_000), "its end has come")
    image.rig.settle()
    places = range(start + (2 << 20), end - (2 << 20), 50_000)
    for at in places[:10]:
        image.read(b"lib/liblarge.so", at)
    image.rig.settle()
    assert not image.is_here(b"lib/liblarge.so", start, end)
    for at in places:
        image.read(b"lib/liblarge.so", at)
    until(lambda: image.is_here(b"lib/liblarge.so"), "all of it has come")


def test_what_is_not_used_is_fetched_up_to_a_limit(image: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image.predictor._wants, "first", 100_000)
    image.open(b"bin/app")
    until(lambda: image.predictor._wants.requested >= 100_000, "the limit is reached")
    image.rig.settle()
    most = 100_000 + 2 * REQUEST
    assert image.rig.content.snapshot().brought["library"].bytes < most


def test_what_guesses_must_see_is_fetched_up_to_a_limit_too(
    image: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image.predictor._wants, "first", 0)
    image.open(b"bin/app")
    until(image.predictor._events.empty, "it has heard of it")
    image.predictor.stop()
    assert not image.rig.source.ranges


def test_a_registry_that_is_away_is_asked_once_and_then_left_alone(image: Followed) -> None:
    image.rig.source.away = True
    image.open(b"bin/app")
    until(lambda: image.predictor._rests_until > 0, "it rests")
    asked = len(image.rig.source.ranges)
    image.open(b"lib/libown.so")
    until(lambda: image.predictor._events.empty(), "it has heard of it")
    assert len(image.rig.source.ranges) == asked
    image.rig.source.away = False
    image.rig.source.broken.clear()


def test_a_tree_that_points_beyond_its_layer_ends_a_guess_and_nothing_else(
    image: Followed, tmp_path: Path
) -> None:
    far = archive(file("padding", bytes(40 << 20)), file("bin/app", PROGRAM, mode=0o755))
    with merged(tmp_path, far) as tree:
        predictor = Predictor([image.rig.content], tree)
        predictor.start()
        predictor.missed(1 << 40)
        predictor.missed(tree.resolve(b"bin/app").ino)
        until(predictor._events.empty, "both have been looked at")
        predictor.stop()
    image.open(b"bin/app")
    until(lambda: image.is_here(b"lib/libown.so"), "another guess has been made")
