"""Whole blobs that resume: what has come is kept in the store until the layer has its index.

A layer without an index is streamed from its start to its end. If that breaks off, by a signal, a full disk
or a registry that goes away, what has come must not be fetched again: so the bytes are kept in the store
(`store.partial`) as they come, and handed on in order. Nothing of them is believed: the scan checks the
digest of the whole blob, whichever process fetched which part of it, from whichever registry.

The download runs ahead of its reader, as fast as the link: what has been sent is on disk, not in a socket.
It may come by several ranges at once, as one connection seldom fills a link; but not from a registry that
answers a range with the whole blob, which RFC 9110 (14.2) allows: there one request fetches what is missing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from imgfs.errors import IntegrityError
from imgfs.oci.descriptor import Descriptor
from imgfs.parallel import ThreadPool
from imgfs.store.layer import StoredLayer
from imgfs.store.partial import UNIT, PartialBlob, StoredPiece
from imgfs.transport.source import Source

AT_ONCE = 8  # requests under way for all layers together
_REQUEST = 8 << 20  # bytes asked for at once, where there are several connections
_WORTHWHILE = 4 * UNIT  # bytes of a blob: a smaller one is streamed, and begun anew
# Bytes that a blob says it has: a larger one, too. Its marks, a byte for each unit, would be what the image's
# author likes; those of this are 512 KiB.
_LARGEST_KEPT = 128 << 30


class ResumableDownloads:
    """Downloads of whole blobs, each by up to `connections` at once."""

    def __init__(self, connections: int = 1) -> None:
        self._connections = connections
        self._turns = threading.BoundedSemaphore(AT_ONCE)

    def blob(
        self, descriptor: Descriptor, source: Source, stored: StoredLayer, found: Callable[[int], None]
    ) -> Iterator[bytes | StoredPiece]:
        """Yield a blob, whole: what is kept of it, and the rest from `source`; what is kept is not read here.

        The caller holds the layer's lock, and removes what is kept with `drop_part`. `found` is told how many
        bytes of it were kept already.
        """
        if not _WORTHWHILE <= descriptor.size <= _LARGEST_KEPT:
            yield from source.blob(descriptor)
            return
        with closing(stored.part(descriptor.size)) as part:
            found(part.here())
            with closing(_Download(descriptor, source, part, self._turns, self._connections)) as download:
                for unit in range(part.units):
                    download.wait_for(unit)
                    yield part.piece(unit)


class _Download:
    """What is missing of one blob, on its way into `part`."""

    def __init__(
        self,
        descriptor: Descriptor,
        source: Source,
        part: PartialBlob,
        turns: threading.BoundedSemaphore,
        connections: int,
    ) -> None:
        self._descriptor = descriptor
        self._source = source
        self._part = part
        self._turns = turns
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._ended = False
        self._pool = ThreadPool(connections, thread_name_prefix="imgfs-part")
        ranges = list(part.missing(_REQUEST if connections > 1 else descriptor.size))
        if ranges:
            self._pool.submit(self._bring, ranges[0], ranges[1:])

    def wait_for(self, unit: int) -> None:
        """Wait until a unit is there; raises what keeps it, or another one, away."""
        with self._changed:
            self._changed.wait_for(lambda: self._part.has(unit) or self._error)
        if self._error and not self._part.has(unit):
            raise self._error

    def close(self) -> None:
        """Give up what has not come; what is under way ends at its next chunk."""
        self._ended = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _bring(self, wanted: tuple[int, int], others: Sequence[tuple[int, int]] = ()) -> None:
        try:
            with self._turns:
                self._fetch(wanted, others)
        except Exception as error:  # noqa: BLE001  (raised to the thread that waits)
            with self._changed:
                self._error = self._error or error
                self._ended = True
                self._changed.notify_all()

    def _fetch(self, wanted: tuple[int, int], others: Sequence[tuple[int, int]]) -> None:
        """Fetch a range and, once its first chunk shows that ranges are answered, the others beside it."""
        at, end = self._receive(wanted, others)
        if at != end and not self._ended and self._source.ignores_ranges(self._descriptor):
            at, end = self._receive((at, self._descriptor.size))
        if at != end and not self._ended:
            what = f"length of bytes {wanted[0]} to {end} of blob {self._descriptor.digest.short}"
            raise IntegrityError(what, expected=end - wanted[0], actual=at - wanted[0])

    def _receive(self, wanted: tuple[int, int], others: Sequence[tuple[int, int]] = ()) -> tuple[int, int]:
        """Write what comes of a range; return where that ended, and where it ought to end.

        It ends early, before the `others` are begun, if each of them would cost the whole blob.
        """
        at, end = wanted
        unit = at // UNIT
        for chunk in self._source.blob(self._descriptor, at, end):
            if self._ended:
                break
            self._part.write(at, chunk[: end - at])
            at += len(chunk)
            unit = self._mark(unit, min(at, end))
            if others and self._source.ignores_ranges(self._descriptor):
                break
            for other in others:
                self._pool.submit(self._bring, other)
            others = ()
        return at, end

    def _mark(self, unit: int, until: int) -> int:
        """Mark the units from `unit` on that end before the offset `until`; the first one that does not."""
        with self._changed:
            while unit < self._part.units and self._part.bounds(unit)[1] <= until:
                self._part.mark(unit)
                unit += 1
            self._changed.notify_all()
        return unit
