"""Having an image's layers indexed and merged, in the store: all that needs network and time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from imgfs.errors import ImgfsError
from imgfs.image.discover import SMALL, IndexDiscovery
from imgfs.image.import_index import import_profiles, import_published_tree
from imgfs.image.indexing import LayerIndexing, PrepareReporter, doing_without
from imgfs.image.readiness import Readiness, open_index
from imgfs.image.resolve import Resolved
from imgfs.image.trust import Trust
from imgfs.layer.index import LayerIndex
from imgfs.layer.origin import combined_origin
from imgfs.layer.rows import set_origin
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.policy import Policy
from imgfs.oci.reference import parse_reference
from imgfs.parallel import run_parallel
from imgfs.store.store import Store
from imgfs.transport.source import Source
from imgfs.tree.merge import merge

# Layers streamed at once: a scan keeps more than one core busy, so more of them only get in each other's way.
SCANNERS = min(4, max(2, os.cpu_count() or 2))
_BRIEF = 4 << 20  # bytes of a layer that is not worth waiting for another
_LOOK = 0.1  # seconds between looks whether a merge that waits for a layer waits in vain


def prepare(
    resolved: Resolved,
    source: Source,
    store: Store,
    reporter: PrepareReporter,
    trust: Trust | None = None,
    discovery: IndexDiscovery | None = None,
) -> None:
    """Have every layer indexed and the tree merged, in the store.

    Indexes of others are taken in as far as `trust` goes, by default as the policy AUTO says; layers without
    one are streamed, several at once. `discovery` are those, if somebody has begun to look for them.
    Raises ImgfsError, the first that happens; what other layers have finished by then is kept.
    """
    trust = trust or Trust.of(parse_reference(resolved.reference), Policy.AUTO)
    refuted = Readiness(resolved, store, trust).refuted()
    if refuted and trust.in_registry:
        reporter.warns(
            f"the indexes in {trust.origin} are not used: that of layer {refuted[0].short} was wrong"
        )
        trust = replace(trust, in_registry=False)
    if discovery is None or discovery.trust != trust:
        discovery = IndexDiscovery(resolved.digest, resolved.manifest, source, trust)
    _Preparation(resolved, source, store, reporter, discovery).run()


class _Preparation:
    """One image on its way into the store."""

    def __init__(
        self,
        resolved: Resolved,
        source: Source,
        store: Store,
        reporter: PrepareReporter,
        discovery: IndexDiscovery,
    ) -> None:
        self._resolved = resolved
        self._source = source
        self._store = store
        self._reporter = reporter
        self._trust = discovery.trust
        self._readiness = Readiness(resolved, store, discovery.trust)
        self._discovery = discovery
        self._cancelled = threading.Event()
        self._awaited: Mapping[Digest, threading.Event] = {}  # set once a layer has been indexed

    def run(self) -> None:
        """Do what is still to be done: nothing, and nothing is asked of the network, if that is so."""
        there, missing = self._readiness.has_tree(), self._readiness.missing(lean=True)
        if there and not missing:
            return
        if sum(layer.size for layer, _ in missing) > SMALL and self._take_tree(there):
            return
        works = [] if there else [self._merge]
        self._index(self._readiness.missing(lean=False), lean=False, beside=works)
        if there and not self._readiness.has_tree():
            self._merge()

    def _take_tree(self, there: bool) -> bool:
        """Have the image's published tree, unless it is `there`, and of the layers what reads their files."""
        tree = None if self._resolved.is_part else self._discovery.published.tree
        usable = there or (tree is not None and self._all_lean())
        self._warn()
        if not usable:
            return False
        works: list[Callable[[], None]] = [self._import_profiles]
        if tree and not there:
            works.append(partial(self._import_tree, tree))
        self._index(self._readiness.missing(lean=True), lean=True, beside=works)
        return self._readiness.has_tree()

    def _all_lean(self) -> bool:
        """Whether every layer is indexed already, or has a published index."""
        missing = {layer.digest for layer, _ in self._readiness.missing(lean=True)}
        return missing <= self._discovery.published.layers.keys()

    def _import_tree(self, tree: Descriptor) -> None:
        with doing_without("the tree published with the image", self._reporter):
            resolved = self._resolved
            layers = len(resolved.manifest.layers)
            import_published_tree(tree, resolved.tree, layers, self._source, self._store, self._trust.origin)

    def _import_profiles(self) -> None:
        with doing_without("a profile published with the image", self._reporter):
            import_profiles(
                self._discovery.published.profiles,
                self._resolved.digest,
                self._source,
                self._store,
                self._trust.origin,
            )

    def _index(
        self, pairs: list[tuple[Descriptor, Digest]], *, lean: bool, beside: Sequence[Callable[[], None]]
    ) -> None:
        """Have these layers indexed, and `beside` that other things done.

        Small ones come first, that no merge has to wait for them, then the largest: it takes longest, and the
        others fill the gaps.
        """
        pairs = sorted(pairs, key=lambda pair: (pair[0].size > _BRIEF, -pair[0].size))
        self._awaited = {layer.digest: threading.Event() for layer, _ in pairs}
        works = list(beside)
        works += (partial(self._index_layer, *pair, lean=lean) for pair in pairs)
        run_parallel(works, SCANNERS + len(beside), "imgfs-scan", self._cancelled)
        self._warn()

    def _merge(self) -> None:
        """Merge the layers, each as soon as it and all below it have been indexed."""
        merge_layers(self._resolved, self._store, self._indexed())

    def _indexed(self) -> Iterator[Descriptor]:
        """The layers, the lowest first, each once it has been indexed; ImgfsError if that will not happen."""
        layers = self._resolved.manifest.layers
        for number, layer in enumerate(layers, start=1):
            awaited = self._awaited.get(layer.digest)
            while awaited and not awaited.wait(_LOOK) and not self._cancelled.is_set():
                pass
            if self._cancelled.is_set():
                raise ImgfsError("the layers are not merged: cancelled")
            if number == len(layers):
                self._reporter.merging()
            yield layer

    def _index_layer(self, layer: Descriptor, diff_id: Digest, *, lean: bool) -> None:
        """Have an index of the layer in the store."""
        if self._cancelled.is_set():
            return
        stored = self._store.layer(layer.digest)
        with stored.lock(on_wait=lambda: self._reporter.layer_waits(layer)):
            if not self._readiness.is_indexed(layer, diff_id, lean=lean):
                one = LayerIndexing(layer, diff_id, stored, self._source, self._trust, self._reporter)
                if not one.import_existing(self._discovery, tag=self._resolved.tag, lean=lean):
                    one.stream(self._cancelled)
                stored.drop_part()  # of a pull that was broken off
        self._reporter.layer_ends(layer)
        self._awaited[layer.digest].set()

    def _warn(self) -> None:
        while self._discovery.refused:
            self._reporter.warns(self._discovery.refused.pop())


def merge_layers(resolved: Resolved, store: Store, layers: Iterable[Descriptor] | None = None) -> None:
    """Merge what the store has of an image's layers; who vouches for their indexes does so for the tree.

    `layers` are the image's, each given when the store has its index: that may be waited for. Raises
    InvalidImage, StoreError.
    """
    origins = set()
    with ExitStack() as stack:
        path = stack.enter_context(store.new_tree(resolved.tree))

        def indexes() -> Iterator[LayerIndex]:
            for layer in resolved.manifest.layers if layers is None else layers:
                index = stack.enter_context(open_index(store.layer(layer.digest)))
                origins.add(index.summary.origin)
                yield index

        merge(indexes(), path)
        if origins - {""}:
            set_origin(path, combined_origin(origins))
