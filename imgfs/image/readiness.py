"""What of an image the store has already: the indexes of its layers, and its tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imgfs.errors import IntegrityError, StoreError
from imgfs.image.resolve import Resolved
from imgfs.image.trust import Trust
from imgfs.layer.index import LayerIndex
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.store.layer import StoredLayer
from imgfs.store.store import Store
from imgfs.tree.reader import Tree


def is_ready(resolved: Resolved, store: Store, trust: Trust) -> bool:
    """Whether nothing needs to be prepared, nor anything to be said about it; raises IntegrityError."""
    readiness = Readiness(resolved, store, trust)
    if readiness.refuted():
        return False
    return readiness.has_tree() and not readiness.missing(lean=True)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Looks at what there is of an image, as far as `trust` lets it count."""

    resolved: Resolved
    store: Store
    trust: Trust

    def refuted(self) -> list[Digest]:
        """The layers of which the repository's word has been found to be wrong."""
        pairs = self.resolved.layers.values()
        notes = ((layer.digest, refutation(self.trust.origin, diff_id)) for layer, diff_id in pairs)
        return [digest for digest, note in notes if self.store.layer(digest).is_refuted(note)]

    def missing(self, *, lean: bool) -> list[tuple[Descriptor, Digest]]:
        """The layers without an index that will do; a `lean` one does not for a merge."""
        pairs = self.resolved.layers.values()
        return [pair for pair in pairs if not self.is_indexed(*pair, lean=lean)]

    def is_indexed(self, layer: Descriptor, diff_id: Digest, *, lean: bool) -> bool:
        """Whether there is an index of a layer that will do.

        Raises IntegrityError if the layer's blob was seen here to have another DiffID. Where somebody only
        says so, an image lies, perhaps the other: this one is indexed anew.
        """
        path = self.store.layer(layer.digest).index
        if path is None:
            return False
        try:
            with LayerIndex(path) as index:
                return self.is_good(index, layer, diff_id) and (lean or not index.summary.is_lean)
        except StoreError:  # of another format, or damaged: made anew
            return False

    def is_good(self, index: LayerIndex, layer: Descriptor, diff_id: Digest) -> bool:
        """Whether an index may be used for a layer of this image. Raises as `is_indexed`."""
        found = index.summary
        if found.diff_id != str(diff_id):
            if index.is_scanned():
                what = f"DiffID of layer {layer.digest.short}"
                raise IntegrityError(what, expected=diff_id, actual=found.diff_id)
            return False
        needs_others = bool(index.blob or index.windows)
        is_layers = (found.digest, found.size) == (str(layer.digest), layer.size)
        manifest = self.resolved.manifest
        return is_layers and self.trust.reaches(found, manifest, layer, needs_others=needs_others)

    def counts(self, tree: Tree) -> bool:
        """Whether a tree that is kept under this image's name is its own."""
        manifest = self.resolved.manifest
        is_same = tree.layer_count == len(manifest.layers)
        return is_same and self.trust.allows(tree.origin, manifest, manifest.layers)

    def has_tree(self) -> bool:
        """Whether the tree is there, and counts in the same flat layers as the indexes that are there."""
        path = self.store.tree(self.resolved.tree)
        if path is None:
            return False
        try:
            with Tree(path) as tree:
                spaces = tree.spaces() if self.counts(tree) else None
        except StoreError:
            return False
        return spaces is not None and all(
            known in (None, space) for known, space in zip(self._spaces(), spaces, strict=True)
        )

    def _spaces(self) -> Iterator[str | None]:
        """The flat spaces that the layers' indexes count in, None for a layer without."""
        for layer in self.resolved.manifest.layers:
            path = self.store.layer(layer.digest).index
            try:
                if path is None:
                    yield None
                    continue
                with LayerIndex(path) as index:
                    space = index.summary.space
            except StoreError:
                yield None
            else:
                yield space


def refutation(origin: str, diff_id: Digest) -> str:
    """What is noted of a layer if the index that `origin` vouches for does not have the DiffID."""
    return f"{origin} {diff_id}"


def open_index(stored: StoredLayer) -> LayerIndex:
    """The index of a layer that has been prepared; raises StoreError if it is gone."""
    path = stored.index
    if path is None:
        raise StoreError(f"{stored.directory}: the index has been removed meanwhile; mount the image again")
    return LayerIndex(path)
