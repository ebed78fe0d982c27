"""The sizes of an image's directories and files, for a treemap of bounded size; and its largest files.

What is smaller than a few thousandths of the whole is summed up in its directory, so the map of a million
files is as small as that of a thousand. A file with several names counts once, under the first.
"""

from __future__ import annotations

import heapq
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from imgfs.quoting import printable_path
from imgfs.tree.database import ROOT
from imgfs.tree.reader import Listed, Tree

_MOST = 3000  # areas, but for those that sum up
_LARGEST = 100  # files
_DEPTH = 4096  # directories in a path
_SHOWN = 50  # directories in each other that the map has; what is deeper counts as one of them


class Area(NamedTuple):
    """A directory, a file, or, with an empty name, the smaller ones of a directory; sizes in bytes.

    `layer` is the one that most of its bytes are of, from 1; `files` is how many there are.
    """

    name: str
    size: int
    layer: int
    files: int
    below: tuple[Area, ...] = ()


class LargeFile(NamedTuple):
    """A file and the layer that brought it."""

    size: int
    path: str
    layer: int


@dataclass(frozen=True, slots=True)
class SizeMap:
    """The root's area, the bytes by layer, and the largest files, the largest first."""

    root: Area
    by_layer: dict[int, int]
    largest: list[LargeFile]


@dataclass(slots=True)
class _Directory:
    """A directory that is being summed up."""

    name: bytes
    rows: Iterator[Listed]
    kept: list[Area] = field(default_factory=list)
    layers: Counter[int] = field(default_factory=Counter)  # bytes
    files: int = 0
    small: Counter[int] = field(default_factory=Counter)
    small_files: int = 0

    def add(self, area: Area, layers: Counter[int], floor: int) -> None:
        """Add what is in it; what is smaller than `floor` is summed up."""
        self.layers.update(layers)
        self.files += area.files
        if area.size >= floor:
            self.kept.append(area)
        else:
            self.small.update(layers)
            self.small_files += area.files

    def area(self) -> Area:
        """Return its area; a directory that holds one directory and nothing else is one area with it."""
        name, below = printable_path(self.name), sorted(self.kept, key=lambda area: -area.size)
        if len(below) == 1 and below[0].below and not self.small_files and self.name:
            return below[0]._replace(name=f"{name}/{below[0].name}")
        if self.small_files:
            below.append(Area("", self.small.total(), _main(self.small), self.small_files))
        return Area(name, self.layers.total(), _main(self.layers), self.files, tuple(below))


def measure(tree: Tree, *, most: int = _MOST) -> SizeMap:
    """Sum up the files of a tree. Raises StoreError if it is damaged."""
    floor = max(1, tree.total_size // most)
    found = _Walk(tree, floor).run()
    while _count(found.root) > 2 * most:
        floor *= 2
        found = SizeMap(_pruned(found.root, floor), found.by_layer, found.largest)
    return found


class _Walk:
    """One look at all files, depth first."""

    def __init__(self, tree: Tree, floor: int) -> None:
        self._tree = tree
        self._floor = floor
        self._seen = {ROOT}  # directories, and files with several names
        self._largest: list[LargeFile] = []
        self._open = [_Directory(b"", tree.listing(ROOT))]

    def run(self) -> SizeMap:
        """Return what there is."""
        while True:
            directory = self._open[-1]
            row = next(directory.rows, None)
            if row is not None:
                self._meet(directory, row)
                continue
            self._open.pop()
            if not self._open:
                ordered = sorted(self._largest, reverse=True)
                return SizeMap(directory.area(), dict(directory.layers), ordered)
            area = directory.area()
            if len(self._open) >= _SHOWN:
                area = area._replace(below=())
            self._open[-1].add(area, directory.layers, self._floor)

    def _meet(self, directory: _Directory, row: Listed) -> None:
        is_directory = stat.S_ISDIR(row.mode)
        if is_directory or row.nlink > 1:
            if row.ino in self._seen:
                return
            self._seen.add(row.ino)
        if is_directory:
            if len(self._open) < _DEPTH:
                self._open.append(_Directory(row.name, self._tree.listing(row.ino)))
            return
        layer, size = row.layer + 1, row.size if stat.S_ISREG(row.mode) else 0
        if len(self._largest) < _LARGEST or size > self._largest[0].size:
            self._note(row.name, size, layer)
        if size >= self._floor:
            directory.add(Area(printable_path(row.name), size, layer, 1), Counter({layer: size}), self._floor)
            return
        directory.layers[layer] += size
        directory.small[layer] += size
        directory.files += 1
        directory.small_files += 1

    def _note(self, name: bytes, size: int, layer: int) -> None:
        path = b"/".join([*(each.name for each in self._open), name])
        heapq.heappush(self._largest, LargeFile(size, printable_path(path), layer))
        if len(self._largest) > _LARGEST:
            heapq.heappop(self._largest)


def _main(layers: Counter[int]) -> int:
    """Return the layer that most bytes are of, 0 if there are none."""
    return max(layers, key=lambda layer: (layers[layer], -layer)) if layers else 0


def _count(area: Area) -> int:
    ahead, count = [area], 0
    while ahead:
        count += 1
        ahead += ahead.pop().below
    return count


def _pruned(area: Area, floor: int) -> Area:
    """Sum up what is smaller than `floor`."""
    kept = [_pruned(each, floor) for each in area.below if each.name and each.size >= floor]
    rest = [each for each in area.below if not each.name or each.size < floor]
    if rest:
        largest = max(rest, key=lambda each: each.size)
        files = sum(each.files for each in rest)
        kept.append(Area("", sum(each.size for each in rest), largest.layer, files))
    return area._replace(below=tuple(kept))
