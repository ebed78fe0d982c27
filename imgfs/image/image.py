"""A prepared image, opened: its tree and its files' bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial

from imgfs.content.content import Content
from imgfs.content.layer import LayerContent
from imgfs.content.scheduler import FetchPool
from imgfs.errors import StoreError
from imgfs.image.resolve import Resolved
from imgfs.image.trust import PEERS, Readiness, Trust, open_index, refutation
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.policy import Policy
from imgfs.oci.reference import parse_reference
from imgfs.registry.endpoint import Traffic
from imgfs.store.layer import StoredLayer
from imgfs.store.open_files import allow_open_layers
from imgfs.store.store import Store
from imgfs.transport.source import Source
from imgfs.tree.reader import Tree

log = logging.getLogger(__name__)

_READ_SIZE = 1 << 20  # bytes that `Image.read` reads at once


class OpenLayers(AbstractContextManager["OpenLayers"]):
    """The layers of an image that have indexes, opened: their bytes, with or without its tree.

    `source` fetches what the store lacks. Raises StoreError if the store lacks an index, or has one that
    `trust` does not allow (by default, those of the reference's repository are allowed). `stats` is a file
    for their statistics, in which those of an earlier process go on.
    """

    def __init__(
        self, resolved: Resolved, source: Source, store: Store, trust: Trust | None = None, stats: int = -1
    ) -> None:
        self.resolved = resolved
        self.source = source
        self.locks: tuple[int, ...] = ()  # descriptors of the locks that say that its layers are in use
        self._store = store
        self._readiness = readiness_of(resolved, store, trust)
        self._indexes = [self._index_file(layer) for layer in resolved.manifest.layers]
        with ExitStack() as stack:
            fetch_pool = FetchPool()
            allow_open_layers(len(resolved.manifest.layers))
            layers = [self._open_layer(layer, fetch_pool, stack) for layer in resolved.manifest.layers]
            stack.callback(fetch_pool.close)
            self.content = Content(layers, stats=stats)
            stack.callback(self.content.stop)
            self._stack = stack.pop_all()

    def _open_layer(self, layer: Descriptor, fetch_pool: FetchPool, stack: ExitStack) -> LayerContent:
        stored = self._store.layer(layer.digest)
        self.locks = (*self.locks, stack.enter_context(stored.use()))
        index = stack.enter_context(open_index(stored))
        if not self._readiness.accepts_index(index, *self.resolved.layers[layer.digest]):
            name = f"{self.resolved.reference}: layer {layer.digest.short}"
            raise StoreError(f"{name}: its index is another image's by now; mount it again")
        spans = index.span_count()
        flat = stored.flat(size=index.summary.flat_size, spans=spans, binding=index.binding())
        stack.callback(flat.close)
        content = LayerContent(layer, index, flat, self.source, fetch_pool)
        if not index.is_scanned():
            content.on_misplaced(partial(_forget_index, stored, self.resolved.layers[layer.digest][1]))
        return content

    def is_current(self) -> bool:
        """Return True if the store still has the indexes that they were opened by."""
        return self._indexes == [self._index_file(layer) for layer in self.resolved.manifest.layers]

    def _index_file(self, layer: Descriptor) -> tuple[int, int] | None:
        """Return which file a layer's index is: one that is open keeps its number when it is replaced."""
        path = self._store.layer(layer.digest).index
        try:
            found = path.stat() if path else None
        except OSError:
            return None
        return (found.st_dev, found.st_ino) if found else None

    def use_index(self, content: LayerContent, stored: StoredLayer) -> None:
        """Switch to the index that the store has now of a layer; it must have the same spans."""
        content.use_index(self._stack.enter_context(open_index(stored)))

    def close(self) -> None:
        """Close everything but the source."""
        self._stack.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def readiness_of(resolved: Resolved, store: Store, trust: Trust | None) -> Readiness:
    """Return what is here of an image, by `trust`: by default indexes of its repository are allowed."""
    return Readiness(resolved, store, trust or Trust.of(parse_reference(resolved.reference), Policy.ANY))


class Image(AbstractContextManager["Image"]):
    """An image that `prepare` has prepared: its tree and its files' bytes. A context manager.

    `source`, `trust` and `stats` are as for `OpenLayers`. Raises StoreError as these, and if the store does
    not hold the tree: another process may have prepared another image meanwhile that shares layers.
    `versions` is a tree of the same layers that has all versions of files, too (`tree.versions`). It is
    closed with the image, and so are its layers if they are `opened` already, by the same source.
    """

    def __init__(
        self,
        resolved: Resolved,
        source: Source,
        store: Store,
        trust: Trust | None = None,
        *,
        versions: Tree | None = None,
        stats: int = -1,
        opened: OpenLayers | None = None,
    ) -> None:
        self.resolved = resolved
        self.source = source
        self._store = store
        self._readiness = readiness_of(resolved, store, trust)
        with ExitStack() as stack:
            if opened:
                stack.enter_context(opened)
            self.tree = stack.enter_context(versions or _open_tree(resolved, store))
            if not self._readiness.accepts_tree(self.tree):
                raise StoreError(f"{resolved.reference}: the tree is another's by now; mount it again")
            layers = opened or stack.enter_context(OpenLayers(resolved, source, store, trust, stats))
            self.locks, self.content, self.use_index = layers.locks, layers.content, layers.use_index
            self.is_current = layers.is_current
            self.content.walk_by(self.tree.files_after)
            self._stack = stack.pop_all()

    def tree_after(self, layers: int) -> Tree:
        """Open the tree as it was after so many of the layers, whose bytes this image has as well.

        It is closed with the image. Raises StoreError if it has not been prepared (see `Resolved.up_to`).
        """
        part = self.resolved.up_to(str(layers))
        tree = self._stack.enter_context(_open_tree(part, self._store))
        spaces = [layer.index.summary.space for layer in self.content.layers[:layers]]
        if not self._readiness._replace(resolved=part).accepts_tree(tree) or tree.spaces() != spaces:
            raise StoreError(f"{part.reference}: the tree of layer {layers} is another's by now")
        return tree

    def read(self, ino: int) -> Iterator[bytes]:
        """Yield all bytes of a file, in order."""
        node = self.tree.node(ino)
        layer, extents = self.tree.extents(ino)
        size = node.size if node else 0
        for offset in range(0, size, _READ_SIZE):
            yield self.content.read(layer, extents, offset, min(_READ_SIZE, size - offset))

    def traffic(self) -> Traffic:
        """Return the requests sent and bytes received so far, by earlier processes of the mount, too."""
        return Traffic(*self.content.traffic(*self.source.traffic()))

    def close(self) -> None:
        """Close everything but the source."""
        self._stack.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _forget_index(stored: StoredLayer, diff_id: Digest) -> None:
    """Have the layer indexed anew by the next mount, and not as peers say; this one has its files open."""
    try:
        with stored.lock():
            stored.refute(refutation(PEERS, diff_id))
    except StoreError as error:
        log.warning("layer %s: its index stays: %s", stored.digest.short, error)


def _open_tree(resolved: Resolved, store: Store) -> Tree:
    path = store.tree(resolved.tree)
    if path is None:
        raise StoreError(f"{resolved.reference}: the tree has been removed meanwhile; mount it again")
    return Tree(path)
