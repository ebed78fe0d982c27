"""Preparation of an image in the store, layers indexed and tree merged: all that needs network and time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from imgfs.errors import ImgfsError, IntegrityError, NotFound
from imgfs.image.discover import SMALL, IndexDiscovery, doing_without
from imgfs.image.import_index import import_profiles, import_published_tree
from imgfs.image.indexing import LayerIndexing, PrepareReporter
from imgfs.image.resolve import Resolved
from imgfs.image.scanners import Scanners, open_scanners
from imgfs.image.trust import Readiness, Trust, open_index
from imgfs.layer.growing import GrowingIndex, LayerEntries, Withdrawn
from imgfs.layer.index import LayerIndex
from imgfs.layer.origin import combined_origin
from imgfs.layer.sqlite import set_origin
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.policy import Policy
from imgfs.oci.reference import RegistryReference, parse_reference
from imgfs.parallel import Countdown, run_parallel
from imgfs.store.store import Store
from imgfs.transport.resumable import ResumableDownloads
from imgfs.transport.source import Source
from imgfs.tree.merge import merge

# Layers streamed at once in threads: a scan keeps more than one core busy, so more only slow each other down.
SCANNERS = min(4, max(2, os.cpu_count() or 2))
_IMPORTERS = 8  # lean indexes imported at once: each waits for the registry, and for the disk
_BRIEF = 4 << 20  # bytes of a layer that goes before larger ones
_EARLY_MERGES = 4  # of layers that are scanned meanwhile, before each is waited for
_POLL = 0.1  # seconds between checks whether a merge that waits for a layer is cancelled


def prepare(
    resolved: Resolved,
    source: Source,
    store: Store,
    reporter: PrepareReporter,
    trust: Trust | None = None,
    discovery: IndexDiscovery | None = None,
    *,
    connections: int = 1,
    lean: bool = True,
    on_spans: Callable[[], None] = lambda: None,
) -> None:
    """Index every layer and merge the tree, in the store.

    Published indexes are imported as far as `trust` allows, by default by the policy AUTO; layers without one
    are streamed, several at once, each by so many `connections`. `discovery` is the lookup of published
    indexes, if it has begun already. Unless `lean`, the indexes have the layers' entries, even if the tree is
    there already. `on_spans` is called, in another thread, once published indexes of all layers are here, and
    profiles, while the tree is still imported, which takes longer.
    Raises ImgfsError, the first that happens; what was fetched by then is kept, unless it is damaged.
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
    _Preparation(
        resolved,
        source,
        store,
        reporter,
        discovery,
        connections=connections,
        lean=lean,
        on_spans=on_spans,
    ).run()


