"""Which credentials have opened which image: the registry is asked once, and that is remembered.

What is cached on a node was fetched by one pod's secret. Another pod's has to open the image, too: otherwise
it would be shown by its digest, which asks no registry, or while the registry is away (of pulls kubelet knows
this as KEP-2535). A grant is an empty file, whose name tells nothing without the node's own key.
"""

from __future__ import annotations

import hmac
import os
import secrets
import time
from pathlib import Path

from imgfs.errors import StoreError
from imgfs.owned.writing import os_errors
from imgfs.store.atomic import atomic_write
from imgfs.store.times import moment_of

_KEY = "key"
_BYTES = 32
_UNUSED = 90 * 86_400.0  # seconds after which a grant is forgotten


class Grants:
    """The grants in the directory `place`. Raises StoreError where that cannot be read or written."""

    def __init__(self, place: Path) -> None:
        self._place = place
        with os_errors(place):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (place / _KEY).exists():
                with atomic_write(place / _KEY) as temporary:
                    temporary.touch(mode=0o600)
                    temporary.write_bytes(secrets.token_bytes(_BYTES))
            self._key = (place / _KEY).read_bytes()
            if len(self._key) != _BYTES:
                raise StoreError(f"{place / _KEY}: damaged: remove it")
            for path in place.iterdir():
                if path.name != _KEY and moment_of(path.stat()) < time.time() - _UNUSED:
                    path.unlink()

    def has(self, secret: str, image: str) -> bool:
        """Return True if the registry has given `image`, a reference with a digest, to this secret before."""
        path = self._path(secret, image)
        with os_errors(path):
            if not path.exists():
                return False
            os.utime(path)
            return True

    def add(self, secret: str, image: str) -> None:
        """Remember that it has."""
        path = self._path(secret, image)
        with os_errors(path):
            path.touch(mode=0o600)

    def _path(self, secret: str, image: str) -> Path:
        words = "\0".join((secret, image)).encode()
        return self._place / hmac.digest(self._key, words, "sha256").hex()
