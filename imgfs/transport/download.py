"""One blob on its way into a partial download of the store: from one source, by one request or several."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from imgfs.errors import IntegrityError
from imgfs.oci.descriptor import Descriptor
from imgfs.parallel import ThreadPool
from imgfs.store.partial import FETCHED, UNIT, PartialBlob
from imgfs.transport.source import Source

REQUEST = 8 << 20  # bytes asked for at once, where there are several connections


class Download:
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
        self._connections = connections

    def begin(self) -> None:
        """Begin to fetch."""
        ranges = list(self._part.missing(REQUEST if self._connections > 1 else self._descriptor.size))
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
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _bring(self, wanted: tuple[int, int], others: Sequence[tuple[int, int]] = ()) -> None:
        try:
            with self._turns:
                self._fetch(wanted, others)
        except Exception as error:  # noqa: BLE001  (raised to the thread that waits)
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Have `error` raised to the thread that waits, unless another one is."""
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

    def _mark(self, unit: int, until: int, mark: int = FETCHED) -> int:
        """Mark the units from `unit` on that end before the offset `until`; the first one that does not."""
        with self._changed:
            while unit < self._part.units and self._part.bounds(unit)[1] <= until:
                self._part.mark(unit, mark)
                unit += 1
            self._changed.notify_all()
        return unit
