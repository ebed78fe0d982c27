"""Which published indexes are used: by itself, as every command that takes an image has an option for it."""

from __future__ import annotations

from enum import StrEnum


class Policy(StrEnum):
    """Which published indexes are used."""

    AUTO = "auto"  # those that the registry vouches for, unless the reference has a digest
    ANY = "any"  # those that the registry vouches for
    VERIFIED = "verified"  # those alone that the image's own digest covers
    NONE = "none"  # none: stream every layer once, from the registry or from peers
