"""One layer without an index: import one that was made elsewhere, or stream the layer and scan it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from imgfs.errors import (
    ImgfsError,
    IntegrityError,
    InvalidImage,
    RegistryError,
    StoreError,
)
from imgfs.image.discover import IndexDiscovery, doing_without
from imgfs.image.import_index import import_published, import_toc, import_ztoc
from imgfs.image.scanners import Scanners
from imgfs.image.trust import PEERS, Trust, refutation
from imgfs.layer.flat_digests import add_flat_digests, flat_digests
from imgfs.layer.growing import GrowingIndex, growing_index
from imgfs.layer.index import LayerIndex
from imgfs.layer.scan import Bomb
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.store.layer import StoredLayer
from imgfs.store.partial import StoredPiece, UnreadablePartial
from imgfs.store.staging import FlatWriter
from imgfs.transport.resumable import ResumableDownloads
from imgfs.transport.source import Source

if TYPE_CHECKING:
    from imgfs.image.peer_stream import PeerStream

log = logging.getLogger(__name__)

_ALLOWANCE = 1.1  # of the room that a layer takes: its index, and the guess
_SMALL = 256 << 10  # bytes of a blob that is streamed without looking for its table of contents


class PrepareReporter(Protocol):
    """Progress of a long preparation; its methods are called from several threads."""

    def expects(self, layers: Iterable[Descriptor]) -> None:
        """Note the layers that are to be indexed, one after the other."""

    def layer_begins(self, layer: Descriptor) -> None:
        """Note that a layer without an index is about to be streamed."""

    def layer_has(self, layer: Descriptor, count: int) -> None:
        """Note that `count` bytes of a layer that has begun were here before."""

    def layer_advances(self, layer: Descriptor, count: int) -> None:
        """Note that `count` more compressed bytes of it have arrived."""

    def layer_waits(self, layer: Descriptor) -> None:
        """Note that another process streams it, and that this one waits for its index."""

    def layer_ends(self, layer: Descriptor) -> None:
        """Note that a layer has an index."""

    def merging(self) -> None:
        """Note that the layers are being merged."""

    def warns(self, text: str) -> None:
        """Warn that an index or profile is not used; `text` says why."""


class ScanFollower(Protocol):
    """What is told of a layer's scans, in the thread that streams the layer."""

    def scanning(self, index: GrowingIndex) -> None:
        """Follow a scan that is about to begin, by its growing index."""

    def scanned(self, index: LayerIndex) -> None:
        """Take, and close, the complete index of a scan that has ended; it is not synced or stored yet."""


