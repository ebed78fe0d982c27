"""A whole image made ready to read: resolved, its layers indexed, its tree merged, all in the store.

`prepare` does what needs network and time and leaves the result in the store; `Image` opens that result.
They are two steps because a daemon forks in between: nothing open crosses the fork.
"""

from __future__ import annotations

from imgfs.image.image import Image
from imgfs.image.indexing import Reporter
from imgfs.image.prepare import prepare
from imgfs.image.resolve import Earlier, Resolved, resolve, resolve_earlier
from imgfs.image.trust import Trust

__all__ = ["Earlier", "Image", "Reporter", "Resolved", "Trust", "prepare", "resolve", "resolve_earlier"]
