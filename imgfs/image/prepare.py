"""Having an image's layers indexed and merged, in the store: all that needs network and time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Protocol

from imgfs.abreast import run_abreast
from imgfs.errors import ImgfsError, IntegrityError, InvalidImage, StoreError
from imgfs.image.resolve import Resolved
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.scan import scan
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.source import Source
from imgfs.store import Layer, Store
from imgfs.tree.merge import merge
from imgfs.tree.tree import Tree

# Layers streamed at once: a scan keeps more than one core busy, so more of them only get in each other's way.
SCANNERS = min(4, max(2, os.cpu_count() or 2))


class Reporter(Protocol):
    """Is told what a long preparation is doing; its methods are called from several threads."""

    def layer_begins(self, layer: Descriptor) -> None:
        """A layer without an index is about to be streamed."""

    def layer_advances(self, layer: Descriptor, count: int) -> None:
        """`count` more compressed bytes of it have arrived."""

    def layer_waits(self, layer: Descriptor) -> None:
        """Another process streams it; we wait for its index."""

    def layer_ends(self, layer: Descriptor) -> None:
        """It has its index."""

    def merging(self) -> None:
        """The layers are being merged."""


def prepare(resolved: Resolved, source: Source, store: Store, reporter: Reporter) -> None:
    """Have every layer indexed and the tree merged, in the store.

    Layers without an index are streamed, several at once. Raises ImgfsError, the first that happens; what
    other layers have finished by then is kept.
    """
    cancelled = threading.Event()

    def index_one(pair: tuple[Descriptor, Digest]) -> None:
        if not cancelled.is_set():
            _index_layer(*pair, source, store.layer(pair[0].digest), reporter, cancelled)

    # The largest first: it takes longest, and the others fill the gaps.
    pairs = sorted(resolved.layers.values(), key=lambda pair: -pair[0].size)
    works = [partial(index_one, pair) for pair in pairs]
    run_abreast(works, SCANNERS, "imgfs-scan", cancelled)
    if not _is_merged(resolved.tree, store):
        reporter.merging()
        _merge(resolved, store)


def _index_layer(
    layer: Descriptor,
    diff_id: Digest,
    source: Source,
    place: Layer,
    reporter: Reporter,
    cancelled: threading.Event,
) -> None:
    """Have an index of the layer in the store, by streaming the layer if there is none."""
    if _is_indexed(place, diff_id):
        return
    with place.lock(on_wait=lambda: reporter.layer_waits(layer)):
        if not _is_indexed(place, diff_id):
            reporter.layer_begins(layer)
            chunks = _reported(source.blob(layer), layer, reporter, cancelled)
            with _where(f"layer {layer.digest.short}"):
                _scan_layer(layer, diff_id, chunks, place)
    reporter.layer_ends(layer)


def _is_indexed(place: Layer, diff_id: Digest) -> bool:
    path = place.index
    if path is None:
        return False
    try:
        with LayerIndex(path) as index:
            found = index.summary.diff_id
    except StoreError:  # of another format, or damaged: made anew
        return False
    if found != str(diff_id):
        raise IntegrityError(f"DiffID of layer {place.digest.short}", expected=diff_id, actual=found)
    return True


def _scan_layer(layer: Descriptor, diff_id: Digest, chunks: Iterator[bytes], place: Layer) -> None:
    writer = place.flat_writer()
    try:
        with place.new_index() as path:
            index = IndexWriter(path)
            try:
                size = scan(chunks, layer, diff_id, writer, index)
            finally:
                index.close()
            with LayerIndex(path) as written:
                spans = written.span_count()
            # Before anybody can see the index: from then on the flat layer may be evicted.
            with closing(place.flat(size=size, spans=spans)) as flat:
                flat.mark(0, flat.begin(0, spans - 1))
    except BaseException:
        place.remove()  # a half-written flat layer only takes up the disk
        raise
    finally:
        writer.close()


def _reported(
    chunks: Iterator[bytes], layer: Descriptor, reporter: Reporter, cancelled: threading.Event
) -> Iterator[bytes]:
    for chunk in chunks:
        if cancelled.is_set():
            raise ImgfsError(f"layer {layer.digest.short}: cancelled")
        reporter.layer_advances(layer, len(chunk))
        yield chunk


@contextmanager
def _where(place: str) -> Iterator[None]:
    """Say in an InvalidImage which layer it is about."""
    try:
        yield
    except InvalidImage as error:
        raise InvalidImage(str(error), where=place) from error


def _is_merged(manifest: Digest, store: Store) -> bool:
    path = store.tree(manifest)
    if path is None:
        return False
    try:
        Tree(path).close()
    except StoreError:
        return False
    return True


def _merge(resolved: Resolved, store: Store) -> None:
    with ExitStack() as stack:
        indexes = [
            stack.enter_context(open_index(store.layer(layer.digest))) for layer in resolved.manifest.layers
        ]
        merge(indexes, stack.enter_context(store.new_tree(resolved.tree)))


def open_index(place: Layer) -> LayerIndex:
    """The index of a layer that has been prepared; raises StoreError if it is gone."""
    path = place.index
    if path is None:
        raise StoreError(f"{place.directory}: the index has been removed meanwhile; mount the image again")
    return LayerIndex(path)
