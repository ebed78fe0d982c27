"""A source that is opened when something is wanted of it: an image that is here whole wants nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from imgfs.registry.amounts import Traffic
from imgfs.source import Source
from imgfs.source.wrapped import WrappedSource


class LaterSource(WrappedSource):
    """What `connect` opens, the first time it is needed. Safe in threads."""

    def __init__(self, connect: Callable[[], Source]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._opened: Source | None = None

    @property
    def _source(self) -> Source:
        with self._lock:
            if self._opened is None:
                self._opened = self._connect()
            return self._opened

    def traffic(self) -> Traffic:
        """None, until it is opened."""
        return self._opened.traffic() if self._opened else Traffic(0, 0)

    def health(self) -> list[dict[str, Any]]:
        """Nobody has been asked, until it is opened."""
        return self._opened.health() if self._opened else []

    def close(self) -> None:
        """Let go of what has been opened."""
        if self._opened:
            self._opened.close()
