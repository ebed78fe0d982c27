"""Having disk space back: which layers go first, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from imgfs.inventory.needs import needs_of
from imgfs.oci.descriptor import Digest
from imgfs.store.layer import Layer
from imgfs.store.limit import Cached, cached, over
from imgfs.store.store import Store


class Prunable(NamedTuple):
    """What can go: layers, their bytes or all of them, and trees, each with its bytes of disk."""

    layers: tuple[Cached, ...]
    trees: tuple[tuple[Digest, int], ...] = ()

    @property
    def size(self) -> int:
        """All bytes of disk."""
        return sum(one.size for one in self.layers) + sum(size for _, size in self.trees)


def prunable(store: Store, *, keep: int, before: float, whole: bool, force: bool) -> Prunable:
    """What has to go for the layers to take `keep` bytes of disk, first what was used longest ago.

    Only what was not used since `before` (seconds since the epoch) goes; without `force` nothing that a mount
    uses. Cached bytes go, or, if `whole`, also indexes, and trees that were merged from them.
    """
    found = cached(store.layers())
    if whole:
        found = [one._replace(size=one.layer.disk_usage()) for one in found]
    free = (one for one in found if one.last_used < before and not one.layer.is_held())
    free = (one for one in free if force or not one.in_use)
    layers = tuple(over(free, sum(one.size for one in found) - keep))
    trees = _trees_without({one.layer.digest for one in layers}, store) if whole else ()
    return Prunable(layers, tuple(trees))


def _trees_without(gone: set[Digest], store: Store) -> Iterator[tuple[Digest, int]]:
    """The trees of images that have any of these layers, with their sizes."""
    images = (image for image in store.resolutions() if gone.intersection(needs_of(image, store).layers))
    for manifest in dict.fromkeys(image.manifest for image in images):
        if size := store.tree_usage(manifest):
            yield manifest, size


def prune(found: Prunable, store: Store, *, whole: bool) -> int:
    """Have that go; returns the bytes of disk freed. Layers that somebody began to scan meanwhile stay."""
    freed = 0
    for layer in (one.layer for one in found.layers):
        before = layer.disk_usage()
        layer.evict()
        if whole and not layer.is_locked():
            layer.remove()
        freed += before - layer.disk_usage()
    for manifest, size in found.trees:
        store.remove_tree(manifest)
        freed += size
    return freed


def evict(layers: Iterable[Layer]) -> int:
    """Drop the cached bytes of `layers`, which mounts may go on using; returns the bytes of disk freed."""
    return sum(layer.evict() for layer in layers)
