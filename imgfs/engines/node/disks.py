"""Whether kubelet sees the disk that a store is on: it looks at one, to remove images in time."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def unseen_disk(store: Path, seen: Path) -> str | None:
    """Return what to say of a store that is not on the disk that kubelet looks at, `seen`; None if it is.

    Neither has to be there yet: what counts is the directory that it will be made in.
    """
    if _device(store) == _device(seen):
        return None
    return (
        f"the store {store} is not on the disk of {seen}, at which kubelet looks to remove images in time: "
        "have it ask for images by `imgfs cri`, which tells it of both, or name a --store on that disk"
    )


def _device(path: Path) -> int:
    for place in (path, *path.parents):
        with suppress(OSError):
            return os.stat(place).st_dev
    return 0
