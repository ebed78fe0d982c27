"""Fill the status of a mount: `imgfs.status.MountStatus`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from imgfs.layer.origin import repositories_in
from imgfs.mount.serving import MountOptions
from imgfs.status import EndpointStatus, FillStatus, LayerStatus, MountStatus, ScratchStatus
from imgfs.store.store import Store

if TYPE_CHECKING:
    from imgfs.content.layer import LayerContent
    from imgfs.image.image import Image


def status(image: Image, store: Store, options: MountOptions, began: float) -> MountStatus:
    """The status of a mount that `began` at a time in seconds since 1970."""
    resolved, scratch = image.resolved, options.scratch
    traffic = image.source.traffic()
    counts = image.content.snapshot()
    layers = zip(image.content.layers, counts["layers"], strict=True)
    return MountStatus(
        image=resolved.reference,
        digest=str(resolved.digest),
        platform=str(resolved.config.platform),
        mountpoint=str(options.mountpoint),
        store=str(store.root),
        scratch=ScratchStatus(str(scratch.directory), scratch.name, not scratch.volatile)
        if scratch
        else None,
        tree=repositories_in(image.tree.origin) or "verified",
        metrics=str(options.metrics) if options.metrics else None,
        endpoints=tuple(EndpointStatus(**each) for each in getattr(image.source, "health", list)()),
        pid=os.getpid(),
        began=began,
        seconds=round(time.time() - began, 3),
        requests_fetched=traffic.requests,
        bytes_fetched=traffic.bytes,
        bytes_served=image.content.served,
        spans_recorded=counts["recorded"],
        fill=FillStatus(**counts["fill"]) if counts["fill"] else None,
        layers=tuple(_layer_status(content, counted) for content, counted in layers),
    )


def _layer_status(content: LayerContent, counted: dict[str, Any]) -> LayerStatus:
    return LayerStatus.from_json(
        {
            "digest": str(content.layer.digest),
            "format": content.index.summary.format,
            "size": content.layer.size,
            "flat_size": content.index.summary.flat_size,
            "index": content.index.summary.trusted_by or "verified",
            "bytes_fetched": content.fetched,
            **counted,
        }
    )
