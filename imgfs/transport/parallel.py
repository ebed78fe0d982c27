"""Large layers by several ranges at once, and resumable: what has come is kept until all of it has.

A layer without an index is streamed from its start to its end. One connection seldom fills a link, and
a stream that breaks off would have to begin anew: so the bytes are fetched in ranges, kept aside
(`store.partial`) and handed on in order as they come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.store.partial import UNIT, PartialBlob
from imgfs.store.store import Store
from imgfs.transport.source import Source
from imgfs.transport.wrapped import WrappedSource

AT_ONCE = 8  # requests under way for all layers together
_OF_ONE = 4  # of them for one layer
_REQUEST = 8 * UNIT
_WORTHWHILE = 4 * UNIT  # bytes of a blob: a smaller one is streamed


class ParallelSource(WrappedSource):
    """A source whose whole blobs, if they are among `layers`, come by several ranges at once.

    They are asked for under the layers' locks. `found` is told how many bytes of one were here already.
    """

    def __init__(
        self,
        source: Source,
        store: Store,
        layers: Collection[Digest],
        found: Callable[[Descriptor, int], None],
    ) -> None:
        super().__init__(source)
        self._store = store
        self._layers = layers
        self._found = found
        self._turns = threading.BoundedSemaphore(AT_ONCE)

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """A blob, whole by several ranges at once; a piece of one as always."""
        is_whole = (start, end) == (0, None) and descriptor.digest in self._layers
        if not is_whole or descriptor.size < _WORTHWHILE:
            return self._source.blob(descriptor, start, end)
        return self._in_order(descriptor)

    def _in_order(self, descriptor: Descriptor) -> Iterator[bytes]:
        part = self._store.layer(descriptor.digest).part(descriptor.size)
        with closing(part):
            self._found(descriptor, part.here())
            with closing(_Download(descriptor, self._source, part, self._turns)) as download:
                for unit in range(part.units):
                    download.wait_for(unit)
                    yield part.read(unit)
            part.remove()  # who reads it has got it, or finds it wrong: then it is no use, either


class _Download:
    """What is missing of one blob, on its way into `part`."""

    def __init__(
        self, descriptor: Descriptor, source: Source, part: PartialBlob, turns: threading.BoundedSemaphore
    ) -> None:
        self._descriptor = descriptor
        self._source = source
        self._part = part
        self._turns = turns
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._ended = False
        self._pool = ThreadPoolExecutor(_OF_ONE, thread_name_prefix="imgfs-part")
        for start, end in part.missing(_REQUEST):
            self._pool.submit(self._bring, start, end)

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

    def _bring(self, start: int, end: int) -> None:
        try:
            with self._turns:
                self._fetch(start, end)
        except Exception as error:  # noqa: BLE001  (who waits gets it)
            with self._changed:
                self._error = self._error or error
                self._ended = True
                self._changed.notify_all()

    def _fetch(self, start: int, end: int) -> None:
        if self._ended:
            return
        unit = start // UNIT
        for chunk in self._source.blob(self._descriptor, start, end):
            if self._ended:
                return
            self._part.write(start, chunk)
            start += len(chunk)
            unit = self._mark(unit, start)

    def _mark(self, unit: int, until: int) -> int:
        """Mark the units from `unit` on that end before the offset `until`; the first one that does not."""
        with self._changed:
            while unit < self._part.units and self._part.bounds(unit)[1] <= until:
                self._part.mark(unit)
                unit += 1
            self._changed.notify_all()
        return unit
