"""Having an image's layers indexed and merged, in the store: all that needs network and time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from imgfs.abreast import run_abreast
from imgfs.image.adopt import adopt_profiles, adopt_tree
from imgfs.image.indexing import Indexing, Reporter, doing_without
from imgfs.image.offers import Offers
from imgfs.image.resolve import Resolved
from imgfs.image.standing import Standing, open_index
from imgfs.image.trust import Trust
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.policy import Policy
from imgfs.oci.reference import parse_reference
from imgfs.source import Source
from imgfs.store import Store
from imgfs.tree.merge import merge
from imgfs.tree.tree import vouch

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
        self._standing = Standing(resolved, store, trust)
        self._offers = Offers(resolved, source, trust)
        self._cancelled = threading.Event()

    def run(self) -> None:
        """Do what is still to be done: nothing, and nothing is asked of the network, if that is so."""
        there, missing = self._standing.has_tree(), self._standing.missing(lean=True)
        if there and not missing:
            return
        if sum(layer.size for layer, _ in missing) > _SMALL and self._take_tree(there):
            return
        self._index(self._standing.missing(lean=False), lean=False, first=())
        if not self._standing.has_tree():
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
        self._index(self._standing.missing(lean=True), lean=True, first=works)
        return self._standing.has_tree()

    def _all_lean(self) -> bool:
        """Whether every layer is indexed already, or has a published index."""
        missing = {layer.digest for layer, _ in self._standing.missing(lean=True)}
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
            if not self._standing.is_indexed(layer, diff_id, lean=lean):
                one = Indexing(layer, diff_id, place, self._source, self._trust, self._reporter)
                if not one.adopt(self._offers, tag=self._resolved.tag, lean=lean):
                    one.stream(self._cancelled)
                place.drop_part()  # of a pull that was broken off
        self._reporter.layer_ends(layer)

    def _warn(self) -> None:
        while self._offers.refused:
            self._reporter.warns(self._offers.refused.pop())


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
