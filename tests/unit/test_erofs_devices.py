"""Reads of flat files are told as files that are opened, once they look like a reader of the whole tree."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.fuse.erofs_devices import _EVIDENCE, _NEAR, FlatReads
from imgfs.tree.reader import Tree
from tests.support import tarmake as tar
from tests.support.layers import merged

FILES = 200
SIZE = 3000  # bytes: with its header a file takes 3,584
LAYER = tar.archive(*(tar.file(f"{number:03}", bytes(SIZE)) for number in range(FILES)))
UPPER = tar.archive(*(tar.file(f"{number:03}x", bytes(SIZE)) for number in range(FILES)))


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with merged(tmp_path, LAYER, UPPER) as tree:
        yield tree


def places(tree: Tree, layer: int) -> list[tuple[int, int]]:
    """(Where it begins, ino) of the files of a layer, in order."""
    return sorted((flat, ino) for found, flat, ino, _ in tree.contiguous_files() if found == layer)


class Told:
    """A reader of flat files, and what is told of it."""

    def __init__(self, tree: Tree) -> None:
        self.inos: list[int] = []
        self.reads = FlatReads(tree, 2, self.inos.append)

    def read(self, layer: int, *offsets: int, length: int = SIZE) -> None:
        for offset in offsets:
            self.reads.read(layer, offset, length)

    def settle(self) -> None:
        """Wait for what has been begun."""
        if self.reads._thread:
            self.reads._thread.join()


def test_where_files_are_is_told_by_layer(tree: Tree) -> None:
    assert [flat for flat, _ in places(tree, 0)] == [512 + 3584 * number for number in range(FILES)]
    inos = [ino for _, ino in places(tree, 1)]
    assert inos == sorted(inos)


def test_a_reader_of_file_after_file_is_told_from_where_it_began(tree: Tree) -> None:
    told, files = Told(tree), places(tree, 0)
    told.read(0, *(flat for flat, _ in files[: _EVIDENCE + 1]))
    told.settle()
    told.read(0, *(flat for flat, _ in files[_EVIDENCE + 1 :]))
    assert told.inos == [ino for _, ino in files]


def test_a_file_that_is_read_in_pieces_is_told_once(tree: Tree) -> None:
    told, files = Told(tree), places(tree, 0)
    for flat, _ in files:
        told.read(0, flat, flat + 1000, flat + 2000, length=1000)
        told.settle()
    assert told.inos == [ino for _, ino in files]


def test_a_reader_that_goes_through_several_layers_is_told_in_its_order(tree: Tree) -> None:
    told = Told(tree)
    files = sorted((flat, layer, ino) for layer in (0, 1) for flat, ino in places(tree, layer))
    for flat, layer, _ in files:
        told.read(layer, flat)
        told.settle()
    assert told.inos == [ino for _, _, ino in files]


@pytest.mark.parametrize("pattern", ["at random", "in sequence", "far apart", "backwards"])
def test_of_other_readers_the_tree_is_not_even_looked_at(tree: Tree, pattern: str) -> None:
    chance = random.Random(1)
    offsets = {
        "at random": [chance.randrange(1 << 30) for _ in range(500)],
        "in sequence": list(range(0, 500 * SIZE, SIZE)),
        "far apart": list(range(0, 500 * 2 * _NEAR, 2 * _NEAR)),
        "backwards": list(range(500 * 3584, 0, -3584)),
    }
    told = Told(tree)
    told.read(0, *offsets[pattern])
    assert told.reads._thread is None
    assert told.inos == []


def test_a_damaged_tree_is_no_reader_s_trouble(tree: Tree) -> None:
    told, files = Told(tree), places(tree, 0)
    tree.close()
    told.read(0, *(flat for flat, _ in files))
    told.settle()
    told.read(0, *(flat for flat, _ in files))
    assert told.inos == []
