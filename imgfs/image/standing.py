"""What of an image the store has already: the indexes of its layers, and its tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imgfs.errors import IntegrityError, StoreError
from imgfs.image.resolve import Resolved
from imgfs.image.trust import Trust
from imgfs.layer.index import LayerIndex
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.store import Layer, Store
from imgfs.tree.tree import Tree


def is_ready(resolved: Resolved, store: Store, trust: Trust) -> bool:
    """Whether nothing needs to be prepared, nor anything to be said about it; raises IntegrityError."""
    if any(store.layer(digest).is_refuted(trust.origin) for digest in resolved.layers):
        return False
    standing = Standing(resolved, store, trust)
    return standing.has_tree() and not standing.missing(lean=True)


@dataclass(frozen=True, slots=True)
class Standing:
    """Looks at what there is of an image, as far as `trust` lets it count."""

    resolved: Resolved
    store: Store
    trust: Trust

    def missing(self, *, lean: bool) -> list[tuple[Descriptor, Digest]]:
        """The layers without an index that will do; a `lean` one does not for a merge."""
        pairs = self.resolved.layers.values()
        return [pair for pair in pairs if not self.is_indexed(*pair, lean=lean)]

    def is_indexed(self, layer: Descriptor, diff_id: Digest, *, lean: bool) -> bool:
        """Whether there is an index of a layer that will do; raises IntegrityError for another DiffID."""
        path = self.store.layer(layer.digest).index
        if path is None:
            return False
        try:
            with LayerIndex(path) as index:
                found, needs_others = index.summary, bool(index.blob or index.windows)
        except StoreError:  # of another format, or damaged: made anew
            return False
        if found.diff_id != str(diff_id):
            what = f"DiffID of layer {layer.digest.short}"
            raise IntegrityError(what, expected=diff_id, actual=found.diff_id)
        return self.trust.reaches(found, needs_others=needs_others) and (lean or not found.is_lean)

    def has_tree(self) -> bool:
        """Whether the tree is there, and counts in the same flat layers as the indexes that are there."""
        path = self.store.tree(self.resolved.tree)
        if path is None:
            return False
        try:
            with Tree(path) as tree:
                spaces = tree.spaces() if self.trust.allows(tree.origin) else None
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


def open_index(place: Layer) -> LayerIndex:
    """The index of a layer that has been prepared; raises StoreError if it is gone."""
    path = place.index
    if path is None:
        raise StoreError(f"{place.directory}: the index has been removed meanwhile; mount the image again")
    return LayerIndex(path)