class _Preparation:
    """The preparation of one image."""

    def __init__(
        self,
        resolved: Resolved,
        source: Source,
        store: Store,
        reporter: PrepareReporter,
        discovery: IndexDiscovery,
        *,
        connections: int,
        lean: bool,
        on_spans: Callable[[], None],
    ) -> None:
        is_remote = isinstance(parse_reference(resolved.reference), RegistryReference)
        self._lean = lean
        self._on_spans = on_spans
        self._downloads = ResumableDownloads(connections) if is_remote else None
        self._resolved = resolved
        self._source = source
        self._store = store
        self._reporter = reporter
        self._trust = discovery.trust
        self._readiness = Readiness(resolved, store, discovery.trust)
        self._discovery = discovery
        self._scanners = Scanners()
        self._cancelled = threading.Event()
        self._awaited: Mapping[Digest, threading.Event] = {}  # set once a layer has been scanned, or indexed
        self._indexes: dict[Digest, LayerIndex] = {}
        self._growing: dict[Digest, GrowingIndex] = {}  # of the layers that are being scanned
        self._opened = ExitStack()  # which closes them

    def run(self) -> None:
        """Do what is missing; if nothing is, no request is sent."""
        try:
            self._run()
        except KeyboardInterrupt:
            self._opened.pop_all()  # threads use them still, until the process ends
            raise
        finally:
            self._opened.close()

    def _run(self) -> None:
        for stored in map(self._store.layer, self._resolved.layers):
            if stored.index and stored.partial():  # killed between the one and the other
                stored.drop_part()
        has_tree, missing = self._readiness.has_tree(), self._readiness.missing(lean=self._lean)
        if has_tree and not missing:
            return
        is_large = sum(layer.size for layer, _ in missing) > SMALL
        if self._lean and is_large and self._import_all(has_tree):
            return
        works = [] if has_tree else [self._merge]
        missing = self._readiness.missing(lean=False)
        with open_scanners(layer for layer, _ in missing) as self._scanners:
            self._index(missing, lean=False, beside=works)
        if has_tree and not self._readiness.has_tree():
            self._merge()

    def _import_all(self, has_tree: bool) -> bool:
        """Import the published tree, unless `has_tree`, and lean indexes; False if any is unpublished."""
        tree = None if self._resolved.is_part else self._discovery.published.tree
        usable = has_tree or (tree is not None and self._all_lean())
        self._warn()
        if not usable:
            return False
        missing = self._readiness.missing(lean=True)
        spans = Countdown(1 + len(missing), self._on_spans)
        works = [spans.after(self._import_profiles)]
        if tree and not has_tree:
            works.append(partial(self._import_tree, tree))
        self._index(missing, lean=True, beside=works, each=spans.after)
        return self._readiness.has_tree()

    def _all_lean(self) -> bool:
        """Return True if every layer is indexed already, or has a published index."""
        missing = {layer.digest for layer, _ in self._readiness.missing(lean=True)}
        return missing <= self._discovery.published.layers.keys()

    def _import_tree(self, tree: Descriptor) -> None:
        with doing_without("the tree published with the image", self._reporter.warns):
            resolved = self._resolved
            layers, tree = len(resolved.manifest.layers), self._discovery.with_bytes(tree)
            import_published_tree(tree, resolved.tree, layers, self._source, self._store, self._trust.origin)

    def _import_profiles(self) -> None:
        with doing_without("a profile published with the image", self._reporter.warns):
            import_profiles(
                self._discovery.published.profiles,
                self._resolved.digest,
                self._source,
                self._store,
                self._trust.origin,
            )

    def _index(
        self,
        pairs: list[tuple[Descriptor, Digest]],
        *,
        lean: bool,
        beside: Sequence[Callable[[], None]],
        each: Callable[[Callable[[], None]], Callable[[], None]] = lambda work: work,
    ) -> None:
        """Index these layers, and run the tasks `beside` at the same time. `each` wraps a layer's task.

        Small layers come first, so that no merge waits for them, then the largest: it takes longest, and the
        others fill the gaps.
        """
        pairs = sorted(pairs, key=lambda pair: (pair[0].size > _BRIEF, -pair[0].size))
        self._awaited = {layer.digest: threading.Event() for layer, _ in pairs}
        self._reporter.expects(layer for layer, _ in pairs)
        works = list(beside)
        works += (each(partial(self._index_layer, *pair, lean=lean)) for pair in pairs)
        # With processes one thread more: while one syncs an index, the next layer's scan has begun.
        threads = self._scanners.count + 1 if self._scanners.count else SCANNERS
        threads = _IMPORTERS if lean else threads
        run_parallel(works, threads + len(beside), "imgfs-scan", self._cancelled)
        self._warn()

    def _merge(self) -> None:
        """Merge the layers, each once all below it are merged: while it is scanned, if that goes well.

        A merge that does not begins with the lowest layer again, and so each layer could cost as much as all
        below it: after so many its layers are waited for.
        """
        for _ in range(_EARLY_MERGES):
            with suppress(Withdrawn):  # by the layer that was merged last: the next time it is waited for
                return merge_layers(self._resolved, self._store, self._indexed(self._growing))
        return merge_layers(self._resolved, self._store, self._indexed({}))

    def _indexed(self, growing: dict[Digest, GrowingIndex]) -> Iterator[LayerEntries]:
        """Yield the layers' indexes, the lowest first; of one that is being scanned that which is `growing`.

        Each of those is yielded once: the next time its layer is waited for. Raises ImgfsError when
        cancelled.
        """
        layers = self._resolved.manifest.layers
        for layer in layers[:-1]:
            yield self._awaited_of(layer, growing) or self._whole(layer)
        for layer in layers[-1:]:
            if found := self._awaited_of(layer, growing):
                yield found
            self._reporter.merging()
            if not found:
                yield self._whole(layer)

    def _awaited_of(self, layer: Descriptor, growing: dict[Digest, GrowingIndex]) -> GrowingIndex | None:
        """Wait for a layer's index; return one that is `growing` if it comes first."""
        awaited = self._awaited.get(layer.digest)
        while awaited and not awaited.wait(_POLL) and not self._cancelled.is_set():
            if found := growing.pop(layer.digest, None):
                return found
        if self._cancelled.is_set():
            raise ImgfsError("the layers are not merged: cancelled")
        return None

    def _whole(self, layer: Descriptor) -> LayerIndex:
        """Return the index of a layer that has been waited for; it is closed in the end."""
        if layer.digest not in self._indexes:
            self.take(layer, open_index(self._store.layer(layer.digest)))
        return self._indexes[layer.digest]

    def take_growing(self, layer: Descriptor, index: GrowingIndex) -> None:
        """Have a layer merged while it is scanned, if its turn comes before it is complete."""
        self._growing[layer.digest] = index

    def take(self, layer: Descriptor, index: LayerIndex) -> None:
        """Have a layer merged by an index, which is closed in the end."""
        self._indexes[layer.digest] = self._opened.enter_context(index)
        if layer.digest in self._awaited:
            self._awaited[layer.digest].set()

    def _index_layer(self, layer: Descriptor, diff_id: Digest, *, lean: bool) -> None:
        """Store an index of the layer."""
        if self._cancelled.is_set():
            return
        stored = self._store.layer(layer.digest)
        with self._naming(layer), stored.lock(on_wait=lambda: self._reporter.layer_waits(layer)):
            if not self._readiness.is_indexed(layer, diff_id, lean=lean):
                indexing = LayerIndexing(
                    layer,
                    diff_id,
                    stored,
                    source=self._source,
                    trust=self._trust,
                    reporter=self._reporter,
                    downloads=self._downloads,
                )
                has_index = indexing.import_existing(self._discovery, tag=self._resolved.tag, lean=lean)
                if not has_index and not indexing.take_from_peers(self._cancelled):
                    indexing.stream(self._scanners, self._cancelled, _Follower(self, layer))
                stored.drop_part()
        self._reporter.layer_ends(layer)
        self._awaited[layer.digest].set()

    @contextmanager
    def _naming(self, layer: Descriptor) -> Iterator[None]:
        """Have an error of a layer's bytes say of which layer they are, and of which image."""
        where = f"{self._resolved.reference}: layer {self._resolved.manifest.layers.index(layer) + 1}"
        try:
            yield
        except IntegrityError as error:
            what = f"{where}: {error.what}"
            raise IntegrityError(what, expected=error.expected, actual=error.actual) from error
        except NotFound as error:
            text = f"{where} is missing: {error}"
            raise NotFound(text, status=error.status, code=error.code, url=error.url) from error

    def _warn(self) -> None:
        while self._discovery.refused:
            self._reporter.warns(self._discovery.refused.pop())


