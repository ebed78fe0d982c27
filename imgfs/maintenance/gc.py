"""Garbage collection: what is reachable from the references in the store; removal of the rest; and `prune`,
which frees disk space by removing layers in the order of their last use."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import ImgfsError, StoreError
from imgfs.oci.descriptor import Digest
from imgfs.oci.image import Manifest, parse_document
from imgfs.owned.opening import open_owned_file
from imgfs.store.layer import StoredLayer
from imgfs.store.limit import CachedLayer, cached, first_to_evict
from imgfs.store.store import Resolution, Store
from imgfs.store.times import moment_of


class Prunable(NamedTuple):
    """What `prune` removes: layers (or their bytes), trees and logs, each with its bytes of disk."""

    layers: tuple[CachedLayer, ...]
    trees: tuple[tuple[Digest, int], ...] = ()
    logs: tuple[tuple[Path, int], ...] = ()

    @property
    def size(self) -> int:
        """Return the bytes of disk that are freed."""
        others = (*self.trees, *self.logs)
        return sum(cache.size for cache in self.layers) + sum(size for _, size in others)


def prunable(store: Store, *, keep: int, before: float, whole: bool, force: bool) -> Prunable:
    """Return what has to go for the layers to take `keep` bytes of disk, least recently used first.

    Only what was not used since `before` (seconds since the epoch) goes; without `force` nothing that a mount
    uses. Cached bytes go; with `whole` also indexes, trees that were merged from them, and logs of daemons
    that have ended.
    """
    caches = cached(store.layers())
    if whole:
        caches = [cache._replace(size=cache.layer.disk_usage()) for cache in caches]
    free = (cache for cache in caches if cache.last_used < before and not cache.layer.is_held())
    free = (cache for cache in free if force or not cache.in_use)
    layers = tuple(first_to_evict(free, sum(cache.size for cache in caches) - keep))
    trees = _trees_without({cache.layer.digest for cache in layers}, store) if whole else ()
    logs = ended_logs(store, before) if whole else ()
    return Prunable(layers, tuple(trees), tuple(logs))


def ended_logs(store: Store, before: float, of: str = "") -> Iterator[tuple[Path, int]]:
    """Yield the logs, not written to since `before`, of daemons that have ended, with their sizes.

    A live one has its log locked. `of` is how their names begin: with the short digest of a manifest.
    """
    for path in sorted(store.logs.glob(f"{of}*.log")):
        with suppress(OSError, StoreError), open(open_owned_file(path, os.O_RDONLY), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(file.fileno())
            if moment_of(found) < before:
                yield path, found.st_blocks * 512


def _trees_without(gone: set[Digest], store: Store) -> Iterator[tuple[Digest, int]]:
    """Yield the trees of images that have any of these layers, with their sizes."""
    images = (image for image in store.resolutions() if gone.intersection(contents_of(image, store).layers))
    for manifest in dict.fromkeys(image.manifest for image in images):
        if size := store.tree_usage(manifest):
            yield manifest, size


def prune(prunable: Prunable, store: Store, *, whole: bool) -> int:
    """Remove it; return the bytes of disk freed. Layers that are being scanned by now stay."""
    freed = 0
    for layer in (cache.layer for cache in prunable.layers):
        before = layer.disk_usage()
        layer.evict()
        if whole:
            layer.remove_if_free()
        freed += before - layer.disk_usage()
    for manifest, size in prunable.trees:
        store.remove_tree(manifest)
        freed += size
    for log, size in prunable.logs:
        log.unlink(missing_ok=True)
        freed += size
    return freed


def evict(layers: Iterable[StoredLayer]) -> int:
    """Evict the cached bytes of `layers`, which mounts may go on using; return the bytes of disk freed."""
    return sum(layer.evict() for layer in layers)


@dataclass(frozen=True, slots=True)
class Contents:
    """What is reachable from a reference: its documents and its layers, lowest first."""

    documents: frozenset[Digest]
    layers: tuple[Digest, ...]


def contents_of(resolution: Resolution, store: Store) -> Contents:
    """Return what is reachable from `resolution`, as far as its documents are stored."""
    documents = {resolution.digest, resolution.manifest}
    body = store.document(resolution.manifest)
    try:
        manifest = parse_document(body, None) if body is not None else None
    except ImgfsError:
        manifest = None
    if not isinstance(manifest, Manifest):
        return Contents(frozenset(documents), ())
    layers = tuple(dict.fromkeys(layer.digest for layer in manifest.layers))
    return Contents(frozenset(documents | {manifest.config.digest}), layers)


def remove_unreachable(store: Store, *, force: bool) -> None:
    """Remove what no reference in the store reaches. Without `force`, layers in use by a mount stay."""
    trees, profiled, documents = set(store.trees()), set(store.profiled()), set(store.documents())
    layers, exports = list(store.layers()), set(store.exports())
    kept = list(store.resolutions())  # last: what is listed above is of no image that comes meanwhile
    reachable = [contents_of(resolution, store) for resolution in kept]
    kept_documents = {digest for contents in reachable for digest in contents.documents}
    kept_layers = {digest for contents in reachable for digest in contents.layers}
    kept_trees = {resolution.manifest for resolution in kept}
    for tree in trees - kept_trees:
        store.remove_tree(tree)
    for tree in profiled - kept_trees:
        store.remove_profiles(tree)
    for document in documents - kept_documents:
        store.remove_document(document)
    for layer in layers:
        if layer.digest not in kept_layers and (force or not layer.in_use()):
            layer.remove_if_free()
    for image in exports - kept_documents:  # whose id is the digest of one
        store.remove_export(image)
    if not kept:
        store.remove_archive_indexes()


def layers_in_use(resolution: Resolution, store: Store) -> Iterator[StoredLayer]:
    """Yield the layers of an image that a mount uses."""
    layers = (store.layer(digest) for digest in contents_of(resolution, store).layers)
    return (layer for layer in layers if layer.in_use())


def refuse_if_used(resolution: Resolution, store: Store, of_others: Collection[Digest] = ()) -> None:
    """Raise StoreError if a mount uses layers that only this image has.

    `of_others` are layers of images that are known to be mounted, and not to be this one.
    """
    others = [other for other in store.resolutions() if other != resolution]
    shared = {digest for other in others for digest in contents_of(other, store).layers}
    shared.update(of_others)
    used = [layer for layer in layers_in_use(resolution, store) if layer.digest not in shared]
    if used:
        raise StoreError(f"{resolution.reference} is mounted: unmount it first, or use --force")
