"""Verification of layers by their DiffIDs, once all of their bytes are present.

An imported index is a repository's word, or named by a manifest: enough to read by, but not proved, and
valid for few images (`image.trust`). The image's config has each layer's DiffID, so a complete layer can be
checked. Then its index is written anew from its own bytes and counts as verified, and so does a tree that is
merged from such indexes. If the DiffID is another, the bytes are evicted, reads fail, and the index of that
voucher is not used for this DiffID again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from imgfs.content.layer import LayerContent
from imgfs.errors import ImgfsError, IntegrityError, InvalidImage
from imgfs.image.image import Image
from imgfs.image.trust import open_index, refutation
from imgfs.layer.index import LayerIndex
from imgfs.layer.schema import TAR
from imgfs.oci.descriptor import Digest
from imgfs.starting import try_thread
from imgfs.store.layer import StoredLayer
from imgfs.store.store import Store
from imgfs.tree.reader import Tree

log = logging.getLogger(__name__)

_READ_SIZE = 1 << 20  # bytes of a flat layer that are read at once
_EVERY = 5.0  # seconds between checks for complete layers
_MOST_PUT_OFF = 12  # checks that are put off in a row
_PATIENCE = 5.0  # seconds to wait for a verification under way at the end


class Verifier:
    """Verifies an image's layers as they become complete; once started, in a thread of its own."""

    def __init__(self, image: Image, store: Store) -> None:
        self._image = image
        self._store = store
        self._known: set[Digest] = set()  # the layers whose verification has ended
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to check now and then, if any layer is unverified."""
        if any(self._unverified()):
            self._thread = try_thread(self._run, "imgfs-prove")

    def stop(self) -> None:
        """Stop; wait for the thread, but not for another process that it waits for."""
        self._stopped.set()
        if self._thread:
            self._thread.join(_PATIENCE)

    def verify_complete(self) -> None:
        """Verify every layer that is complete by now. A wrong one is logged, and its reads fail."""
        ready = [content for content in self._unverified() if content.is_complete()]
        for content in ready:
            self._verify_and_log(content)
        if ready:
            self._merge_anew()

    def _run(self) -> None:
        quiet = QuietPeriod()
        while not self._stopped.wait(_EVERY) and any(self._unverified()):
            if quiet.has_come(sum(content.flat.count_present() for content in self._image.content.layers)):
                self.verify_complete()

    def check(self, content: LayerContent) -> bool:
        """Verify a complete layer by its DiffID; return False if it is not complete after all.

        Raises IntegrityError or InvalidImage if it has another DiffID: its reads fail from then on. Raises
        StoreError if it cannot be verified.
        """
        stored, origin = self._store.layer(content.layer.digest), content.index.summary.origin
        _, diff_id = self._image.resolved.layers[content.layer.digest]
        with stored.lock():
            try:
                return self._prove(content, stored)
            except (IntegrityError, InvalidImage) as error:
                for occurrence in self._same(content):
                    occurrence.refuse(error)
                stored.refute(refutation(origin, diff_id))
                self._store.remove_tree(self._image.resolved.tree)
                raise

    def verify_all(self) -> None:
        """Verify every layer, all being complete; raises what `check` raises for the first that is wrong."""
        for content in list(self._unverified()):
            self.check(content)
        self._merge_anew()

    def _unverified(self) -> Iterator[LayerContent]:
        """Yield the distinct layers whose index is vouched for, but not verified."""
        distinct = {content.layer.digest: content for content in self._image.content.layers}
        for digest, content in distinct.items():
            summary = content.index.summary
            if summary.origin and summary.space == TAR and digest not in self._known:
                yield content

    def _same(self, content: LayerContent) -> list[LayerContent]:
        """Return all occurrences of a layer in the image: it may have it several times."""
        layers = self._image.content.layers
        return [other for other in layers if other.layer.digest == content.layer.digest]

    def _verify_and_log(self, content: LayerContent) -> None:
        name, origin = content.layer.digest.short, content.index.summary.origin
        try:
            if not self.check(content):
                return
            log.info("layer %s is here whole and has its DiffID: its index is verified", name)
        except (IntegrityError, InvalidImage) as error:
            log.error(  # noqa: TRY400  (a line for a person)
                "layer %s: the index that %s vouches for is wrong; nothing of the layer is shown any more, "
                "mount the image again: %s",
                name,
                origin,
                error,
            )
        except ImgfsError as error:
            log.warning("layer %s cannot be held against its DiffID: %s", name, error)
        self._known.add(content.layer.digest)

    def _prove(self, content: LayerContent, stored: StoredLayer) -> bool:
        """Write a verified index to the store, and switch to it. Under the layer's lock."""
        from imgfs.layer.indexwriter import IndexWriter  # here: most mounts need neither
        from imgfs.layer.verify import verify_index

        _, diff_id = self._image.resolved.layers[content.layer.digest]
        with open_index(stored) as index:
            is_of_it = index.summary.diff_id == str(diff_id) and content.flat.is_bound_to(index.binding())
            if not is_of_it:
                return True  # both have been replaced in the store; this mount goes on with its open files
            if index.summary.origin:  # else another mount has been here before
                read = partial(self._read, content)
                try:
                    with stored.new_index() as path, closing(IndexWriter(path)) as writer:
                        verify_index(index, content.layer, diff_id, read, writer)
                        if index.is_determined():
                            content.flat.rebind(_binding_of(path))
                except _Incomplete:
                    return False
        for occurrence in self._same(content):
            self._image.use_index(occurrence, stored)
        return True

    def _read(self, content: LayerContent, start: int, end: int) -> Iterator[bytes]:
        """Yield bytes of a flat layer, without counting them as a reader's."""
        for offset in range(start, end, _READ_SIZE):
            length = min(_READ_SIZE, end - offset)
            first, last = content.table.holding(offset, length)
            marks = content.flat.marks(first, last)
            body = None if self._stopped.is_set() else content.flat.read(offset, length, marks, first)
            if body is None:
                raise _Incomplete
            yield body

    def _merge_anew(self) -> None:
        """Merge a tree that needs no voucher, for later mounts, if all indexes are verified."""
        resolved = self._image.resolved
        path = self._store.tree(resolved.tree)
        if self._stopped.is_set() or path is None:
            return
        try:
            with ExitStack() as stack:
                layers = (self._store.layer(layer.digest) for layer in resolved.manifest.layers)
                summaries = [stack.enter_context(open_index(stored)).summary for stored in layers]
                known = not any(summary.origin or summary.is_lean for summary in summaries)
                if known and stack.enter_context(Tree(path)).origin:
                    from imgfs.image.prepare import merge_layers  # here: as above

                    merge_layers(resolved, self._store)
        except ImgfsError as error:
            log.warning("the layers are not merged anew: %s", error)


class QuietPeriod:
    """Detects that no spans arrive any more: fetching and its readers need the processor, too.

    A reader that never pauses puts the check off _MOST_PUT_OFF times at most.
    """

    def __init__(self) -> None:
        self._present = -1
        self._put_off = 0

    def has_come(self, present: int) -> bool:
        """Return True if as many spans are `present` as at the last call, or the check was put off often."""
        has_come = present == self._present or self._put_off == _MOST_PUT_OFF
        self._present = present
        self._put_off = 0 if has_come else self._put_off + 1
        return has_come


class _Incomplete(Exception):
    """A span of the layer is absent, or the verifier is being stopped."""


def _binding_of(path: Path) -> bytes:
    with LayerIndex(path) as index:
        return index.binding()
