"""A whole image made ready to read: resolved, its layers indexed, its tree merged, all in the store.

`prepare` does what needs network and time and leaves the result in the store; `Image` opens that result.
They are two steps because a daemon forks in between: nothing open crosses the fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Protocol

from imgfs.content import FETCHERS, Content, LayerContent
from imgfs.errors import ImgfsError, IntegrityError, InvalidImage, StoreError
from imgfs.layer.index import IndexWriter, LayerIndex
from imgfs.layer.scan import scan
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.image import (
    ImageConfig,
    Index,
    Manifest,
    check_layers,
    choose_platform,
    parse_config,
    parse_document,
)
from imgfs.source import Source
from imgfs.store import Layer, Store
from imgfs.tree.merge import merge
from imgfs.tree.tree import Tree

# Layers streamed at once: a scan keeps more than one core busy, so more of them only get in each other's way.
SCANNERS = min(4, max(2, os.cpu_count() or 2))
_PIECE = 1 << 20  # bytes that `Image.read` reads at once
_FAREWELL = 1.0  # seconds for scans to tidy up when the user interrupts them
_NESTING = 4  # indexes inside indexes


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


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference means for a platform: documents only."""

    reference: str
    named: Digest  # what the reference names: an index or a manifest
    digest: Digest  # of the manifest
    media_type: str
    manifest: Manifest
    config: ImageConfig

    @property
    def layers(self) -> Mapping[Digest, tuple[Descriptor, Digest]]:
        """Every distinct layer with its DiffID: an image may name the same one several times."""
        pairs = zip(self.manifest.layers, self.config.diff_ids, strict=True)
        return {layer.digest: (layer, diff_id) for layer, diff_id in pairs}


def resolve(reference: str, source: Source, store: Store, wanted: Platform) -> Resolved:
    """Find the manifest and config of `reference` for the platform `wanted`; keep them in the store.

    Documents already in the store are not fetched again. Raises ImgfsError.
    """
    named = source.resolve()
    descriptor, document = named, _document(named, source, store)
    for _ in range(_NESTING):
        if not isinstance(document, Index):
            break
        descriptor = choose_platform(document, wanted)
        document = _document(descriptor, source, store)
    if isinstance(document, Index):
        raise InvalidImage(f"indexes nested more than {_NESTING} deep", where=reference)
    config = parse_config(_body(document.config, source, store), document.config.media_type)
    check_layers(document, config)
    resolved = Resolved(reference, named.digest, descriptor.digest, document.media_type, document, config)
    store.put_resolution(reference, named.digest, descriptor.digest)
    return resolved


def prepare(resolved: Resolved, source: Source, store: Store, reporter: Reporter) -> None:
    """Have every layer indexed and the tree merged, in the store.

    Layers without an index are streamed, several at once. Raises ImgfsError, the first that happens; what
    other layers have finished by then is kept.
    """
    cancelled = threading.Event()
    workers = ThreadPoolExecutor(SCANNERS, thread_name_prefix="imgfs-scan")

    def index_one(pair: tuple[Descriptor, Digest]) -> None:
        if not cancelled.is_set():
            _index_layer(*pair, source, store.layer(pair[0].digest), reporter, cancelled)

    # The largest first: it takes longest, and the others fill the gaps.
    pairs = sorted(resolved.layers.values(), key=lambda pair: -pair[0].size)
    futures = [workers.submit(index_one, pair) for pair in pairs]
    try:
        for future in as_completed(futures):
            future.result()
    except KeyboardInterrupt:  # the process is about to end: a registry that hangs must not hold it up
        cancelled.set()
        workers.shutdown(wait=False, cancel_futures=True)
        wait([future for future in futures if not future.cancelled()], _FAREWELL)
        raise
    except BaseException:
        cancelled.set()
        workers.shutdown(cancel_futures=True)
        raise
    workers.shutdown()
    if not _is_merged(resolved.digest, store):
        reporter.merging()
        _merge(resolved, store)


def _document(descriptor: Descriptor, source: Source, store: Store) -> Manifest | Index:
    return parse_document(_body(descriptor, source, store), descriptor.media_type)


def _body(descriptor: Descriptor, source: Source, store: Store) -> bytes:
    body = store.document(descriptor.digest)
    if body is None:
        body = source.document(descriptor)
        store.put_document(descriptor.digest, body)
    return body


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
            stack.enter_context(_open_index(store.layer(layer.digest))) for layer in resolved.manifest.layers
        ]
        merge(indexes, stack.enter_context(store.new_tree(resolved.digest)))


def _open_index(place: Layer) -> LayerIndex:
    path = place.index
    if path is None:
        raise StoreError(f"{place.directory}: the index has been removed meanwhile; mount the image again")
    return LayerIndex(path)


class Image(AbstractContextManager["Image"]):
    """An image that `prepare` has prepared: its tree and its files' bytes. A context manager.

    `source` brings what the store lacks. Raises StoreError if the store does not hold the image.
    """

    def __init__(self, resolved: Resolved, source: Source, store: Store) -> None:
        self.resolved = resolved
        self.source = source
        with ExitStack() as stack:
            path = store.tree(resolved.digest)
            if path is None:
                raise StoreError(f"{resolved.reference}: the tree has been removed meanwhile; mount it again")
            self.tree = stack.enter_context(Tree(path))
            pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="imgfs-fetch")
            layers = [self._open_layer(layer, store, pool, stack) for layer in resolved.manifest.layers]
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            self.content = Content(layers)
            self._stack = stack.pop_all()

    def _open_layer(
        self, layer: Descriptor, store: Store, pool: ThreadPoolExecutor, stack: ExitStack
    ) -> LayerContent:
        place = store.layer(layer.digest)
        stack.enter_context(place.use())
        index = stack.enter_context(_open_index(place))
        spans = index.span_count()
        flat = place.flat(size=index.summary.flat_size, spans=spans)
        stack.callback(flat.close)
        return LayerContent(layer, index, flat, self.source, pool)

    def read(self, ino: int) -> Iterator[bytes]:
        """All bytes of a file, in order, a piece at a time."""
        node = self.tree.node(ino)
        layer, extents = self.tree.extents(ino)
        size = node.size if node else 0
        for offset in range(0, size, _PIECE):
            yield self.content.read(layer, extents, offset, min(_PIECE, size - offset))

    def close(self) -> None:
        """Close everything but the source."""
        self._stack.close()

    def __exit__(self, *_: object) -> None:
        self.close()
