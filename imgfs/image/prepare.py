"""Having an image's layers indexed and merged, in the store: all that needs network and time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from imgfs.abreast import run_abreast
from imgfs.errors import IntegrityError, StoreError
from imgfs.image.adopt import adopt_profiles, adopt_tree
from imgfs.image.indexing import Indexing, Reporter, doing_without
from imgfs.image.offers import Offers
from imgfs.image.resolve import Resolved
from imgfs.image.trust import Trust
from imgfs.layer.index import LayerIndex
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.policy import Policy
from imgfs.oci.reference import parse_reference
from imgfs.source import Source
from imgfs.store import Layer, Store
from imgfs.tree.merge import merge
from imgfs.tree.tree import Tree, vouch

# Layers streamed at once: a scan keeps more than one core busy, so more of them only get in each other's way.
SCANNERS = min(4, max(2, os.cpu_count() or 2))
_SMALL = 256 << 10  # bytes of layers that are streamed before anybody could say who has an index of them


def prepare(
    resolved: Resolved, source: Source, store: Store, reporter: Reporter, trust: Trust | None = None
) -> None:
    """Have every layer indexed and the tree merged, in the store.

    Indexes of others are taken in as far as `trust` goes, by default as the policy AUTO says; layers without
    one are streamed, several at once.
    Raises ImgfsError, the first that happens; what other layers have finished by then is kept.
    """
    trust = trust or Trust.of(parse_reference(resolved.reference), Policy.AUTO)
    refuted = [digest for digest in resolved.layers if store.layer(digest).is_refuted(trust.origin)]
    if refuted and trust.in_registry:
        reporter.warns(
            f"the indexes in {trust.origin} are not used: that of layer {refuted[0].short} was wrong"
        )
        trust = replace(trust, in_registry=False)
    _Preparation(resolved, source, store, reporter, trust).run()


class _Preparation:
    """One image on its way into the store."""

    def __init__(
        self, resolved: Resolved, source: Source, store: Store, reporter: Reporter, trust: Trust
    ) -> None:
        self._resolved = resolved
        self._source = source
        self._store = store
        self._reporter = reporter
        self._trust = trust
        self._offers = Offers(resolved, source, trust)
        self._cancelled = threading.Event()

    def run(self) -> None:
        """Do what is still to be done: nothing, and nothing is asked of the network, if that is so."""
        there, missing = self._fits(), self._missing(lean=True)
        if there and not missing:
            return
        if sum(layer.size for layer, _ in missing) > _SMALL and self._take_tree(there):
            return
        self._index(self._missing(lean=False), lean=False, first=())
        if not self._fits():
            self._reporter.merging()
            merge_layers(self._resolved, self._store)

    def _take_tree(self, there: bool) -> bool:
        """Have the image's published tree, unless it is `there`, and of the layers what reads their files."""
        tree = None if self._resolved.is_part else self._offers.published.tree
        usable = there or (tree is not None and self._all_lean())
        self._warn()
        if not usable:
            return False
        works: list[Callable[[], None]] = [self._adopt_profiles]
        if tree and not there:
            works.append(partial(self._adopt_tree, tree))
        self._index(self._missing(lean=True), lean=True, first=works)
        return self._fits()

    def _all_lean(self) -> bool:
        """Whether every layer is indexed already, or has a published index."""
        missing = {layer.digest for layer, _ in self._missing(lean=True)}
        return missing <= self._offers.published.layers.keys()

    def _adopt_tree(self, tree: Descriptor) -> None:
        with doing_without("the tree published with the image", self._reporter):
            resolved = self._resolved
            layers = len(resolved.manifest.layers)
            adopt_tree(tree, resolved.tree, layers, self._source, self._store, self._trust.origin)

    def _adopt_profiles(self) -> None:
        with doing_without("a profile published with the image", self._reporter):
            adopt_profiles(self._offers.published.profiles, self._resolved.digest, self._source, self._store)

    def _index(
        self, pairs: list[tuple[Descriptor, Digest]], *, lean: bool, first: Sequence[Callable[[], None]]
    ) -> None:
        """Have these layers indexed, the largest first: it takes longest, and the others fill the gaps."""
        pairs = sorted(pairs, key=lambda pair: -pair[0].size)
        works: list[Callable[[], None]] = [*first]
        works += (partial(self._index_layer, *pair, lean=lean) for pair in pairs)
        run_abreast(works, SCANNERS, "imgfs-scan", self._cancelled)
        self._warn()

    def _index_layer(self, layer: Descriptor, diff_id: Digest, *, lean: bool) -> None:
        """Have an index of the layer in the store."""
        if self._cancelled.is_set():
            return
        place = self._store.layer(layer.digest)
        with place.lock(on_wait=lambda: self._reporter.layer_waits(layer)):
            if not self._is_indexed(layer, diff_id, lean=lean):
                one = Indexing(layer, diff_id, place, self._source, self._trust, self._reporter)
                if not one.adopt(self._offers, tag=self._resolved.tag, lean=lean):
                    one.stream(self._cancelled)
                place.drop_part()  # of a pull that was broken off
        self._reporter.layer_ends(layer)

    def _warn(self) -> None:
        while self._offers.refused:
            self._reporter.warns(self._offers.refused.pop())

    def _missing(self, *, lean: bool) -> list[tuple[Descriptor, Digest]]:
        """The layers without an index that will do; a `lean` one does not for a merge."""
        pairs = self._resolved.layers.values()
        return [pair for pair in pairs if not self._is_indexed(*pair, lean=lean)]

    def _is_indexed(self, layer: Descriptor, diff_id: Digest, *, lean: bool) -> bool:
        path = self._store.layer(layer.digest).index
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
        return self._trust.reaches(found, needs_others=needs_others) and (lean or not found.is_lean)

    def _fits(self) -> bool:
        """Whether the tree is there, and counts in the same flat layers as the indexes that are there."""
        path = self._store.tree(self._resolved.tree)
        if path is None:
            return False
        try:
            with Tree(path) as tree:
                spaces = tree.spaces() if self._trust.allows(tree.origin) else None
        except StoreError:
            return False
        return spaces is not None and all(
            known in (None, space) for known, space in zip(self._spaces(), spaces, strict=True)
        )

    def _spaces(self) -> Iterator[str | None]:
        """The flat spaces that the layers' indexes count in, None for a layer without."""
        for layer in self._resolved.manifest.layers:
            path = self._store.layer(layer.digest).index
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


def merge_layers(resolved: Resolved, store: Store) -> None:
    """Merge what the store has of an image's layers; whoever vouches for their indexes does so for the tree.

    Raises InvalidImage, StoreError.
    """
    with ExitStack() as stack:
        indexes = [
            stack.enter_context(open_index(store.layer(layer.digest))) for layer in resolved.manifest.layers
        ]
        path = stack.enter_context(store.new_tree(resolved.tree))
        merge(indexes, path)
        if origins := sorted({index.summary.origin for index in indexes} - {""}):
            vouch(path, ", ".join(origins))


def open_index(place: Layer) -> LayerIndex:
    """The index of a layer that has been prepared; raises StoreError if it is gone."""
    path = place.index
    if path is None:
        raise StoreError(f"{place.directory}: the index has been removed meanwhile; mount the image again")
    return LayerIndex(path)
