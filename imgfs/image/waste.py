"""What an image's layers store for nothing: files that upper layers overwrite or delete, and equal files.

All but equal files is computed from layer indexes alone. Bytes count once, however many names a file has had,
and only while no name is left; holes of sparse files do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imgfs.image.image import Image
from imgfs.image.resolve import Resolved
from imgfs.image.trust import open_index
from imgfs.layer.index import LayerIndex
from imgfs.store.store import Store
from imgfs.tree.efficiency import efficiency
from imgfs.tree.versions import Lost, LostSum, VersionsTree, merge_versions


class Duplicate(NamedTuple):
    """A file that the image shows, whose bytes an earlier one has, too; layers count from 1."""

    path: bytes
    size: int
    layer: int
    same_as: bytes
    same_layer: int


@dataclass(frozen=True, slots=True)
class Waste:
    """What is stored for nothing: sums, and the largest files. Sizes are bytes of the uncompressed layers."""

    efficiency: float  # dive's score, 0 to 1
    stored: int  # of all files of all layers
    sums: list[LostSum]
    largest: list[Lost]

    @property
    def lost(self) -> int:
        """Return all bytes that are overwritten or deleted."""
        return sum(each.size for each in self.sums)

    def part(self, *, is_replaced: bool) -> tuple[int, int]:
        """Return the number and the bytes of files that are overwritten, or of those that are deleted."""
        parts = [each for each in self.sums if each.is_replaced == is_replaced]
        return sum(each.files for each in parts), sum(each.size for each in parts)


@contextmanager
def _indexes(resolved: Resolved, store: Store) -> Iterator[list[LayerIndex]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(open_index(store.layer(layer.digest))) for layer in resolved.manifest.layers
        ]


@contextmanager
def all_versions(resolved: Resolved, store: Store) -> Iterator[Path]:
    """Merge all versions of an image's files, for as long as the block lasts; yield the tree's path.

    The image must be prepared with the entries of all layers (`prepare`). Raises InvalidImage, StoreError.
    """
    with store.workplace(".versions-") as directory, _indexes(resolved, store) as indexes:
        merge_versions(indexes, directory / "tree")
        yield directory / "tree"


def measure_waste(resolved: Resolved, store: Store, path: Path, most: int) -> Waste:
    """Measure what an image stores for nothing, with the `most` largest files.

    `path` is its tree of all versions (`all_versions`). Raises InvalidImage, StoreError.
    """
    with VersionsTree(path) as tree, _indexes(resolved, store) as indexes:
        score = efficiency(indexes, path.with_name("leaves"), tree.hidden_below)
        return Waste(score, tree.stored(), tree.lost_sums(), list(tree.lost(most)))


def duplicates(image: Image, tree: VersionsTree) -> Iterator[Duplicate]:
    """Yield the files that an image shows and that equal another one of a lower layer or the same, by size.

    Only files of a size that several have are read. Raises as `Image.read`.
    """
    for size, inos in tree.of_same_size():
        first_by_content: dict[bytes, int] = {}
        for ino in inos:
            first = first_by_content.setdefault(_digest(image, ino), ino)
            if first != ino:
                layer, first_layer = (tree.contents(each)[0] + 1 for each in (ino, first))
                yield Duplicate(b"/" + tree.path(ino), size, layer, b"/" + tree.path(first), first_layer)


def _digest(image: Image, ino: int) -> bytes:
    hasher = hashlib.sha256()
    for piece in image.read(ino):
        hasher.update(piece)
    return hasher.digest()