class LayerIndexing:
    """A locked layer, and the ways to get an index of it.

    With `downloads`, what has come of it is kept until it has one.
    """

    def __init__(
        self,
        layer: Descriptor,
        diff_id: Digest,
        stored: StoredLayer,
        *,
        source: Source,
        trust: Trust,
        reporter: PrepareReporter,
        downloads: ResumableDownloads | None = None,
    ) -> None:
        self._layer = layer
        self._diff_id = diff_id
        self._stored = stored
        self._source = source
        self._trust = trust
        self._reporter = reporter
        self._downloads = downloads
        self._kept = 0  # bytes that an earlier download has left
        self._fetch_error: ImgfsError | None = None  # what ended a download, if it was not what it brought
        self._has_doubted = False
        self._doubted: PeerStream | None = None  # what peers sent, if it was wrong
        self._read = self._decoded = 0  # bytes of the blob, and of the layer

    def import_existing(self, discovery: IndexDiscovery, *, tag: str | None, lean: bool) -> bool:
        """Import the best index of the layer that was made elsewhere; False if there is none.

        imgfs's own first: it costs least. A small layer is streamed in the time of a lookup. `tag` is the
        image's.
        """
        return self._import_published(discovery, lean) or (
            self._layer.size > _SMALL and (self._import_toc(tag) or self._import_ztoc(discovery))
        )

    def take_from_peers(self, cancelled: threading.Event) -> bool:
        """Have peers send the flat layer, and say how the blob is cut; return False if it must be streamed.

        They are asked nothing if what they have said of this one was wrong.
        """
        is_refuted = self._stored.is_refuted(refutation(PEERS, self._diff_id))
        if is_refuted or not self._source.peers():
            return False
        from imgfs.image.peer_stream import open_peer_stream  # here: most have no peers

        def advances(count: int) -> None:
            if cancelled.is_set():
                raise ImgfsError(f"layer {self._layer.digest.short}: cancelled")
            self._reporter.layer_advances(self._layer, count)

        new_writer = partial(self._stored.flat_writer, stays=True)
        stream = open_peer_stream(self._layer, self._diff_id, self._source, new_writer, advances)
        if stream is None:
            return False
        self._reporter.layer_begins(self._layer)
        try:
            stream.take(self._stored)
        except (IntegrityError, InvalidImage) as error:
            what = f"layer {self._layer.digest.short}"
            self._reporter.warns(f"{what} is not as peers say, and comes from the registry: {error}")
            self._doubted, stream = stream, None
        except RegistryError as error:  # said by the registry's stream, if it goes on
            log.info("layer %s: its stream from peers ends: %s", self._layer.digest.short, error)
        else:
            return True
        finally:
            if stream:
                stream.close()
        return False

    def stream(self, scanners: Scanners, cancelled: threading.Event, follower: ScanFollower) -> None:
        """Download the layer and have it scanned; if its bytes are wrong, once more without what was kept of
        it, and once from another endpoint.
        """
        try:
            self._stream(scanners, cancelled, follower)
            if self._downloads:
                self._downloads.judge_peers(self._layer, self._source, self._stored)
        finally:
            if self._doubted:
                self._doubted.close()

    def _stream(self, scanners: Scanners, cancelled: threading.Event, follower: ScanFollower) -> None:
        unkept: StoreError | None = None
        while True:
            try:
                self._stream_once(scanners, cancelled, follower)
            except (IntegrityError, InvalidImage, UnreadablePartial) as error:
                if not self._may_try_again(error):
                    raise
            except StoreError as error:
                if not self._has_room_alone():
                    raise
                unkept = error
                self._stored.drop_part()
                self._downloads = None
            else:
                break
        if unkept:
            self._reporter.warns(f"fetched twice, as there was no room to keep what came of it: {unkept}")

    def _has_room_alone(self) -> bool:
        """Return True if the disk has no room for both the flat layer and the blob, but for the former.

        The flat layer's size is a guess by what has been decoded of it.
        """
        ratio = max(1.0, self._decoded / self._read if self._read else 1.0)
        flat = self._layer.size * ratio * _ALLOWANCE
        free, kept = self._stored.free(), self._stored.partial()
        return free < flat + self._layer.size - kept and flat < free + kept

    def _may_try_again(self, error: ImgfsError) -> bool:
        """Remove what is kept of bytes that were wrong; return True if others may be right."""
        if error is not self._fetch_error and self._doubts_peers(error):
            self._reporter.warns(f"what peers have sent of a layer is fetched from the registry: {error}")
            return True
        kept, self._kept = self._kept, 0
        if error is not self._fetch_error:  # what was fetched is wrong, not the answer to a request
            self._stored.drop_part()
            if kept and not self._are_bytes_right(error):
                self._reporter.warns(f"what was here of a layer is fetched again: {error}")
                return True
        if self._has_doubted or not isinstance(error, IntegrityError):
            return False
        self._has_doubted = self._source.doubt(self._layer)
        if self._has_doubted:
            self._reporter.warns(f"asking elsewhere: {error}")
        return self._has_doubted

    def _doubts_peers(self, error: ImgfsError) -> bool:
        """Have what peers have sent of wrong bytes fetched again; False if it is not their fault."""
        if self._downloads is None or isinstance(error, UnreadablePartial) or self._are_bytes_right(error):
            return False
        return self._downloads.doubt_peers(self._layer, self._stored)

    def _are_bytes_right(self, error: ImgfsError) -> bool:
        """Return True if the blob has its digest, so that it is the image that is wrong."""
        if isinstance(error, IntegrityError):
            return error.expected != self._layer.digest
        return isinstance(error, InvalidImage) and not isinstance(error, Bomb)

    def _stream_once(self, scanners: Scanners, cancelled: threading.Event, follower: ScanFollower) -> None:
        self._fetch_error = None
        self._reporter.layer_begins(self._layer)
        writer = self._stored.flat_writer(stays=True)  # another image may need the present one
        try:
            with (
                _where(f"layer {self._layer.digest.short}"),
                self._stored.new_index() as path,
                growing_index(path) as growing,
            ):
                follower.scanning(growing)
                chunks = self._chunks(cancelled)
                try:
                    size = scanners.scan(chunks, self._layer, self._diff_id, writer, path)
                finally:
                    with suppress(ValueError):  # a thread still waits for the network in it
                        chunks.close()
                if self._source.peers():  # whose bytes are checked by them, once these are evicted
                    add_flat_digests(path, self._flat_digests(path, writer))
                with ExitStack() as stack:
                    written = stack.enter_context(LayerIndex(path))
                    if self._doubted:
                        self._doubted.judge(writer, written)
                    # Before the index can be seen: from then on the flat layer may be evicted.
                    writer.keep(size=size, spans=written.span_count(), binding=written.binding())
                    stack.pop_all()
                    follower.scanned(written)
                    growing.complete(written)
        finally:
            self._decoded = writer.end
            writer.close()

    def _flat_digests(self, path: Path, writer: FlatWriter) -> bytes:
        """Return the digests of the spans of the index at `path`, of the bytes that have the DiffID."""
        with LayerIndex(path) as index:
            return flat_digests(((start, end) for start, end, _, _ in index.bounds()), writer.read)

    def _import_published(self, discovery: IndexDiscovery, lean: bool) -> bool:
        published = discovery.published.layers.get(self._layer.digest)
        if published is None:
            return False
        with self._doing_without("the index published with the image"):
            import_published(
                published,
                self._layer,
                self._diff_id,
                self._stored,
                self._source,
                self._trust.origin,
                lean=lean,
            )
            return True
        return False

    def _import_toc(self, tag: str | None) -> bool:
        if not self._trust.in_digests:
            return False
        with self._doing_without("its table of contents"):
            origin = self._trust.origin
            return import_toc(self._layer, self._diff_id, self._stored, self._source, tag, origin)
        return False

    def _import_ztoc(self, discovery: IndexDiscovery) -> bool:
        offered = discovery.ztoc(self._layer.digest)
        if offered is None:
            return False
        with self._doing_without("its zTOC"):
            ztoc, origin = offered
            if self._stored.is_refuted(refutation(origin, self._diff_id)):
                raise InvalidImage(f"that which {origin} vouches for was wrong")
            import_ztoc(ztoc, self._layer, self._diff_id, self._stored, self._source, origin)
            return True
        return False

    def _doing_without(self, what: str) -> AbstractContextManager[None]:
        return doing_without(f"layer {self._layer.digest.short}: {what}", self._reporter.warns)

    def _note_kept(self, count: int) -> None:
        """Note, and tell, that `count` bytes of the layer are here from before."""
        self._kept = count
        if count:
            self._reporter.layer_has(self._layer, count)

    def _chunks(self, cancelled: threading.Event) -> Generator[bytes | StoredPiece, None, None]:
        """Yield the layer's blob, reporting what arrives; what was kept has been reported already."""
        told = self._read = 0
        for chunk in self._fetched():
            if cancelled.is_set():
                raise ImgfsError(f"layer {self._layer.digest.short}: cancelled")
            self._read += len(chunk)
            if self._read > self._kept + told:
                self._reporter.layer_advances(self._layer, self._read - self._kept - told)
                told = self._read - self._kept
            yield chunk

    def _fetched(self) -> Iterator[bytes | StoredPiece]:
        try:
            if self._downloads is None:
                yield from self._source.blob(self._layer)
            else:
                yield from self._downloads.blob(self._layer, self._source, self._stored, self._note_kept)
        except UnreadablePartial:
            raise
        except ImgfsError as error:
            self._fetch_error = error
            raise


@contextmanager
def _where(name: str) -> Iterator[None]:
    """Add the layer's name to an InvalidImage."""
    try:
        yield
    except InvalidImage as error:
        raise type(error)(str(error), where=name) from error
