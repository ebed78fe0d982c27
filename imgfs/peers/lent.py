"""Files that several requests read at once, and that are closed after the last of them."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Generic, Protocol, TypeVar


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


class Lent(Generic[T]):
    """An open `item`; it is closed once it has been dropped, and no `with` uses it."""

    def __init__(self, item: T) -> None:
        self._item = item
        self._users = 0
        self._is_dropped = False
        self._lock = threading.Lock()

    def take(self) -> Lent[T]:
        """Count one more user, for the length of a `with`."""
        with self._lock:
            self._users += 1
        return self

    def drop(self) -> None:
        """Close it once it has no user."""
        with self._lock:
            self._is_dropped = True
            self._close_if_unused()

    def __enter__(self) -> T:
        return self._item

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._users -= 1
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._is_dropped and not self._users:
            self._item.close()
