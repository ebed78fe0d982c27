"""Reads of bytes that are on the disk and not in memory: by the event loop while the disk is quick.

Handing a read to a thread takes longer than an SSD needs for it. So the event loop itself waits for the disk,
as it does when it reads the tree, until the disk has been slow: then threads read for a while, each of which
holds up its own reader only. Time spent waiting for a processor does not count as the disk's: on a busy
machine another thread would wait for one, too.
"""

from __future__ import annotations

import os
import time

from imgfs.fuse.views import FromDisk

_QUICK = 0.0003  # seconds that a read may take on average: a thread and the ways there and back take as long
_MOST = 0.02  # seconds that the last reads together may have taken beyond that
_PAUSE = 1.0  # seconds before a slow disk is tried again


class DiskReads:
    """Reads from the disk as long as that is quick. For one thread."""

    def __init__(self) -> None:
        self._run_delay = RunDelay()
        self._lost = 0.0  # seconds beyond what quick reads take, paid back by quicker ones
        self._again = 0.0  # when the disk is tried again, by the monotonic clock

    def read(self, from_disk: FromDisk) -> memoryview | None:
        """Return what `from_disk` reads; None if the disk is slow, or bytes are gone. Raises ImgfsError.

        How long the thread has waited for a processor is asked before the disk is waited for, which reads
        meanwhile (`FlatLayer.read_into`), and after it only where that counts.
        """
        began = time.monotonic()
        if began < self._again:
            return None
        delayed = self._run_delay.seconds()
        body = from_disk()
        if body is None:
            return None
        now = time.monotonic()
        if now - began > _QUICK:
            self._note(now, now - began - (self._run_delay.seconds() - delayed))
        elif self._lost:
            self._note(now, now - began)
        return body

    def _note(self, now: float, took: float) -> None:
        self._lost = max(0.0, self._lost + took - _QUICK)
        if self._lost > _MOST:
            self._lost, self._again = 0.0, now + _PAUSE


class RunDelay:
    """The time that a thread, the first that asks, has spent waiting for a processor."""

    def __init__(self) -> None:
        self._fd = -1

    def seconds(self) -> float:
        """Return the seconds; 0 if the kernel does not count them."""
        try:
            if self._fd < 0:
                self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            # on a processor, waiting for one: nanoseconds
            return int(os.pread(self._fd, 100, 0).split()[1]) / 1e9
        except (OSError, LookupError, ValueError):
            return 0.0

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
