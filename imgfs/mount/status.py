"""What `imgfs status` shows."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from imgfs.layer.origin import repositories_in
from imgfs.mount.serving import MountOptions
from imgfs.store.store import Store

if TYPE_CHECKING:
    from imgfs.image.image import Image


def status(image: Image, store: Store, options: MountOptions, began: float) -> dict[str, Any]:
    """What `imgfs status` shows. Sizes and counts of bytes are as their names say, times in seconds."""
    resolved, scratch = image.resolved, options.scratch
    traffic = image.source.traffic()
    counts = image.content.snapshot()
    return {
        "image": resolved.reference,
        "digest": str(resolved.digest),
        "platform": str(resolved.config.platform),
        "mountpoint": str(options.mountpoint),
        "store": str(store.root),
        "scratch": scratch
        and {"directory": str(scratch.directory), "name": scratch.name, "kept": not scratch.volatile},
        "tree": repositories_in(image.tree.origin) or "verified",
        "metrics": str(options.metrics) if options.metrics else None,
        "endpoints": getattr(image.source, "health", list)(),
        "driver": "fuse",
        "pid": os.getpid(),
        "began": began,
        "seconds": round(time.time() - began, 3),
        "requests_fetched": traffic.requests,
        "bytes_fetched": traffic.bytes,
        "bytes_served": image.content.served,
        "spans_recorded": counts["recorded"],
        "fill": counts["fill"],
        "layers": [
            {
                "digest": str(content.layer.digest),
                "format": content.index.summary.format,
                "size": content.layer.size,
                "flat_size": content.index.summary.flat_size,
                "index": content.index.summary.trusted_by or "verified",
                "bytes_fetched": content.fetched,
                **counted,
            }
            for content, counted in zip(image.content.layers, counts["layers"], strict=True)
        ],
    }
