"""Writing a whole flat layer by a scan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from imgfs.errors import StoreError
from imgfs.owned.held import new_file
from imgfs.store.atomic import TEMPORARY
from imgfs.store.presence import UNBOUND, drop, replace
from imgfs.store.write_at import write_at

SUFFIX = "-flat"  # ends the name of a file that a scan writes


class FlatWriter:
    """A flat layer that a scan writes: a temporary file until the scan has succeeded and `keep` is called.

    The present one is removed at once, to save disk, unless it `stays` until then: so a scan that fails costs
    no other image a cached byte. Zeros at its end may be missing until `keep`. `note_written` is called with
    the number of bytes of each write.
    """

    def __init__(
        self, directory: Path, note_written: Callable[[int], None] = lambda _: None, *, stays: bool = False
    ) -> None:
        self._directory = directory
        self._note_written = note_written
        try:
            if not stays:
                drop(directory)
            self._held = new_file(directory, TEMPORARY, SUFFIX)
        except OSError as error:
            raise StoreError(f"{directory}: cannot write to the store: {error.strerror}") from error

    def write(self, offset: int, piece: bytes | memoryview) -> None:
        """Write `piece` at `offset`. Raises StoreError."""
        write_at(self._held.fd, offset, piece)
        self._note_written(len(piece))

    def keep(self, *, size: int, spans: int, binding: bytes = UNBOUND) -> None:
        """Make it the flat layer: all of its `size` bytes are written and verified. Raises StoreError.

        `binding` names the index that verified them, as for `FlatLayer`.
        """
        try:
            replace(self._directory, self._held.path, self._held.fd, size=size, spans=spans, binding=binding)
        except OSError as error:
            raise StoreError(f"{self._directory}: cannot write to the store: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; remove it unless it was kept."""
        self._held.path.unlink(missing_ok=True)
        self._held.release()
