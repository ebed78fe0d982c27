"""How much is taken of a registry's documents, and how much has come of it."""

from __future__ import annotations

from typing import NamedTuple

MAX_MANIFEST = 4 << 20  # bytes; what the spec asks registries to accept ("Pushing Manifests")
MAX_DOCUMENT = 8 << 20  # bytes of a config


class Traffic(NamedTuple):
    """Requests sent and body bytes received so far."""

    requests: int
    bytes: int