class _Follower(NamedTuple):
    """Has the layers of a `preparation` merged while one of them is scanned."""

    preparation: _Preparation
    layer: Descriptor

    def scanning(self, index: GrowingIndex) -> None:
        """See `ScanFollower`."""
        self.preparation.take_growing(self.layer, index)

    def scanned(self, index: LayerIndex) -> None:
        """See `ScanFollower`."""
        self.preparation.take(self.layer, index)


def merge_layers(resolved: Resolved, store: Store, indexes: Iterable[LayerEntries] | None = None) -> None:
    """Merge an image's layers by their indexes; the tree gets the vouchers of all of them.

    `indexes` yields them, the lowest layer's first; by default they are those in the store. Raises
    InvalidImage, StoreError, and Withdrawn as `merge` does.
    """
    merged: list[LayerEntries] = []
    with ExitStack() as stack:
        path = stack.enter_context(store.new_tree(resolved.tree))
        stored = (store.layer(layer.digest) for layer in resolved.manifest.layers)
        opened = (stack.enter_context(open_index(layer)) for layer in stored)

        def noted() -> Iterator[LayerEntries]:
            for index in opened if indexes is None else indexes:
                merged.append(index)
                yield index

        merge(noted(), path)
        origins = {index.summary.origin for index in merged}
        if origins - {""}:
            set_origin(path, combined_origin(origins))
