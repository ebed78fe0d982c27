"""Holding layers against their DiffIDs, once all of their bytes are here.

An index of others is a repository's word, or named by a manifest: enough to read by, but a word is a word,
and counts for few images (`image.trust`). The image's config has each layer's DiffID, so a layer that is here
whole can be checked. Then its index is written anew out of its own bytes and counts as verified, and so does
a tree that is merged from such indexes. If the bytes are other ones, they are forgotten, reads fail, and what
that repository says of the layer, or that manifest, is not used for this DiffID again.
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
from imgfs.image.readiness import open_index, refutation
from imgfs.layer.index import LayerIndex
from imgfs.layer.schema import TAR
from imgfs.oci.descriptor import Digest
from imgfs.store.layer import StoredLayer
from imgfs.store.store import Store
from imgfs.tree.reader import Tree

log = logging.getLogger(__name__)

_PIECE = 1 << 20  # bytes of a flat layer that are read at once
_EVERY = 5.0  # seconds between looks
_MOST_PUT_OFF = 12  # looks that are put off, one after the other
_PATIENCE = 5.0  # seconds to wait for what is under way at the end


class Verifier:
    """Checks an image's layers as they become complete, in a thread of its own once it has been told to."""

    def __init__(self, image: Image, store: Store) -> None:
        self._image = image
        self._store = store
        self._known: set[Digest] = set()  # what is known of them will not change any more
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="imgfs-prove", daemon=True)

    def start(self) -> None:
        """Begin to look now and then, if there is anything to look at."""
        if any(self._doubtful()):
            self._thread.start()

    def stop(self) -> None:
        """End; waits for the thread, but not for another process that holds it up."""
        self._stopped.set()
        if self._thread.ident:
            self._thread.join(_PATIENCE)

    def look(self) -> None:
        """Check every layer that is here whole by now. What is wrong is logged, and not shown any more."""
        ready = [content for content in self._doubtful() if _is_whole(content)]
        for content in ready:
            self._look_at(content)
        if ready:
            self._merge_anew()

    def _run(self) -> None:
        lull = Lull()
        while not self._stopped.wait(_EVERY) and any(self._doubtful()):
            if lull.is_here(sum(content.flat.count_present() for content in self._image.content.layers)):
                self.look()

    def check(self, content: LayerContent) -> bool:
        """Hold a layer that is here whole against its DiffID; False if it is not here whole after all.

        Raises IntegrityError or InvalidImage if it is another: nothing of it is shown any more, then. Raises
        StoreError if that cannot be found out.
        """
        stored, origin = self._store.layer(content.layer.digest), content.index.summary.origin
        _, diff_id = self._image.resolved.layers[content.layer.digest]
        with stored.lock():
            try:
                return self._prove(content, stored)
            except (IntegrityError, InvalidImage) as error:
                for one in self._same(content):
                    one.refuse(error)
                stored.refute(refutation(origin, diff_id))
                self._store.remove_tree(self._image.resolved.tree)
                raise

    def verify_all(self) -> None:
        """Check every layer, all being here whole; raises what `check` raises of the first that is wrong."""
        for content in list(self._doubtful()):
            self.check(content)
        self._merge_anew()

    def _doubtful(self) -> Iterator[LayerContent]:
        """The layers of which the DiffID says something new, each once."""
        distinct = {content.layer.digest: content for content in self._image.content.layers}
        for digest, content in distinct.items():
            summary = content.index.summary
            if summary.origin and summary.space == TAR and digest not in self._known:
                yield content

    def _same(self, content: LayerContent) -> list[LayerContent]:
        """All that the image has of the layer: it may have it several times."""
        return [one for one in self._image.content.layers if one.layer.digest == content.layer.digest]

    def _look_at(self, content: LayerContent) -> None:
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
        """Have a verified index in the store, and use that. Under the layer's lock."""
        from imgfs.layer.indexwriter import IndexWriter  # here: most mounts need none of it
        from imgfs.layer.verify import verify_index

        _, diff_id = self._image.resolved.layers[content.layer.digest]
        with open_index(stored) as index:
            is_of_it = index.summary.diff_id == str(diff_id) and content.flat.is_bound_to(index.binding())
            if not is_of_it:
                return True  # it has been replaced, with its flat layer; what is ours lives as long as we do
            if index.summary.origin:  # else another mount has been here before
                read = partial(self._read, content)
                try:
                    with stored.new_index() as path, closing(IndexWriter(path)) as writer:
                        verify_index(index, content.layer, diff_id, read, writer)
                        if index.is_determined():
                            content.flat.rebind(_binding_of(path))
                except _Incomplete:
                    return False
        for one in self._same(content):
            self._image.use_index(one, stored)
        return True

    def _read(self, content: LayerContent, start: int, end: int) -> Iterator[bytes]:
        """Bytes of a flat layer, nobody's read being counted."""
        for offset in range(start, end, _PIECE):
            length = min(_PIECE, end - offset)
            first, last = content.table.holding(offset, length)
            marks = content.flat.marks(first, last)
            body = None if self._stopped.is_set() else content.flat.read(offset, length, marks, first)
            if body is None:
                raise _Incomplete
            yield body

    def _merge_anew(self) -> None:
        """Have a tree that nobody needs to vouch for, for the mounts to come, if that can be had now."""
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


class Lull:
    """Notices that nothing arrives any more: whoever makes it arrive needs the processor, too.

    Who reads without end is not waited for without end.
    """

    def __init__(self) -> None:
        self._present = -1
        self._put_off = 0

    def is_here(self, present: int) -> bool:
        """Whether as many spans are `present` as the last time somebody asked, or that has been long ago."""
        is_here = present == self._present or self._put_off == _MOST_PUT_OFF
        self._present = present
        self._put_off = 0 if is_here else self._put_off + 1
        return is_here


class _Incomplete(Exception):
    """Some of the layer is not here, or there is no time to look."""


def _binding_of(path: Path) -> bytes:
    with LayerIndex(path) as index:
        return index.binding()


def _is_whole(content: LayerContent) -> bool:
    return content.flat.count_present() == content.flat.spans
