"""An image opened as it was after any of its layers, or with every version of every file of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgfs.cli.selection import ImageSelection
    from imgfs.image.files import ImageFiles
    from imgfs.image.image import Image
    from imgfs.image.resolve import Resolved
    from imgfs.store.store import Store
    from imgfs.transport.source import Source
    from imgfs.tree.versions import VersionsTree


@dataclass(frozen=True, slots=True)
class LayerTrees:
    """A prepared image; the trees below its top are merged when they are asked for, and kept."""

    selection: ImageSelection
    resolved: Resolved
    source: Source

    @property
    def count(self) -> int:
        """Return the number of layers."""
        return len(self.resolved.manifest.layers)

    @contextmanager
    def at(self, layer: int) -> Iterator[ImageFiles]:
        """Open the image as it was after so many layers."""
        from imgfs.cli.progress import Progress
        from imgfs.image.files import ImageFiles
        from imgfs.image.image import Image
        from imgfs.image.prepare import prepare
        from imgfs.image.trust import is_ready

        part, store, trust = self.resolved.up_to(str(layer)), self.selection.store, self.selection.trust
        if not is_ready(part, store, trust):
            with closing(Progress()) as progress:
                prepare(part, self.source, store, progress, trust)
        with Image(part, self.source, store, trust) as image:
            yield ImageFiles(image)


@contextmanager
def open_layers(options: argparse.Namespace) -> Iterator[LayerTrees]:
    """Prepare the image that the options name."""
    from imgfs.cli.selection import select_image

    selection = select_image(options)
    resolved = selection.prepare()
    with closing(selection.connect()) as source:
        yield LayerTrees(selection, resolved, source)


@dataclass(frozen=True, slots=True)
class AllVersions:
    """An image whose hidden files can be looked at and read, too."""

    files: ImageFiles
    image: Image
    tree: VersionsTree
    path: Path  # of the tree
    store: Store


@contextmanager
def open_versions(options: argparse.Namespace) -> Iterator[AllVersions]:
    """Prepare the image that the options name, and open it with all versions of its files."""
    from imgfs.cli.selection import select_image
    from imgfs.image.files import ImageFiles
    from imgfs.image.image import Image
    from imgfs.image.waste import all_versions
    from imgfs.tree.versions import VersionsTree

    selection = select_image(options)
    resolved = selection.prepare(lean=False)
    with (
        closing(selection.connect()) as source,
        all_versions(resolved, selection.store) as path,
        VersionsTree(path) as tree,
        Image(resolved, source, selection.store, selection.trust, versions=tree) as image,
    ):
        yield AllVersions(ImageFiles(image), image, tree, path, selection.store)
